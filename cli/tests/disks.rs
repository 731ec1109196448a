//! Import and export with block devices and with full disks. Needs root, for the devices.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::process::Command;

use common::{Place, qemu_img, sha256_of, text};
use serde_json::Value;

const SIZE: u64 = 32 << 20;

/// A loop device on `file`; detached when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &str) -> Self {
        let output = Command::new("/sbin/losetup")
            .args(["--find", "--show", file])
            .output();
        let output = output.expect("losetup");
        assert!(output.status.success(), "{output:?}");
        LoopDevice(
            String::from_utf8(output.stdout)
                .expect("UTF-8")
                .trim()
                .to_owned(),
        )
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("/sbin/losetup")
            .args(["--detach", &self.0])
            .status();
    }
}

#[test]
fn block_devices_are_read_and_with_force_written() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    place
        .run(&["volume", "import", text(&raw), "web", "-f", "raw"])
        .ok();
    let disk = place.text("disk");
    fs::write(&disk, vec![0xee; (SIZE + (1 << 20)) as usize]).expect("disk");
    let device = LoopDevice::new(&disk);
    let export = |name: &str, more: &[&str]| {
        place.json(&[&["volume", "export", name, &device.0, "--verify"], more].concat())
    };
    export("web", &["-f", "raw"]).error(14, "InvalidInput");
    export("web", &["-f", "qcow2", "--force"]).error(14, "InvalidInput");
    place.run(&["volume", "create", "large", "1GiB"]).ok();
    export("large", &["-f", "raw", "--force"]).error(16, "NoSpace");
    let before = sha256_of(&disk);
    assert_eq!(
        export("web", &["-f", "raw", "--force"]).json()["sha256"],
        sha256_of(text(&raw)).as_str()
    );
    assert_ne!(sha256_of(&disk), before);
    let imported = place
        .json(&["volume", "import", &device.0, "back", "-f", "raw"])
        .json();
    assert_eq!(imported["image_size"], SIZE + (1 << 20));
    place
        .run(&["volume", "export", "back", "back", "-f", "raw"])
        .ok();
    let back = fs::read(place.path("back")).expect("back");
    assert!(back[..SIZE as usize] == fs::read(&raw).expect("raw"));
    assert!(
        back[SIZE as usize..].iter().all(|&b| b == 0xee),
        "past the volume nothing is written"
    );
    // An image on the device, as on a logical volume.
    let qcow2 = place.text("small.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), &qcow2]);
    let image = fs::read(&qcow2).expect("qcow2");
    fs::write(&device.0, image).expect("device");
    place
        .run(&[
            "volume", "import", &device.0, "inner", "-f", "qcow2", "--verify",
        ])
        .ok();
}

/// A small file system in memory; unmounted when dropped.
struct SmallDisk(String);

impl SmallDisk {
    fn new(place: &Place) -> Self {
        let at = place.text("small");
        fs::create_dir(&at).expect("mount point");
        let mount = Command::new("/bin/mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs", &at])
            .status();
        assert!(mount.expect("mount").success());
        SmallDisk(at)
    }

    fn files(&self) -> usize {
        fs::read_dir(&self.0).expect("list").count()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("/bin/umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_told_of_and_nothing_half_is_kept() {
    let place = Place::new();
    let disk = SmallDisk::new(&place);
    fs::write(place.path("image"), vec![7; 20 << 20]).expect("image");
    place
        .run(&["volume", "import", "image", "web", "-f", "raw"])
        .ok();
    for format in ["raw", "qcow2"] {
        let out = format!("{}/out", disk.0);
        let error = place
            .json(&["volume", "export", "web", &out, "-f", format])
            .error(16, "NoSpace");
        assert_eq!(error["context"]["image"], out.as_str());
        assert_eq!(disk.files(), 0);
    }
    fs::create_dir(place.path("small/pool")).expect("pool");
    let small = format!("dir://{}/pool?refuse_percent=100", disk.0);
    let on_small = |args: &[&str]| place.json(&[&["-p", &small], args].concat());
    place
        .json(&["volume", "copy", "web", "web", "--to", &small])
        .error(16, "NoSpace");
    // Known not to fit, and, compressed, found out only on the way.
    on_small(&["volume", "import", "image", "web", "-f", "raw"]).error(16, "NoSpace");
    let packed = place.text("packed");
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    qemu_img(&[&convert[..], &[&place.text("image"), &packed]].concat());
    let error = on_small(&["volume", "import", &packed, "web", "-f", "qcow2"]).error(16, "NoSpace");
    assert_eq!(error["op"], "qemu_img_convert");
    assert_eq!(on_small(&["volume", "list"]).ok(), "");
    assert_eq!(
        on_small(&["pool", "audit"]).json()["findings"],
        Value::Array(Vec::new())
    );
}

//! What is rendered is taken by those who get it: QEMU (its command line and its monitor), a shell,
//! an XML parser. Needs root, for a loop device and tgtd.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::Place;
use common::qemu::{Qemu, give};
use common::serving::{Serving, tool};
use volmux::hypervisor::{Hypervisor, RenderOptions};
use volmux::{
    Access, AttachOptions, AttachTarget, Attachment, ChapReference, Holder, NbdAddress, Sharing,
    VolumeId, VolumeName,
};
use volmux_conformance::on;
use volmux_conformance::scratch::LoopFs;
use volmux_iscsi_initiator::Credentials;
use volmux_iscsi_server::{INITIATOR, Setup, target_name};

const MIB: u64 = 1 << 20;
const ODD: &str = "a, b='c' \"d\" & <e> $f `g` \\h é:€ ,file.x=y";

fn attachment(access: Access, target: AttachTarget) -> Attachment {
    Attachment {
        volume: VolumeName::new("web").expect("a good name"),
        id: VolumeId::from_u128(0x326f_4278_f84c_4d52_a47d_f53e_3cab_fea7),
        holder: Holder::new(INITIATOR).expect("a good holder"),
        access,
        target,
    }
}

/// One after the other: the first one's lock is gone with it.
fn give_both(target: &AttachTarget, format: &str) {
    let options = RenderOptions::default();
    let mut qemu = give(
        &attachment(Access::ReadWrite, target.clone()),
        &options,
        format,
    );
    let wrote = qemu.io("write -P 0x5a 4096 65536");
    assert!(wrote.contains("wrote 65536/65536"), "{wrote}");
    assert_eq!(qemu.io("flush"), "");
    drop(qemu);
    let mut qemu = give(
        &attachment(Access::ReadOnly, target.clone()),
        &options,
        format,
    );
    let read = qemu.io("read -P 0x5a 4096 65536");
    assert!(read.contains("read 65536/65536"), "{read}");
    assert!(!read.contains("failed"), "{read}");
    let refused = qemu.io("write -P 1 0 4096");
    assert!(!refused.contains("wrote"), "{refused}");
}

#[test]
fn qemu_takes_a_file_of_any_name() {
    let place = Place::new();
    let path = place.path(ODD);
    fs::write(&path, vec![0; MIB as usize]).expect("a file");
    let target = AttachTarget::File { path };
    give_both(&target, "raw");
    // Its lock keeps the next one out.
    let attached = attachment(Access::ReadWrite, target);
    let _qemu = give(&attached, &RenderOptions::default(), "raw");
    let line = attached.render(Hypervisor::Qemu, &RenderOptions::default());
    let said = Qemu::try_start(&line.expect("rendered").arguments).expect_err("locked");
    assert!(said.contains("lock"), "{said}");
}

#[test]
fn qemu_takes_a_file_where_there_is_no_direct_access() {
    let fs = LoopFs::tmpfs(8 * MIB);
    let path = fs.path().join("disk");
    fs::write(&path, vec![0; MIB as usize]).expect("a file");
    let options = RenderOptions {
        page_cache: true,
        ..RenderOptions::default()
    };
    let attached = attachment(Access::ReadWrite, AttachTarget::File { path });
    give(&attached, &options, "raw");
}

#[test]
fn qemu_takes_volumes_of_a_directory_pool_and_their_images() {
    let fs = LoopFs::ext4(256 * MIB);
    let url = format!("dir://{}", fs.path().display());
    on(async {
        let pool = volmux::registry().open(&url).await.expect("the pool");
        let (web, snap) = (name("web"), name("snap"));
        let size = volmux::CreateOptions::thin(volmux::ByteSize::mib(8));
        pool.create_volume(&web, size).await.expect("create");
        let raw = pool.attach_volume(&web, writer()).await.expect("attach");
        let mut qemu = give(&raw, &RenderOptions::default(), "raw");
        qemu.io("write -P 0x11 0 65536");
        qemu.io("flush");
        drop(qemu);
        pool.detach_volume(&web, &writer().holder)
            .await
            .expect("detach");
        let snapshot = pool.snapshot_volume(&web, &snap, Default::default());
        snapshot.await.expect("snapshot");
        let image = pool.attach_volume(&web, writer()).await.expect("attach");
        assert!(
            matches!(image.target, AttachTarget::Qcow2 { .. }),
            "{image:?}"
        );
        let mut qemu = give(&image, &RenderOptions::default(), "qcow2");
        let read = qemu.io("read -P 0x11 0 65536");
        assert!(
            read.contains("read 65536/65536") && !read.contains("failed"),
            "{read}"
        );
        qemu.io("write -P 0x22 0 4096");
        drop(qemu);
        let options = AttachOptions {
            access: Access::ReadOnly,
            ..writer()
        };
        let old = pool.attach_volume(&snap, options).await.expect("attach");
        let mut qemu = give(&old, &RenderOptions::default(), "raw");
        let read = qemu.io("read -P 0x11 0 65536");
        assert!(
            read.contains("read 65536/65536") && !read.contains("failed"),
            "{read}"
        );
    });
}

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a good name")
}

fn writer() -> AttachOptions {
    AttachOptions {
        holder: Holder::new("host-1").expect("a good holder"),
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    }
}

/// A loop device on `file`; detached when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &Path) -> Self {
        let output = Command::new("/sbin/losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .expect("losetup");
        assert!(output.status.success(), "{output:?}");
        let name = String::from_utf8(output.stdout).expect("UTF-8");
        LoopDevice(name.trim().to_owned())
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
fn qemu_takes_a_block_device() {
    let place = Place::new();
    let image = place.image("image", 8 * MIB);
    let device = LoopDevice::new(&image);
    let link = place.path("by, id");
    symlink(&device.0, &link).expect("a link");
    for path in [Path::new(&device.0), &link] {
        give_both(&AttachTarget::BlockDevice { path: path.into() }, "raw");
    }
}

#[test]
fn qemu_takes_a_volume_of_an_object_pool_over_nbd() {
    let place = Place::new();
    fs::create_dir(place.path("objects")).expect("a directory");
    let pool = format!("file+object://{}", place.text("objects"));
    let run = |args: &[&str]| {
        let mut command = place.command(args);
        command.env("VOLMUX_POOL", &pool);
        command
    };
    let done = common::finish(
        run(&["volume", "create", "web", "8MiB"])
            .spawn()
            .expect("run"),
    );
    done.ok();
    // It attaches nothing.
    let attach = run(&["--json", "volume", "attach", "web", "vm", "--for", "qemu"]);
    let mut attach = attach;
    common::finish(attach.spawn().expect("run")).error(13, "Unsupported");
    let serving = Serving::spawn(run(&["export", "web", "--socket", "a b,c.sock"]));
    serving.line();
    let target = AttachTarget::Nbd {
        address: NbdAddress::Unix {
            path: place.path("a b,c.sock"),
        },
        export: "web".into(),
        tls: false,
    };
    give_both(&target, "raw");
    serving.stop();
}

#[test]
fn qemu_logs_in_to_an_iscsi_target_with_chap() {
    let place = Place::new();
    let server = Setup::new()
        .target(Some(INITIATOR))
        .lun(8 * MIB, 512)
        .incoming(&Credentials::new("host", "a secret of 16 b"))
        .start();
    let secret = place.path("secret, with a comma");
    fs::write(&secret, "a secret of 16 b\n").expect("a secret");
    let target = AttachTarget::Iscsi {
        portal: server.portal(),
        target: target_name(1),
        lun: 1,
        serial: "not looked at".into(),
        chap: Some(ChapReference {
            user: "host".into(),
            secret: secret.clone(),
        }),
        mutual_chap: None,
    };
    // QEMU takes the whole file for the secret, as the documentation says.
    let attached = attachment(Access::ReadWrite, target.clone());
    let line = attached.render(Hypervisor::Qemu, &RenderOptions::default());
    Qemu::try_start(&line.expect("rendered").arguments).expect_err("another secret");
    fs::write(&secret, "a secret of 16 b").expect("a secret");
    give_both(&target, "raw");
}

#[test]
fn a_shell_makes_the_same_arguments_of_the_text() {
    let path = Path::new("/srv").join(ODD);
    let attached = attachment(Access::ReadWrite, AttachTarget::File { path });
    let done = attached.render(Hypervisor::Qemu, &RenderOptions::default());
    let done = done.expect("rendered");
    let script = format!("printf '%s\\n' {}", done.text);
    for shell in ["/bin/sh", "/bin/bash"] {
        let output = tool(shell, &["-c", &script]);
        let words: Vec<_> = output.ok().lines().collect();
        assert_eq!(words, done.arguments, "{shell}");
    }
}

/// Prints what is in the attributes and the text of an XML document.
const PARSE: &str = "
import sys, xml.etree.ElementTree as tree
for e in tree.fromstring(sys.argv[1]).iter():
    print(e.tag, sorted(e.attrib.items()), (e.text or '').strip())
";

#[test]
fn an_xml_parser_gets_the_values_back() {
    let odd = "/srv/a\tb 'c' \"d\" & <e> ]]> é € 😀 &amp; &#10;";
    let attached = attachment(Access::ReadOnly, AttachTarget::File { path: odd.into() });
    let done = attached.render(Hypervisor::Libvirt, &RenderOptions::default());
    let parsed = tool("python3", &["-c", PARSE, &done.expect("rendered").text]);
    let parsed = parsed.ok();
    let quoted = odd.replace('\t', "\\t").replace('\'', "\\'");
    let source = format!("source [('file', '{quoted}')]");
    assert!(parsed.contains(&source), "{source}\n{parsed}");
    assert!(
        parsed.contains(&format!("serial [] {}", attached.id)),
        "{parsed}"
    );
    assert!(parsed.contains("readonly []"), "{parsed}");
}

/// Xen's qdisk and loop devices write without a lock that would tell.
#[test]
fn a_volume_is_not_detached_under_who_writes_it_silently() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    let attached = place.run(&["attach", "web", "host-1"]);
    let path = Path::new(attached.ok().trim());
    let detach = || place.run(&["--json", "detach", "web", "host-1"]);
    let refused = |user: &str| {
        let error = detach().error(17, "Busy");
        let who = error["context"]["used_by"].as_str().expect("who");
        assert!(who.contains(user), "{who}");
    };
    let device = LoopDevice::new(path);
    refused(&device.0);
    drop(device);
    let file = fs::OpenOptions::new().write(true).open(path);
    let mut writer = Command::new("sleep")
        .arg("1000")
        .stdin(file.expect("open"))
        .spawn()
        .expect("sleep");
    refused(&format!("sleep (pid {})", writer.id()));
    writer.kill().and_then(|()| writer.wait()).expect("its end");
    // Who only reads is not in the way.
    let mut reader = Command::new("sleep")
        .arg("1000")
        .stdin(fs::File::open(path).expect("open"))
        .spawn()
        .expect("sleep");
    let done = detach();
    reader.kill().and_then(|()| reader.wait()).expect("its end");
    done.ok();
}

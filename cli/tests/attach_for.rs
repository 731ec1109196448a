//! `volmux volume attach --for`.
#![allow(missing_docs)]

mod common;

use common::Place;
use common::qemu::Qemu;
use serde_json::Value;

fn place() -> Place {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    place
}

fn attach<'a>(hypervisor: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["volume", "attach", "web", "host-1", "--for", hypervisor];
    [&args, more].concat()
}

fn attachments(place: &Place) -> Value {
    place.json(&["volume", "info", "web"]).json()["attachments"].clone()
}

#[test]
fn qemu_starts_with_what_is_printed() {
    let place = place();
    let document = place.json(&attach("qemu", &[])).json();
    assert_eq!(document["schema"], "volmux.attachment.v1");
    assert_eq!(document["for"], "qemu");
    assert_eq!(document["kind"], "file");
    let arguments: Vec<String> =
        serde_json::from_value(document["arguments"].clone()).expect("texts");
    let mut qemu = Qemu::start(&arguments);
    let disks = qemu.execute("query-block", &serde_json::json!({}));
    let file = &disks[0]["inserted"]["file"];
    assert!(file.as_str().expect("a path").contains("/pool/"), "{disks}");
    drop(qemu);
    let again = place.run(&attach("qemu", &[]));
    let text = document["rendered"].as_str().expect("text");
    assert_eq!(again.ok(), format!("{text}\n"));
}

#[test]
fn each_hypervisor_gets_its_own() {
    let place = place();
    for (hypervisor, begin) in [
        ("qemu", "-blockdev '{"),
        ("qmp", "{\"arguments\":{"),
        (
            "libvirt",
            "<disk type='file' device='disk' snapshot='manual'>",
        ),
        (
            "xl",
            "format=raw,vdev=xvda,access=rw,backendtype=qdisk,discard,target=/",
        ),
    ] {
        let done = place.run(&attach(hypervisor, &[]));
        assert!(done.ok().starts_with(begin), "{done:?}");
        assert_eq!(done.stderr, "");
    }
    let done = place.run(&attach(
        "xl",
        &["--device", "xvdc", "--host-device", "/dev/loop0"],
    ));
    let wanted = "format=raw,vdev=xvdc,access=rw,backendtype=phy,discard,target=/dev/loop0\n";
    assert_eq!(done.ok(), wanted);
    let scsi = place.run(&attach("libvirt", &["--scsi"]));
    assert!(
        scsi.ok().contains("<target dev='sda' bus='scsi'/>"),
        "{scsi:?}"
    );
    let plain = place.json(&["volume", "attach", "web", "host-1"]).json();
    assert!(plain.get("rendered").is_none(), "{plain}");
}

#[test]
fn what_is_read_only_is_rendered_so() {
    let place = place();
    place.run(&["volume", "snapshot", "web", "s"]).ok();
    let args = ["volume", "attach", "s", "host-1", "--read-only", "--for"];
    let libvirt = place.run(&[&args[..], &["libvirt"]].concat());
    assert!(libvirt.ok().contains("<readonly/>"), "{libvirt:?}");
    let xl = place.run(&[&args[..], &["xl"]].concat());
    assert!(xl.ok().contains("access=ro"), "{xl:?}");
}

#[test]
fn what_can_t_be_rendered_is_not_left_attached() {
    let place = place();
    for hypervisor in ["hyperv", "smapiv3"] {
        let error = place
            .json(&attach(hypervisor, &[]))
            .error(13, "Unsupported");
        assert_eq!(error["context"]["for"], hypervisor, "{error}");
        assert!(error["context"]["help"].is_string(), "{error}");
        assert_eq!(attachments(&place), Value::Array(Vec::new()));
    }
    // But what was attached before stays so.
    place.run(&["volume", "attach", "web", "host-1"]).ok();
    place.json(&attach("hyperv", &[])).error(13, "Unsupported");
    assert_eq!(attachments(&place)[0]["holder"], "host-1");
}

#[test]
fn wrong_options_attach_nothing() {
    let place = place();
    for more in [
        ["--device", "nvme0"],
        ["--node", "0"],
        ["--host-device", "sda"],
    ] {
        let done = place.json(&attach("qemu", &more));
        done.error(14, "InvalidInput");
    }
    place
        .json(&attach("hyperv", &["--read-only"]))
        .error(13, "Unsupported");
    assert_eq!(place.run(&attach("vmware", &[])).code, Some(2));
    let alone = ["volume", "attach", "web", "host-1", "--device", "vda"];
    assert_eq!(place.run(&alone).code, Some(2));
    assert_eq!(attachments(&place), Value::Array(Vec::new()));
    let nix = ["volume", "attach", "nix", "host-1", "--for", "qemu"];
    place.json(&nix).error(11, "NotFound");
}

/// By way of an image: Hyper-V's own format, and what it is given of it.
#[test]
fn hyper_v_is_given_a_vhdx_image() {
    let place = place();
    let image = place.text("web.vhdx");
    let export = ["volume", "export", "web", &image, "--format", "vhdx"];
    place.run(&export).ok();
    common::qemu_img(&["check", "-q", "-f", "vhdx", &image]);
    let path = r"\\store-1\disks\web.vhdx";
    let done = place.json(&attach("hyperv", &["--vhdx", path])).json();
    assert_eq!(done["kind"], "file");
    let module = done["rendered"].as_str().expect("text");
    assert!(module.contains(&format!("$path = '{path}'\n")), "{module}");
    assert!(module.contains("Disconnect-VolmuxVolume"), "{module}");
    // The volume is not changed by others meanwhile.
    let other = ["--json", "volume", "attach", "web", "host-2"];
    place.run(&other).error(17, "Busy");
    place.run(&["detach", "web", "host-1"]).ok();
    for (hypervisor, path) in [("hyperv", "web.vhdx"), ("qemu", path)] {
        let wrong = place.json(&attach(hypervisor, &["--vhdx", path]));
        wrong.error(14, "InvalidInput");
    }
    assert_eq!(attachments(&place), Value::Array(Vec::new()));
}

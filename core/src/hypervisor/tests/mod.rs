//! What is rendered, and what is refused.

mod golden;
mod powershell;
mod properties;
mod refused;

use super::*;
use crate::{ChapReference, Holder, NbdAddress, VolumeId, VolumeName};

const INITIATOR: &str = "iqn.1993-08.org.debian:01:abcdef";

fn attachment(access: Access, target: AttachTarget) -> Attachment {
    Attachment {
        volume: VolumeName::new("web-1").expect("a good name"),
        id: VolumeId::from_u128(0x326f_4278_f84c_4d52_a47d_f53e_3cab_fea7),
        holder: Holder::new(INITIATOR).expect("a good holder"),
        access,
        target,
    }
}

fn chap(user: &str) -> ChapReference {
    ChapReference {
        user: user.into(),
        secret: format!("/etc/volmux/{user}.secret").into(),
    }
}

fn iscsi(lun: u64, own: Option<&str>, mutual: Option<&str>) -> AttachTarget {
    AttachTarget::Iscsi {
        portal: "192.0.2.1:3260".into(),
        target: "iqn.2026-11.org.volmux:web".into(),
        lun,
        serial: "326f4278-f84c-4d52-a47d-f53e3cabfea7".into(),
        chap: own.map(chap),
        mutual_chap: mutual.map(chap),
    }
}

fn nbd_unix() -> AttachTarget {
    AttachTarget::Nbd {
        address: NbdAddress::Unix {
            path: "/run/volmux/web.sock".into(),
        },
        export: "web-1".into(),
        tls: false,
    }
}

fn nbd_tcp(tls: bool) -> AttachTarget {
    AttachTarget::Nbd {
        address: NbdAddress::Tcp {
            host: "store-1.example.org".into(),
            port: 10809,
        },
        export: "web-1".into(),
        tls,
    }
}

fn file(path: &str) -> AttachTarget {
    AttachTarget::File { path: path.into() }
}

fn block(path: &str) -> AttachTarget {
    AttachTarget::BlockDevice { path: path.into() }
}

fn qcow2(path: &str) -> AttachTarget {
    AttachTarget::Qcow2 { path: path.into() }
}

/// One of each kind, and of what makes a difference within one.
fn targets() -> Vec<(&'static str, AttachTarget)> {
    vec![
        ("file", file("/srv/volumes/web-1.raw")),
        (
            "file-odd",
            file("/srv/a, b='c' \"d\" & <e> $f `g` \\h é:€/web.raw"),
        ),
        ("qcow2", qcow2("/srv/volumes/web-1.qcow2")),
        ("block", block("/dev/vg/web-1")),
        ("iscsi-0", iscsi(0, None, None)),
        ("iscsi-1", iscsi(1, None, None)),
        ("iscsi-chap", iscsi(1, Some("host"), None)),
        ("iscsi-mutual", iscsi(1, Some("host"), Some("array"))),
        ("nbd-unix", nbd_unix()),
        ("nbd-tcp", nbd_tcp(false)),
        ("nbd-tls", nbd_tcp(true)),
    ]
}

#[test]
fn names_are_parsed_as_they_are_printed() {
    for hypervisor in Hypervisor::ALL {
        let parsed: Hypervisor = hypervisor.to_string().parse().expect("a name");
        assert_eq!(parsed, hypervisor);
    }
    let error = "vmware".parse::<Hypervisor>().expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        error.get("help"),
        Some("one of qemu, qmp, libvirt, xl, smapiv3, hyperv")
    );
}

#[test]
fn nodes_have_names_that_qemu_takes() {
    let names = ["web-1", "0", "_x", "a+b", "x.y", &"z".repeat(127), "9+"];
    let mut nodes = Vec::new();
    for name in names {
        let mut attached = attachment(Access::ReadWrite, file("/x"));
        attached.volume = VolumeName::new(name).expect("a good name");
        let done = attached.render(Hypervisor::Qemu, &RenderOptions::default());
        let node = done.expect("rendered").node.expect("a node");
        qemu::check_node(&node).expect(&node);
        nodes.push(node);
    }
    assert_eq!(nodes[0], "web-1-326f4278f84c");
    assert_eq!(nodes[1], "v0-326f4278f84c");
    assert_eq!(nodes[3], "a_b-326f4278f84c");
    assert_eq!(nodes[5].len(), 28);
}

#[test]
fn portals_are_taken_apart() {
    for (portal, host, port) in [
        ("192.0.2.1:3260", "192.0.2.1", 3260),
        ("array.example.org:860", "array.example.org", 860),
        ("[2001:db8::1]:3260", "2001:db8::1", 3260),
    ] {
        assert_eq!(split_portal(portal).expect(portal), (host, port));
    }
    for portal in [
        "",
        "host",
        ":3260",
        "host:",
        "host:x",
        "2001:db8::1:3260",
        "[host]:1",
        "a b:1",
        "a:70000",
        "a'b:1",
        "[::1:3260",
    ] {
        let error = split_portal(portal).expect_err(portal);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{portal}");
    }
}

#[test]
fn serial_numbers_are_the_volume_s_id() {
    let serial = "326f4278-f84c-4d52-a47d-f53e3cabfea7";
    for hypervisor in [Hypervisor::Qemu, Hypervisor::Qmp, Hypervisor::Libvirt] {
        let attached = attachment(Access::ReadOnly, file("/x"));
        let done = attached.render(hypervisor, &RenderOptions::default());
        let done = done.expect("rendered");
        assert_eq!(done.serial.as_deref(), Some(serial));
        assert!(done.text.contains(serial), "{}", done.text);
    }
}

#[test]
fn options_are_used() {
    let options = RenderOptions {
        node: Some("disk0".into()),
        device: Some("sdc".into()),
        bus: DiskBus::Scsi,
        bus_id: Some("scsi0.0".into()),
        shared: true,
        page_cache: true,
        secret_usage: Some("array-1".into()),
        tls_credentials: Some("/etc/tls".into()),
        host_device: None,
        vhdx: None,
    };
    let render = |target, hypervisor: Hypervisor| {
        let attached = attachment(Access::ReadWrite, target);
        attached
            .render(hypervisor, &options)
            .expect("rendered")
            .text
    };
    let qemu = render(nbd_tcp(true), Hypervisor::Qemu);
    for part in [
        r#""drive":"disk0""#,
        r#""driver":"scsi-hd""#,
        r#""device_id":"326f4278-f84c-4d52-a47d-f53e3cabfea7""#,
        r#""share-rw":true"#,
        r#""bus":"scsi0.0""#,
        r#""cache":{"direct":false,"no-flush":false}"#,
        r#""dir":"/etc/tls""#,
    ] {
        assert!(qemu.contains(part), "{part}: {qemu}");
    }
    let libvirt = render(iscsi(1, Some("host"), None), Hypervisor::Libvirt);
    for part in [
        "<target dev='sdc' bus='scsi'/>",
        "<shareable/>",
        "cache='writeback'",
        "<secret type='iscsi' usage='array-1'/>",
    ] {
        assert!(libvirt.contains(part), "{part}: {libvirt}");
    }
    assert!(render(file("/x"), Hypervisor::Xl).contains(",vdev=sdc,"));
}

#[test]
fn a_device_of_the_host_stands_for_the_target() {
    let options = RenderOptions {
        host_device: Some("/dev/disk/by-id/x".into()),
        ..RenderOptions::default()
    };
    let mutual = iscsi(1, Some("host"), Some("array"));
    for target in [nbd_unix(), nbd_tcp(true), mutual, file("/srv/web.raw")] {
        for hypervisor in Hypervisor::ALL {
            let attached = attachment(Access::ReadWrite, target.clone());
            let done = attached.render(hypervisor, &options);
            if hypervisor == Hypervisor::Hyperv {
                assert_eq!(done.expect_err("refused").kind(), ErrorKind::Unsupported);
                continue;
            }
            let text = done.expect("rendered").text;
            assert!(text.contains("/dev/disk/by-id/x"), "{text}");
        }
    }
    let image = attachment(Access::ReadWrite, qcow2("/srv/web.qcow2"));
    for hypervisor in Hypervisor::ALL {
        image.render(hypervisor, &options).expect_err("refused");
    }
}

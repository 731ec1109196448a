//! What can't be rendered says so, and what to do.

use std::os::unix::ffi::OsStrExt;

use super::*;

#[track_caller]
fn refused(target: AttachTarget, hypervisor: Hypervisor, reason: &str, help: &str) {
    let attached = attachment(Access::ReadWrite, target);
    let error = attached
        .render(hypervisor, &RenderOptions::default())
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(error.op(), "render_attachment");
    assert_eq!(error.get("volume"), Some("web-1"));
    assert_eq!(error.get("for"), Some(hypervisor.name()));
    assert!(
        error.get("reason").expect("reason").contains(reason),
        "{error}"
    );
    assert!(error.get("help").expect("help").contains(help), "{error}");
}

#[test]
fn mutual_chap_is_never_left_out() {
    let mutual = || iscsi(1, Some("host"), Some("array"));
    for hypervisor in [Hypervisor::Qemu, Hypervisor::Qmp, Hypervisor::Libvirt] {
        refused(mutual(), hypervisor, "mutual CHAP", "iscsiadm");
    }
    let xen = iscsi(0, Some("host"), Some("array"));
    refused(xen, Hypervisor::Xl, "CHAP", "iscsiadm");
    let alone = iscsi(1, None, Some("array"));
    refused(alone, Hypervisor::Hyperv, "mutual CHAP", "both secrets");
}

#[test]
fn xen_s_scripts_have_limits() {
    refused(
        iscsi(1, None, None),
        Hypervisor::Xl,
        "unit 0",
        "--host-device",
    );
    refused(
        iscsi(0, Some("a"), None),
        Hypervisor::Xl,
        "CHAP",
        "--host-device",
    );
    refused(
        nbd_unix(),
        Hypervisor::Xl,
        "qdisk",
        "nbd-client -unix /run/volmux/web.sock",
    );
    refused(
        nbd_tcp(false),
        Hypervisor::Smapiv3,
        "block devices",
        "nbd-client",
    );
    refused(file("/x"), Hypervisor::Smapiv3, "block devices", "losetup");
    let export = "volmux export web-1 --socket";
    refused(qcow2("/x"), Hypervisor::Smapiv3, "qcow2", export);
}

#[test]
fn hyper_v_takes_logical_units_and_vhdx_images() {
    refused(
        file("/x"),
        Hypervisor::Hyperv,
        "VHDX",
        "volmux volume export web-1",
    );
    refused(qcow2("/x"), Hypervisor::Hyperv, "qcow2", "--format vhdx");
    refused(block("/dev/x"), Hypervisor::Hyperv, "Linux", "iSCSI pool");
    refused(nbd_tcp(true), Hypervisor::Hyperv, "NBD", "WNBD");
    refused(file("/x"), Hypervisor::Hyperv, "VHDX", "--vhdx");
}

#[test]
fn hyper_v_has_no_read_only() {
    let options = RenderOptions::default();
    let early = Hypervisor::Hyperv.check(Access::ReadOnly, &options);
    assert_eq!(early.expect_err("refused").kind(), ErrorKind::Unsupported);
    let attached = attachment(Access::ReadOnly, iscsi(1, None, None));
    let late = attached.render(Hypervisor::Hyperv, &options);
    assert_eq!(late.expect_err("refused").kind(), ErrorKind::Unsupported);
}

#[test]
fn a_qcow2_image_is_not_shared() {
    let options = RenderOptions {
        shared: true,
        ..RenderOptions::default()
    };
    for hypervisor in [Hypervisor::Qemu, Hypervisor::Libvirt, Hypervisor::Xl] {
        let attached = attachment(Access::ReadWrite, qcow2("/x"));
        let error = attached.render(hypervisor, &options).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.get("help").expect("help").contains("--shared"),
            "{error}"
        );
    }
}

#[test]
fn wrong_options_are_refused_before_anything_is_attached() {
    let node = |node: &str| RenderOptions {
        node: Some(node.into()),
        ..RenderOptions::default()
    };
    let device = |device: &str| RenderOptions {
        device: Some(device.into()),
        ..RenderOptions::default()
    };
    let host = |path: &str| RenderOptions {
        host_device: Some(path.into()),
        ..RenderOptions::default()
    };
    let usage = |usage: &str| RenderOptions {
        secret_usage: Some(usage.into()),
        ..RenderOptions::default()
    };
    for options in [
        node(""),
        node("0"),
        node("a,b"),
        node(&"x".repeat(30)),
        device(""),
        device("vd"),
        device("vda'/>"),
        device("vda,access=rw"),
        device("nvme0n1"),
        host("dev/sda"),
        usage("a/b"),
        usage(""),
    ] {
        let error = Hypervisor::Libvirt.check(Access::ReadWrite, &options);
        let error = error.expect_err(&format!("{options:?}"));
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn paths_that_can_t_be_said_are_refused() {
    let bad = std::ffi::OsStr::from_bytes(b"/srv/\xff");
    let targets = [
        AttachTarget::File { path: bad.into() },
        AttachTarget::Qcow2 { path: bad.into() },
        file("/srv/\0"),
    ];
    for target in targets {
        for hypervisor in [Hypervisor::Qemu, Hypervisor::Libvirt, Hypervisor::Xl] {
            let attached = attachment(Access::ReadWrite, target.clone());
            let error = attached.render(hypervisor, &RenderOptions::default());
            let error = error.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
    }
    let attached = attachment(Access::ReadWrite, file("srv/x"));
    let error = attached.render(Hypervisor::Qemu, &RenderOptions::default());
    assert_eq!(error.expect_err("refused").kind(), ErrorKind::InvalidInput);
    // xl drops a comma at the end, and takes quotes for its own.
    for path in ["/a,", "/a,b", "/a'b", "/a\"b", "/a\\b", "/a\nb"] {
        let attached = attachment(Access::ReadWrite, file(path));
        let error = attached.render(Hypervisor::Xl, &RenderOptions::default());
        assert_eq!(error.expect_err(path).kind(), ErrorKind::Unsupported);
    }
    let odd = AttachTarget::Nbd {
        address: NbdAddress::Unix {
            path: "/run/a:b".into(),
        },
        export: "x".into(),
        tls: false,
    };
    let options = RenderOptions {
        host_device: Some("/dev/nbd0".into()),
        ..RenderOptions::default()
    };
    let attached = attachment(Access::ReadWrite, odd);
    let done = attached.render(Hypervisor::Smapiv3, &options);
    assert!(!done.expect("rendered").text.contains("nbd:unix"));
}

#[test]
fn libvirt_would_take_a_part_of_the_name_for_the_unit() {
    let mut target = iscsi(1, None, None);
    if let AttachTarget::Iscsi { target, .. } = &mut target {
        target.push_str("/2");
    }
    refused(target, Hypervisor::Libvirt, "unit's number", "name");
}

#[test]
fn tls_needs_a_name() {
    let target = AttachTarget::Nbd {
        address: NbdAddress::Unix {
            path: "/run/x.sock".into(),
        },
        export: "x".into(),
        tls: true,
    };
    refused(target.clone(), Hypervisor::Qemu, "host name", "without TLS");
    refused(target, Hypervisor::Libvirt, "host name", "without TLS");
}

//! Each kind of target for each hypervisor, for reading and for writing, as golden.txt has it.
//!
//! `VOLMUX_GOLDEN=write cargo test -p volmux-core golden` writes it anew; read the difference.

use super::*;

fn rendered() -> String {
    let mut text = String::new();
    for (name, target) in targets() {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let attached = attachment(access, target.clone());
            for hypervisor in Hypervisor::ALL {
                let mode = match access {
                    Access::ReadWrite => "rw",
                    Access::ReadOnly => "ro",
                };
                text.push_str(&format!("== {name} {mode} {hypervisor}\n"));
                match attached.render(hypervisor, &RenderOptions::default()) {
                    Ok(done) => text.push_str(&format!("{}\n", done.text)),
                    Err(error) => {
                        assert!(error.get("help").is_some(), "{error}");
                        text.push_str(&format!("{error}\n"));
                    }
                }
            }
        }
    }
    text
}

#[test]
fn all_is_rendered_as_before() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/hypervisor/tests/golden.txt"
    );
    let now = rendered();
    if std::env::var_os("VOLMUX_GOLDEN").is_some() {
        std::fs::write(path, &now).expect("write golden.txt");
    }
    let before = std::fs::read_to_string(path).expect("golden.txt");
    for (before, now) in before.lines().zip(now.lines()) {
        assert_eq!(before, now);
    }
    assert_eq!(before.len(), now.len());
}

/// By what each syntax says it.
fn says_read_only(hypervisor: Hypervisor, text: &str) -> bool {
    match hypervisor {
        Hypervisor::Qemu | Hypervisor::Qmp => {
            assert_eq!(text.matches(r#""read-only":"#).count(), 2, "both layers");
            let only = text.matches(r#""read-only":true"#).count();
            assert_ne!(only, 1, "both layers or none");
            only == 2
        }
        Hypervisor::Libvirt => text.contains("<readonly/>"),
        Hypervisor::Xl => text.contains(",access=ro,"),
        // It has no word for it: the plugin's Volume.stat says it.
        Hypervisor::Smapiv3 => true,
        Hypervisor::Hyperv => false,
    }
}

#[test]
fn what_is_attached_for_reading_is_read_only_and_nothing_else() {
    for (name, target) in targets() {
        for hypervisor in Hypervisor::ALL {
            let render = |access| {
                attachment(access, target.clone()).render(hypervisor, &RenderOptions::default())
            };
            if let Ok(done) = render(Access::ReadOnly) {
                assert!(
                    says_read_only(hypervisor, &done.text),
                    "{name} {hypervisor}"
                );
            }
            if hypervisor == Hypervisor::Smapiv3 {
                continue;
            }
            if let Ok(done) = render(Access::ReadWrite) {
                assert!(
                    !says_read_only(hypervisor, &done.text),
                    "{name} {hypervisor}"
                );
            }
        }
    }
}

#[test]
fn formats_are_given_and_right() {
    for (name, target) in targets() {
        let format = match &target {
            AttachTarget::Qcow2 { .. } => "qcow2",
            _ => "raw",
        };
        for (hypervisor, said) in [
            (Hypervisor::Qemu, format!(r#""driver":"{format}""#)),
            (Hypervisor::Qmp, format!(r#""driver":"{format}""#)),
            (Hypervisor::Libvirt, format!(" type='{format}' cache=")),
            (Hypervisor::Xl, format!("format={format},")),
        ] {
            let attached = attachment(Access::ReadWrite, target.clone());
            let Ok(done) = attached.render(hypervisor, &RenderOptions::default()) else {
                continue;
            };
            assert_eq!(done.text.matches(&said).count(), 1, "{name} {hypervisor}");
        }
    }
}

#[test]
fn no_secret_is_named_but_by_where_it_is() {
    let attached = attachment(Access::ReadWrite, iscsi(1, Some("host"), None));
    let done = attached.render(Hypervisor::Qemu, &RenderOptions::default());
    let done = done.expect("rendered");
    assert_eq!(done.arguments[0], "-object");
    assert_eq!(
        done.arguments[1],
        r#"{"file":"/etc/volmux/host.secret","id":"web-1-326f4278f84c-secret","qom-type":"secret"}"#
    );
    assert!(done.arguments[3].contains(r#""password-secret":"web-1-326f4278f84c-secret""#));
}

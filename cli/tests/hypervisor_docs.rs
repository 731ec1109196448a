//! docs/qemu.md, docs/libvirt.md and docs/xl.md: each of their commands is one of the example that the
//! tests run.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a page that are for a shell.
fn commands(page: &str) -> Vec<&str> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside && !line.trim().is_empty() => lines.push(line.trim()),
            _ => {}
        }
    }
    lines
}

#[test]
fn every_command_of_a_page_is_run() {
    for (page, example) in [
        ("docs/qemu.md", "examples/qemu.sh"),
        ("docs/libvirt.md", "examples/libvirt.sh"),
        ("docs/xl.md", "examples/xen.sh"),
    ] {
        let (page_text, script) = (read(page), read(example));
        let run: BTreeSet<&str> = script.lines().map(str::trim).collect();
        let commands = commands(&page_text);
        assert!(commands.len() > 10, "{page}: {commands:?}");
        assert!(
            commands.iter().any(|line| line.contains("attach")),
            "{page}: {commands:?}"
        );
        for line in commands {
            assert!(
                run.contains(line),
                "{page}: {example} does not have {line:?}"
            );
        }
        assert!(page_text.contains(example), "{page} names {example}");
    }
}

#[test]
fn every_hypervisor_has_its_page() {
    let overview = read("docs/hypervisors.md");
    for page in ["qemu", "libvirt", "xl", "xen", "hyperv"] {
        assert!(overview.contains(&format!("({page}.md)")), "{page}");
        assert!(read(&format!("docs/{page}.md")).starts_with("# "), "{page}");
    }
}

//! Completions, man pages, pipes.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::Place;

#[test]
fn completions_are_valid_scripts() {
    let place = Place::new();
    for (shell, word) in [
        ("bash", "complete -F _volmux"),
        ("zsh", "#compdef volmux"),
        ("fish", "complete -c volmux"),
    ] {
        let done = place.run(&["completions", shell]);
        assert!(done.ok().contains(word), "{shell}");
        assert!(done.stdout.contains("changed-since"), "{shell}");
    }
    let script = place.path("script");
    fs::write(&script, place.run(&["completions", "bash"]).ok()).expect("write");
    let status = Command::new("/bin/bash")
        .arg("-n")
        .arg(&script)
        .status()
        .expect("bash");
    assert!(status.success());
}

#[test]
fn man_pages_are_written_for_every_command() {
    let place = Place::new();
    let page = place.run(&["man"]);
    assert!(page.ok().contains(".TH volmux 1"), "{page:?}");
    for part in ["Exit codes", "VOLMUX_QEMU_IMG", "NotFound"] {
        assert!(page.stdout.contains(part), "{part}");
    }
    fs::create_dir(place.path("man")).expect("directory");
    place.run(&["man", "man"]).ok();
    for name in [
        "volmux",
        "volmux-export",
        "volmux-pool-audit",
        "volmux-volume-export",
        "volmux-volume-import",
        "volmux-volume-list",
    ] {
        let path = place.path(&format!("man/{name}.1"));
        assert!(
            fs::read_to_string(&path).expect(name).contains(".TH"),
            "{name}"
        );
    }
    place
        .json(&["man", "no-such-directory"])
        .error(11, "NotFound");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let pool = place.path("many");
    fs::create_dir(&pool).expect("pool");
    let url = format!("dir://{}", pool.display());
    place
        .run(&["-p", &url, "volume", "create", "v0", "1MiB"])
        .ok();
    let record = fs::read(pool.join("volumes/v0.json")).expect("record");
    // More than a pipe holds. The records share one data file, which listing does not mind.
    for n in 1..2000 {
        fs::write(pool.join(format!("volumes/v{n}.json")), &record).expect("record");
    }
    for json in [&[][..], &["--json"]] {
        let args = [json, &["-p", &url, "volume", "list"]].concat();
        let mut volmux = place.command(&args).spawn().expect("spawn");
        let from = volmux.stdout.take().expect("pipe");
        let head = Command::new("head")
            .arg("-1")
            .stdin(from)
            .stdout(Stdio::piped())
            .output();
        assert!(!head.expect("head").stdout.is_empty());
        let done = common::finish(volmux);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    }
}

#[test]
fn deleting_goes_on_when_nobody_reads() {
    let place = Place::new();
    let names: Vec<String> = (0..5).map(|n| format!("v{n}")).collect();
    for name in &names {
        place.run(&["volume", "create", name, "1MiB"]).ok();
    }
    let args: Vec<&str> = ["volume", "delete"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    let mut child = place.command(&args).spawn().expect("spawn");
    drop(child.stdout.take());
    assert_eq!(common::finish(child).code, Some(0));
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let place = Place::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let mut command = place.command(&["--json", "pool", "info"]);
    command.stdout(full);
    let error = common::finish(command.spawn().expect("spawn")).error(16, "NoSpace");
    assert_eq!(error["op"], "write_output");
}

#[test]
fn help_and_version_are_there() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert!(help.ok().contains("Exit codes:"), "{help:?}");
    assert!(place.run(&["--version"]).ok().starts_with("volmux "));
    for command in [
        "create", "list", "info", "resize", "rename", "delete", "snapshot", "clone", "revert",
        "flatten", "copy", "extents", "import", "export", "adopt",
    ] {
        let help = place.run(&["volume", command, "--help"]);
        assert!(help.ok().contains("--json"), "{help:?}");
    }
}

#[test]
fn the_two_exports_are_told_apart() {
    let place = Place::new();
    for (list, other) in [
        (&["--help"][..], "volume export"),
        (&["volume", "--help"], "volmux export"),
        (&["export", "-h"], "volume export"),
        (&["export", "--help"], "volmux volume export"),
        (&["volume", "export", "--help"], "volmux export"),
    ] {
        let help = place.run(list);
        assert!(help.ok().contains(other), "{help:?}");
    }
}

#[test]
fn verbose_tells_on_stderr_only() {
    let place = Place::new();
    let done = place.run(&["-vv", "--json", "volume", "create", "web", "1MiB"]);
    done.json();
    assert!(done.stderr.contains("create_volume"), "{done:?}");
}

#[test]
fn the_docs_have_every_exit_code_and_schema() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).expect(path);
    let (cli, json) = (read("../docs/cli.md"), read("../docs/json.md"));
    for kind in volmux::ErrorKind::ALL {
        let row = format!("| {} | {}", 10 + kind.code(), kind.name());
        assert!(cli.contains(&row), "{row}");
    }
    let mut schemas = 0;
    for dir in ["src", "src/output", "src/serve", "../gateway/src"] {
        for entry in fs::read_dir(root.join(dir)).expect(dir).flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            for schema in text
                .split('"')
                .filter(|t| t.starts_with("volmux.") && t.ends_with(".v1"))
            {
                schemas += 1;
                assert!(json.contains(schema), "{schema}");
            }
        }
    }
    assert!(schemas >= 14, "{schemas}");
}

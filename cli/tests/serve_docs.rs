//! The clients' command lines in docs/gateway.md, run.
#![allow(missing_docs)]

mod common;

use common::Place;
use common::serving::{Serving, tool};
use serde_json::{Value, json};

const DOCS: &str = include_str!("../../docs/gateway.md");

/// The one line of the document that begins so, for sockets in `place`.
fn documented(place: &Place, begin: &str) -> String {
    let mut lines = DOCS.lines().filter(|line| line.starts_with(begin));
    let line = lines.next().unwrap_or_else(|| panic!("{begin}"));
    assert_eq!(lines.next(), None, "{begin}");
    line.replace("/run/volmux/", &place.text(""))
}

#[test]
fn what_changed_is_shown_by_nbdinfo_and_qemu_img() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    let write = |command: &str| {
        let serving = Serving::start(&place, &["web", "--socket", "s"]);
        let uri = serving.line();
        tool("qemu-io", &["-f", "raw", "-c", command, &uri]).ok();
        serving.stop();
    };
    write("write 0 1M");
    place.run(&["volume", "snapshot", "web", "monday"]).ok();
    write("write -P 1 2M 64k");
    let snapshot = documented(&place, "volmux volume snapshot web tuesday");
    let args: Vec<&str> = snapshot.split(' ').skip(1).collect();
    place.run(&args).ok();
    write("write -P 2 4M 64k");
    let export = documented(&place, "volmux export --read-only tuesday");
    let args: Vec<&str> = export.split(' ').skip(1).collect();
    let serving = Serving::spawn(place.command(&args));
    let uri = serving.line();
    let shell = |line: &str| tool("bash", &["-euc", line]);
    let found = shell(&documented(&place, "nbdinfo --map="));
    let rows: Vec<Vec<&str>> = found
        .ok()
        .lines()
        .map(|line| line.split_ascii_whitespace().take(3).collect())
        .collect();
    let changed = ["2097152", "65536", "1"];
    assert_eq!(rows[1], changed, "{found:?}");
    assert_eq!((rows[0][2], rows[2][2]), ("0", "0"), "{found:?}");
    assert_eq!(rows.len(), 3, "{found:?}");
    let found = shell(&documented(&place, "qemu-img map --output=json"));
    let map: Vec<Value> = serde_json::from_str(found.ok()).expect("JSON");
    let ranges = map.iter().filter(|range| range["data"] == false);
    let ranges: Vec<(&Value, &Value)> = ranges.map(|r| (&r["start"], &r["length"])).collect();
    assert_eq!(ranges, [(&json!(2 << 20), &json!(64 << 10))], "{found:?}");
    let list = tool("nbdinfo", &["--list", &uri]);
    assert!(
        list.ok().contains("x-volmux:changed-since:monday"),
        "{list:?}"
    );
    serving.stop();
}

#[test]
fn qemu_understands_its_options() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    let export = documented(&place, "volmux -p dir:///srv/volumes export web");
    let args: Vec<&str> = export.split(' ').skip(3).collect();
    let serving = Serving::spawn(place.command(&args));
    serving.line();
    let line = documented(&place, "qemu-system-x86_64");
    let (_, options) = line.split_once("-blockdev ").expect("option");
    let options = options.split(' ').next().expect("its value");
    let io = [
        "--image-opts",
        "-c",
        "write -P 7 0 4k",
        "-c",
        "read -P 7 0 4k",
    ];
    let done = tool("qemu-io", &[&io[..], &[options]].concat());
    assert!(!done.ok().contains("failed"), "{done:?}");
    serving.stop();
}

//! `volume snapshot-group`: snapshots of several volumes, between two commands.
#![allow(missing_docs)]

mod common;

use std::fs;

use common::{Done, Place, finish, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// A pool with two volumes, `root` and `data`.
fn place() -> Place {
    let place = Place::new();
    for name in ["root", "data"] {
        place.run(&["volume", "create", name, "1MiB"]).ok();
    }
    place
}

/// Both volumes, with `freeze` and `thaw`, each of which is noted in `calls` when it begins and when it ends.
fn arguments(freeze: &str, thaw: &str) -> Vec<String> {
    let noted = |name: &str, command: &str| {
        format!("echo {name} >>calls; {command}; code=$?; echo {name} $code >>calls; exit $code")
    };
    let options = [
        "--freeze".to_owned(),
        noted("freeze", freeze),
        "--thaw".to_owned(),
        noted("thaw", thaw),
    ];
    let members = ["root=root-1", "data=data-1"].map(str::to_owned);
    let command = ["--json", "volume", "snapshot-group"].map(str::to_owned);
    [&command[..], &members, &options].concat()
}

fn run(place: &Place, arguments: &[String]) -> Done {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    place.run(&arguments)
}

fn calls(place: &Place) -> Vec<String> {
    let calls = fs::read_to_string(place.path("calls")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

#[test]
fn a_group_is_taken_between_two_commands() {
    let place = place();
    let done = run(&place, &arguments("echo told", "true"));
    let documents = done.documents();
    let names: Vec<_> = documents.iter().map(|volume| &volume["name"]).collect();
    assert_eq!(names, ["root-1", "data-1"]);
    assert!(documents.iter().all(|v| v["origin"]["kind"] == "snapshot"));
    assert_eq!(done.stderr, "");
    assert_eq!(calls(&place), ["freeze", "freeze 0", "thaw", "thaw 0"]);

    let group = ["volume", "snapshot-group", "root=root-2", "data=data-2"];
    let text = [&group[..], &["--freeze", "true", "--thaw", "true"]].concat();
    let text = place.run(&text).ok().to_owned();
    let begins = |line: &str, name: &str| line.starts_with(&format!("created {name}"));
    let lines: Vec<_> = text.lines().collect();
    assert!(
        begins(lines[0], "root-2") && begins(lines[1], "data-2"),
        "{text}"
    );
}

#[test]
fn what_is_wrong_before_freezes_nothing() {
    let place = place();
    for (wrong, code, kind) in [
        (vec!["root"], 14, "InvalidInput"),
        (vec!["root="], 14, "InvalidInput"),
        (vec!["root=a", "data=a"], 14, "InvalidInput"),
        (vec!["root=a.importing"], 14, "InvalidInput"),
        (vec!["root=a", "none=b"], 11, "NotFound"),
        (vec!["root=data"], 12, "AlreadyExists"),
    ] {
        let mut all = vec!["volume", "snapshot-group"];
        all.extend(&wrong);
        all.extend(["--freeze", "touch frozen", "--thaw", "touch thawed"]);
        place.json(&all).error(code, kind);
    }
    let bare = [
        "volume",
        "snapshot-group",
        "root=a",
        "--freeze",
        "touch frozen",
    ];
    assert_eq!(place.run(&bare).code, Some(2), "without a thaw");
    assert!(!place.path("frozen").exists() && !place.path("thawed").exists());
    assert_eq!(place.names(), ["data", "root"]);
}

#[test]
fn a_command_that_fails_is_told_of() {
    let place = place();
    let done = run(&place, &arguments("echo no agent >&2; (exit 3)", "true"));
    let error = done.error(21, "Unavailable");
    let message = error.to_string();
    for part in ["the freeze command failed", "exit status: 3", "no agent"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(calls(&place), ["freeze", "freeze 3", "thaw", "thaw 0"]);
    assert_eq!(place.names(), ["data", "root"]);
}

#[test]
fn a_thaw_is_tried_again() {
    let place = place();
    let once = "[ -e failed ] || { touch failed; (exit 1); }";
    assert_eq!(run(&place, &arguments("true", once)).documents().len(), 2);
    let calls = calls(&place);
    assert_eq!(calls[2..], ["thaw", "thaw 1", "thaw", "thaw 0"]);

    let place = self::place();
    let done = run(&place, &arguments("true", "false"));
    let error = done.error(21, "Unavailable").to_string();
    assert!(error.contains("perhaps still frozen"), "{error}");
    assert_eq!(place.names(), ["data", "root"]);
}

#[test]
fn a_freeze_that_takes_too_long_is_killed_and_thawed() {
    let place = place();
    let mut late = arguments("echo $$ >pid; sleep 1000", "true");
    late.extend(["--deadline", "1"].map(str::to_owned));
    run(&place, &late).error(22, "TimedOut");
    assert_eq!(calls(&place), ["freeze", "thaw", "thaw 0"]);
    let pid = fs::read_to_string(place.path("pid")).expect("pid");
    wait_until("it is gone", || !common::alive(pid.trim()));
    assert_eq!(place.names(), ["data", "root"]);
}

#[test]
fn who_stops_it_has_it_thawed() {
    let place = place();
    let arguments = arguments("touch frozen; sleep 1000", "true");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let child = place.command(&arguments).spawn().expect("spawn");
    wait_until("it freezes", || place.path("frozen").exists());
    kill_process(Pid::from_child(&child), Signal::INT).expect("kill");
    let done = finish(child);
    assert_eq!(done.code, Some(22), "{done:?}");
    assert!(done.stderr.contains("cancelled"), "{done:?}");
    assert_eq!(calls(&place), ["freeze", "thaw", "thaw 0"]);
    assert_eq!(place.names(), ["data", "root"]);
}

//! Ctrl-C, SIGTERM and kill -9 in the middle of long work, and the next try.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use common::{Done, Place, alive, finish, qemu_img, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Copied at once, as it is one hole, but takes hours to checksum.
const HUGE: u64 = 4 << 40;

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("kill");
}

fn staged(place: &Place) -> PathBuf {
    place.path("pool/volumes/web.importing.json")
}

/// A raw import that is busy with its verification.
fn raw_import(place: &Place) -> Child {
    let file = fs::File::create(place.path("huge")).expect("file");
    file.set_len(HUGE).expect("size");
    let args = [
        "--json", "volume", "import", "huge", "web", "-f", "raw", "--verify",
    ];
    let child = place.command(&args).spawn().expect("spawn");
    wait_until("staged", || staged(place).exists());
    child
}

/// A command that hangs in the stand-in for qemu-img, whose pid it returns.
fn hanging(place: &Place, args: &[&str]) -> (Child, String) {
    let mut command = place.command(args);
    command.env("VOLMUX_QEMU_IMG", place.fake_qemu_img("convert"));
    let child = command.spawn().expect("spawn");
    wait_until("qemu-img runs", || place.path("pid").exists());
    let pid = fs::read_to_string(place.path("pid"))
        .expect("pid")
        .trim()
        .to_owned();
    (child, pid)
}

fn qcow2_import(place: &Place) -> (Child, String) {
    qemu_img(&["create", "-q", "-f", "qcow2", &place.text("image"), "8M"]);
    hanging(
        place,
        &["--json", "volume", "import", "image", "web", "-f", "qcow2"],
    )
}

#[track_caller]
fn cancelled(done: &Done) {
    assert_eq!(done.code, Some(22), "{done:?}");
    let (first, rest) = done.stderr.split_once('\n').expect("two lines");
    assert!(first.contains("cleaning up"), "{done:?}");
    let error = &common::lines(rest)[0];
    assert_eq!(error["kind"], "TimedOut");
    assert_eq!(error["retryable"], true);
}

#[test]
fn a_signal_stops_an_import_and_cleans_up() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let child = raw_import(&place);
        kill(&child, signal);
        cancelled(&finish(child));
        assert_eq!(place.names(), Vec::<String>::new());
        assert_eq!(place.run(&["pool", "audit"]).ok(), "0 volumes, clean\n");
        place
            .run(&["volume", "import", "huge", "web", "-f", "raw"])
            .ok();
    }
}

#[test]
fn a_signal_stops_qemu_img_too() {
    let place = Place::new();
    let (child, pid) = qcow2_import(&place);
    kill(&child, Signal::INT);
    cancelled(&finish(child));
    assert!(
        !alive(&pid),
        "the program has ended before anything is cleaned up"
    );
    assert_eq!(place.sockets(), 0);
    assert_eq!(place.names(), Vec::<String>::new());
    assert_eq!(place.run(&["pool", "audit"]).ok(), "0 volumes, clean\n");
}

#[test]
fn after_kill_9_of_a_raw_import_the_next_one_succeeds() {
    let place = Place::new();
    let child = raw_import(&place);
    kill(&child, Signal::KILL);
    assert_eq!(finish(child).code, None);
    assert_eq!(place.names(), ["web.importing"], "never under its own name");
    place
        .run(&["volume", "import", "huge", "web", "-f", "raw"])
        .ok();
    assert_eq!(place.names(), ["web"]);
}

#[test]
fn after_kill_9_of_an_import_by_qemu_img_the_next_one_succeeds() {
    let place = Place::new();
    let (child, pid) = qcow2_import(&place);
    kill(&child, Signal::KILL);
    assert_eq!(finish(child).code, None);
    wait_until("qemu-img ends with its parent", || !alive(&pid));
    assert_eq!(place.names(), ["web.importing"]);
    place
        .run(&["volume", "import", "image", "web", "-f", "qcow2"])
        .ok();
    assert_eq!(place.names(), ["web"]);
    place.run(&["volume", "delete", "web"]).ok();
}

#[test]
fn two_imports_of_one_name_do_not_harm_each_other() {
    let place = Place::new();
    let mut raw = raw_import(&place);
    let import = ["volume", "import", "huge", "web", "-f", "raw"];
    let error = place.json(&import).error(17, "Busy");
    assert!(
        error
            .to_string()
            .contains("another import of web may be running"),
        "{error}"
    );
    assert!(
        raw.try_wait().expect("wait").is_none(),
        "the first one goes on"
    );
    assert!(staged(&place).exists());
    kill(&raw, Signal::INT);
    cancelled(&finish(raw));

    let (mut child, pid) = qcow2_import(&place);
    place.json(&import).error(17, "Busy");
    assert!(child.try_wait().expect("wait").is_none() && alive(&pid));
    kill(&child, Signal::TERM);
    cancelled(&finish(child));
    place.run(&import).ok();
}

#[test]
fn a_signal_stops_an_export_and_cleans_up() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "4TiB"]).ok();
    let args = [
        "--json", "volume", "export", "web", "out", "-f", "raw", "--verify",
    ];
    let child = place.command(&args).spawn().expect("spawn");
    let partials = || partials(&place);
    wait_until("begun", || !partials().is_empty());
    kill(&child, Signal::INT);
    cancelled(&finish(child));
    assert!(partials().is_empty() && !place.path("out").exists());
    place.run(&["volume", "delete", "web"]).ok();
}

fn partials(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path("")).expect("list").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("out.partial-"))
        .collect()
}

#[test]
fn after_kill_9_of_an_export_nothing_is_in_the_way() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    let export = ["--json", "volume", "export", "web", "out", "-f", "qcow2"];
    let (child, pid) = hanging(&place, &export);
    // Another one at the same time leaves the first alone.
    place
        .run(&["volume", "export", "web", "out2", "-f", "qcow2"])
        .ok();
    assert_eq!(partials(&place).len(), 1);
    kill(&child, Signal::KILL);
    assert_eq!(finish(child).code, None);
    wait_until("qemu-img ends with its parent", || !alive(&pid));
    assert_eq!(partials(&place).len(), 1);
    assert!(!place.path("out").exists());
    place.run(&export).ok();
    assert!(partials(&place).is_empty());
    // The killed one does not keep the volume from being deleted.
    assert_eq!(
        place.run(&["volume", "delete", "web"]).ok(),
        "deleted web\n"
    );
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let place = Place::new();
    let fifo = place.text("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("mkfifo")
            .success()
    );
    // A configuration that never comes: nothing can cancel the reading of it.
    let args = ["--config", &fifo, "-p", "fast", "volume", "list"];
    let mut command = place.command(&args);
    let child = command.spawn().expect("spawn");
    // Opening for writing waits until the program has opened for reading.
    let writer = fs::OpenOptions::new()
        .write(true)
        .open(&fifo)
        .expect("fifo");
    kill(&child, Signal::INT);
    // Two equal signals that are both pending are one, so the next one is another.
    kill(&child, Signal::TERM);
    assert_eq!(finish(child).code, Some(22));
    drop(writer);
}

/// The program with a standard input that the test holds.
fn with_input(place: &Place, args: &[&str]) -> Child {
    let mut command = place.command(args);
    command.stdin(Stdio::piped());
    command.spawn().expect("spawn")
}

#[test]
fn the_end_of_standard_input_and_of_the_time_limit_stop_it_like_a_signal() {
    for (option, why) in [
        ("--stop-at-eof", "standard input has ended"),
        ("--time-limit=2", "the time limit is over"),
    ] {
        let place = Place::new();
        let file = fs::File::create(place.path("huge")).expect("file");
        file.set_len(HUGE).expect("size");
        let args = [
            "--json", option, "volume", "import", "huge", "web", "-f", "raw", "--verify",
        ];
        let mut child = with_input(&place, &args);
        let input = child.stdin.take();
        if option == "--stop-at-eof" {
            wait_until("staged", || staged(&place).exists());
            assert!(child.try_wait().expect("wait").is_none());
            drop(input);
        }
        let done = finish(child);
        assert!(done.stderr.starts_with(why), "{done:?}");
        cancelled(&done);
        assert_eq!(place.names(), Vec::<String>::new());
    }
}

#[test]
fn input_is_read_only_where_that_is_asked_for() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    let list = ["--json", "volume", "list"];
    assert_eq!(
        place.run(&list).json()["name"],
        "web",
        "its input has ended"
    );
    let child = with_input(&place, &["--json", "--stop-at-eof", "volume", "list"]);
    // Its input goes on.
    let output = finish_open(child);
    assert_eq!(output.json()["name"], "web");
}

/// Waits for the end with standard input open.
fn finish_open(mut child: Child) -> Done {
    let input = child.stdin.take();
    let done = finish(child);
    drop(input);
    done
}

#[test]
fn what_hangs_ends_by_itself_where_nobody_can_send_a_second_signal() {
    let place = Place::new();
    let fifo = place.text("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.expect("mkfifo").success());
    // A configuration that never comes: nothing can cancel the reading of it.
    let args = [
        "--config",
        &fifo,
        "-p",
        "fast",
        "--stop-at-eof",
        "volume",
        "list",
    ];
    let mut child = with_input(&place, &args);
    let writer = fs::OpenOptions::new()
        .write(true)
        .open(&fifo)
        .expect("fifo");
    drop(child.stdin.take());
    assert_eq!(finish(child).code, Some(22));
    drop(writer);
}

#[test]
fn progress_is_told_where_it_is_asked_for() {
    let place = Place::new();
    place.image("disk", 8 << 20);
    let import = ["volume", "import", "disk", "web", "-f", "raw"];
    // Other things may be told of too: that the file system under all tests fills up, for one.
    let told = |done: &Done| {
        let mut documents = common::lines(&done.stderr);
        documents.retain(|document| document["schema"] == "volmux.progress.v1");
        documents
    };
    let done = place.json(&import);
    done.ok();
    assert_eq!(told(&done), Vec::<Value>::new());
    let done = place.json(&["--progress", "volume", "copy", "web", "copy"]);
    done.ok();
    let told = told(&done);
    for document in &told {
        assert_eq!(document["what"], "copy");
        assert!(document["done"].as_u64() <= document["total"].as_u64());
    }
    let last = told.last().expect("progress");
    assert!(last["total"].as_u64() > Some(1 << 20), "{last}");
    assert_eq!(last["done"], last["total"]);
    // On its own it is for terminals, and none is here.
    let done = place.run(&["--progress", "volume", "copy", "web", "other"]);
    done.ok();
    assert!(!done.stderr.contains("progress"), "{done:?}");
}

#[test]
fn programs_that_import_may_use_the_names_for_that() {
    let place = Place::new();
    let create = ["volume", "create", "web.importing", "1MiB"];
    place.json(&create).error(14, "InvalidInput");
    let mut any = vec!["--any-name"];
    any.extend(create);
    assert_eq!(place.json(&any).json()["name"], "web.importing");
    place
        .run(&["volume", "rename", "web.importing", "web"])
        .ok();
    assert_eq!(place.names(), ["web"]);
}

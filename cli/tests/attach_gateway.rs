//! `volmux attach --gateway`: volumes of pools that attach nothing, served from this host until they
//! are detached.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::qemu::Qemu;
use common::serving::tool;
use common::{Done, Place, alive, finish, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SOCKET: &str = "web.sock";

/// A pool of objects in files, with the volume `web`; who serves it is killed when this is dropped.
struct Objects(Place);

impl Objects {
    fn new() -> Self {
        let objects = Objects(Place::new());
        fs::create_dir(objects.0.path("objects")).expect("a directory");
        objects.run(&["volume", "create", "web", "8MiB"]).ok();
        objects
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.0.command(args);
        let pool = format!("file+object://{}", self.0.text("objects"));
        command.env("VOLMUX_POOL", pool);
        command
    }

    fn run(&self, args: &[&str]) -> Done {
        finish(self.command(args).spawn().expect("spawn"))
    }

    fn attach(&self, more: &[&str]) -> Done {
        let args = [&["attach", "web", "vm-1", "--gateway", SOCKET], more].concat();
        self.run(&args)
    }

    fn detach(&self) -> Done {
        self.run(&["detach", "web", "vm-1", "--gateway", SOCKET])
    }

    fn record(&self) -> PathBuf {
        self.0.path("web.sock.gateway")
    }

    fn pid(&self) -> Option<String> {
        let record: Value = serde_json::from_slice(&fs::read(self.record()).ok()?).ok()?;
        Some(record["pid"].to_string())
    }

    fn kill(&self) {
        let Some(pid) = self.pid() else { return };
        let number = pid.parse().ok().and_then(Pid::from_raw);
        if alive(&pid) {
            kill_process(number.expect("a process"), Signal::KILL).expect("kill");
            wait_until("it is gone", || !alive(&pid));
        }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///web?socket={}", self.0.text(SOCKET))
    }

    fn io(&self, command: &str) {
        let done = tool("qemu-io", &["-f", "raw", "-c", command, &self.uri()]);
        assert!(!done.ok().contains("failed"), "{done:?}");
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn it_serves_until_it_is_detached() {
    let objects = Objects::new();
    let attached = objects.attach(&[]);
    assert_eq!(attached.ok(), format!("{}\n", objects.uri()));
    assert_eq!(attached.stderr, "");
    objects.io("write -P 7 1M 64k");
    let pid = objects.pid().expect("a record");
    // The same again changes nothing.
    assert_eq!(objects.attach(&[]).ok(), attached.stdout);
    assert_eq!(objects.pid().expect("a record"), pid);
    assert_eq!(objects.detach().ok(), "web is not attached to vm-1\n");
    assert!(!alive(&pid) && !objects.record().exists());
    assert!(!objects.0.path(SOCKET).exists());
    objects.detach().ok();
    objects.attach(&[]).ok();
    objects.io("read -P 7 1M 64k");
    objects.detach().ok();
}

#[test]
fn qemu_starts_with_what_is_printed() {
    let objects = Objects::new();
    let done = objects.attach(&["--json", "--for", "qemu"]);
    let document = done.json();
    assert_eq!(document["schema"], "volmux.attachment.v1");
    assert_eq!(
        (&document["kind"], &document["holder"]),
        (&"nbd".into(), &"vm-1".into())
    );
    let arguments = serde_json::from_value::<Vec<String>>(document["arguments"].clone());
    let mut qemu = Qemu::start(&arguments.expect("texts"));
    assert_eq!(qemu.io("flush"), "");
    let wrote = qemu.io("write -P 9 0 64k");
    assert!(wrote.contains("wrote 65536/65536"), "{wrote}");
    drop(qemu);
    objects.detach().ok();
    let read_only = objects.attach(&["--read-only", "--for", "libvirt"]);
    assert!(read_only.ok().contains("<readonly/>"), "{read_only:?}");
    let refused = tool(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 4k", &objects.uri()],
    );
    assert_ne!(refused.code, Some(0), "{refused:?}");
    objects.detach().ok();
}

/// One pool's volume is never given for another's of the same name.
#[test]
fn a_volume_of_the_same_name_in_another_pool_is_another() {
    let objects = Objects::new();
    objects.attach(&[]).ok();
    let other = Objects::new();
    let socket = objects.0.text(SOCKET);
    let attach = ["--json", "attach", "web", "vm-1", "--gateway", &socket];
    let error = other.run(&attach).error(17, "Busy");
    assert_eq!(error["context"]["attached_to"], "vm-1", "{error}");
    objects.detach().ok();
    // Deleted and made anew it is another one too.
    objects.attach(&[]).ok();
    objects.kill();
    objects.run(&["volume", "delete", "web"]).ok();
    objects.run(&["volume", "create", "web", "8MiB"]).ok();
    let document = objects.attach(&["--json"]).json();
    let info = objects.run(&["--json", "volume", "info", "web"]).json();
    assert_eq!(document["id"], info["id"]);
    objects.detach().ok();
}

#[test]
fn two_that_attach_at_once_get_a_gateway_that_serves() {
    let objects = Objects::new();
    let attach = ["attach", "web", "vm-1", "--gateway", SOCKET];
    let both = [(); 2].map(|()| objects.command(&attach).spawn().expect("spawn"));
    for child in both {
        let done = finish(child);
        // Of two that both find nobody, one is told that the other begins.
        if done.code == Some(0) {
            objects.io("flush");
        } else {
            assert_eq!(done.code, Some(17), "{done:?}");
        }
    }
    objects.attach(&[]).ok();
    objects.io("flush");
    objects.detach().ok();
}

/// A script's lock, and a pipe of who started it, end with the script.
#[test]
fn it_keeps_nothing_of_who_started_it_open() {
    let objects = Objects::new();
    let program = env!("CARGO_BIN_EXE_volmux");
    let script = format!(
        "exec 9>lock && flock 9 && {program} attach web vm-1 --gateway {SOCKET} && echo attached"
    );
    let command = objects.command(&[]);
    let mut shell = Command::new("bash");
    shell
        .args(["-euc", &script])
        .current_dir(objects.0.path(""));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let done = shell.stdin(Stdio::null()).output().expect("bash");
    assert!(done.status.success(), "{done:?}");
    let lock = objects.0.text("lock");
    tool("flock", &["--nonblock", &lock, "true"]).ok();
    objects.detach().ok();
}

#[test]
fn a_failed_end_is_told_of_by_the_next_attach() {
    let objects = Objects::new();
    objects.attach(&[]).ok();
    let record: Value =
        serde_json::from_slice(&fs::read(objects.record()).expect("it is there")).expect("JSON");
    objects.kill();
    let mut failed = record;
    failed["failed"] = "flush: the store is gone".into();
    fs::write(objects.record(), failed.to_string()).expect("write");
    let again = objects.attach(&[]);
    assert!(
        again.ok().contains("nbd+unix") && again.stderr.contains("the store is gone"),
        "{again:?}"
    );
    objects.detach().ok();
}

#[test]
fn it_is_not_ended_under_its_client() {
    let objects = Objects::new();
    objects.attach(&[]).ok();
    let mut client = Command::new("qemu-io")
        .args(["-f", "raw", &objects.uri()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io");
    let mut input = client.stdin.take().expect("stdin");
    writeln!(input, "write -P 5 0 64k").expect("write");
    let mut said = String::new();
    let mut output = BufReader::new(client.stdout.take().expect("stdout"));
    while !said.contains("wrote 65536/65536") {
        assert_ne!(output.read_line(&mut said).expect("a line"), 0, "{said}");
    }
    let detach = ["--json", "detach", "web", "vm-1", "--gateway", SOCKET];
    let error = objects.run(&detach).error(17, "Busy");
    assert_eq!(error["context"]["attached_to"], "vm-1", "{error}");
    writeln!(input, "write -P 6 64k 64k\nflush").expect("write");
    drop(input);
    assert!(client.wait().expect("its end").success());
    objects.detach().ok();
    objects.attach(&[]).ok();
    objects.io("read -P 6 64k 64k");
    objects.detach().ok();
    let left = ["gateway", "status"].map(|end| objects.0.path(&format!("{SOCKET}.{end}")));
    assert!(left.iter().all(|path| !path.exists()), "{left:?}");
}

#[test]
fn one_that_was_killed_is_started_again_by_the_next_attach() {
    let objects = Objects::new();
    objects.attach(&[]).ok();
    objects.io("write -P 3 2M 64k");
    objects.kill();
    objects.attach(&[]).ok();
    objects.io("read -P 3 2M 64k");
    objects.kill();
    let detached = objects.detach();
    assert!(
        detached.ok().contains("not attached") && detached.stderr.contains("was killed"),
        "{detached:?}"
    );
    assert_eq!(objects.detach().stderr, "");
}

#[test]
fn what_can_t_be_served_starts_nothing() {
    let objects = Objects::new();
    let left = || objects.pid().is_some() || objects.0.path(SOCKET).exists();
    let nix = ["--json", "attach", "nix", "vm-1", "--gateway", SOCKET];
    objects.run(&nix).error(11, "NotFound");
    let error = objects.attach(&["--json", "--for", "hyperv"]);
    error.error(13, "Unsupported");
    objects.run(&["volume", "snapshot", "web", "old"]).ok();
    let old = ["--json", "attach", "old", "vm-1", "--gateway", SOCKET];
    let error = objects.run(&old).error(14, "InvalidInput");
    assert!(error["context"]["help"].is_string(), "{error}");
    let nowhere = ["--json", "attach", "web", "vm-1", "--gateway", "no/s"];
    objects.run(&nowhere).error(11, "NotFound");
    assert!(!left());
    // Without it the answer names it.
    let plain = objects.run(&["--json", "attach", "web", "vm-1"]);
    let error = plain.error(13, "Unsupported");
    let help = error["context"]["help"].as_str().expect("help");
    let command = "volmux attach web vm-1 --gateway /run/volmux/web.sock";
    assert!(help.contains(command), "{help}");
}

#[test]
fn one_socket_serves_one() {
    let objects = Objects::new();
    objects.run(&["volume", "create", "db", "8MiB"]).ok();
    objects.attach(&[]).ok();
    let pid = objects.pid();
    for args in [
        ["--json", "attach", "web", "vm-2"],
        ["--json", "attach", "db", "vm-1"],
        ["--json", "detach", "web", "vm-2"],
        ["--json", "detach", "db", "vm-1"],
    ] {
        let done = objects.run(&[&args[..], &["--gateway", SOCKET]].concat());
        let error = done.error(17, "Busy");
        assert_eq!(error["context"]["attached_to"], "vm-1", "{error}");
    }
    // Nor does another one serve it.
    let other = ["--json", "attach", "web", "vm-2", "--gateway", "other"];
    objects.run(&other).error(17, "Busy");
    // It can't be deleted below who uses it.
    let delete = objects.run(&["--json", "volume", "delete", "web"]);
    delete.error(17, "Busy");
    assert_eq!(objects.pid(), pid);
    objects.io("write -P 1 0 4k");
    objects.detach().ok();
    let record = objects.record();
    fs::write(&record, "something else").expect("write");
    let detach = ["--json", "detach", "web", "vm-1", "--gateway", SOCKET];
    objects.run(&detach).error(14, "InvalidInput");
    fs::remove_file(record).expect("remove");
}

#[test]
fn the_host_is_the_holder_if_none_is_named() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    let document = place.json(&["attach", "web", "--for", "qemu"]).json();
    let host = tool("uname", &["-n"]);
    assert_eq!(document["holder"], host.ok().trim());
    let held = place.json(&["volume", "info", "web"]).json();
    assert_eq!(held["attachments"][0]["holder"], document["holder"]);
    place.run(&["detach", "web"]).ok();
    let held = place.json(&["volume", "info", "web"]).json();
    assert_eq!(held["attachments"], Value::Array(Vec::new()));
}

//! `volmux export` with real clients: what they read and write, who is let in, how it ends.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use common::serving::{Serving, tool};
use common::{Place, qemu_img, text};
use rustix::process::Signal;
use serde_json::{Value, json};

const SIZE: u64 = 8 << 20;

fn volume(place: &Place, name: &str) {
    place.run(&["volume", "create", name, "8MiB"]).ok();
}

/// Writes with qemu-io, which flushes at its end.
#[track_caller]
fn write(uri: &str, pattern: &str) {
    let command = format!("write -P {pattern} 1M 64k");
    tool("qemu-io", &["-f", "raw", "-c", &command, uri]).ok();
}

#[track_caller]
fn has(uri: &str, pattern: &str) {
    let command = format!("read -P {pattern} 1M 64k");
    let done = tool("qemu-io", &["-r", "-f", "raw", "-c", &command, uri]);
    assert!(!done.ok().contains("failed"), "{done:?}");
}

/// What the volume holds, read without the server.
fn content(place: &Place, name: &str) -> Vec<u8> {
    let out = place.text("content");
    let export = ["volume", "export", name, &out, "-f", "raw", "--force"];
    place.run(&export).ok();
    fs::read(&out).expect("content")
}

/// A client that stays until it is dropped.
struct Client(Child);

impl Client {
    fn connect(uri: &str) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", "raw", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-io");
        let stdin = child.stdin.as_mut().expect("stdin");
        stdin.write_all(b"write -P 9 0 4k\n").expect("command");
        stdin.flush().expect("command");
        Client(child)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn clients_read_and_write_over_unix_and_tcp() {
    let place = Place::new();
    volume(&place, "web");
    let serving = Serving::start(
        &place,
        &["web", "--socket", "a b.sock", "--listen", "127.0.0.1:0"],
    );
    let (unix, tcp) = (serving.line(), serving.line());
    let dir = place.text("").replace('\u{20}', "%20");
    assert_eq!(unix, format!("nbd+unix:///web?socket={dir}a%20b.sock"));
    assert!(tcp.starts_with("nbd://127.0.0.1:") && tcp.ends_with("/web"));
    let socket = fs::symlink_metadata(place.path("a b.sock")).expect("socket");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    for uri in [&unix, &tcp] {
        let size = tool("nbdinfo", &["--size", uri]);
        assert_eq!(size.ok().trim(), SIZE.to_string());
    }
    write(&unix, "0x5a");
    has(&tcp, "0x5a");
    write(&tcp, "0xa5");
    has(&unix, "0xa5");
    let done = serving.stop();
    assert_eq!(done.stdout, "", "one line for each address, no more");
    assert!(!place.path("a b.sock").exists());
    let found = content(&place, "web");
    assert_eq!(found.len() as u64, SIZE);
    assert!(found[1 << 20..][..64 << 10].iter().all(|&b| b == 0xa5));
    assert!(found[..1 << 20].iter().all(|&b| b == 0));
    place.run(&["volume", "delete", "web"]).ok();
}

#[test]
fn images_are_copied_in_and_out_through_it() {
    let place = Place::new();
    let image = place.image("image", 16 << 20);
    place.run(&["volume", "create", "web", "16MiB"]).ok();
    let serving = Serving::start(&place, &["web", "--socket", "s"]);
    let uri = serving.line();
    qemu_img(&[
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        text(&image),
        &uri,
    ]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&image), &uri]);
    let copy = place.text("copy");
    tool("nbdcopy", &[&uri, &copy]).ok();
    assert!(fs::read(&image).expect("image") == fs::read(&copy).expect("copy"));
    serving.stop();
    assert!(content(&place, "web") == fs::read(&image).expect("image"));
}

#[test]
fn the_document_names_every_address() {
    let place = Place::new();
    for name in ["web", "db"] {
        volume(&place, name);
    }
    let args = [
        "web",
        "db",
        "--socket",
        "s",
        "--statistics",
        "unix:st",
        "--json",
    ];
    let serving = Serving::start(&place, &args);
    let document: Value = serde_json::from_str(&serving.line()).expect("JSON");
    let (socket, statistics) = (place.text("s"), place.text("st"));
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={socket}");
    assert_eq!(
        document,
        json!({
            "schema": "volmux.serve.v1",
            "addresses": [format!("unix:{socket}")],
            "statistics": format!("unix:{statistics}"),
            "all": false,
            "exports": [
                {"name": "web", "uris": [uri("web")]},
                {"name": "db", "uris": [uri("db")]},
            ],
            "uris": [uri("")],
        })
    );
    let done = serving.stop();
    assert_eq!(done.stdout, "");
}

#[test]
fn every_volume_is_served_those_made_later_too() {
    let place = Place::new();
    volume(&place, "web");
    place.run(&["volume", "snapshot", "web", "monday"]).ok();
    let serving = Serving::start(
        &place,
        &["--all", "--socket", "s", "--release-time", "1day"],
    );
    let uri = serving.line();
    assert_eq!(uri, format!("nbd+unix:///?socket={}", place.text("s")));
    volume(&place, "later");
    let list = tool("nbdinfo", &["--list", "--json", &uri]);
    let list: Value = serde_json::from_str(list.ok()).expect("JSON");
    let exports = list["exports"].as_array().expect("exports");
    let mut found: Vec<(&str, bool)> = exports
        .iter()
        .map(|e| {
            let name = e["export-name"].as_str().expect("name");
            (name, e["is_read_only"].as_bool().expect("flag"))
        })
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("later", false), ("monday", true), ("web", false)]);
    write(&uri.replace("///", "///later"), "7");
    // Its client said goodbye: it is closed without the time for those who may come back.
    common::wait_until("closed", || {
        place.run(&["volume", "delete", "later"]).code == Some(0)
    });
    serving.stop();
}

#[test]
fn a_read_only_export_is_not_written() {
    let place = Place::new();
    volume(&place, "web");
    place.run(&["volume", "snapshot", "web", "monday"]).ok();
    let refused = place.json(&["export", "monday", "--socket", "s"]);
    let error = refused.error(14, "InvalidInput");
    assert_eq!(error["context"]["volume"], "monday", "{error}");
    let help = error["context"]["help"].as_str().expect("help");
    assert!(help.contains("--read-only"), "{error}");
    assert!(!place.path("s").exists());
    let serving = Serving::start(&place, &["web", "monday", "-r", "--socket", "s"]);
    for _ in 0..2 {
        let uri = serving.line();
        let only = tool("nbdinfo", &["--is", "read-only", &uri]);
        assert_eq!(only.code, Some(0), "{only:?}");
        let done = tool("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]);
        assert_ne!(done.code, Some(0), "{done:?}");
    }
    serving.stop();
}

#[test]
fn a_second_client_is_refused_and_told_of_unless_shared() {
    let place = Place::new();
    volume(&place, "web");
    let statistics = format!("unix:{}", place.text("st"));
    let start = |more: &[&str]| {
        let args = ["web", "--socket", "s", "--statistics", &statistics];
        Serving::start(&place, &[&args, more].concat())
    };
    let connected = |count: u64| {
        common::wait_until("connected", || {
            let status = place.json(&["export", "--status", &statistics]).json();
            status["exports"][0]["connections"] == count
        });
    };
    let serving = start(&[]);
    let uri = serving.line();
    let client = Client::connect(&uri);
    connected(1);
    let refused = tool("nbdinfo", &["--size", &uri]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    serving.wait_for_stderr("WARN");
    let told = serving.stderr();
    assert!(told.contains("web") && told.contains("export="), "{told}");
    drop(client);
    connected(0);
    tool("nbdinfo", &["--size", &uri]).ok();
    serving.stop();
    let serving = start(&["--shared"]);
    let uri = serving.line();
    let _client = Client::connect(&uri);
    connected(1);
    tool("nbdinfo", &["--size", &uri]).ok();
    serving.stop();
}

#[test]
fn a_volume_is_held_from_the_start_to_the_end() {
    let place = Place::new();
    volume(&place, "web");
    let serving = Serving::start(&place, &["web", "--socket", "s"]);
    let uri = serving.line();
    write(&uri, "1");
    place.json(&["volume", "delete", "web"]).error(17, "Busy");
    place
        .json(&["export", "web", "--socket", "other"])
        .error(17, "Busy");
    assert!(!place.path("other").exists());
    serving.stop();
    place.run(&["volume", "delete", "web"]).ok();
}

#[test]
fn signals_end_it_with_everything_written() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        volume(&place, "web");
        let serving = Serving::start(&place, &["web", "--socket", "s"]);
        let uri = serving.line();
        write(&uri, "0x33");
        serving.signal(signal);
        let done = serving.finish();
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.stderr.contains("stopping"), "{done:?}");
        assert!(!place.path("s").exists());
        assert_eq!(content(&place, "web")[1 << 20], 0x33);
    }
}

/// A client that asked for more than the sockets hold and reads no answer.
struct Stuck {
    _stream: UnixStream,
}

impl Stuck {
    fn connect(place: &Place, statistics: &str) -> Self {
        let mut stream = UnixStream::connect(place.path("s")).expect("connect");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        // Fixed newstyle without zeroes; NBD_OPT_GO of the default export, without questions.
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        for number in [7u32, 6, 0] {
            hello.extend_from_slice(&number.to_be_bytes());
        }
        hello.extend_from_slice(&[0; 2]);
        stream.write_all(&hello).expect("a handshake");
        // Replies, up to NBD_REP_ACK.
        loop {
            let mut reply = [0; 20];
            stream.read_exact(&mut reply).expect("a reply");
            let field = |at: usize| reply[at..at + 4].try_into().map(u32::from_be_bytes);
            let (kind, length) = (field(12).expect("4 bytes"), field(16).expect("4 bytes"));
            let mut data = vec![0; length as usize];
            stream.read_exact(&mut data).expect("its data");
            if kind == 1 {
                break;
            }
        }
        let mut requests = Vec::new();
        for cookie in 0..512u64 {
            requests.extend_from_slice(&0x2560_9513u32.to_be_bytes());
            requests.extend_from_slice(&[0; 4]);
            requests.extend_from_slice(&cookie.to_be_bytes());
            requests.extend_from_slice(&[0; 8]);
            requests.extend_from_slice(&(64u32 << 10).to_be_bytes());
        }
        stream.write_all(&requests).expect("requests");
        let status = || place.json(&["export", "--status", statistics]).json();
        let answered =
            |status: &Value| status["exports"][0]["requests"]["read"]["requests"].clone();
        common::wait_until("it reads", || answered(&status()) != 0);
        Stuck { _stream: stream }
    }
}

#[test]
fn a_client_that_reads_no_answers_does_not_keep_it_from_ending() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "4TiB"]).ok();
    let args = [
        "web",
        "-r",
        "--socket",
        "s",
        "--statistics",
        "unix:st",
        "--json",
    ];
    let start = |drain_time: &str| {
        let serving = Serving::start(&place, &[&args[..], &["--drain-time", drain_time]].concat());
        serving.line();
        let stuck = Stuck::connect(&place, "unix:st");
        serving.signal(Signal::TERM);
        serving.wait_for_stderr("stopping");
        (serving, stuck)
    };
    let (serving, _stuck) = start("10ms");
    let done = serving.finish();
    assert_eq!(done.code, Some(22), "{done:?}");
    let error: Value = serde_json::from_str(done.stderr.lines().last().expect("a line"))
        .expect("the last line is the error");
    assert_eq!(error["kind"], "TimedOut", "{done:?}");
    // With all the time in the world, a second signal ends it.
    let (serving, _stuck) = start("1day");
    serving.signal(Signal::INT);
    let done = serving.finish();
    assert_eq!(done.code, Some(22), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
}

#[test]
fn after_kill_9_the_socket_is_taken_over() {
    let place = Place::new();
    volume(&place, "web");
    let args = ["web", "--socket", "s", "--statistics", "unix:st"];
    let serving = Serving::start(&place, &args);
    write(&serving.line(), "0x44");
    serving.signal(Signal::KILL);
    assert_eq!(serving.finish().code, None);
    assert!(place.path("s").exists() && place.path("st").exists());
    UnixStream::connect(place.path("s")).expect_err("nobody listens");
    let serving = Serving::start(&place, &args);
    has(&serving.line(), "0x44");
    serving.stop();
    assert!(!place.path("s").exists() && !place.path("st").exists());
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let place = Place::new();
    for name in ["web", "db"] {
        volume(&place, name);
    }
    let mut serving = Serving::start(&place, &["web", "--socket", "s", "--listen", "127.0.0.1:0"]);
    let (unix, tcp) = (serving.line(), serving.line());
    let error = place
        .json(&["export", "db", "--socket", "s"])
        .error(17, "Busy");
    assert!(error.to_string().contains(&place.text("s")), "{error}");
    let address = &tcp["nbd://".len()..tcp.len() - "/web".len()];
    let error = place
        .json(&["export", "db", "--listen", address])
        .error(17, "Busy");
    assert!(error.to_string().contains(address), "{error}");
    fs::write(place.path("file"), "mine").expect("file");
    let refused = place.json(&["export", "db", "--socket", "file"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert_eq!(fs::read(place.path("file")).expect("file"), b"mine");
    assert!(serving.is_running());
    has(&unix, "0");
    serving.stop();
}

#[test]
fn the_reader_of_the_uris_may_go_away() {
    let place = Place::new();
    volume(&place, "web");
    let mut command = place.command(&["export", "web", "--socket", "s"]);
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    command.stdout(writer);
    let child = command.spawn().expect("spawn");
    drop(command);
    common::wait_until("listening", || UnixStream::connect(place.path("s")).is_ok());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("kill");
    let done = common::finish(child);
    assert_eq!(done.code, Some(0), "{done:?}");
}

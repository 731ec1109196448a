//! Object pools on the command line.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::serving::{Serving, tool};
use common::{Done, Place, finish, qemu_img, text};
use rustix::process::Signal;
use volmux_s3_server::{Options, Server};

const KIB: usize = 1 << 10;
const DOCS: &str = include_str!("../../docs/object.md");

/// Runs the program on another pool than that of `place`.
fn on(place: &Place, pool: &str, args: &[&str]) -> Done {
    let mut command = place.command(args);
    command.env("VOLMUX_POOL", pool);
    finish(command.spawn().expect("spawn"))
}

/// The newest manifest of the only log of a pool.
fn newest_manifest(server: &Server) -> String {
    let mut keys = server.keys("bucket", "pool/logs/");
    keys.retain(|key| key.contains("/m/"));
    let newest = keys.iter().max().expect("a manifest");
    let bytes = server.object("bucket", newest).expect("it is there");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A host that finds a volume open has to take it over, so a program that ends closes it first.
#[test]
fn what_it_wrote_is_closed_before_it_ends() {
    let place = Place::new();
    let image = place.image("image", 8 << 20);
    let credentials = place.text("credentials");
    let keys = "AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test\n";
    fs::write(&credentials, keys).expect("credentials");
    let only_mine = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&credentials, only_mine).expect("mode");
    let server = Server::start(Options::default()).expect("a server");
    // Far longer than a program takes that does not wait.
    server.latency(None, Duration::from_millis(50));
    let pool = format!(
        "s3://bucket/pool?region=us-east-1&endpoint={}&credentials_file={credentials}&gc=1h",
        server.endpoint()
    );
    let import = ["volume", "import", text(&image), "web", "-f", "raw"];
    on(&place, &pool, &import).ok();
    let manifest = newest_manifest(&server);
    assert!(manifest.contains("\"closed\""), "{manifest}");
    let mut command = place.command(&["export", "web", "--socket", "s"]);
    command.env("VOLMUX_POOL", &pool);
    let serving = Serving::spawn(command);
    let uri = serving.line();
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 0 4k", &uri]).ok();
    let open = newest_manifest(&server);
    assert!(open.contains("\"open\""), "{open}");
    serving.stop();
    let manifest = newest_manifest(&server);
    assert!(manifest.contains("\"closed\""), "{manifest}");
    // Who reads a volume leaves its mark no longer than that.
    let out = place.text("out");
    let export = ["volume", "export", "web", &out, "-f", "raw"];
    on(&place, &pool, &export).ok();
    assert!(fs::read(&out).expect("content")[..4 * KIB] == [7; 4 * KIB]);
    let marks = server.keys("bucket", "pool/readers/");
    assert_eq!(marks, Vec::<String>::new());
}

/// A writer that lives, or whose host is gone, keeps others out until it is taken over.
#[test]
fn a_volume_is_taken_over_from_whoever_has_it_open() {
    let place = Place::new();
    fs::create_dir(place.path("objects")).expect("directory");
    let pool = format!("file+object://{}", place.text("objects"));
    on(&place, &pool, &["volume", "create", "web", "16MiB"]).ok();
    let mut command = place.command(&["export", "web", "--socket", "s"]);
    command.env("VOLMUX_POOL", &pool);
    let serving = Serving::spawn(command);
    let uri = serving.line();
    let write = "write -f -P 7 0 4k";
    tool("qemu-io", &["-f", "raw", "-c", write, &uri]).ok();
    let delete = on(&place, &pool, &["--json", "volume", "delete", "web"]);
    let error = delete.error(17, "Busy");
    assert!(error.to_string().contains("take-over"), "{error}");
    on(&place, &pool, &["volume", "take-over", "web"]).ok();
    let late = tool("qemu-io", &["-f", "raw", "-c", write, &uri]);
    assert_ne!(late.code, Some(0), "{late:?}");
    let out = place.text("out");
    let export = ["volume", "export", "web", &out, "-f", "raw"];
    on(&place, &pool, &export).ok();
    assert!(fs::read(&out).expect("content")[..4 * KIB] == [7; 4 * KIB]);
    on(&place, &pool, &["volume", "delete", "web"]).ok();
    let gone = on(&place, &pool, &["--json", "volume", "take-over", "web"]);
    gone.error(11, "NotFound");
    drop(serving);
}

/// A client that stays when its commands are done, killed when dropped.
struct Client(Child);

impl Client {
    /// Returns when all commands are done.
    #[track_caller]
    fn done(uri: &str, commands: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-t", "writeback", "-f", "raw", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io");
        let mut stdin = child.stdin.as_ref().expect("stdin");
        let stdout = child.stdout.as_mut().expect("stdout");
        let mut told = Vec::new();
        let mut until_prompt = || {
            let already = told.len();
            while !told[already..].ends_with(b"qemu-io> ") {
                let mut byte = [0];
                stdout.read_exact(&mut byte).expect("it goes on");
                told.extend(byte);
            }
        };
        // It heeds one command at a time.
        until_prompt();
        for command in commands {
            writeln!(stdin, "{command}").expect("command");
            until_prompt();
        }
        let told = String::from_utf8_lossy(&told);
        assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
        Client(child)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients write and flush; the server is killed while they are connected, and another one has
/// all of it.
fn survives_kill_9(options: &[(&str, &str)]) {
    let place = Place::new();
    let image = place.image("image", 16 << 20);
    fs::create_dir(place.path("objects")).expect("directory");
    let mut pool = format!("file+object://{}?gc=1h", place.text("objects"));
    for (option, value) in options {
        pool += &format!("&{option}={}", value.replace("DIR", &place.text("journal")));
    }
    fs::create_dir(place.path("journal")).expect("directory");
    on(&place, &pool, &["volume", "create", "web", "16MiB"]).ok();
    let serve = || {
        let mut command = place.command(&["export", "web", "--socket", "s", "--shared"]);
        command.env("VOLMUX_POOL", &pool);
        Serving::spawn(command)
    };
    let killed = |serving: Serving, connected: Client| {
        serving.signal(Signal::KILL);
        assert_eq!(serving.finish().code, None);
        drop(connected);
    };
    let read = |uri: &str, commands: &[&str]| {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let args: Vec<&str> = ["-r", "-f", "raw"].into_iter().chain(commands).collect();
        let done = tool("qemu-io", &[&args[..], &[uri]].concat());
        assert!(!done.ok().contains("failed"), "{done:?}");
    };
    let serving = serve();
    let uri = serving.line();
    // This flushes at its end.
    tool("nbdcopy", &["--flush", text(&image), &uri]).ok();
    let idle = Client::done(&uri, &[]);
    killed(serving, idle);

    let serving = serve();
    let uri = serving.line();
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&image), &uri]);
    let fua = Client::done(
        &uri,
        &["write -f -P 0x21 8M 4k", "write -f -P 0x22 8195k 1"],
    );
    killed(serving, fua);

    let serving = serve();
    let uri = serving.line();
    let written = [
        "read -P 0x21 8M 3k",
        "read -P 0x22 8195k 1",
        "read -P 0x21 8391681 1023",
    ];
    read(&uri, &written);
    let commands = [
        "discard 1M 64k",
        "write -z 1100k 4k",
        "write -P 0x23 9M 1M",
        "flush",
    ];
    // A pool whose volumes have one writer: the server, for all of its clients.
    let _other = Client::done(&uri, &[]);
    let flushed = Client::done(&uri, &commands);
    killed(serving, flushed);

    let serving = serve();
    let uri = serving.line();
    read(&uri, &written);
    read(
        &uri,
        &[
            "read -P 0 1M 64k",
            "read -P 0 1100k 4k",
            "read -P 0x23 9M 1M",
        ],
    );
    serving.stop();
    on(&place, &pool, &["pool", "audit", "--repair"]).ok();
    on(&place, &pool, &["pool", "scrub"]).ok();
}

#[test]
fn what_was_flushed_survives_kill_9_in_the_store() {
    survives_kill_9(&[]);
}

#[test]
fn what_was_flushed_survives_kill_9_in_a_journal() {
    survives_kill_9(&[("flush", "journal"), ("journal", "DIR")]);
}

/// The shell commands of the documentation, in the order that they are in.
fn documented() -> Vec<&'static str> {
    let blocks = DOCS.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split_once("```").expect("an end").0)
        .collect()
}

#[test]
fn what_the_documentation_says_can_be_typed() {
    let place = Place::new();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_volmux"));
    let directory = program.parent().expect("a directory").display();
    let blocks = documented();
    assert_eq!(blocks.len(), 2);
    for block in &blocks {
        let script = block.replace("/srv/", &place.text(""));
        let script = format!("set -euo pipefail; PATH={directory}:$PATH\n{script}");
        let done = tool("bash", &["-c", &script]);
        // Nothing but that the disk is nearly full, where it is.
        let full = |line: &str| line.starts_with("warning: pool ") && line.contains(" % full");
        assert!(done.stderr.lines().all(full), "{done:?}");
        done.ok();
    }
    let names = |pool: &str| {
        let list = ["volume", "list", "--json"];
        let listed = on(&place, pool, &list).documents();
        let names = listed
            .iter()
            .map(|v| v["name"].as_str().expect("a name").to_owned());
        names.collect::<Vec<_>>()
    };
    let plain = format!("file+object://{}", place.text("objects"));
    assert_eq!(names(&plain), ["test"]);
    let more = place.text("more-objects");
    let key = place.text("secrets/key");
    assert_eq!(
        names(&format!("file+object://{more}?key_file={key}")),
        ["db"]
    );
    let refused = on(
        &place,
        &format!("file+object://{more}"),
        &["volume", "list"],
    );
    assert_eq!(refused.code, Some(20), "{refused:?}");
}

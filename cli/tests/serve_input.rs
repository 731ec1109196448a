//! What `volmux export` refuses before it serves anything.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use common::{Done, Place, finish};

fn place() -> Place {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    place
}

#[test]
fn the_command_line_is_checked() {
    let place = place();
    for wrong in [
        &["export"][..],
        &["export", "--socket", "s"],
        &["export", "web", "--all", "--socket", "s"],
        &["export", "web", "--listen", "127.0.0.1"],
        &["export", "web", "--listen", "localhost:10809"],
        &["export", "web", "--listen", ":10809"],
        &["export", "web", "--socket", "s", "--tls-verify-clients"],
        &["export", "web", "--socket", "s", "-r", "--shared"],
        &[
            "export",
            "web",
            "--socket",
            "s",
            "--max-connections",
            "many",
        ],
        &["export", "web", "--socket", "s", "--drain-time", "10"],
        &["export", "web", "--socket", "s", "--handshake-time", "soon"],
        &["export", "web", "--socket", "s", "--max-in-flight", "1Q"],
        &["export", "web", "--status", "unix:/s"],
        &["export", "--all", "--status", "unix:/s"],
    ] {
        let done = place.run(wrong);
        assert_eq!(done.code, Some(2), "{wrong:?}: {done:?}");
        assert!(done.stderr.contains("--help"), "{done:?}");
    }
}

#[test]
fn wrong_volumes_are_refused() {
    let place = place();
    let export = |volumes: &[&str]| place.json(&[&["export", "--socket", "s"], volumes].concat());
    export(&["nope"]).error(11, "NotFound");
    export(&["web", "nope"]).error(11, "NotFound");
    export(&["web", "web"]).error(14, "InvalidInput");
    export(&["../web"]).error(14, "InvalidInput");
    export(&[""]).error(14, "InvalidInput");
    assert!(!place.path("s").exists());
    let missing = [
        "-p",
        "dir:///no/such/pool",
        "export",
        "web",
        "--socket",
        "s",
    ];
    place.json(&missing).error(11, "NotFound");
}

#[test]
fn wrong_addresses_are_refused() {
    let place = place();
    let export = |args: &[&str]| place.json(&[&["export", "web"], args].concat());
    let error = export(&[]).error(14, "InvalidInput");
    let help = error["context"]["help"].as_str().expect("help");
    assert!(
        help.contains("--socket") && help.contains("--listen"),
        "{error}"
    );
    let error = export(&["--socket", "no/such/directory/s"]).error(11, "NotFound");
    assert!(
        error
            .to_string()
            .contains(&place.text("no/such/directory/s")),
        "{error}"
    );
    // It is short enough only before it is made absolute.
    let long = "x".repeat(104);
    let error = export(&["--socket", &long]).error(14, "InvalidInput");
    assert!(error.to_string().contains(&place.text(&long)), "{error}");
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809"] {
        let error = export(&["--listen", open]).error(14, "InvalidInput");
        let help = error["context"]["help"].as_str().expect("help");
        assert!(
            help.contains("--tls") && help.contains("--insecure"),
            "{error}"
        );
        let statistics = format!("tcp:{open}");
        let args = ["--socket", "s", "--statistics", &statistics];
        export(&args).error(14, "InvalidInput");
    }
    for wrong in ["s", "unix:", "tcp:localhost:1", "http://127.0.0.1:1"] {
        export(&["--socket", "s", "--statistics", wrong]).error(14, "InvalidInput");
        place
            .json(&["export", "--status", wrong])
            .error(14, "InvalidInput");
    }
    assert!(
        !place.path("s").exists(),
        "nothing is left of what was made"
    );
}

#[test]
fn limits_out_of_range_are_refused() {
    let place = place();
    for (option, value) in [
        ("--max-connections", "0"),
        ("--max-connections", "100000"),
        ("--max-request", "1KiB"),
        ("--max-request", "8GiB"),
        ("--max-requests", "0"),
        ("--max-in-flight", "1MiB"),
        ("--max-in-flight-per-connection", "1MiB"),
        ("--handshake-time", "0s"),
        ("--request-time", "0s"),
    ] {
        let done = place.json(&["export", "web", "--socket", "s", option, value]);
        let error = done.error(14, "InvalidInput");
        let named = error["context"]["option"].as_str().expect("option");
        assert!(named.contains(option), "{option}: {error}");
    }
}

#[test]
fn tls_needs_its_files() {
    let place = place();
    fs::create_dir(place.path("tls")).expect("directory");
    for directory in ["tls", "no-such-directory"] {
        let done = place.json(&["export", "web", "--socket", "s", "--tls", directory]);
        let error = done.error(11, "NotFound");
        assert!(error.to_string().contains(directory), "{error}");
    }
    for file in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        fs::write(place.path("tls").join(file), "canary-secret").expect("file");
    }
    let done = place.json(&["export", "web", "--socket", "s", "--tls", "tls"]);
    assert!(matches!(done.code, Some(14 | 15)), "{done:?}");
    assert!(!done.stderr.contains("canary-secret"), "{done:?}");
}

#[test]
fn nobody_to_ask_for_a_status_is_told_of() {
    let place = place();
    let status = |at: &str| place.json(&["export", "--status", at]);
    status("unix:missing").error(11, "NotFound");
    status("tcp:127.0.0.1:1").error(21, "Unavailable");
    fs::write(place.path("file"), "").expect("file");
    assert_ne!(status("unix:file").code, Some(0));
}

/// With `socket` in the place where a service manager puts listening sockets.
fn handed(place: &Place, socket: impl Into<OwnedFd>) -> Done {
    let mut command = place.command(&["--json", "export", "web"]);
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDS_FIRST_FD", "0")
        .stdin(Stdio::from(socket.into()));
    finish(command.spawn().expect("spawn"))
}

#[test]
fn only_listening_sockets_are_taken_from_a_service_manager() {
    let place = place();
    let (connected, _peer) = UnixStream::pair().expect("pair");
    let file = fs::File::open("/dev/null").expect("file");
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("bind");
    for done in [
        handed(&place, connected),
        handed(&place, file),
        handed(&place, datagrams),
    ] {
        let error = done.error(14, "InvalidInput");
        assert_eq!(error["context"]["LISTEN_FDS"], "0", "{error}");
        let help = error["context"]["help"].as_str().expect("help");
        assert!(help.contains("Accept=no"), "{error}");
    }
}

//! Socket activation, readiness, and the units that come with volmux.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::serving::{Serving, tool};
use common::{Place, wait_until};
use rustix::process::Signal;

fn place() -> Place {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    place
}

/// `volmux export web`, started by systemd's own tool at the first connection to `address`.
fn activated(place: &Place, address: &str) -> Serving {
    let mut command = Command::new("systemd-socket-activate");
    command
        .args(["--listen", address, "-E", "VOLMUX_POOL", "-E", "HOME", "--"])
        .arg(place.command(&[]).get_program())
        .args(["export", "web"])
        .env("VOLMUX_POOL", place.url())
        .env("HOME", place.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Serving::spawn(command)
}

#[test]
fn a_unix_socket_of_systemds_is_served_and_left_in_place() {
    let place = place();
    let serving = activated(&place, &place.text("s"));
    wait_until("listening", || place.path("s").exists());
    let uri = format!("nbd+unix:///web?socket={}", place.text("s"));
    let size = tool("nbdinfo", &["--size", &uri]);
    assert_eq!(size.ok().trim(), (8 << 20).to_string());
    assert_eq!(serving.line(), uri);
    serving.stop();
    assert!(place.path("s").exists(), "it is systemd's");
}

#[test]
fn a_tcp_socket_that_was_handed_over_is_served() {
    let place = place();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let mut command = place.command(&["export", "web"]);
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDS_FIRST_FD", "0")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let serving = Serving::spawn(command);
    let uri = serving.line();
    assert_eq!(uri, format!("nbd://{address}/web"));
    tool("nbdinfo", &["--size", &uri]).ok();
    serving.stop();
}

#[test]
fn systemd_is_told_when_it_is_ready_and_when_it_stops() {
    let place = place();
    let manager = UnixDatagram::bind(place.path("notify")).expect("bind");
    let limit = Some(Duration::from_secs(120));
    manager.set_read_timeout(limit).expect("time limit");
    let told = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).expect("message");
        String::from_utf8(buffer[..length].to_vec()).expect("UTF-8")
    };
    let mut command = place.command(&["export", "web", "--socket", "s"]);
    command.env("NOTIFY_SOCKET", place.path("notify"));
    let serving = Serving::spawn(command);
    assert_eq!(told(), "READY=1\n");
    let uri = serving.line();
    tool("nbdinfo", &["--size", &uri]).ok();
    serving.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1\n");
    assert_eq!(serving.finish().code, Some(0));
    let mut command = place.command(&["export", "web", "--socket", "s"]);
    command.env("NOTIFY_SOCKET", place.path("nobody"));
    let serving = Serving::spawn(command);
    tool("nbdinfo", &["--size", &serving.line()]).ok();
    let done = serving.stop();
    assert!(
        done.stderr.contains("systemd could not be told"),
        "{done:?}"
    );
}

#[test]
fn the_units_are_right() {
    let place = place();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/systemd");
    let program = place.command(&[]).get_program().to_owned();
    let program = program.to_str().expect("UTF-8");
    for entry in fs::read_dir(&units).expect("units") {
        let path = entry.expect("unit").path();
        let text = fs::read_to_string(&path).expect("unit");
        // It makes openat2(2) fail, without which no directory pool opens.
        assert!(!text.contains("\nRestrictSUIDSGID="), "{path:?}");
        // systemd looks whether the program is there.
        let text = text.replace("/usr/bin/volmux", program);
        let name = path.file_name().expect("name").to_str().expect("UTF-8");
        fs::write(place.path(name), text).expect("unit");
    }
    for unit in ["volmux-export@web.socket", "volmux-export@web.service"] {
        let args = ["verify", "--man=no", &place.text(unit)];
        let done = tool("systemd-analyze", &args);
        assert_eq!((done.ok(), done.stderr.as_str()), ("", ""), "{unit}");
    }
    // The tool does tell of what is wrong.
    let service = place.path("volmux-export@.service");
    let text = fs::read_to_string(&service).expect("unit");
    fs::write(&service, text.replace("NoNewPrivileges", "NoNewPrivilege")).expect("unit");
    let unit = place.text("volmux-export@web.service");
    let done = tool("systemd-analyze", &["verify", "--man=no", &unit]);
    assert!(done.stderr.contains("NoNewPrivilege"), "{done:?}");
}

#[test]
fn the_units_command_line_is_understood() {
    let place = place();
    let service = include_str!("../../gateway/systemd/volmux-export@.service");
    let start = service
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/volmux "))
        .expect("ExecStart");
    let line = start
        .replace("$VOLMUX_EXPORT_OPTIONS", "--socket s --statistics unix:st")
        .replace("%i", "web");
    let args: Vec<&str> = line.split_ascii_whitespace().collect();
    let serving = Serving::spawn(place.command(&args));
    tool("nbdinfo", &["--size", &serving.line()]).ok();
    serving.stop();
}

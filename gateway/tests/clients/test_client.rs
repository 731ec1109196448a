//! The tests' own client, held against servers that others wrote.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use volmux_gateway::Address;

use crate::common::client::Client;
use crate::common::program::{Running, eventually};
use crate::common::wire::{Mode, Request, can, cmd, errno, flag, opt, rep};

const SIZE: u64 = 4 << 20;

struct Other {
    server: Running,
    address: Address,
    _dir: TempDir,
}

fn started(mut command: Command, dir: TempDir, socket: &Path) -> Other {
    let mut server = Running::start(&mut command);
    eventually("the other server listens", || {
        assert!(server.is_running(), "{command:?} ended");
        UnixStream::connect(socket).is_ok()
    });
    Other {
        server,
        address: Address::Unix(socket.to_owned()),
        _dir: dir,
    }
}

fn nbdkit(args: &[&str]) -> Other {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("nbd.sock");
    let mut command = Command::new("nbdkit");
    command
        .args(["-f", "--exit-with-parent", "-U"])
        .arg(&socket)
        .args(args);
    started(command, dir, &socket)
}

/// `SIZE` bytes: 1 MiB of `0x77` at 1 MiB, the rest never written.
fn qemu_nbd(args: &[&str]) -> Other {
    let dir = tempfile::tempdir().expect("a directory");
    let (socket, image) = (dir.path().join("nbd.sock"), dir.path().join("disk.raw"));
    let file = std::fs::File::create(&image).expect("an image");
    file.set_len(SIZE).expect("its size");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x77; 1 << 20], 1 << 20).expect("data");
    let mut command = Command::new("qemu-nbd");
    command.args([
        "-f",
        "raw",
        "--discard=unmap",
        "--persistent",
        "-e",
        "8",
        "-x",
        "vol",
    ]);
    command.args(args).arg("-k").arg(&socket).arg(&image);
    started(command, dir, &socket)
}

/// The modes that qemu-nbd has. Extended headers came with QEMU 8.2; what is older refuses them.
fn modes_of_qemu_nbd(address: &Address) -> Vec<Mode> {
    let output = Command::new("qemu-nbd").arg("--version").output();
    let said = String::from_utf8(output.expect("qemu-nbd").stdout).expect("a version");
    let version = said.split_whitespace().nth(1).expect("qemu-nbd VERSION");
    let mut numbers = version
        .split('.')
        .map(|n| n.parse::<u32>().expect("a number"));
    if (numbers.next(), numbers.next()) >= (Some(8), Some(2)) {
        return Mode::ALL.to_vec();
    }
    let mut client = Client::greeted(address);
    client.refused(opt::EXTENDED_HEADERS, &[], rep::ERR_UNSUP);
    client.acknowledged(opt::ABORT, &[]);
    client.expect_end();
    vec![Mode::Simple, Mode::Structured]
}

fn every_command(address: &Address, export: &str, mode: Mode) {
    let mut client = Client::open(address, export, mode);
    assert_eq!(client.export.size, SIZE);
    assert_ne!(client.export.flags & can::FLUSH, 0);
    client.write(123_456, b"written").expect("write");
    assert_eq!(client.read(123_455, 9).expect("read"), b"\0written\0");
    client.flush().expect("flush");
    client.zero(123_456, 4, flag::NO_HOLE).expect("zero");
    assert_eq!(client.read(123_456, 7).expect("read"), b"\0\0\0\0ten");
    client.zero(0, SIZE, 0).expect("zero");
    client.trim(0, SIZE).expect("trim");
    let read = Request::new(cmd::READ, 0, SIZE).with(flag::DF);
    if mode != Mode::Simple {
        let done = client.ask(read);
        assert!(done.error == 0 && done.data.iter().all(|b| *b == 0));
    }
    assert_eq!(client.read(SIZE, 1), Err(errno::EINVAL));
    client
        .write(SIZE - 1, b"ab")
        .expect_err("a write past the end");
    for i in 0..200 {
        let data = [i as u8; 512];
        client.submit(Request::write(mode, i * 512, &data));
    }
    for _ in 0..200 {
        assert_eq!(client.next_done().error, 0);
    }
    for i in 0..200 {
        assert_eq!(client.read(i * 512, 512).expect("read"), [i as u8; 512]);
    }
    client.disconnect();
}

#[test]
fn it_understands_nbdkit_in_simple_and_structured_mode() {
    let mut other = nbdkit(&["memory", "4M"]);
    for mode in [Mode::Simple, Mode::Structured] {
        every_command(&other.address, "", mode);
    }
    let mut client = Client::greeted(&other.address);
    client.refused(opt::EXTENDED_HEADERS, &[], rep::ERR_UNSUP);
    assert_eq!(client.list(), [""]);
    client.acknowledged(opt::ABORT, &[]);
    client.expect_end();
    assert!(other.server.is_running());
}

#[test]
fn it_understands_the_holes_and_the_status_of_nbdkit() {
    let other = nbdkit(&["data", "@0x100000 0x77*0x100000", "size=4M"]);
    let mut client = Client::open_with(&other.address, "", Mode::Structured, &["base:allocation"]);
    let hole = (1 << 20, 3);
    assert_eq!(
        client.whole_status("base:allocation"),
        [hole, (1 << 20, 0), (2 << 20, 3)]
    );
    let data = client.read(0, SIZE).expect("read");
    assert!(data[..1 << 20].iter().all(|b| *b == 0));
    assert!(data[1 << 20..2 << 20].iter().all(|b| *b == 0x77));
    client.disconnect();
}

#[test]
fn it_understands_qemu_nbd_in_every_mode() {
    let other = qemu_nbd(&[]);
    for mode in modes_of_qemu_nbd(&other.address) {
        every_command(&other.address, "vol", mode);
    }
}

#[test]
fn it_understands_the_status_of_qemu_nbd_of_one_context_of_two_and_selective() {
    let other = qemu_nbd(&["-A"]);
    let contexts = ["base:allocation", "qemu:allocation-depth"];
    let modes = modes_of_qemu_nbd(&other.address).into_iter();
    for mode in modes.filter(|mode| *mode != Mode::Simple) {
        let mut client = Client::open_with(&other.address, "vol", mode, &contexts);
        let whole = client.whole_status("base:allocation");
        assert_eq!(whole, [(1 << 20, 3), (1 << 20, 0), (2 << 20, 3)]);
        let one = Request::new(cmd::BLOCK_STATUS, 1 << 20, SIZE / 2).with(flag::REQ_ONE);
        let done = client.ask(one);
        assert_eq!(done.status.len(), 2);
        assert_eq!(
            done.status[&client.context("base:allocation")],
            [(1 << 20, 0)]
        );
        if mode == Mode::Extended {
            assert_ne!(client.export.flags & can::BLOCK_STATUS_PAYLOAD, 0);
            let id = client.context("qemu:allocation-depth");
            let done = client.ask(Request::selective_status(0, SIZE, &[id]));
            assert_eq!((done.error, done.status.len()), (0, 1));
            let twice = client.ask(Request::selective_status(0, SIZE, &[id, id]));
            assert_eq!(twice.error, errno::EINVAL);
        }
        client.disconnect();
    }
}

#[test]
fn it_gets_on_with_the_old_style_of_qemu_nbd() {
    let other = qemu_nbd(&[]);
    for flags in [1, 3] {
        let mut client = Client::connect(&other.address);
        client.client_flags(flags);
        client.export_name("vol", flags == 3);
        assert_eq!(client.export.size, SIZE);
        assert_eq!(client.read(1 << 20, 2).expect("read"), [0x77; 2]);
        client.disconnect();
    }
}

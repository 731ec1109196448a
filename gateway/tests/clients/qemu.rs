//! qemu-io and qemu-img.

use std::path::{Path, PathBuf};

use serde_json::Value;
use volmux_core::{ByteRange, ExtentQuery, Support};
use volmux_gateway::{Address, ExportOptions};

use crate::common::program::{Ran, run};
use crate::common::random::Random;
use crate::common::server::{KIB, MIB, Setup, TestServer, name};

const SIZE: u64 = 8 * MIB;

/// A server on each kind of pool, by Unix socket and by TCP.
fn servers() -> Vec<TestServer> {
    let by_tcp = [Setup::memory().tcp(), Setup::objects().tcp()];
    let setups = Setup::each().into_iter().chain(by_tcp);
    setups
        .map(|setup| setup.volume("vol", SIZE).start())
        .collect()
}

#[track_caller]
fn qemu_io(server: &TestServer, commands: &[&str]) -> Ran {
    let mut args = vec!["-f".to_owned(), "raw".to_owned()];
    args.extend(
        commands
            .iter()
            .flat_map(|c| ["-c".to_owned(), (*c).to_owned()]),
    );
    args.push(server.uri("vol"));
    run("qemu-io", args)
}

/// All commands do what they say.
#[track_caller]
fn succeeds(server: &TestServer, commands: &[&str]) -> String {
    let said = qemu_io(server, commands).ok();
    assert!(!said.contains("failed") && !said.contains("rror"), "{said}");
    said
}

/// An image file with data at random places, and what is in it.
fn image(dir: &Path, seed: u64) -> (PathBuf, Vec<u8>) {
    let mut random = Random::new(seed);
    let mut content = vec![0; SIZE as usize];
    for _ in 0..40 {
        let length = 1 + random.below(90 * KIB) as usize;
        let at = random.below(SIZE - length as u64) as usize;
        content[at..at + length].copy_from_slice(&random.bytes(length));
    }
    let path = dir.join(format!("image-{seed}.raw"));
    std::fs::write(&path, &content).expect("an image");
    (path, content)
}

#[test]
fn qemu_io_reads_what_it_wrote_at_aligned_and_odd_offsets() {
    for server in servers() {
        let said = succeeds(
            &server,
            &[
                "read -P 0 0 8M",
                "write -P 0x11 0 64k",
                "write -P 0x22 12345 6789",
                "write -f -P 0x33 8388607 1",
                "aio_write -P 0x44 1M 1M",
                "aio_write -P 0x55 3M 512",
                "aio_flush",
                "flush",
                "read -P 0x11 0 12345",
                "read -P 0x22 12345 6789",
                "read -P 0x11 19134 46402",
                "read -P 0x33 8388607 1",
                "read -P 0x44 1M 1M",
                "read -P 0x55 3M 512",
                "read -P 0 3146240 512",
            ],
        );
        assert!(
            said.contains("wrote 6789/6789 bytes at offset 12345"),
            "{said}"
        );
        let content = server.content("vol");
        assert_eq!(content[12_345..12_350], [0x22; 5]);
        assert_eq!(content[SIZE as usize - 1], 0x33);
    }
}

#[test]
fn qemu_io_notices_a_wrong_pattern() {
    let server = Setup::memory().volume("vol", SIZE).start();
    qemu_io(&server, &["read -P 1 0 512"]).failed();
}

#[test]
fn qemu_io_discards_and_zeroes_with_and_without_holes() {
    for server in servers() {
        succeeds(
            &server,
            &[
                "write -P 0x66 0 8M",
                "discard 1M 1M",
                "write -z 2M 64k",
                "write -z -u 3M 1M",
                "write -z -u -n 4M 64k",
                "write -z 5000001 7",
                "write -z -u 6000001 100003",
                "discard 7000001 77777",
                "flush",
                "read -P 0x66 0 1M",
                "read -P 0 1M 1M",
                "read -P 0 2M 64k",
                "read -P 0 3M 1M",
                "read -P 0 5000001 7",
                "read -P 0x66 5000008 4096",
                "read -P 0 6000001 100003",
            ],
        );
        let allocated = allocated(&server);
        let is_allocated = |at: u64| allocated.iter().any(|e| e.offset <= at && at < e.end());
        assert!(is_allocated(0) && is_allocated(5_000_008));
        assert!(!is_allocated(MIB + 512 * KIB), "a discard makes a hole");
        assert!(!is_allocated(3 * MIB + 512 * KIB), "so do zeros that may");
        // An object pool has nothing that it could keep for them.
        let reserves = server.pool.capabilities().thick != Support::None;
        assert_eq!(
            is_allocated(2 * MIB + 32 * KIB),
            reserves,
            "and zeros that may not do not, where space can be reserved"
        );
    }
}

#[test]
fn qemu_io_is_told_of_a_read_only_export() {
    let setup = Setup::memory().unlisted("vol", SIZE);
    let server = setup.export(ExportOptions::read_only(name("vol"))).start();
    let said = qemu_io(&server, &["write 0 512"]).failed();
    assert!(said.contains("Permission denied"), "{said}");
    let uri = server.uri("vol");
    run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 0 0 8M", &uri]).ok();
}

#[test]
fn qemu_img_copies_an_image_in_and_out_without_a_difference() {
    for server in servers() {
        let (source, content) = image(server.dir(), 1);
        let source = source.to_str().expect("UTF-8");
        let uri = server.uri("vol");
        let formats = ["-f", "raw", "-O", "raw"];
        let arguments = |from: &str, to: &str, more: &[&str]| {
            let mut arguments = vec!["convert".to_owned()];
            arguments.extend(formats.iter().chain(more).map(|a| (*a).to_owned()));
            arguments.extend([from.to_owned(), to.to_owned()]);
            arguments
        };
        run(
            "qemu-img",
            arguments(source, &uri, &["-n", "-W", "-m", "8"]),
        )
        .ok();
        assert!(server.content("vol") == content);
        let compare = ["compare", "-f", "raw", "-F", "raw", source, &uri];
        assert!(run("qemu-img", compare).ok().contains("identical"));
        let back = server.dir().join("back.raw");
        let back = back.to_str().expect("UTF-8");
        run("qemu-img", arguments(&uri, back, &[])).ok();
        assert!(std::fs::read(back).expect("a file") == content);
        // Over it another one, whose zeros must be zeros.
        let (other, content) = image(server.dir(), 2);
        let other = other.to_str().expect("UTF-8");
        run("qemu-img", arguments(other, &uri, &["-n"])).ok();
        assert!(server.content("vol") == content);
        // The comparison can fail.
        run("qemu-img", compare).failed();
    }
}

/// The allocated extents, from the pool itself.
fn allocated(server: &TestServer) -> Vec<ByteRange> {
    let volume = name("vol");
    let extents = server.pool.extents(&volume, ExtentQuery::allocated());
    let joined = async { extents.await?.collect_joined().await };
    server.block_on(joined).expect("extents")
}

/// `qemu-img map` as ranges of `data: true`.
fn map(arguments: &[&str]) -> Vec<(u64, u64)> {
    let said = run("qemu-img", [&["map", "--output=json"], arguments].concat()).ok();
    let entries: Vec<Value> = serde_json::from_str(&said).expect("JSON");
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for entry in entries {
        let number = |key: &str| entry[key].as_u64().expect(key);
        if !entry["data"].as_bool().expect("data") {
            continue;
        }
        let (start, length) = (number("start"), number("length"));
        match ranges.last_mut() {
            Some(last) if last.1 == start => last.1 += length,
            _ => ranges.push((start, start + length)),
        }
    }
    ranges
}

#[test]
fn the_map_of_qemu_img_is_that_of_the_volume() {
    for server in servers() {
        succeeds(
            &server,
            &["write 64k 64k", "write 1M 1M", "write 5M 4k", "flush"],
        );
        let mapped = map(&["-f", "raw", &server.uri("vol")]);
        let allocated = allocated(&server);
        let allocated: Vec<_> = allocated.iter().map(|e| (e.offset, e.end())).collect();
        assert_eq!(mapped, allocated);
        assert_eq!(mapped.len(), 3);
    }
}

#[test]
fn qemu_img_is_told_what_changed_since_a_snapshot() {
    for setup in [Setup::memory(), Setup::objects()] {
        let server = setup.volume("vol", SIZE).start();
        succeeds(&server, &["write -P 1 0 1M", "flush"]);
        server.snapshot("vol", "snap");
        succeeds(
            &server,
            &[
                "write -P 2 64k 64k",
                "write -P 2 4M 128k",
                "discard 512k 64k",
            ],
        );
        let Address::Unix(path) = &server.address else {
            panic!("it listens on a Unix socket");
        };
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},export=vol,\
         x-dirty-bitmap=x-volmux:changed-since:snap",
            path.display()
        );
        // QEMU takes the lowest bit of any context for that of a hole: what changed has no data.
        let unchanged = map(&["--image-opts", &options]);
        let k = KIB;
        let expected = [
            (0, 64 * k),
            (128 * k, 512 * k),
            (576 * k, 4096 * k),
            (4224 * k, 8192 * k),
        ];
        assert_eq!(unchanged, expected);
    }
}

#[test]
fn a_volume_is_free_for_the_next_program_when_the_one_before_has_ended() {
    for server in servers() {
        for round in 0..30 {
            let write = format!("write -P {round} {round}k 1k");
            let read = format!("read -P {round} {round}k 1k");
            succeeds(&server, &[&write]);
            succeeds(&server, &[&read]);
        }
    }
}

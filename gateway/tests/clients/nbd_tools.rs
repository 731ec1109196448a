//! nbdinfo, nbdcopy (libnbd) and fio.

use std::collections::BTreeSet;

use serde_json::Value;
use volmux_gateway::ExportOptions;

use crate::common::program::run;
use crate::common::random::Random;
use crate::common::server::{KIB, MIB, Setup, TestServer, name};

const SIZE: u64 = 8 * MIB;

fn json(arguments: &[&str]) -> Value {
    let said = run("nbdinfo", [&["--json"], arguments].concat()).ok();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn content(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut content = vec![0; SIZE as usize];
    for _ in 0..30 {
        let length = 1 + random.below(200 * KIB) as usize;
        let at = random.below(SIZE - length as u64) as usize;
        content[at..at + length].copy_from_slice(&random.bytes(length));
    }
    content
}

#[test]
fn nbdinfo_sees_every_ability() {
    for setup in Setup::each() {
        let server = setup.volume("vol", SIZE).start();
        let told = json(&[&server.uri("vol")]);
        assert_eq!(told["protocol"], "newstyle-fixed");
        assert_eq!(told["TLS"], false);
        assert_eq!(told["structured"], true);
        let export = &told["exports"][0];
        assert_eq!(export["export-name"], "vol");
        assert_eq!(export["export-size"], SIZE);
        for (ability, wanted) in [
            ("is_read_only", false),
            ("is_rotational", false),
            ("can_cache", true),
            ("can_df", true),
            ("can_fast_zero", true),
            ("can_flush", true),
            ("can_fua", true),
            ("can_multi_conn", true),
            ("can_trim", true),
            ("can_zero", true),
        ] {
            assert_eq!(export[ability], wanted, "{ability}: {export}");
        }
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        let contexts = export["contexts"].as_array().expect("contexts");
        assert!(contexts.contains(&"base:allocation".into()), "{contexts:?}");
    }
}

#[test]
fn nbdinfo_sees_that_an_export_is_read_only() {
    let setup = Setup::memory().unlisted("vol", SIZE);
    let server = setup.export(ExportOptions::read_only(name("vol"))).start();
    let uri = server.uri("vol");
    run("nbdinfo", ["--is", "read-only", &uri]).ok();
    run("nbdinfo", ["--can", "multi-conn", &uri]).ok();
    for ability in ["trim", "zero", "fast-zero"] {
        run("nbdinfo", ["--can", ability, &uri]).failed();
    }
}

#[test]
fn nbdinfo_lists_what_is_served() {
    for setup in Setup::each() {
        let server = setup
            .volume("a", MIB)
            .volume("b", 2 * MIB)
            .unlisted("c", MIB)
            .start();
        let told = json(&["--list", &server.uri("")]);
        let exports = told["exports"].as_array().expect("exports");
        let listed: BTreeSet<_> = exports
            .iter()
            .map(|e| (e["export-name"].as_str(), e["export-size"].as_u64()))
            .collect();
        let expected = [(Some("a"), Some(MIB)), (Some("b"), Some(2 * MIB))];
        assert_eq!(listed, BTreeSet::from(expected));
    }
}

/// Ranges with their type, neighbours of one type joined.
fn map(server: &TestServer, context: &str) -> Vec<(u64, u64)> {
    let map = format!("--map={context}");
    let told = json(&[&map, &server.uri("vol")]);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    for entry in told.as_array().expect("an array") {
        assert_eq!(entry["offset"], at);
        let length = entry["length"].as_u64().expect("length");
        let kind = entry["type"].as_u64().expect("type");
        at += length;
        match ranges.last_mut() {
            Some(last) if last.1 == kind => last.0 += length,
            _ => ranges.push((length, kind)),
        }
    }
    assert_eq!(at, SIZE);
    ranges
}

#[test]
fn nbdinfo_maps_both_contexts() {
    for (number, setup) in Setup::each().into_iter().enumerate() {
        let server = setup.volume("vol", SIZE).start();
        let write = |at: u64, fill: u8| {
            let mut client = server.open("vol", crate::common::wire::Mode::Simple);
            client
                .write(at, &vec![fill; 64 * KIB as usize])
                .expect("write");
            client.flush().expect("flush");
            client.disconnect();
        };
        write(0, 1);
        server.snapshot("vol", "snap");
        write(MIB, 2);
        let k = 64 * KIB;
        let allocation = map(&server, "base:allocation");
        assert_eq!(allocation, [(k, 0), (MIB - k, 3), (k, 0), (7 * MIB - k, 3)]);
        let changed = map(&server, "x-volmux:changed-since:snap");
        if number < 3 {
            assert_eq!(changed, [(MIB, 0), (k, 1), (7 * MIB - k, 0)]);
        } else {
            // Without reflinks a directory pool knows less, and leaves nothing out.
            assert!(changed.iter().any(|(_, kind)| *kind == 1));
        }
    }
}

fn copy(arguments: &[&str]) {
    run("nbdcopy", arguments).ok();
}

#[test]
fn nbdcopy_copies_in_and_out_over_several_connections() {
    for setup in Setup::each() {
        let server = setup.volume("vol", SIZE).volume("other", SIZE).start();
        let path = |file: &str| server.dir().join(file).to_str().expect("UTF-8").to_owned();
        let (source, back) = (path("source"), path("back"));
        std::fs::write(&source, content(1)).expect("a file");
        let (vol, other) = (server.uri("vol"), server.uri("other"));
        copy(&["--connections=4", "--requests=64", "--flush", &source, &vol]);
        assert!(server.content("vol") == content(1));
        copy(&["--connections=4", &vol, &back]);
        assert!(std::fs::read(&back).expect("a file") == content(1));
        // One volume to the other, and over what was there.
        copy(&["--connections=4", &vol, &other]);
        assert!(server.content("other") == content(1));
        std::fs::write(&source, content(2)).expect("a file");
        copy(&["--connections=4", "--allocated", &source, &vol]);
        assert!(server.content("vol") == content(2));
        copy(&["--synchronous", &source, &other]);
        assert!(server.content("other") == content(2));
        let total = server.status().connections_total;
        assert!(total >= 4, "several connections each: {total}");
    }
}

#[test]
fn fio_finds_what_it_wrote() {
    for (setup, seed) in Setup::each().into_iter().zip(7..) {
        let server = setup.volume("vol", SIZE).start();
        for (depth, blocks) in [(1, "--bs=4k"), (32, "--bs=4k"), (32, "--bsrange=512-64k")] {
            fio(&server, depth, blocks, seed);
        }
    }
}

fn fio(server: &TestServer, depth: u32, blocks: &str, seed: u64) {
    let options = [
        "--name=verify",
        "--ioengine=nbd",
        &format!("--uri={}", server.uri("vol")),
        &format!("--iodepth={depth}"),
        &format!("--randseed={seed}"),
        &format!("--aux-path={}", server.dir().display()),
        blocks,
        "--rw=randrw",
        "--size=8M",
        "--fsync=50",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--output-format=json",
    ];
    let said = run("fio", options).ok();
    let begin = said.find('{').expect("JSON");
    let told: Value = serde_json::from_str(&said[begin..]).expect("JSON");
    let job = &told["jobs"][0];
    assert_eq!(job["error"], 0);
    for direction in ["read", "write"] {
        let count = job[direction]["total_ios"].as_u64().expect("a number");
        assert!(count > 50, "{direction}: {count}");
    }
}

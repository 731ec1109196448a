//! Metadata contexts: which extents are allocated, and which changed since a snapshot.

use volmux_core::{CloneOptions, ResizeOptions};
use volmux_gateway::ExportOptions;

use crate::common::client::Client;
use crate::common::server::{KIB, MIB, Setup, TestServer, name};
use crate::common::wire::{self, Mode, Request, cmd, errno, flag, opt, rep};

const ALLOCATION: &str = "base:allocation";
const CHUNKED: [Mode; 2] = [Mode::Structured, Mode::Extended];

fn since(snapshot: &str) -> String {
    format!("x-volmux:changed-since:{snapshot}")
}

/// 4 MiB with data at 1 MiB (64 KiB) and 3 MiB (4 KiB).
fn server() -> TestServer {
    let server = Setup::memory().volume("vol", 4 * MIB).start();
    let mut client = server.open("vol", Mode::Simple);
    client
        .write(MIB, &vec![1; 64 * KIB as usize])
        .expect("write");
    client.write(3 * MIB, &[2; 4096]).expect("write");
    client.disconnect();
    server
}

#[test]
fn allocation_is_that_of_the_volume() {
    let server = server();
    for mode in CHUNKED {
        let mut client = server.open_with("vol", mode, &[ALLOCATION]);
        let hole = |length| (length, 3);
        let expected = [
            hole(MIB),
            (64 * KIB, 0),
            hole(2 * MIB - 64 * KIB),
            (4 * KIB, 0),
            hole(MIB - 4 * KIB),
        ];
        assert_eq!(client.whole_status(ALLOCATION), expected);
        // From within.
        let part = client
            .status(ALLOCATION, MIB + 100, 64 * KIB)
            .expect("status");
        assert_eq!(part[0], (64 * KIB - 100, 0));
        let part = client.status(ALLOCATION, 4 * MIB - 1, 1).expect("status");
        assert_eq!(part, [(1, 3)]);
        client.disconnect();
    }
}

#[test]
fn allocation_follows_writes_trims_and_zeros() {
    for setup in Setup::each() {
        let server = setup.volume("vol", MIB).start();
        for mode in CHUNKED {
            let mut client = server.open_with("vol", mode, &[ALLOCATION]);
            client.trim(0, MIB).expect("trim");
            client.flush().expect("flush");
            assert_eq!(client.whole_status(ALLOCATION), [(MIB, 3)]);
            client
                .write(64 * KIB, &vec![1; 64 * KIB as usize])
                .expect("write");
            client.flush().expect("flush");
            let expected = [(64 * KIB, 3), (64 * KIB, 0), (896 * KIB, 3)];
            assert_eq!(client.whole_status(ALLOCATION), expected);
            client.zero(64 * KIB, 32 * KIB, 0).expect("zero");
            let after = client.whole_status(ALLOCATION);
            assert_eq!(after, [(96 * KIB, 3), (32 * KIB, 0), (896 * KIB, 3)]);
            client.disconnect();
        }
    }
}

#[test]
fn req_one_gives_one_extent_no_longer_than_asked() {
    let server = server();
    for mode in CHUNKED {
        let mut client = server.open_with("vol", mode, &[ALLOCATION]);
        for (offset, length, expected) in [
            (0, 4 * MIB, (MIB, 3)),
            (0, 512, (512, 3)),
            (MIB, 4096, (4096, 0)),
            (MIB, 2 * MIB, (64 * KIB, 0)),
            (3 * MIB + 4095, MIB - 4095, (1, 0)),
        ] {
            let request = Request::new(cmd::BLOCK_STATUS, offset, length).with(flag::REQ_ONE);
            let done = client.ask(request);
            assert_eq!(
                done.status.values().next().expect("one"),
                &[expected],
                "{offset}"
            );
        }
        client.disconnect();
    }
}

#[test]
fn a_status_past_the_end_is_invalid() {
    let server = server();
    for mode in CHUNKED {
        let mut client = server.open_with("vol", mode, &[ALLOCATION]);
        for (offset, length) in [(4 * MIB, 1), (4 * MIB - 1, 2), (u64::MAX, 1), (0, 5 * MIB)] {
            let status = client.status(ALLOCATION, offset, length);
            assert_eq!(status, Err(errno::EINVAL), "{offset}+{length}");
        }
        if mode == Mode::Extended {
            assert_eq!(client.status(ALLOCATION, 1, u64::MAX), Err(errno::EINVAL));
        }
        let none = client.ask(Request::new(cmd::BLOCK_STATUS, 0, 0));
        assert_eq!(none.error, errno::EINVAL, "there is no extent of no length");
        for bad in [flag::NO_HOLE, flag::DF, flag::FAST_ZERO, 1 << 9] {
            let done = client.ask(Request::new(cmd::BLOCK_STATUS, 0, 4096).with(bad));
            assert_eq!(done.error, errno::EINVAL, "{bad:#x}");
        }
        assert_eq!(client.status(ALLOCATION, 0, 1).expect("status")[0].1, 3);
        client.disconnect();
    }
}

#[test]
fn a_large_volume_has_one_long_extent() {
    let size = 6 << 40;
    let server = Setup::memory().volume("vol", size).start();
    let mut client = server.open_with("vol", Mode::Extended, &[ALLOCATION]);
    assert_eq!(
        client.status(ALLOCATION, 0, size).expect("status"),
        [(size, 3)]
    );
    client.disconnect();
    // Compact headers have 32 bits for an extent.
    let mut client = server.open_with("vol", Mode::Structured, &[ALLOCATION]);
    let status = client
        .status(ALLOCATION, 0, u64::from(u32::MAX))
        .expect("status");
    assert!(status.iter().all(|(_, flags)| *flags == 3));
    client.disconnect();
}

#[test]
fn a_status_of_very_many_extents_is_cut_short_and_continued() {
    // More than 2^20 extents would need 8 GiB of blocks: 70,000 do to see that none gets lost.
    const PIECES: u64 = 70_000;
    let setup = Setup::memory().volume("vol", PIECES * 8192);
    let server = setup.start();
    let mut client = server.open_with("vol", Mode::Extended, &[ALLOCATION]);
    for first in (0..PIECES).step_by(500) {
        for piece in first..first + 500 {
            client.submit(Request::write(Mode::Extended, piece * 8192, b"x"));
        }
        for _ in 0..500 {
            assert_eq!(client.next_done().error, 0);
        }
    }
    let whole = client.whole_status(ALLOCATION);
    assert_eq!(whole.len() as u64, 2 * PIECES);
    assert!(whole.chunks(2).all(|pair| pair == [(4096, 0), (4096, 3)]));
    client.disconnect();
}

#[test]
fn queries_select_what_they_name_and_unknown_ones_nothing() {
    let server = server();
    server.snapshot("vol", "snap");
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    assert_eq!(client.list_contexts("vol", &["base:"]), [ALLOCATION]);
    assert_eq!(client.list_contexts("vol", &[ALLOCATION]), [ALLOCATION]);
    let none: [&str; 0] = [];
    for unknown in [
        "base:other",
        "qemu:",
        "qemu:dirty-bitmap:x",
        "x-other:y",
        "x-volmux:no",
    ] {
        assert_eq!(client.list_contexts("vol", &[unknown]), none, "{unknown}");
        assert_eq!(client.select("vol", &[unknown]), none, "{unknown}");
    }
    // Selecting takes no wildcards.
    assert_eq!(client.select("vol", &["base:"]), none);
    assert_eq!(client.select("vol", &[]), none);
    assert_eq!(
        client.select("vol", &["base:other", ALLOCATION, "x:y"]),
        [ALLOCATION]
    );
    let all = client.list_contexts("vol", &[]);
    assert!(all.contains(&ALLOCATION.to_owned()), "{all:?}");
    assert!(
        all.iter().any(|context| context.starts_with("x-volmux:")),
        "{all:?}"
    );
    for wildcard in ["x-volmux:", "x-volmux:changed-since:"] {
        assert_eq!(client.list_contexts("vol", &[wildcard]), [since("snap")]);
    }
    assert_eq!(
        client.list_contexts("vol", &[&since("snap")]),
        [since("snap")]
    );
    assert_eq!(client.list_contexts("vol", &[&since("nothing")]), none);
    client.go("vol");
    client
        .status(ALLOCATION, 0, 1)
        .expect("the last selection counts");
    client.disconnect();
}

#[test]
fn a_query_without_a_namespace_selects_nothing() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    for query in [
        "",
        "base",
        "allocation",
        "changed-since",
        ":",
        ":allocation",
    ] {
        for option in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
            let replies = client.option(option, &wire::meta("vol", &[query]));
            assert_eq!(replies.len(), 1, "{query:?}: {replies:?}");
            assert!(
                [rep::ACK, rep::ERR_INVALID].contains(&replies[0].kind),
                "{replies:?}"
            );
        }
    }
    assert_eq!(client.list(), ["vol"]);
}

fn without_a_context(mut client: Client) {
    client.go("vol");
    let done = client.ask(Request::new(cmd::BLOCK_STATUS, 0, 4096));
    assert_eq!(done.error, errno::EINVAL);
    assert_eq!(client.read(0, 1).expect("read"), [0]);
    client.contexts.clear();
    client.disconnect();
}

#[test]
fn a_selection_is_replaced_even_by_one_that_fails() {
    let server = server();
    for replacement in [
        wire::meta("vol", &[]),
        wire::meta("vol", &["x-other:y"]),
        wire::meta("nothing", &[ALLOCATION]),
        vec![0, 0, 0],
    ] {
        let mut client = server.greeted();
        client.negotiate(Mode::Structured);
        client.select("vol", &[ALLOCATION]);
        client.option(opt::SET_META_CONTEXT, &replacement);
        without_a_context(client);
    }
}

#[test]
fn a_selection_for_another_export_does_not_count() {
    let setup = Setup::memory().volume("vol", MIB).volume("other", MIB);
    let server = setup.start();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    client.select("other", &[ALLOCATION]);
    without_a_context(client);
}

#[test]
fn a_selection_goes_together_with_the_old_way_to_an_export() {
    let server = server();
    let mut client = server.greeted();
    client.negotiate(Mode::Structured);
    client.select("vol", &[ALLOCATION]);
    client.export_name("vol", true);
    assert_eq!(
        client.status(ALLOCATION, MIB, 4096).expect("status")[0].1,
        0
    );
    client.disconnect();
}

/// Writes, snapshots and writes again: what changed since which snapshot.
fn changed(setup: Setup, exact: bool) {
    let server = setup.volume("vol", 4 * MIB).start();
    let mut client = server.open("vol", Mode::Simple);
    let block = vec![1; 64 * KIB as usize];
    client.write(0, &block).expect("write");
    client.flush().expect("flush");
    server.snapshot("vol", "first");
    client.write(MIB, &block).expect("write");
    client.flush().expect("flush");
    server.snapshot("vol", "second");
    client.write(2 * MIB, &block).expect("write");
    client.trim(0, 64 * KIB).expect("trim");
    client.flush().expect("flush");
    let contexts = [since("first"), since("second")];
    let contexts = contexts.each_ref().map(String::as_str);
    for mode in CHUNKED {
        let mut client = server.open_with("vol", mode, &contexts);
        let (k, since_first) = (64 * KIB, client.whole_status(contexts[0]));
        let since_second = client.whole_status(contexts[1]);
        if exact {
            let gap = (MIB - k, 0);
            assert_eq!(
                since_first,
                [(k, 1), gap, (k, 1), gap, (k, 1), (2 * MIB - k, 0)]
            );
            assert_eq!(
                since_second,
                [(k, 1), (2 * MIB - k, 0), (k, 1), (2 * MIB - k, 0)]
            );
        }
        // Whatever the grade, nothing that changed is left out.
        for (at, of_first) in [(0, 1), (MIB, 1), (2 * MIB, 1)] {
            let one = Request::new(cmd::BLOCK_STATUS, at, k).with(flag::REQ_ONE);
            let done = client.ask(one);
            let first = done.status[&client.context(contexts[0])][0];
            assert_eq!(first.1, of_first, "at {at}");
        }
        client.disconnect();
    }
    client.disconnect();
}

#[test]
fn what_changed_since_each_snapshot_is_told_of_a_memory_pool() {
    changed(Setup::memory(), true);
}

#[test]
fn what_changed_since_each_snapshot_is_told_of_an_object_pool() {
    changed(Setup::objects(), true);
    changed(Setup::objects_in_dir(), true);
}

#[test]
fn what_changed_since_each_snapshot_is_told_of_a_directory_pool() {
    changed(Setup::dir(), false);
}

#[test]
fn what_changes_while_the_client_looks_on_is_told() {
    let server = server();
    server.snapshot("vol", "snap");
    let context = since("snap");
    let mut client = server.open_with("vol", Mode::Extended, &[&context]);
    assert_eq!(client.whole_status(&context), [(4 * MIB, 0)]);
    client.write(MIB, &[1; 4096]).expect("the same data again");
    client.write(2 * MIB, &[5; 4096]).expect("write");
    client.flush().expect("flush");
    let whole = client.whole_status(&context);
    assert!(whole.contains(&(4096, 1)), "{whole:?}");
    client.disconnect();
}

#[test]
fn another_volumes_snapshot_is_no_context_and_leaks_nothing() {
    let setup = Setup::memory().volume("vol", MIB).volume("secret", MIB);
    let server = setup.start();
    server.snapshot("secret", "of-secret");
    let mut client = server.greeted();
    client.negotiate(Mode::Extended);
    let none: [&str; 0] = [];
    for foreign in [
        "of-secret",
        "secret",
        "vol",
        "../x",
        "",
        "of-secret ",
        "nothing",
    ] {
        assert_eq!(client.select("vol", &[&since(foreign)]), none, "{foreign}");
        let listed = client.list_contexts("vol", &[&since(foreign)]);
        assert_eq!(listed, none, "{foreign}");
    }
    client.go("vol");
    client.disconnect();
}

#[test]
fn a_snapshot_and_a_clone_are_compared_with_their_own_lineage() {
    let setup = Setup::memory().unlisted("vol", MIB).every_volume();
    let server = setup.start();
    let mut client = server.open("vol", Mode::Simple);
    client.write(0, &[1; 4096]).expect("write");
    client.flush().expect("flush");
    server.snapshot("vol", "first");
    client.write(8192, &[1; 4096]).expect("write");
    client.flush().expect("flush");
    server.snapshot("vol", "second");
    client.disconnect();
    let (from, to) = (name("second"), name("clone"));
    let made = server
        .pool
        .clone_volume(&from, &to, CloneOptions::default());
    server.block_on(made).expect("clone");
    // The second snapshot against the first.
    let context = since("first");
    let mut client = server.open_with("second", Mode::Structured, &[&context]);
    let expected = [(8192, 0), (4096, 1), (MIB - 12_288, 0)];
    assert_eq!(client.whole_status(&context), expected);
    client.disconnect();
    // The clone against what it was made of.
    let context = since("second");
    let mut client = server.open_with("clone", Mode::Structured, &[&context]);
    client.write(MIB / 2, &[1; 4096]).expect("write");
    client.flush().expect("flush");
    let expected = [(MIB / 2, 0), (4096, 1), (MIB / 2 - 4096, 0)];
    assert_eq!(client.whole_status(&context), expected);
    client.disconnect();
}

#[test]
fn two_contexts_are_told_together_and_one_of_them_on_request() {
    let server = server();
    server.snapshot("vol", "snap");
    let context = since("snap");
    let mut client = server.open_with("vol", Mode::Extended, &[ALLOCATION, &context]);
    client.write(0, &[1; 4096]).expect("write");
    client.flush().expect("flush");
    let (base, changed) = (client.context(ALLOCATION), client.context(&context));
    let done = client.ask(Request::new(cmd::BLOCK_STATUS, 0, 4 * MIB));
    assert_eq!(done.status[&base][..2], [(4096, 0), (MIB - 4096, 3)]);
    assert_eq!(done.status[&changed], [(4096, 1), (4 * MIB - 4096, 0)]);
    for id in [base, changed] {
        let done = client.ask(Request::selective_status(0, 4 * MIB, &[id]));
        assert_eq!((done.error, done.status.len()), (0, 1));
        let one = Request::selective_status(0, 512, &[id]).with(flag::REQ_ONE);
        assert_eq!(client.ask(one).status[&id][0].0, 512);
    }
    let both = client.ask(Request::selective_status(0, 4 * MIB, &[changed, base]));
    assert_eq!((both.error, both.status.len()), (0, 2));
    client.disconnect();
}

#[test]
fn a_bad_selective_status_is_read_and_refused() {
    let server = server();
    server.snapshot("vol", "snap");
    let context = since("snap");
    let mut client = server.open_with("vol", Mode::Extended, &[ALLOCATION, &context]);
    let (base, changed) = (client.context(ALLOCATION), client.context(&context));
    let unknown = (0..)
        .find(|id| ![base, changed].contains(id))
        .expect("there are many");
    for ids in [
        &[unknown][..],
        &[base, base],
        &[base, changed, base],
        &[base, unknown],
    ] {
        let done = client.ask(Request::selective_status(0, 4096, ids));
        assert_eq!(done.error, errno::EINVAL, "{ids:?}");
    }
    // Lengths that are not 8 + 4 n.
    for length in [1, 4, 7, 9, 10, 11, 13, 14, 15, 4097] {
        let mut request = Request::selective_status(0, 4096, &[base]);
        request.payload = vec![0; length];
        request.length = length as u64;
        let done = client.ask(request);
        assert_eq!(done.error, errno::EINVAL, "a payload of {length} bytes");
    }
    // A thousand contexts, of two that there are.
    let done = client.ask(Request::selective_status(0, 4096, &vec![base; 1000]));
    assert_eq!(done.error, errno::EINVAL);
    // Ranges are those of the payload.
    for (offset, length) in [(0, 4 * MIB + 1), (4 * MIB, 1), (1, u64::MAX), (0, 0)] {
        let done = client.ask(Request::selective_status(offset, length, &[base]));
        assert_eq!(done.error, errno::EINVAL, "{offset}+{length}");
    }
    let good = client.ask(Request::selective_status(0, 4096, &[base]));
    assert_eq!(good.error, 0);
    client.disconnect();
}

#[test]
fn a_snapshot_deleted_meanwhile_makes_an_error_and_no_wrong_answer() {
    let server = server();
    server.snapshot("vol", "snap");
    let context = since("snap");
    let mut client = server.open_with("vol", Mode::Structured, &[&context]);
    client.status(&context, 0, 4096).expect("status");
    let snapshot = name("snap");
    server
        .block_on(server.pool.delete_volume(&snapshot))
        .expect("delete");
    client
        .status(&context, 0, 4096)
        .expect_err("the snapshot is gone");
    assert_eq!(client.read(0, 1).expect("read"), [0]);
    client.disconnect();
    server.log.expect_warning(&["export=vol", "peer="]);
}

#[test]
fn a_snapshot_made_anew_under_the_same_name_is_not_taken_for_the_old_one() {
    let setup = Setup::memory().volume("vol", MIB).volume("other", MIB);
    let server = setup.start();
    server.snapshot("vol", "snap");
    let context = since("snap");
    let mut client = server.open_with("vol", Mode::Structured, &[&context]);
    server
        .block_on(server.pool.delete_volume(&name("snap")))
        .expect("delete");
    server.snapshot("other", "snap");
    client
        .status(&context, 0, 4096)
        .expect_err("it is another volume's snapshot");
    client.disconnect();
}

#[test]
fn the_status_of_a_volume_that_grew_ends_where_the_connection_was_told() {
    let server = server();
    let mut old = server.open_with("vol", Mode::Extended, &[ALLOCATION]);
    let grown = ResizeOptions::grow(volmux_core::ByteSize::mib(8));
    server
        .block_on(server.pool.resize_volume(&name("vol"), grown))
        .expect("resize");
    assert_eq!(
        old.whole_status(ALLOCATION)
            .iter()
            .map(|e| e.0)
            .sum::<u64>(),
        4 * MIB
    );
    let mut new = server.open_with("vol", Mode::Extended, &[ALLOCATION]);
    assert_eq!(
        new.whole_status(ALLOCATION)
            .iter()
            .map(|e| e.0)
            .sum::<u64>(),
        8 * MIB
    );
    old.disconnect();
    new.disconnect();
}

#[test]
fn a_read_only_export_has_contexts_too() {
    let setup = Setup::memory().unlisted("vol", MIB);
    let server = setup.export(ExportOptions::read_only(name("vol"))).start();
    let mut client = server.open_with("vol", Mode::Structured, &[ALLOCATION]);
    assert_eq!(client.whole_status(ALLOCATION), [(MIB, 3)]);
    client.disconnect();
}

//! A pool that fails, is full, hangs, or is taken away.

use std::time::Duration;

use volmux_core::layers::{Fault, FaultPlan, When};
use volmux_core::memory::{MemoryConfig, MemoryPool};
use volmux_core::{ByteSize, ErrorKind, OpenOptions};

use crate::common::client::Client;
use crate::common::server::{KIB, MIB, Setup};
use crate::common::watch::watched;
use crate::common::wire::{self, Mode, Request, cmd, errno, flag, opt, rep};

const ALLOCATION: &str = "base:allocation";

/// One request of each command that reaches the pool, with the pool's method.
fn one_of_each(client: &Client) -> Vec<(&'static str, Request)> {
    let mut all = vec![
        ("read_at", Request::new(cmd::READ, 0, 4096)),
        ("write_at", Request::write(client.mode, 4096, &[1; 4096])),
        ("flush", Request::new(cmd::FLUSH, 0, 0)),
        ("discard", Request::new(cmd::TRIM, 4096, 4096)),
        ("write_zeroes", Request::new(cmd::WRITE_ZEROES, 4096, 4096)),
    ];
    if !client.contexts.is_empty() {
        all.push(("extents", Request::new(cmd::BLOCK_STATUS, 0, 4096)));
    }
    all
}

#[test]
fn each_error_of_the_pool_becomes_the_error_that_fits_it() {
    for mode in Mode::ALL {
        let contexts: &[&str] = if mode == Mode::Simple {
            &[]
        } else {
            &[ALLOCATION]
        };
        for (kind, expected) in [
            (ErrorKind::NoSpace, errno::ENOSPC),
            (ErrorKind::InvalidInput, errno::EINVAL),
            (ErrorKind::PermissionDenied, errno::EPERM),
            (ErrorKind::Unavailable, errno::EIO),
            (ErrorKind::Corrupt, errno::EIO),
            (ErrorKind::TimedOut, errno::EIO),
            (ErrorKind::Internal, errno::EIO),
            (ErrorKind::NotFound, errno::EIO),
            (ErrorKind::Fenced, errno::ESHUTDOWN),
        ] {
            for op in [
                "read_at",
                "write_at",
                "flush",
                "discard",
                "write_zeroes",
                "extents",
            ] {
                let fault = Fault::fail(1, When::Before).with_kind(kind).of(op);
                let (setup, _) = Setup::faulty(FaultPlan::explicit([fault]));
                let server = setup.volume("vol", MIB).start();
                let mut client = server.open_with("vol", mode, contexts);
                for (other, request) in one_of_each(&client) {
                    let error = client.ask(request.clone()).error;
                    let wanted = if other == op { expected } else { 0 };
                    assert_eq!(error, wanted, "{mode:?} {kind:?} {op} {other}");
                    if other == op {
                        // It was one failure, and the connection lives on.
                        assert_eq!(client.ask(request).error, 0, "{mode:?} {op}");
                        if kind != ErrorKind::InvalidInput {
                            let words = ["export=vol", "peer=", "error=", op];
                            server.log.expect_warning(&words);
                        }
                    }
                }
                client.disconnect();
            }
        }
    }
}

#[test]
fn a_lost_answer_of_the_pool_is_an_error_and_not_a_success() {
    let fault = Fault::fail(1, When::After).of("write_at");
    let (setup, _) = Setup::faulty(FaultPlan::explicit([fault]));
    let server = setup.volume("vol", MIB).start();
    let mut client = server.open("vol", Mode::Structured);
    assert_eq!(client.write(0, b"perhaps"), Err(errno::EIO));
    client.write(0, b"certain").expect("write");
    assert_eq!(client.read(0, 7).expect("read"), b"certain");
    client.disconnect();
}

#[test]
fn a_write_with_fua_whose_flush_fails_has_failed() {
    let fault = Fault::fail(1, When::Before).of("flush");
    let (setup, _) = Setup::faulty(FaultPlan::explicit([fault]));
    let server = setup.volume("vol", MIB).start();
    let mut client = server.open("vol", Mode::Structured);
    let write = Request::write(Mode::Structured, 0, b"durable").with(flag::FUA);
    assert_eq!(client.ask(write.clone()).error, errno::EIO);
    assert_eq!(client.ask(write).error, 0);
    client.disconnect();
}

#[test]
fn a_full_pool_gives_enospc_and_the_connection_lives_on() {
    for mode in Mode::ALL {
        let config = MemoryConfig {
            refuse_percent: Some(100.0),
            overcommit_limit: Some(1000.0),
            ..MemoryConfig::with_total(ByteSize::mib(1))
        };
        let pool = MemoryPool::new(config).expect("a pool");
        let server = Setup::over(pool).volume("vol", 8 * MIB).start();
        let mut client = server.open("vol", mode);
        let block = vec![7; 64 * KIB as usize];
        for i in 0..16 {
            client.write(i * 64 * KIB, &block).expect("there is room");
        }
        assert_eq!(client.write(MIB, &block), Err(errno::ENOSPC));
        assert_eq!(client.write(MIB, b"x"), Err(errno::ENOSPC));
        server
            .log
            .expect_warning(&["export=vol", "peer=", "no space"]);
        // Nothing of it was written, and what was there is whole.
        assert_eq!(
            client.read(MIB, 64 * KIB).expect("read"),
            vec![0; 64 * KIB as usize]
        );
        assert_eq!(client.read(0, MIB).expect("read"), vec![7; MIB as usize]);
        client
            .write(0, b"over what is there")
            .expect("no new space");
        client.flush().expect("flush");
        client.trim(0, 64 * KIB).expect("trim");
        client.write(MIB, &block).expect("there is room again");
        client.disconnect();
    }
}

#[test]
fn a_volume_that_was_taken_over_is_shut_down_for_its_clients() {
    let server = Setup::memory().volume("vol", MIB).start();
    let mut client = server.open("vol", Mode::Structured);
    client.write(0, b"ours").expect("write");
    client.flush().expect("flush");
    let take_over = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let other = server.device("vol", take_over).expect("take it over");
    server
        .block_on(other.write_at(0, "theirs"[..].into()))
        .expect("write");
    assert_eq!(client.write(0, b"ours"), Err(errno::ESHUTDOWN));
    assert_eq!(client.flush(), Err(errno::ESHUTDOWN));
    assert_eq!(client.zero(0, 512, 0), Err(errno::ESHUTDOWN));
    assert_eq!(client.trim(0, 512), Err(errno::ESHUTDOWN));
    server
        .log
        .expect_warning(&["export=vol", "peer=", "fenced"]);
    let mut late = server.greeted();
    let text = late.refused(opt::GO, &wire::go("vol", &[]), rep::ERR_SHUTDOWN);
    assert!(text.contains("vol"), "{text}");
    client.disconnect();
    let content = server.block_on(other.read_at(0, 6)).expect("read");
    assert_eq!(&content[..], b"theirs", "nothing of ours got through");
}

#[test]
fn a_request_that_the_pool_does_not_answer_fails_in_time_and_others_go_on() {
    for mode in Mode::ALL {
        let contexts: &[&str] = if mode == Mode::Simple {
            &[]
        } else {
            &[ALLOCATION]
        };
        for op in [
            "read_at",
            "write_at",
            "flush",
            "discard",
            "write_zeroes",
            "extents",
        ] {
            let (setup, pool) =
                Setup::faulty(FaultPlan::explicit([Fault::cut(1, When::Before).of(op)]));
            let setup = setup.volume("vol", MIB);
            let server = setup
                .limits(|l| l.request_time = Duration::from_millis(300))
                .start();
            let mut client = server.open_with("vol", mode, contexts);
            let mut beside = server.open("vol", mode);
            let requests = one_of_each(&client);
            let Some((_, request)) = requests.into_iter().find(|(other, _)| *other == op) else {
                continue;
            };
            let hanging = client.submit(request.clone());
            let ping = client.submit(Request::new(cmd::CACHE, 0, 0));
            assert_eq!(
                client.next_done().cookie,
                ping,
                "one that hangs holds up no other"
            );
            // Another connection to the same volume.
            assert_eq!(beside.ask(Request::new(cmd::CACHE, 0, 0)).error, 0);
            let done = client.next_done();
            assert_eq!(
                (done.cookie, done.error),
                (hanging, errno::EIO),
                "{mode:?} {op}"
            );
            assert_eq!(
                client.ask(request).error,
                0,
                "{mode:?} {op}: the next one works"
            );
            assert!(pool.calls_of(op) >= 2);
            server
                .log
                .expect_warning(&["export=vol", "peer=", "error=", "timed out"]);
            client.disconnect();
            beside.disconnect();
        }
    }
}

#[test]
fn replies_come_as_requests_are_done_and_not_in_their_order() {
    for mode in Mode::ALL {
        let pool = watched(MemoryPool::unlimited());
        let server = Setup::over(pool.clone()).volume("vol", MIB).start();
        let mut client = server.open("vol", mode);
        pool.hook().hold("read_at");
        let slow = client.submit(Request::new(cmd::READ, 0, 4096));
        let quick = client.submit(Request::write(mode, 8192, &[1; 4096]));
        let flush = client.submit(Request::new(cmd::FLUSH, 0, 0));
        let mut first = [client.next_done().cookie, client.next_done().cookie];
        first.sort_unstable();
        let mut expected = [quick, flush];
        expected.sort_unstable();
        assert_eq!(first, expected);
        pool.hook().release("read_at");
        let done = client.next_done();
        assert_eq!((done.cookie, done.data.len()), (slow, 4096));
        client.disconnect();
    }
}

#[test]
fn a_pool_that_hangs_at_opening_ends_the_handshake_and_harms_no_other_volume() {
    let (setup, _) = Setup::faulty(FaultPlan::explicit([
        // The first is that of the other volume.
        Fault::cut(2, When::Before).of("open_volume"),
    ]));
    let setup = setup
        .unlisted("good", MIB)
        .unlisted("vol", MIB)
        .every_volume();
    let server = setup
        .limits(|l| l.handshake_time = Duration::from_millis(300))
        .start();
    let mut good = server.open("good", Mode::Structured);
    let mut client = server.greeted();
    client.send(&wire::option(opt::GO, &wire::go("vol", &[])));
    good.write(0, b"goes on").expect("write");
    client.expect_end();
    server.log.expect_warning(&["peer=", "handshake"]);
    assert_eq!(good.read(0, 7).expect("read"), b"goes on");
    // It was one hang.
    server.open("vol", Mode::Structured).disconnect();
    good.disconnect();
}

#[test]
fn a_pool_that_fails_at_opening_is_told_and_the_next_attempt_may_succeed() {
    for (kind, told) in [
        (ErrorKind::Unavailable, rep::ERR_SHUTDOWN),
        (ErrorKind::Fenced, rep::ERR_SHUTDOWN),
        (ErrorKind::Corrupt, rep::ERR_POLICY),
        (ErrorKind::PermissionDenied, rep::ERR_POLICY),
        (ErrorKind::NotFound, rep::ERR_UNKNOWN),
    ] {
        let fault = Fault::fail(1, When::Before)
            .with_kind(kind)
            .of("open_volume");
        let (setup, _) = Setup::faulty(FaultPlan::explicit([fault]));
        let server = setup.unlisted("vol", MIB).every_volume().start();
        let mut client = server.greeted();
        let text = client.refused(opt::GO, &wire::go("vol", &[]), told);
        assert!(text.contains("vol"), "{text}");
        server
            .log
            .expect_warning(&["export=", "vol", "peer=", "error=", "injected"]);
        client.go("vol");
        client.disconnect();
    }
}

#[test]
fn what_a_client_is_told_holds_no_paths_of_the_host() {
    for setup in [Setup::dir(), Setup::objects_in_dir()] {
        let server = setup.unlisted("vol", MIB).every_volume().start();
        let held = server
            .device("vol", OpenOptions::read_write())
            .expect("open");
        let mut client = server.greeted();
        let text = client.refused(opt::GO, &wire::go("vol", &[]), rep::ERR_POLICY);
        let dir = server.dir().to_str().expect("UTF-8");
        assert!(!text.contains(dir), "{text}");
        drop(held);
        let text = client.refused(opt::GO, &wire::go("nothing", &[]), rep::ERR_UNKNOWN);
        assert!(!text.contains(dir), "{text}");
    }
}

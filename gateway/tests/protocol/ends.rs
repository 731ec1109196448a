//! How connections and servers end.

use std::time::Duration;

use volmux_core::layers::{Fault, FaultPlan, When};
use volmux_core::memory::MemoryPool;
use volmux_core::{ErrorKind, OpenOptions};
use volmux_gateway::Address;

use crate::common::program::eventually;
use crate::common::server::{KIB, MIB, Setup};
use crate::common::watch::{Step, watched};
use crate::common::wire::{Mode, Request, cmd, errno};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn of_a_write_that_arrives_in_part_nothing_is_written() {
    for mode in Mode::ALL {
        let server = Setup::memory().volume("vol", 4 * MIB).start();
        for length in [1, 512, 4096, 40 * KIB, MIB] {
            let bytes = Request::write(mode, 0, &vec![0xff; length as usize]).encode(mode);
            let header = bytes.len() - length as usize;
            for cut in [1, length.div_ceil(2), length] {
                let mut client = server.open("vol", mode);
                client.send(&bytes[..bytes.len() - cut as usize]);
                if length == 512 {
                    client.stream().end_writing().expect("shutdown");
                    client.expect_end();
                }
            }
            // Half of the header.
            server.open("vol", mode).send(&bytes[..header / 2]);
        }
        server.wait_until_idle();
        assert_eq!(server.content("vol"), vec![0; 4 * MIB as usize], "{mode:?}");
    }
}

#[test]
fn a_client_that_vanishes_after_whole_requests_leaves_nothing_behind() {
    for mode in Mode::ALL {
        let server = Setup::memory().volume("vol", 4 * MIB).start();
        for _ in 0..20 {
            let mut client = server.open("vol", mode);
            let mut bytes = Vec::new();
            for i in 0..64 {
                bytes.extend(client.prepare(Request::write(mode, i * 512, &[1; 512])).1);
                bytes.extend(client.prepare(Request::new(cmd::READ, 0, 64 * KIB)).1);
            }
            client.send(&bytes);
        }
        server.wait_until_idle();
        assert_eq!(server.status().in_flight_bytes, 0);
        // Each write is there as a whole or not at all.
        let content = server.content("vol");
        for block in content[..64 * 512].chunks(512) {
            assert!(block.iter().all(|b| *b == block[0]));
        }
        server.open("vol", mode).disconnect();
    }
}

#[test]
fn goodbye_comes_after_all_that_was_asked_for() {
    for mode in Mode::ALL {
        let pool = watched(MemoryPool::unlimited());
        let server = Setup::over(pool.clone()).volume("vol", MIB).start();
        let mut client = server.open("vol", mode);
        pool.hook().hold("write_at");
        let write = client.submit(Request::write(mode, 0, b"before goodbye"));
        client.send(&Request::new(cmd::DISC, 0, 0).encode(mode));
        eventually("the write began", || pool.hook().began("write_at") == 1);
        pool.hook().release("write_at");
        let done = client.next_done();
        assert_eq!((done.cookie, done.error), (write, 0));
        client.expect_end();
        assert_eq!(server.content("vol")[..14], *b"before goodbye");
    }
}

#[test]
fn what_follows_goodbye_is_not_looked_at() {
    let server = Setup::memory().volume("vol", MIB).start();
    for mode in Mode::ALL {
        let mut client = server.open("vol", mode);
        let mut bytes = Request::new(cmd::DISC, 0, 0).encode(mode);
        bytes.extend(Request::write(mode, 0, b"too late").encode(mode));
        client.send(&bytes);
        client.expect_end();
    }
    server.wait_until_idle();
    assert_eq!(server.content("vol")[..8], [0; 8]);
}

#[test]
fn a_client_that_stops_sending_still_gets_its_replies() {
    for mode in Mode::ALL {
        let server = Setup::memory().volume("vol", MIB).start();
        let mut client = server.open("vol", mode);
        for i in 0..100 {
            client.submit(Request::write(mode, i * 512, &[3; 512]));
        }
        client.stream().end_writing().expect("shutdown");
        for _ in 0..100 {
            assert_eq!(client.next_done().error, 0);
        }
        client.expect_end();
    }
}

#[test]
fn a_server_that_stops_answers_what_is_under_way_and_flushes_it() {
    for mode in Mode::ALL {
        let pool = watched(MemoryPool::unlimited());
        let setup = Setup::over(pool.clone())
            .volume("vol", MIB)
            .volume("idle", MIB);
        let mut server = setup.start();
        let mut client = server.open("vol", mode);
        let mut idle = server.open("idle", mode);
        pool.hook().hold("write_at");
        let write = client.submit(Request::write(mode, 0, b"under way"));
        eventually("the write began", || pool.hook().began("write_at") == 1);
        let stopping = server.begin_to_stop(LONG);
        idle.expect_end();
        let Address::Unix(path) = server.address.clone() else {
            panic!("it listens on a Unix socket");
        };
        eventually("nobody is let in", || {
            std::os::unix::net::UnixStream::connect(&path).is_err()
        });
        pool.hook().release("write_at");
        let done = client.next_done();
        assert_eq!((done.cookie, done.error), (write, 0));
        client.expect_end();
        server
            .block_on(stopping)
            .expect("no panic")
            .expect("stopped in order");
        let steps = pool.hook().steps();
        let written = steps
            .iter()
            .position(|s| matches!(s, Step::Ended("write_at", _)));
        let flushed = steps.iter().rposition(|s| *s == Step::Began("flush", None));
        assert!(flushed > written, "what was answered is durable");
        assert!(!path.exists(), "the socket is gone");
        server
            .device("vol", OpenOptions::read_write())
            .expect("the volume is closed");
        assert_eq!(server.content("vol")[..9], *b"under way");
    }
}

#[test]
fn a_server_that_stops_cuts_off_what_hangs_and_says_so() {
    let pool = watched(MemoryPool::unlimited());
    let mut server = Setup::over(pool.clone()).volume("vol", MIB).start();
    let mut client = server.open("vol", Mode::Structured);
    client.write(0, b"answered").expect("write");
    pool.hook().hold("read_at");
    client.submit(Request::new(cmd::READ, 0, 4096));
    eventually("the read began", || pool.hook().began("read_at") == 1);
    let error = server
        .stop(Duration::from_millis(300))
        .expect_err("it hangs");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    client.rest();
    assert!(
        pool.hook().ended("flush") >= 1,
        "what was answered is durable all the same"
    );
    pool.hook().release("read_at");
    assert_eq!(server.content("vol")[..8], *b"answered");
}

#[test]
fn a_server_that_stops_cuts_off_a_client_that_does_not_read() {
    let mut server = Setup::memory().volume("vol", 8 * MIB).start();
    let mut client = server.open("vol", Mode::Structured);
    for _ in 0..20 {
        client.submit(Request::new(cmd::READ, 0, 8 * MIB));
    }
    eventually("replies wait", || {
        server.status().in_flight_bytes >= 8 * MIB
    });
    let error = server
        .stop(Duration::from_millis(300))
        .expect_err("it does not read");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn a_server_that_stops_cuts_off_handshakes_and_half_requests() {
    let mut server = Setup::memory().volume("vol", MIB).start();
    let mut shaking = server.greeted();
    let mut half = server.open("vol", Mode::Structured);
    let bytes = Request::write(Mode::Structured, 0, &[0xff; 1000]).encode(Mode::Structured);
    half.send(&bytes[..500]);
    server.stop(LONG).expect("nobody waits for them");
    shaking.expect_end();
    half.expect_end();
    assert_eq!(server.content("vol"), vec![0; MIB as usize]);
}

#[test]
fn a_last_flush_that_fails_is_an_error_of_stopping() {
    let fault = Fault::fail(1, When::Before).of("flush");
    let (setup, _) = Setup::faulty(FaultPlan::explicit([fault]));
    let mut server = setup.volume("vol", MIB).start();
    let mut client = server.open("vol", Mode::Structured);
    client.write(0, b"not flushed").expect("write");
    client.disconnect();
    let error = server.stop(LONG).expect_err("the flush fails");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("vol"), "{error}");
}

#[test]
fn every_volume_is_flushed_though_one_of_them_fails() {
    let fault = Fault::fail(1, When::Before).of("flush");
    let (setup, pool) = Setup::faulty(FaultPlan::explicit([fault]));
    let setup = setup.volume("a", MIB).volume("b", MIB).volume("c", MIB);
    let mut server = setup.start();
    server.stop(LONG).expect_err("one flush fails");
    assert_eq!(pool.calls_of("flush"), 3);
}

#[test]
fn a_server_that_is_dropped_ends_at_once_and_flushes_nothing() {
    let pool = watched(MemoryPool::unlimited());
    let mut server = Setup::over(pool.clone()).volume("vol", MIB).start();
    let mut client = server.open("vol", Mode::Structured);
    let mut shaking = server.greeted();
    client.write(0, b"written").expect("write");
    server.end();
    client.expect_end();
    shaking.expect_end();
    assert_eq!(pool.hook().began("flush"), 0);
    let Address::Unix(path) = &server.address else {
        panic!("it listens on a Unix socket");
    };
    assert!(!path.exists(), "the socket is gone");
    eventually("the volume is closed", || {
        server.device("vol", OpenOptions::read_write()).is_ok()
    });
}

#[test]
fn a_volume_is_flushed_before_it_is_closed_behind_its_last_client() {
    let pool = watched(MemoryPool::unlimited());
    let server = Setup::over(pool.clone())
        .unlisted("vol", MIB)
        .every_volume()
        .start();
    let mut client = server.open("vol", Mode::Structured);
    client
        .write(0, b"not flushed by the client")
        .expect("write");
    client.disconnect();
    eventually("it is flushed", || pool.hook().ended("flush") == 1);
    eventually("it is closed", || {
        server.device("vol", OpenOptions::read_write()).is_ok()
    });
}

#[test]
fn a_client_learns_of_a_failed_flush_and_may_try_again() {
    let fault = Fault::fail(1, When::Before).of("flush");
    let (setup, _) = Setup::faulty(FaultPlan::explicit([fault]));
    let server = setup.volume("vol", MIB).start();
    let mut client = server.open("vol", Mode::Simple);
    assert_eq!(client.flush(), Err(errno::EIO));
    server
        .log
        .expect_warning(&["export=vol", "peer=", "flush", "error="]);
    client.flush().expect("the next one");
    client.disconnect();
}

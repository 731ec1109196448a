//! What a client can't make a server do: wait for ever, hold connections, take memory.

use std::time::Duration;

use volmux_core::ErrorKind;
use volmux_core::memory::MemoryPool;
use volmux_gateway::Limits;

use crate::common::client::Client;
use crate::common::program::eventually;
use crate::common::server::{KIB, MIB, Setup};
use crate::common::watch::watched;
use crate::common::wire::{self, Mode, Request, cmd, opt};

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn a_handshake_that_takes_too_long_is_cut_off() {
    let setup = Setup::memory().volume("vol", MIB);
    let server = setup.limits(|l| l.handshake_time = SHORT).start();
    // Says nothing at all.
    Client::connect(&server.address).expect_end();
    // Stops within an option.
    let mut client = server.greeted();
    client.send(&wire::option(opt::GO, &wire::go("vol", &[]))[..15]);
    client.expect_end();
    // Asks for ever.
    let mut client = server.greeted();
    eventually("it is cut off", || {
        client.try_send(&wire::option(99, b"")).is_err()
    });
    // A byte now and then.
    let mut client = server.greeted();
    let slow = wire::option(98, &[0; 4000]);
    let mut bytes = slow.iter();
    eventually("it is cut off", || match bytes.next() {
        Some(byte) => client.try_send(&[*byte]).is_err(),
        None => panic!("4000 bytes with pauses take longer"),
    });
    server.log.expect_warning(&["peer=", "handshake"]);
    server.wait_until_idle();
    server.open("vol", Mode::Simple).disconnect();
}

#[test]
fn a_client_that_is_through_the_handshake_may_be_quiet() {
    let setup = Setup::memory().volume("vol", MIB);
    let server = setup.limits(|l| l.handshake_time = SHORT).start();
    let mut quiet = server.open("vol", Mode::Structured);
    quiet.read(0, 1).expect("read");
    // As long as it takes another one to be cut off, three times.
    for _ in 0..3 {
        Client::connect(&server.address).expect_end();
    }
    assert_eq!(quiet.read(0, 1).expect("read"), [0]);
    quiet.disconnect();
}

#[test]
fn a_paused_guest_that_has_sent_no_request_yet_is_not_cut_off() {
    let setup = Setup::memory().volume("vol", MIB);
    let server = setup.limits(|l| l.handshake_time = SHORT).start();
    let mut paused = server.open("vol", Mode::Structured);
    for _ in 0..3 {
        Client::connect(&server.address).expect_end();
    }
    assert_eq!(paused.read(0, 1).expect("read"), [0]);
    paused.disconnect();
}

#[test]
fn connections_past_the_limit_are_closed_and_the_others_served() {
    let setup = Setup::memory().volume("vol", MIB);
    let server = setup.limits(|l| l.connections = 3).start();
    let mut first = server.open("vol", Mode::Simple);
    let hoarded = [server.greeted(), server.greeted()];
    for _ in 0..5 {
        Client::connect_silently(&server.address).expect_end();
    }
    server.log.expect_warning(&["connections"]);
    first.write(0, b"served").expect("write");
    assert_eq!(server.connections(), 3);
    drop(hoarded);
    eventually("there is room", || server.connections() == 1);
    let mut next = server.open("vol", Mode::Simple);
    assert_eq!(next.read(0, 6).expect("read"), b"served");
    next.disconnect();
    first.disconnect();
}

#[test]
fn a_client_that_reads_no_replies_takes_a_bounded_amount_of_memory_and_stops_nobody() {
    for mode in Mode::ALL {
        let pool = watched(MemoryPool::unlimited());
        let setup = Setup::over(pool.clone()).volume("vol", 8 * MIB);
        let limits = |l: &mut Limits| {
            l.request_length = MIB as u32;
            l.in_flight_per_connection = 4 * MIB;
            l.in_flight_total = 8 * MIB;
        };
        let server = setup.limits(limits).start();
        let mut greedy: Vec<Client> = (0..4).map(|_| server.open("vol", mode)).collect();
        for client in &mut greedy {
            let mut bytes = Vec::new();
            for _ in 0..200 {
                bytes.extend(client.prepare(Request::new(cmd::READ, 0, MIB)).1);
            }
            // 800 MiB of replies are asked for, and none is read.
            client.send(&bytes);
        }
        let mut modest = server.open("vol", mode);
        for i in 0..100 {
            modest.write(i, b"goes on").expect("write");
            assert_eq!(modest.read(i, 7).expect("read"), b"goes on");
        }
        // Each connection may have 4 MiB under way, and one request when all is taken; sockets
        // hold some hundred KiB.
        let large = pool
            .hook()
            .began_where(|range| range.is_some_and(|r| r.length == MIB));
        assert!(
            large <= 4 * 5 + 1,
            "{large} reads of 1 MiB without a reader"
        );
        modest.disconnect();
        // They are served as soon as they read.
        let mut late = greedy.pop().expect("four");
        for _ in 0..200 {
            assert_eq!(late.next_done().data.len() as u64, MIB);
        }
        late.disconnect();
        drop(greedy);
        server.wait_until_idle();
        assert_eq!(server.status().in_flight_bytes, 0);
    }
}

#[test]
fn payloads_that_never_come_take_a_bounded_amount_of_memory_and_stop_nobody() {
    let setup = Setup::memory().volume("vol", 8 * MIB);
    let limits = |l: &mut Limits| {
        l.request_length = MIB as u32;
        l.in_flight_per_connection = MIB;
        l.in_flight_total = 2 * MIB;
    };
    let server = setup.limits(limits).start();
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut client = server.open("vol", Mode::Structured);
        let bytes = Request::write(Mode::Structured, 0, &vec![0xff; MIB as usize]);
        let bytes = bytes.encode(Mode::Structured);
        client.send(&bytes[..bytes.len() - 700_000]);
        stuck.push(client);
    }
    let mut modest = server.open("vol", Mode::Structured);
    for i in 0..100 {
        modest.write(4 * MIB + i, b"goes on").expect("write");
    }
    assert!(server.status().in_flight_bytes <= 23 * MIB);
    assert_eq!(modest.read(0, MIB).expect("read"), vec![0; MIB as usize]);
    modest.disconnect();
    drop(stuck);
    server.wait_until_idle();
    assert_eq!(server.status().in_flight_bytes, 0);
    let content = server.content("vol");
    assert!(
        content[..MIB as usize].iter().all(|b| *b == 0),
        "no half write"
    );
}

#[test]
fn one_connection_does_not_keep_the_pool_to_itself() {
    let pool = watched(MemoryPool::unlimited());
    let setup = Setup::over(pool.clone()).volume("vol", MIB);
    let server = setup.limits(|l| l.in_flight_requests = 8).start();
    let mut client = server.open("vol", Mode::Structured);
    // Before the others hang: a new connection waits for what its client has sent.
    let mut other = server.open("vol", Mode::Structured);
    pool.hook().hold("read_at");
    for i in 0..100 {
        client.submit(Request::new(cmd::READ, i, 1));
    }
    eventually("the first are under way", || {
        pool.hook().began("read_at") >= 8
    });
    other.write(0, b"through").expect("write");
    other.flush().expect("flush");
    assert_eq!(pool.hook().began("read_at"), 8, "no more than the limit");
    pool.hook().release("read_at");
    for _ in 0..100 {
        assert_eq!(client.next_done().error, 0);
    }
    client.disconnect();
    other.disconnect();
}

#[test]
fn limits_out_of_range_are_refused_by_name() {
    type Change = fn(&mut Limits);
    let changes: [(&str, Change); 8] = [
        ("connections", |l| l.connections = 0),
        ("connections", |l| l.connections = 100_000),
        ("option_length", |l| l.option_length = 100),
        ("request_length", |l| l.request_length = 4 * KIB as u32),
        ("request_length", |l| l.request_length = u32::MAX),
        ("in_flight_requests", |l| l.in_flight_requests = 0),
        ("in_flight_per_connection", |l| {
            l.in_flight_per_connection = MIB;
        }),
        ("handshake_time", |l| l.handshake_time = Duration::ZERO),
    ];
    for (limit, change) in changes {
        let setup = Setup::memory().volume("vol", MIB).limits(change);
        let (_, error) = setup.try_start().expect_err(limit);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(limit), "{error}");
    }
}

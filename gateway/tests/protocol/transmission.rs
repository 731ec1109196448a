//! Each command in each mode.

use crate::common::client::Client;
use crate::common::random::Random;
use crate::common::server::{KIB, MIB, Setup, TestServer};
use crate::common::wire::{self, Mode, Request, cmd, errno, flag};

pub fn server() -> TestServer {
    Setup::memory().volume("vol", MIB).start()
}

/// The connection still works: requests are read from the right place.
#[track_caller]
pub fn lives(client: &mut Client) {
    let data = [0x5a; 33];
    client.write(4097, &data).expect("write");
    assert_eq!(client.read(4096, 35).expect("read")[1..34], data);
}

pub fn in_each_mode(check: impl Fn(&TestServer, Client)) {
    for mode in Mode::ALL {
        let server = server();
        let client = server.open("vol", mode);
        check(&server, client);
    }
}

#[test]
fn random_requests_leave_what_they_should() {
    for setup in Setup::each() {
        let server = setup.volume("vol", MIB).start();
        let mut random = Random::new(1);
        let mut model = vec![0; MIB as usize];
        for mode in Mode::ALL {
            let mut client = server.open("vol", mode);
            for step in 0..300 {
                let offset = random.below(MIB);
                let length = 1 + random.below((MIB - offset).min(70 * KIB));
                let range = offset as usize..(offset + length) as usize;
                match random.below(6) {
                    0 | 1 => {
                        let data = vec![random.below(255) as u8 + 1; length as usize];
                        let fua = flag::FUA * random.below(2) as u16;
                        let write = Request::write(mode, offset, &data).with(fua);
                        assert_eq!(client.ask(write).error, 0);
                        model[range].copy_from_slice(&data);
                    }
                    2 => {
                        let flags = random.below(4) as u16;
                        client.zero(offset, length, flags).expect("zero");
                        model[range].fill(0);
                    }
                    3 => {
                        client.trim(offset, length).expect("trim");
                        // What is discarded reads as zeros here.
                        model[range].fill(0);
                    }
                    _ => {
                        let read = client.read(offset, length).expect("read");
                        assert!(read == model[range], "step {step}: {offset}+{length}");
                    }
                }
            }
            client.flush().expect("flush");
            client.disconnect();
        }
        assert!(
            server.content("vol") == model,
            "the volume holds what the model holds"
        );
    }
}

#[test]
fn requests_at_the_edges_of_the_export_succeed() {
    in_each_mode(|server, mut client| {
        client.write(MIB - 1, b"e").expect("the last byte");
        client.write(0, b"s").expect("the first byte");
        let whole = client.read(0, MIB).expect("everything");
        assert_eq!((whole[0], whole[MIB as usize - 1]), (b's', b'e'));
        client.write(0, &vec![7; MIB as usize]).expect("everything");
        client.zero(MIB - 3, 3, 0).expect("the last bytes");
        client.trim(0, 1).expect("the first byte");
        client.zero(0, MIB, flag::NO_HOLE).expect("everything");
        client.trim(0, MIB).expect("everything");
        assert_eq!(client.ask(Request::new(cmd::CACHE, 0, MIB)).error, 0);
        client.disconnect();
        assert_eq!(server.content("vol"), vec![0; MIB as usize]);
    });
}

#[test]
fn zeros_and_trims_may_be_longer_than_a_payload() {
    let size = 1 << 40;
    let server = Setup::memory().volume("vol", size).start();
    for mode in Mode::ALL {
        let mut client = server.open("vol", mode);
        client.write(1 << 33, b"far").expect("write");
        // The largest length of a compact header, and all at once with an extended one.
        let (offset, length) = match mode {
            Mode::Extended => (0, size),
            Mode::Simple | Mode::Structured => (1 << 33, u64::from(u32::MAX)),
        };
        client.zero(offset, length, 0).expect("zero");
        assert_eq!(client.read(1 << 33, 3).expect("read"), [0; 3]);
        client.write(1 << 33, b"far").expect("write");
        client.trim(offset, length).expect("trim");
        assert_eq!(client.read(1 << 33, 3).expect("read"), [0; 3]);
        client.disconnect();
    }
}

#[test]
fn fua_is_taken_with_every_command() {
    in_each_mode(|_, mut client| {
        let commands = [
            cmd::READ,
            cmd::FLUSH,
            cmd::TRIM,
            cmd::CACHE,
            cmd::WRITE_ZEROES,
        ];
        for command in commands {
            let length = if command == cmd::FLUSH { 0 } else { 4096 };
            let done = client.ask(Request::new(command, 0, length).with(flag::FUA));
            assert_eq!(done.error, 0, "{command}");
        }
        let write = Request::write(client.mode, 0, b"durable").with(flag::FUA);
        assert_eq!(client.ask(write).error, 0);
        assert_eq!(client.read(0, 7).expect("read"), b"durable");
        client.disconnect();
    });
}

#[test]
fn a_fast_zero_either_succeeds_or_changes_nothing() {
    in_each_mode(|_, mut client| {
        for (offset, length) in [(0, 4096), (4096, 64 * KIB), (100, 33), (5000, 10_000)] {
            for no_hole in [0, flag::NO_HOLE] {
                client
                    .write(offset, &vec![7; length as usize])
                    .expect("write");
                let zeroed = client.zero(offset, length, flag::FAST_ZERO | no_hole);
                let left = client.read(offset, length).expect("read");
                match zeroed {
                    Ok(()) => assert!(left.iter().all(|b| *b == 0)),
                    Err(error) => {
                        assert_eq!(error, errno::ENOTSUP);
                        assert!(left.iter().all(|b| *b == 7), "nothing changed");
                    }
                }
            }
        }
        client.disconnect();
    });
}

#[test]
fn zeros_without_a_hole_are_not_refused_for_being_slow() {
    in_each_mode(|_, mut client| {
        for (offset, length) in [(0, MIB), (1, 1), (4095, 2), (77, 100_000)] {
            client
                .write(offset, &vec![7; length as usize])
                .expect("write");
            client.zero(offset, length, flag::NO_HOLE).expect("zero");
            let left = client.read(offset, length).expect("read");
            assert!(left.iter().all(|b| *b == 0));
        }
        client.disconnect();
    });
}

#[test]
fn an_unfragmented_read_is_one_piece() {
    for mode in [Mode::Structured, Mode::Extended] {
        let server = Setup::memory().volume("vol", 8 * MIB).start();
        let mut client = server.open("vol", mode);
        // Data, hole, data.
        client.write(0, &[1; 4096]).expect("write");
        client.write(MIB, &[2; 4096]).expect("write");
        for (offset, length) in [(0, 65_536), (0, MIB + 4096), (10, 5000), (4096, 4096)] {
            let done = client.ask(Request::new(cmd::READ, offset, length).with(flag::DF));
            assert_eq!(done.error, 0);
            assert!(done.data.iter().enumerate().all(|(at, byte)| {
                let at = offset + at as u64;
                *byte == u8::from(at < 4096) + 2 * u8::from((MIB..MIB + 4096).contains(&at))
            }));
        }
        // Without the flag the same comes, in however many pieces.
        let plain = client.read(0, 2 * MIB).expect("read");
        assert_eq!((plain[0], plain[MIB as usize], plain[4096]), (1, 2, 0));
        client.disconnect();
    }
}

#[test]
fn a_flush_ignores_or_refuses_a_range() {
    in_each_mode(|_, mut client| {
        client.flush().expect("flush");
        for (offset, length) in [(1, 0), (0, 1), (u64::MAX, 99)] {
            let done = client.ask(Request::new(cmd::FLUSH, offset, length));
            assert!([0, errno::EINVAL].contains(&done.error), "{done:?}");
        }
        lives(&mut client);
        client.disconnect();
    });
}

#[test]
fn a_snapshot_is_served_for_reading_only() {
    let server = Setup::memory().unlisted("vol", MIB).every_volume().start();
    let mut client = server.open("vol", Mode::Simple);
    client.write(0, b"before").expect("write");
    client.flush().expect("flush");
    server.snapshot("vol", "snap");
    client.write(0, b"after!").expect("write");
    let mut snapshot = server.open("snap", Mode::Structured);
    assert_ne!(snapshot.export.flags & wire::can::READ_ONLY, 0);
    assert_eq!(snapshot.write(0, b"x"), Err(errno::EPERM));
    assert_eq!(snapshot.read(0, 6).expect("read"), b"before");
    snapshot.disconnect();
    client.disconnect();
}

#[test]
fn thousands_of_requests_may_be_under_way() {
    const COUNT: u64 = 4096;
    for mode in Mode::ALL {
        let server = Setup::memory().volume("vol", COUNT * 512).start();
        let mut client = server.open("vol", mode);
        let block = |i: u64| [(i % 251) as u8 + 1; 512];
        let mut bytes = Vec::new();
        for i in 0..COUNT {
            bytes.extend(client.prepare(Request::write(mode, i * 512, &block(i))).1);
        }
        send_beside(&client, bytes);
        for _ in 0..COUNT {
            assert_eq!(client.next_done().error, 0);
        }
        let mut asked = std::collections::BTreeMap::new();
        let mut bytes = Vec::new();
        for i in 0..COUNT {
            let (cookie, request) = client.prepare(Request::new(cmd::READ, i * 512, 512));
            asked.insert(cookie, i);
            bytes.extend(request);
        }
        send_beside(&client, bytes);
        for _ in 0..COUNT {
            let done = client.next_done();
            assert_eq!(done.data, block(asked[&done.cookie]));
        }
        client.disconnect();
    }
}

/// Sends in a thread of its own, for whoever must read meanwhile.
fn send_beside(client: &Client, bytes: Vec<u8>) {
    let mut stream = client.stream().second();
    std::thread::spawn(move || std::io::Write::write_all(&mut stream, &bytes).expect("send"));
}

#[test]
fn a_request_may_come_in_pieces_of_a_byte() {
    in_each_mode(|_, mut client| {
        let (_, bytes) = client.prepare(Request::write(client.mode, 77, b"piecemeal"));
        for byte in bytes {
            client.send(&[byte]);
        }
        assert_eq!(client.next_done().error, 0);
        assert_eq!(client.read(77, 9).expect("read"), b"piecemeal");
        client.disconnect();
    });
}

#[test]
fn the_same_cookie_again_is_not_the_servers_concern() {
    in_each_mode(|_, mut client| {
        for cookie in [0, 1, u64::MAX] {
            client.next_cookie_is(cookie);
            assert_eq!(client.read(0, 1).expect("read"), [0]);
            client.next_cookie_is(cookie);
            client.write(0, &[0]).expect("write");
        }
        client.disconnect();
    });
}

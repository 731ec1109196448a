//! A million messages that are malformed or cut off, over thousands of connections. They are made
//! by seed; one counts once the server has refused it or has ended the connection over it.

#[path = "../common/mod.rs"]
mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use volmux_gateway::{Address, Limits};

use common::client::Client;
use common::program::eventually;
use common::random::Random;
use common::server::{MIB, Setup, TestServer};
use common::wire::{self, Mode, Request, cmd, flag, info, opt, rep};

const MESSAGES: u64 = 1_000_000;
const THREADS: u64 = 4;
const SIZE: u64 = 4 * MIB;
/// The longest option and request of the server under test.
const OPTION: u32 = 4096;
const REQUEST: u64 = MIB;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Entries of a directory of /proc: threads or descriptors.
fn count(directory: &str) -> usize {
    let entries = std::fs::read_dir(directory).expect("/proc is there");
    entries.count()
}

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("VmRSS").trim().trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") << 10
}

#[test]
fn a_million_bad_messages_do_no_harm() {
    let before_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before_hook(panic);
    }));
    let threads = count("/proc/self/task");
    let limits = |l: &mut Limits| {
        l.option_length = OPTION;
        l.request_length = REQUEST as u32;
        l.in_flight_per_connection = 4 * MIB;
        l.in_flight_total = 32 * MIB;
    };
    let setup = Setup::memory()
        .volume("vol", SIZE)
        .volume("neighbour", SIZE);
    let mut server = setup.limits(limits).start();
    let treasure = Random::new(99).bytes(SIZE as usize);
    let mut neighbour = server.open("neighbour", Mode::Extended);
    for (number, piece) in treasure.chunks(MIB as usize).enumerate() {
        neighbour.write(number as u64 * MIB, piece).expect("write");
    }
    // What is taken once and kept is not counted against the server.
    throw(&server, 7, MESSAGES / 200);
    settled(&server);
    let (descriptors, memory) = (count("/proc/self/fd"), resident());

    let done: u64 = std::thread::scope(|scope| {
        let throwers: Vec<_> = (0..THREADS)
            .map(|seed| (seed, &server))
            .map(|(seed, server)| scope.spawn(move || throw(server, seed, MESSAGES / THREADS)))
            .collect();
        throwers
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .sum()
    });
    assert!(done >= MESSAGES, "{done}");
    settled(&server);
    let status = server.status();
    println!("{done} messages, {} connections", status.connections_total);

    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "no panic anywhere");
    assert_eq!(status.in_flight_bytes, 0);
    eventually("descriptors are closed", || {
        count("/proc/self/fd") <= descriptors
    });
    let grown = resident().saturating_sub(memory);
    assert!(grown < 64 * MIB, "{grown} bytes of memory more than before");
    // The connection that was there all the time, and a new one.
    for (number, piece) in treasure.chunks(MIB as usize).enumerate() {
        assert!(neighbour.read(number as u64 * MIB, MIB).expect("read") == piece);
    }
    let mut client = server.open("vol", Mode::Structured);
    client.write(0, b"still here").expect("write");
    assert_eq!(client.read(0, 10).expect("read"), b"still here");
    client.disconnect();
    neighbour.disconnect();
    server
        .stop(Duration::from_secs(30))
        .expect("it stops in order");
    assert!(server.content("neighbour") == treasure);
    drop(server);
    eventually("all threads are gone", || {
        count("/proc/self/task") <= threads
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "no panic anywhere");
}

/// Only the neighbour is left, and what was logged is forgotten.
fn settled(server: &TestServer) {
    eventually("the connections are gone", || server.connections() == 1);
    server.log.clear();
}

/// Throws at least `wanted` messages, and says how many they were.
fn throw(server: &TestServer, seed: u64, wanted: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut done = 0;
    while done < wanted {
        done += match random.below(10) {
            0..2 => bad_requests(&server.address, &mut random),
            2..5 => bad_options(&server.address, &mut random),
            _ => damaged_session(&server.address, &mut random),
        };
    }
    done
}

/// An option that has to be refused.
fn bad_option(random: &mut Random) -> (u32, Vec<u8>) {
    let some = |random: &mut Random, most| {
        let length = 1 + random.below(most) as usize;
        random.bytes(length)
    };
    match random.below(8) {
        0 => {
            let option = 12 + random.below(u64::from(u32::MAX) - 12) as u32;
            (option, some(random, 200))
        }
        1 => {
            let empty = [
                opt::LIST,
                opt::STRUCTURED_REPLY,
                opt::EXTENDED_HEADERS,
                opt::STARTTLS,
            ];
            (random.pick(&empty), some(random, 100))
        }
        2 => (random.pick(&[opt::GO, opt::INFO]), some(random, 60)),
        3 => {
            let name: String = some(random, 40)
                .iter()
                .map(|b| char::from(b % 128))
                .collect();
            let data = wire::go(&format!("{name}?"), &[info::BLOCK_SIZE]);
            (random.pick(&[opt::GO, opt::INFO]), data)
        }
        4 => {
            let meta = [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT];
            (random.pick(&meta), some(random, 80))
        }
        5 => {
            // A length or a count in it is wrong.
            let mut data = wire::meta("vol", &["base:allocation", "x-volmux:"]);
            let at = random.pick(&[0, 7, 11, 30]);
            let wrong = random.pick(&[40, 255, 1 << 16, 1 << 31, u32::MAX]);
            data[at..at + 4].copy_from_slice(&u32::to_be_bytes(wrong));
            (opt::SET_META_CONTEXT, data)
        }
        6 => {
            let good = wire::go("vol", &[info::NAME, info::BLOCK_SIZE]);
            let length = random.below(good.len() as u64) as usize;
            (opt::GO, good[..length].to_vec())
        }
        _ => {
            let length = OPTION as usize + 1 + random.below(2000) as usize;
            (random.pick(&[opt::LIST, opt::GO, 77]), vec![0xaa; length])
        }
    }
}

/// A hundred options that have to be refused, and something that ends the connection.
fn bad_options(address: &Address, random: &mut Random) -> u64 {
    let mut client = Client::greeted(address);
    let mode = random.pick(&Mode::ALL);
    client.negotiate(mode);
    let options: Vec<_> = (0..100).map(|_| bad_option(random)).collect();
    // Those that are too long fill the socket: so not all at once.
    for some in options.chunks(10) {
        let bytes: Vec<u8> = some
            .iter()
            .flat_map(|(o, data)| wire::option(*o, data))
            .collect();
        client.send(&bytes);
        for (option, data) in some {
            let replies = client.option_replies(*option);
            let last = replies.last().expect("a reply");
            assert!(
                last.kind & rep::ERROR != 0,
                "{option} {data:02x?}: {last:?}"
            );
        }
    }
    let end = match random.below(5) {
        0 => random.bytes(16),
        1 => wire::option(opt::EXPORT_NAME, b"nothing"),
        2 => wire::option_claiming(opt::GO, 1 << 31, b"vol"),
        3 => wire::option_claiming(opt::LIST, 100, b"half"),
        _ => wire::option(opt::GO, &wire::go("vol", &[]))[..9].to_vec(),
    };
    client.send(&end);
    client.stream().end_writing().expect("shutdown");
    client.rest();
    options.len() as u64 + 1
}

/// A request that has to be refused.
fn bad_request(mode: Mode, contexts: bool, random: &mut Random) -> Request {
    let ranged = [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES];
    // With extended headers this one announces a payload.
    let unknown_flags: Vec<u16> = (6..16).map(|bit| 1 << bit).collect();
    let far = random.pick(&[SIZE, SIZE + 1, 1 << 40, 1 << 63, u64::MAX - 511, u64::MAX]);
    match random.below(8) {
        0 => {
            let command = 8 + random.below(65_528) as u16;
            Request::new(command, random.next(), random.next())
        }
        1 => {
            let command = random.pick(&[ranged[0], ranged[1], ranged[2], ranged[3], cmd::FLUSH]);
            let length = if command == cmd::FLUSH { 0 } else { 512 };
            Request::new(command, 0, length).with(random.pick(&unknown_flags))
        }
        2 => Request::new(random.pick(&ranged), far, 1 + random.below(SIZE)),
        3 => Request::new(
            random.pick(&ranged),
            random.below(SIZE),
            SIZE + random.below(1 << 30),
        ),
        4 => {
            let data = vec![0xbb; 1 + random.below(600) as usize];
            Request::write(mode, far, &data)
        }
        5 => {
            let write = Request::write(mode, 0, &[0xcc; 64]);
            write.with(random.pick(&unknown_flags))
        }
        6 if mode == Mode::Extended => {
            let command = random.pick(&[cmd::READ, cmd::FLUSH, cmd::TRIM, cmd::BLOCK_STATUS, 99]);
            let length = 1 + random.below(100) as usize;
            Request {
                length: length as u64,
                // No context has such a number.
                payload: vec![0xff; length],
                ..Request::new(command, 0, 0).with(flag::PAYLOAD_LEN)
            }
        }
        _ if contexts => Request::new(cmd::BLOCK_STATUS, far, 1 + random.below(SIZE)),
        _ => Request::new(cmd::BLOCK_STATUS, 0, 4096),
    }
}

/// Some hundred requests that have to be refused, and something that ends the connection.
fn bad_requests(address: &Address, random: &mut Random) -> u64 {
    let mode = random.pick(&Mode::ALL);
    let contexts = mode != Mode::Simple && random.below(2) == 0;
    let selected: &[&str] = if contexts { &["base:allocation"] } else { &[] };
    let mut client = Client::open_with(address, "vol", mode, selected);
    let mut refused = 0;
    for _ in 0..1 + random.below(12) {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            let request = bad_request(mode, contexts, random);
            bytes.extend(client.prepare(request).1);
        }
        // Good ones are between them, and are not counted.
        let good = client.prepare(Request::write(mode, 0, &[1; 512]));
        bytes.extend(good.1);
        client.send(&bytes);
        for _ in 0..101 {
            let done = client.next_done();
            assert_eq!(done.error == 0, done.cookie == good.0, "{done:?}");
            refused += u64::from(done.error != 0);
        }
    }
    let whole = Request::write(mode, 0, &[0xdd; 3000]).encode(mode);
    let end = match random.below(4) {
        0 => random.bytes(40),
        1 => whole[..random.below(28) as usize + 1].to_vec(),
        2 => whole[..100].to_vec(),
        _ => {
            let mut request = Request::write(mode, 0, &[]);
            request.length = 1 << 31;
            request.encode(mode)
        }
    };
    client.send(&end);
    client.stream().end_writing().expect("shutdown");
    client.rest();
    refused + 1
}

/// A whole session whose bytes were tampered with. It counts as one message.
fn damaged_session(address: &Address, random: &mut Random) -> u64 {
    let mode = random.pick(&Mode::ALL);
    let mut bytes = 3u32.to_be_bytes().to_vec();
    match mode {
        Mode::Simple => {}
        Mode::Structured => bytes.extend(wire::option(opt::STRUCTURED_REPLY, &[])),
        Mode::Extended => bytes.extend(wire::option(opt::EXTENDED_HEADERS, &[])),
    }
    if mode != Mode::Simple {
        let contexts = wire::meta("vol", &["base:allocation", "x-volmux:"]);
        bytes.extend(wire::option(opt::LIST_META_CONTEXT, &contexts));
        bytes.extend(wire::option(opt::SET_META_CONTEXT, &contexts));
    }
    bytes.extend(wire::option(opt::GO, &wire::go("vol", &[info::BLOCK_SIZE])));
    for _ in 0..6 {
        let (offset, length) = (random.below(SIZE), random.below(3000));
        let request = match random.below(8) as u16 {
            cmd::WRITE => Request::write(mode, offset, &random.bytes(length as usize)),
            cmd::DISC => Request::selective_status(offset, length, &[1]),
            command => Request::new(command, offset, length),
        };
        bytes.extend(request.with(random.below(32) as u16).encode(mode));
    }
    for _ in 0..1 + random.below(4) {
        damage(&mut bytes, random);
    }
    let mut client = Client::connect(address);
    // The server may hang up at any byte.
    let _ = client.try_send(&bytes);
    let _ = client.stream().end_writing();
    client.rest();
    1
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let length = bytes.len() as u64;
    let at = random.below(length) as usize;
    match random.below(6) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
        2 => {
            let number = random.pick(&[0, 1, 1 << 16, 1 << 31, u32::MAX]);
            let end = (at + 4).min(bytes.len());
            bytes[at..end].copy_from_slice(&u32::to_be_bytes(number)[..end - at]);
        }
        3 => bytes.truncate(at.max(1)),
        4 => {
            let end = (at + 1 + random.below(40) as usize).min(bytes.len());
            bytes.drain(at..end);
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        _ => {
            let length = 1 + random.below(40) as usize;
            bytes.splice(at..at, random.bytes(length));
        }
    }
}

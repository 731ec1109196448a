//! The NBD server: whole sessions over a Unix socket, as bytes and as messages.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;
use volmux_core::memory::MemoryPool;
use volmux_core::{ByteSize, CreateOptions, Pool, SnapshotOptions, VolumeName};
use volmux_gateway::{ExportOptions, Exports, Limits, Listen, ServeOptions, Server, serve};

const SIZE: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// One server for all inputs, on a socket without a file.
static SERVER: LazyLock<(Runtime, Server, SocketAddr)> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let name = format!("volmux-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("a name of our own");
    let server = runtime.block_on(start(listener));
    (runtime, server, address)
});

async fn start(listener: UnixListener) -> Server {
    let pool = MemoryPool::unlimited();
    let [vol, snap] = ["vol", "snap"].map(|name| VolumeName::new(name).expect("a good name"));
    let size = CreateOptions::thin(ByteSize::new(SIZE));
    pool.create_volume(&vol, size).await.expect("create");
    let snapshot = SnapshotOptions::default();
    let made = pool.snapshot_volume(&vol, &snap, snapshot);
    made.await.expect("snapshot");
    let options = ServeOptions {
        exports: Exports::Volumes(vec![ExportOptions::read_write(vol)]),
        listen: vec![Listen::UnixListener(listener)],
        tls: None,
        statistics: None,
        limits: Limits {
            request_length: 1 << 20,
            in_flight_per_connection: 4 << 20,
            in_flight_total: 16 << 20,
            ..Limits::default()
        },
    };
    serve(pool, options).await.expect("serve")
}

/// Numbers from the input; zeros when it is used up.
struct Numbers<'a>(&'a [u8]);

impl<'a> Numbers<'a> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.slice(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn slice(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x4948_4156_454f_5054_u64.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A handshake that ends with the transmission phase. `mode`: simple, structured, extended replies.
fn handshake(mode: u8) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    if mode > 0 {
        bytes.extend(option(if mode == 1 { 8 } else { 11 }, &[]));
        let mut contexts = b"\0\0\0\x03vol\0\0\0\x02\0\0\0\x0fbase:allocation".to_vec();
        contexts.extend(b"\0\0\0\x1bx-volmux:changed-since:snap");
        bytes.extend(option(10, &contexts));
    }
    bytes.extend(option(7, b"\0\0\0\x03vol\0\x01\0\x03"));
    bytes
}

/// Options whose framing is right.
fn options(mut input: Numbers<'_>) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    while !input.0.is_empty() {
        let [number, length] = input.bytes();
        let data = input.slice(length.into());
        bytes.extend(option(u32::from(number % 14), data));
    }
    bytes
}

/// Requests whose framing is right, most of them near the export.
fn requests(mode: u8, mut input: Numbers<'_>) -> Vec<u8> {
    let mut bytes = handshake(mode);
    while !input.0.is_empty() {
        let [command, flags, wild] = input.bytes();
        let mut offset = u64::from_le_bytes(input.bytes());
        let mut length = u64::from(u32::from_le_bytes(input.bytes()));
        if wild & 1 == 0 {
            (offset, length) = (offset % SIZE, length % 4096);
        }
        let command = u16::from(command % 10);
        let has_payload = command == 1 || (mode == 2 && flags & 32 != 0);
        let payload = if has_payload {
            input.slice(length.min(4096) as usize)
        } else {
            &[]
        };
        if has_payload && wild & 2 == 0 {
            length = payload.len() as u64;
        }
        let magic = if mode == 2 {
            0x21e4_1c71_u32
        } else {
            0x2560_9513
        };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(u16::from(flags).to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(u64::from(wild).to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if mode == 2 {
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend((length as u32).to_be_bytes());
        }
        bytes.extend(payload);
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let (_, server, address) = &*SERVER;
    let [kind] = Numbers(input).bytes();
    let rest = input.get(1..).unwrap_or_default();
    let bytes = match kind % 8 {
        0 => rest.to_vec(),
        1 => options(Numbers(rest)),
        mode @ 2..=4 => [&handshake(mode - 2), rest].concat(),
        mode => requests(mode - 5, Numbers(rest)),
    };
    let mut stream = UnixStream::connect_addr(address).expect("the server listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a time limit");
    // So little fits the socket whatever the server does; it may hang up at any byte.
    let _ = stream.write_all(&bytes[..bytes.len().min(64 << 10)]);
    let _ = stream.shutdown(Shutdown::Write);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                let hangs = error.kind() == std::io::ErrorKind::WouldBlock;
                assert!(!hangs, "the server does not hang up");
                break;
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while server.status().connections > 0 {
        assert!(Instant::now() < deadline, "a connection is left over");
        std::thread::yield_now();
    }
});

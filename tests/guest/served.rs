//! Guests on volumes that the gateway serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use volmux::memory::MemoryPool;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    Access, ByteSize, CloneOptions, CreateOptions, ErrorKind, OpenOptions, Pool, Sharing,
    SnapshotOptions, VolumeName,
};
use volmux_conformance::read_all;
use volmux_conformance::scratch::LoopFs;
use volmux_gateway::{
    Address, ExportOptions, Exports, Limits, Listen, ServeOptions, Server, serve,
};
use volmux_guest::{Disk, Guest, Image};

/// How long a server may take to stop.
const STOP: Duration = Duration::from_secs(60);

/// A pool that holds the image of a guest in the volume `guest`, and a place for its server.
struct Lab {
    // In this order: what runs ends before what it works on.
    runtime: Runtime,
    pool: Arc<dyn Pool>,
    image: Image,
    directory: TempDir,
    scratch: Option<LoopFs>,
}

impl Lab {
    /// With a directory pool on XFS.
    fn on_xfs() -> Lab {
        // First, so that the threads of the runtime see it.
        let scratch = LoopFs::xfs(512 << 20);
        let runtime = Runtime::new().expect("a runtime");
        let pool = runtime.block_on(open(&scratch));
        Lab::new(runtime, pool, Some(scratch))
    }

    fn in_memory() -> Lab {
        let runtime = Runtime::new().expect("a runtime");
        Lab::new(runtime, MemoryPool::unlimited(), None)
    }

    fn new(runtime: Runtime, pool: Arc<dyn Pool>, scratch: Option<LoopFs>) -> Lab {
        let lab = Lab {
            runtime,
            pool,
            image: Image::new(),
            directory: tempfile::tempdir().expect("a directory"),
            scratch,
        };
        lab.runtime.block_on(lab.import());
        lab
    }

    /// Imports the image, as a program would: what is zero is left out.
    async fn import(&self) {
        const CHUNK: usize = 64 << 10;
        let image = Bytes::from(fs::read(self.image.disk()).expect("the image"));
        let size = CreateOptions::thin(ByteSize::new(Image::BYTES));
        let made = self.pool.create_volume(&name("guest"), size).await;
        made.expect("create the volume");
        let options = OpenOptions::read_write();
        let device = self.pool.open_volume(&name("guest"), options).await;
        let device = device.expect("open the volume");
        for offset in (0..image.len()).step_by(CHUNK) {
            let chunk = image.slice(offset..image.len().min(offset + CHUNK));
            if chunk.iter().any(|&byte| byte != 0) {
                device.write_at(offset as u64, chunk).await.expect("write");
            }
        }
        device.flush().await.expect("flush");
    }

    /// The pool in another process, as far as a test has one: a pool object of its own, where pools
    /// can have several.
    fn other_pool(&self) -> Arc<dyn Pool> {
        match &self.scratch {
            Some(scratch) => self.runtime.block_on(open(scratch)),
            None => Arc::clone(&self.pool),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Serves on the socket. A server that was dropped may keep its volume for as long as its last
    /// request takes: until then the volume is busy.
    fn serve(&self, exports: &Exports) -> Server {
        let start = Instant::now();
        loop {
            let options = ServeOptions {
                exports: exports.clone(),
                listen: vec![Listen::Unix(self.socket())],
                tls: None,
                statistics: None,
                limits: Limits::default(),
            };
            let served = serve(Arc::clone(&self.pool), options);
            match self.runtime.block_on(served) {
                Err(error) if error.kind() == ErrorKind::Busy && start.elapsed() < STOP => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                served => return served.expect("serve"),
            }
        }
    }

    /// Serves the volume `guest` for one client that writes.
    fn serve_guest(&self) -> Server {
        let options = ExportOptions::read_write(name("guest"));
        self.serve(&Exports::Volumes(vec![options]))
    }

    fn stop(&self, server: Server) {
        self.runtime.block_on(server.stop(STOP)).expect("stop");
    }

    fn disk(&self, export: &str) -> Disk {
        Disk::new(self.socket(), export)
    }

    fn boot(&self, export: &str, work: &[&str]) -> Guest {
        Guest::boot(&self.image, &self.disk(export), work)
    }

    fn snapshot(&self, pool: &dyn Pool, source: &str, snapshot: &str) {
        let options = SnapshotOptions::default();
        let (source, snapshot) = (name(source), name(snapshot));
        let made = pool.snapshot_volume(&source, &snapshot, options);
        self.runtime.block_on(made).expect("snapshot");
    }

    fn clone(&self, pool: &dyn Pool, source: &str, clone: &str) {
        let (source, clone) = (name(source), name(clone));
        let made = pool.clone_volume(&source, &clone, CloneOptions::default());
        self.runtime.block_on(made).expect("clone");
    }

    /// Asserts that the file system of a volume whose guest powered off is in order.
    fn assert_in_order(&self, volume: &str) {
        let volume = name(volume);
        let content = self.runtime.block_on(read_all(self.pool.as_ref(), &volume));
        let file = self.directory.path().join("content");
        fs::write(&file, content).expect("write");
        Image::assert_in_order(&file);
    }

    fn allocated(&self, volume: &str) -> u64 {
        let volume = name(volume);
        let volume = self.runtime.block_on(self.pool.volume(&volume));
        let allocated = volume.expect("the volume").allocated;
        allocated.expect("the pool tells").bytes()
    }
}

async fn open(scratch: &LoopFs) -> Arc<dyn Pool> {
    let root = pool_directory(scratch);
    let pool = DirPool::open(DirConfig::new(root)).await;
    pool.expect("open the pool")
}

fn pool_directory(scratch: &LoopFs) -> PathBuf {
    let root = Path::new(scratch.path()).join("pool");
    fs::create_dir_all(&root).expect("the pool's directory");
    root
}

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}

/// A guest writes, is snapshotted and cloned; the clone's guest, and one on the snapshot itself, find
/// what it wrote, whatever the first does meanwhile.
fn clones_and_snapshots_carry_guests(lab: &Lab) {
    let server = lab.serve_guest();
    let first = lab.boot("guest", &["boots", "write", "trim"]).finish();
    assert_eq!(first.number("boots"), 1);
    let written = first.lines("sum");
    assert_eq!(written.len(), 8);
    lab.stop(server);
    lab.assert_in_order("guest");
    // The guest wrote 24 MiB more and gave them back.
    let allocated = lab.allocated("guest");
    assert!(allocated < 30 << 20, "{allocated} bytes: nothing trimmed");

    lab.snapshot(lab.pool.as_ref(), "guest", "snapshot");
    lab.clone(lab.pool.as_ref(), "snapshot", "clone");
    let server = lab.serve(&Exports::EveryVolume {
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    });
    let second = lab.boot("guest", &["boots", "write"]).finish();
    assert_eq!(second.number("boots"), 2);
    assert_ne!(second.lines("sum"), written);

    let clone = lab.boot("clone", &["boots", "sums"]).finish();
    assert_eq!(clone.number("boots"), 2, "the clone counts for itself");
    assert_eq!(clone.lines("sum"), written);

    let mut disk = lab.disk("snapshot");
    disk.read_only = true;
    let snapshot = Guest::boot(&lab.image, &disk, &["sums"]).finish();
    assert_eq!(snapshot.lines("sum"), written);
    let guest = lab.boot("guest", &["sums"]).finish();
    assert_eq!(guest.lines("sum"), second.lines("sum"));
    lab.stop(server);
    for volume in ["guest", "clone", "snapshot"] {
        lab.assert_in_order(volume);
    }
}

#[test]
fn clones_and_snapshots_of_a_directory_pool_carry_guests() {
    clones_and_snapshots_carry_guests(&Lab::on_xfs());
}

#[test]
fn clones_and_snapshots_of_a_memory_pool_carry_guests() {
    clones_and_snapshots_carry_guests(&Lab::in_memory());
}

/// How the gateway goes away under a guest.
enum End {
    /// It answers what is under way, flushes and closes.
    Stop,
    /// At once.
    Drop,
}

/// The gateway goes away twice while a guest writes, and comes back, with the pool opened anew.
fn a_guest_outlives_its_gateway(mut lab: Lab, end: &End) {
    let mut server = lab.serve_guest();
    let mut disk = lab.disk("guest");
    disk.reconnect = 120;
    let mut guest = Guest::boot(&lab.image, &disk, &["record", "records=150"]);
    for record in [40, 80] {
        guest.wait_for(&format!("record {record}"));
        match end {
            End::Stop => lab.stop(server),
            End::Drop => drop(server),
        }
        let ahead = guest.said();
        assert!(
            !ahead.contains(&"record 150".to_owned()),
            "it went too fast"
        );
        lab.pool = lab.other_pool();
        server = lab.serve_guest();
    }
    assert_eq!(guest.finish().number("record"), 150);
    let found = lab.boot("guest", &["records"]).finish();
    assert_eq!(found.number("records"), 150);
    lab.stop(server);
    lab.assert_in_order("guest");
}

#[test]
fn a_guest_outlives_a_gateway_that_is_stopped() {
    a_guest_outlives_its_gateway(Lab::on_xfs(), &End::Stop);
}

#[test]
fn a_guest_outlives_a_gateway_that_is_cut_off() {
    a_guest_outlives_its_gateway(Lab::on_xfs(), &End::Drop);
}

#[test]
fn a_guest_outlives_a_gateway_of_a_memory_pool() {
    a_guest_outlives_its_gateway(Lab::in_memory(), &End::Stop);
}

/// Snapshots are taken while a guest writes records. Each holds every record that was durable before
/// the call, and none that came after it.
fn live_snapshots_hold_what_was_durable(lab: &Lab) {
    let server = lab.serve(&Exports::EveryVolume {
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    });
    let other = lab.other_pool();
    let pools: [&dyn Pool; 2] = [lab.pool.as_ref(), other.as_ref()];
    let mut guest = lab.boot("guest", &["record", "records=150"]);
    let mut bounds = Vec::new();
    for (pool, record) in pools.into_iter().zip([40_u64, 80]) {
        guest.wait_for(&format!("record {record}"));
        let durable = last_record(&guest.said()).unwrap_or(record);
        let snapshot = format!("at-{record}");
        lab.snapshot(pool, "guest", &snapshot);
        // One more may have been durable before the guest could tell.
        let latest = last_record(&guest.said()).unwrap_or(durable) + 1;
        assert!(latest < 150, "it went too fast");
        lab.clone(pool, &snapshot, &format!("clone-{record}"));
        bounds.push((format!("clone-{record}"), durable..=latest));
    }
    assert_eq!(guest.finish().number("record"), 150);
    for (clone, bounds) in bounds {
        let found = lab.boot(&clone, &["records"]).finish().number("records");
        assert!(bounds.contains(&found), "{clone}: {found}, not {bounds:?}");
    }
    lab.stop(server);
    for volume in ["guest", "clone-40", "clone-80"] {
        lab.assert_in_order(volume);
    }
}

fn last_record(said: &[String]) -> Option<u64> {
    let record = |line: &String| line.strip_prefix("record ")?.parse().ok();
    said.iter().rev().find_map(record)
}

#[test]
fn live_snapshots_of_a_directory_pool_hold_what_was_durable() {
    live_snapshots_hold_what_was_durable(&Lab::on_xfs());
}

#[test]
fn live_snapshots_of_a_memory_pool_hold_what_was_durable() {
    live_snapshots_hold_what_was_durable(&Lab::in_memory());
}

/// A guest's kernel is the client of a second volume, with two connections over TCP.
#[test]
fn the_kernels_client_writes_comes_back_and_discards() {
    const MIB: usize = 1 << 20;
    let lab = Lab::on_xfs();
    let second = name("second");
    let size = CreateOptions::thin(ByteSize::mib(16));
    let made = lab.runtime.block_on(lab.pool.create_volume(&second, size));
    made.expect("create the volume");
    let exports = ["guest", "second"].map(|volume| ExportOptions::read_write(name(volume)));
    let options = ServeOptions {
        exports: Exports::Volumes(exports.into()),
        listen: vec![
            Listen::Unix(lab.socket()),
            Listen::Tcp("127.0.0.1:0".parse().expect("an address")),
        ],
        tls: None,
        statistics: None,
        limits: Limits::default(),
    };
    let served = serve(Arc::clone(&lab.pool), options);
    let server = lab.runtime.block_on(served).expect("serve");
    let Address::Tcp(address) = &server.addresses()[1] else {
        panic!("{:?}", server.addresses());
    };
    let port = format!("port={}", address.port());
    let said = lab.boot("guest", &["nbd", &port]).finish();
    let status = server.status();
    lab.stop(server);

    assert_eq!(said.number("size"), 16 * MIB as u64);
    let content = lab.runtime.block_on(read_all(lab.pool.as_ref(), &second));
    let (before, rest) = content.split_at(MIB);
    let (discarded, rest) = rest.split_at(2 * MIB);
    let (kept, after) = rest.split_at(2 * MIB);
    let zeros = [before, discarded, after].concat();
    assert!(
        zeros.iter().all(|&byte| byte == 0),
        "nothing else is written"
    );
    let sum: String = Sha256::digest(kept)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(said.lines("second"), [format!("second {sum}")]);
    assert!(lab.allocated("second") <= 3 * MIB as u64, "given back");
    let export = status.exports.iter().find(|export| export.name == "second");
    let export = export.expect("it is served");
    assert_eq!(export.connections_total, 4, "twice two connections");
    for (op, bytes) in [("write", 4 * MIB), ("trim", 2 * MIB)] {
        assert_eq!(export.requests[op].bytes, bytes as u64, "{op}");
    }
    assert!(export.requests["flush"].requests > 0, "an fsync is a flush");
}

//! Guests on volumes that the gateway serves.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use volmux::hypervisor::RenderOptions;
use volmux::{Access, ByteSize, CreateOptions, ErrorKind, Holder, Sharing};
use volmux_conformance::scratch::LoopFs;
use volmux_gateway::{
    Address, ExportOptions, Exports, Limits, Listen, ServeOptions, Server, serve,
};
use volmux_guest::{Disk, Guest, Image, Store, name};

/// How long a server may take to stop.
const STOP: Duration = Duration::from_secs(60);

/// A pool that holds the image of a guest in the volume `guest`, and a place for its server.
struct Lab {
    // In this order: what runs ends before what it works on.
    store: Store,
    image: Image,
    directory: TempDir,
    scratch: Option<LoopFs>,
}

impl Lab {
    /// With a directory pool on XFS.
    fn on_xfs() -> Lab {
        // First, so that the threads of the runtime see it.
        let scratch = LoopFs::xfs(512 << 20);
        Lab::new(Store::open(&url(&scratch)), Some(scratch))
    }

    fn in_memory() -> Lab {
        Lab::new(Store::open("memory:"), None)
    }

    fn new(store: Store, scratch: Option<LoopFs>) -> Lab {
        let image = Image::new();
        store.import(&image, "guest");
        Lab {
            store,
            image,
            directory: tempfile::tempdir().expect("a directory"),
            scratch,
        }
    }

    /// The pool in another process, as far as a test has one: a pool object of its own, where pools
    /// can have several.
    fn other_store(&self) -> Store {
        let mut other = self.store.clone();
        if let Some(scratch) = &self.scratch {
            let pool = self.store.on(volmux::registry().open(&url(scratch)));
            other.pool = pool.expect("open the pool");
        }
        other
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
            let served = serve(Arc::clone(&self.store.pool), options);
            match self.store.on(served) {
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
        self.store.on(server.stop(STOP)).expect("stop");
    }

    /// What is rendered of a volume that is served.
    fn disk(&self, server: &Server, volume: &str) -> Disk {
        let holder = Holder::new("guest").expect("a holder");
        let attached = self.store.on(server.attachment(0, &name(volume), holder));
        Disk::of(&attached.expect("it is served"), &RenderOptions::default())
    }

    fn boot(&self, server: &Server, volume: &str, work: &[&str]) -> Guest {
        Guest::boot(&self.image, &self.disk(server, volume), work)
    }
}

fn url(scratch: &LoopFs) -> String {
    let root = scratch.path().join("pool");
    fs::create_dir_all(&root).expect("the pool's directory");
    format!("dir://{}", root.display())
}

/// A guest writes, is snapshotted and cloned; the clone's guest, and one on the snapshot itself, find
/// what it wrote, whatever the first does meanwhile.
fn clones_and_snapshots_carry_guests(lab: &Lab) {
    let server = lab.serve_guest();
    let first = lab
        .boot(&server, "guest", &["boots", "write", "trim"])
        .finish();
    assert_eq!(first.number("boots"), 1);
    let written = first.lines("sum");
    assert_eq!(written.len(), 8);
    lab.stop(server);
    lab.store.assert_in_order("guest");
    // The guest wrote 24 MiB more and gave them back.
    let allocated = lab.store.allocated("guest");
    assert!(allocated < 30 << 20, "{allocated} bytes: nothing trimmed");

    lab.store.snapshot("guest", "snapshot");
    lab.store.clone_volume("snapshot", "clone");
    let server = lab.serve(&Exports::EveryVolume {
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    });
    let second = lab.boot(&server, "guest", &["boots", "write"]).finish();
    assert_eq!(second.number("boots"), 2);
    assert_ne!(second.lines("sum"), written);

    let clone = lab.boot(&server, "clone", &["boots", "sums"]).finish();
    assert_eq!(clone.number("boots"), 2, "the clone counts for itself");
    assert_eq!(clone.lines("sum"), written);

    let disk = lab.disk(&server, "snapshot");
    assert!(disk.read_only);
    let snapshot = Guest::boot(&lab.image, &disk, &["sums"]).finish();
    assert_eq!(snapshot.lines("sum"), written);
    let guest = lab.boot(&server, "guest", &["sums"]).finish();
    assert_eq!(guest.lines("sum"), second.lines("sum"));
    lab.stop(server);
    for volume in ["guest", "clone", "snapshot"] {
        lab.store.assert_in_order(volume);
    }
}

#[test]
fn clones_and_snapshots_of_a_directory_pool_carry_guests() {
    clones_and_snapshots_carry_guests(&Lab::on_xfs());
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
    let mut guest = lab.boot(&server, "guest", &["record"]);
    for record in [40, 80] {
        guest.wait_for(&format!("record {record}"));
        match end {
            End::Stop => lab.stop(server),
            End::Drop => drop(server),
        }
        lab.store = lab.other_store();
        server = lab.serve_guest();
    }
    guest.wait_for("record 120");
    let last = guest.end().number("record");
    let found = lab.boot(&server, "guest", &["records"]).finish();
    assert_eq!(found.number("records"), last);
    lab.stop(server);
    lab.store.assert_in_order("guest");
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
    let other = lab.other_store();
    let mut guest = lab.boot(&server, "guest", &["record"]);
    let mut bounds = Vec::new();
    for (store, record) in [&lab.store, &other].into_iter().zip([40_u64, 80]) {
        let (snapshot, clone) = (format!("at-{record}"), format!("clone-{record}"));
        let take = || store.snapshot("guest", &snapshot);
        let within = guest.at_record(record, take);
        store.clone_volume(&snapshot, &clone);
        bounds.push((clone, within));
    }
    guest.end();
    for (clone, bounds) in bounds {
        let found = lab.boot(&server, &clone, &["records"]).finish();
        let found = found.number("records");
        assert!(bounds.contains(&found), "{clone}: {found}, not {bounds:?}");
    }
    lab.stop(server);
    for volume in ["guest", "clone-40", "clone-80"] {
        lab.store.assert_in_order(volume);
    }
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
    let made = lab.store.on(lab.store.pool.create_volume(&second, size));
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
    let served = serve(Arc::clone(&lab.store.pool), options);
    let server = lab.store.on(served).expect("serve");
    let Address::Tcp(address) = &server.addresses()[1] else {
        panic!("{:?}", server.addresses());
    };
    let port = format!("port={}", address.port());
    let said = lab.boot(&server, "guest", &["nbd", &port]).finish();
    let status = server.status();
    lab.stop(server);

    assert_eq!(said.number("size"), 16 * MIB as u64);
    let content = lab.store.content("second");
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
    assert!(
        lab.store.allocated("second") <= 3 * MIB as u64,
        "given back"
    );
    let export = status.exports.iter().find(|export| export.name == "second");
    let export = export.expect("it is served");
    assert_eq!(export.connections_total, 4, "twice two connections");
    for (op, bytes) in [("write", 4 * MIB), ("trim", 2 * MIB)] {
        assert_eq!(export.requests[op].bytes, bytes as u64, "{op}");
    }
    assert!(export.requests["flush"].requests > 0, "an fsync is a flush");
}

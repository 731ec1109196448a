//! Object pools against what people run today: s3backer, `qemu-nbd` on qcow2, and the bare store
//! client. The store is an S3 server in memory, in a process of its own, the same for everybody.
//! Where a rival speaks NBD, fio is everybody's client, over a Unix socket. All of one comparison in
//! one run, taking turns, medians. Needs root, for s3backer mounts.
//!
//! `cargo bench … -- writes reads` runs only those parts; `--quick` once and shortly, for a first
//! look.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use volmux_bench::fio::{self, Job};
use volmux_bench::{Contender, Result, Server, header};
use volmux_conformance::scratch::LoopFs;

mod bare;
mod control;
mod depth;
mod memory;
mod ours;
mod reads;
mod rivals;
mod store;
mod waits;
mod writes;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const BLOCK: u64 = 4 * KIB;
const BUCKET: &str = "bench";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    for child in [store::if_asked, ours::if_asked, memory::if_asked] {
        if let Some(result) = child(&arguments) {
            return result;
        }
    }
    header("object pools on an S3 server in memory, each in a process of its own")?;
    let wanted = |part| {
        let mut named = arguments.iter().filter(|a| !a.starts_with("--")).peekable();
        named.peek().is_none() || named.any(|name| name == part)
    };
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let place = Place::new(quick)?;
    for (part, run) in PARTS {
        if wanted(part) {
            run(&place)?;
        }
    }
    Ok(())
}

type Part = fn(&Place) -> Result<()>;

const PARTS: [(&str, Part); 13] = [
    ("bare", bare::figures),
    ("writes", writes::acknowledged),
    ("sustained", writes::sustained),
    ("amplification", writes::amplification),
    ("sequential", writes::sequential),
    ("flush-journal", waits::flush_journal),
    ("flush-store", waits::flush_store),
    ("reads", reads::warm),
    ("cold", reads::cold),
    ("depth", depth::depth),
    ("snapshots", control::snapshots),
    ("clones", control::clones),
    ("memory", memory::memory),
];

/// How long is measured, and where.
struct Place {
    quick: bool,
    repeats: usize,
    time: Duration,
    /// On the disk that the project lies on: journals, files of rivals.
    disk: TempDir,
    sockets: TempDir,
    /// A file system in memory, in a mount namespace that ends with this process.
    mounts: LoopFs,
}

impl Place {
    fn new(quick: bool) -> Result<Self> {
        // First of all: later there are threads.
        let mounts = LoopFs::tmpfs(MIB);
        Ok(Place {
            quick,
            repeats: if quick { 1 } else { 3 },
            time: Duration::from_millis(if quick { 1000 } else { 3000 }),
            disk: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?,
            sockets: tempfile::tempdir()?,
            mounts,
        })
    }

    /// A new, empty directory on the disk.
    fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.disk.path().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir(&path)?;
        Ok(path)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.sockets.path().join(name)
    }

    /// So much, or much less for a first look.
    fn scaled(&self, amount: u64) -> u64 {
        if self.quick { amount / 8 } else { amount }
    }

    /// A contender whose turns are `job` on `server`, in requests a second.
    fn requests<'a>(&self, name: &str, job: &'a Job, server: &'a Server) -> Contender<'a> {
        let time = self.time;
        Contender::new(name, "/s", move || {
            let outcome = fio::run(job, server.socket(), GIB, Some(time))?;
            Ok(outcome.requests_per_second)
        })
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary path is ASCII")
}

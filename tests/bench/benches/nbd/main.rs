//! The NBD gateway against what people run today: `nbdkit` with a volume in memory, `qemu-nbd` with
//! a file on XFS. fio is everybody's client, over a Unix socket; the servers are processes of their
//! own. All of one comparison in one run, taking turns, medians. Needs root.
//!
//! `cargo bench … -- memory dir` runs only those parts; `--quick` once and shortly, for a first look.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{ByteSize, CreateOptions, VolumeName};
use volmux_bench::fio::{self, Job, Outcome};
use volmux_bench::{Awake, Figures, Result, Server, count, header, ratio};
use volmux_conformance::scratch::LoopFs;

mod serve;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1 << 30;

const READ_QD1: Job = Job::new("randread", 4096, 1);
const READ_QD32: Job = Job::new("randread", 4096, 32);
const WRITE_QD32: Job = Job::new("randwrite", 4096, 32);
const SEQUENTIAL_READ: Job = Job::new("read", MIB, 8);
const SEQUENTIAL_WRITE: Job = Job::new("write", MIB, 8);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(result) = serve::if_asked(&arguments) {
        return result;
    }
    header("NBD over a Unix socket; volumes of 1 GiB, written before; clients: fio")?;
    println!("info processors are kept from halting, but for the turns that say otherwise");
    let wanted = |part| {
        let mut named = arguments.iter().filter(|a| !a.starts_with("--")).peekable();
        named.peek().is_none() || named.any(|name| name == part)
    };
    let settings = if arguments.iter().any(|argument| argument == "--quick") {
        Settings {
            repeats: 1,
            time: Duration::from_millis(1500),
        }
    } else {
        Settings {
            repeats: 7,
            time: Duration::from_millis(1700),
        }
    };
    let awake = Awake::keep()?;
    for (part, run) in [
        ("memory", memory as fn(&Settings) -> Result<()>),
        ("dir", dir),
        ("durable", durable),
        ("many-writes", many_writes),
    ] {
        if wanted(part) {
            run(&settings)?;
        }
    }
    drop(awake);
    if wanted("halting") {
        halting(&settings)?;
    }
    Ok(())
}

/// How long is measured.
struct Settings {
    repeats: usize,
    time: Duration,
}

/// A server with its name in what is printed.
struct Rival {
    name: &'static str,
    server: Server,
}

/// What one server gave for one job.
struct Measured {
    rate: Figures,
    cpu: Figures,
}

impl Measured {
    fn new(server: &str, what: &str, job: &Job) -> Self {
        let unit = if in_megabytes(job) { "MB/s" } else { "/s" };
        Measured {
            rate: Figures::new(format!("{what}: {server}"), unit),
            cpu: Figures::new(format!("{what}: {server}, processor time"), "us/request"),
        }
    }

    fn add(&mut self, job: &Job, outcome: Outcome, cpu: Duration) {
        self.rate.add(if in_megabytes(job) {
            outcome.bytes_per_second / 1e6
        } else {
            outcome.requests_per_second
        });
        self.cpu
            .add(cpu.as_secs_f64() * 1e6 / outcome.requests as f64);
    }
}

fn in_megabytes(job: &Job) -> bool {
    job.block >= MIB
}

/// Has each server do `job` in turn, and prints what came of it; in the order of `servers`.
fn compare(what: &str, job: &Job, servers: &[Rival], settings: &Settings) -> Result<Vec<Measured>> {
    let new = |rival: &Rival| Measured::new(rival.name, what, job);
    let mut all: Vec<Measured> = servers.iter().map(new).collect();
    for repeat in 0..settings.repeats {
        // Nobody always comes first.
        for turn in 0..servers.len() {
            let one = (repeat + turn) % servers.len();
            let server = &servers[one].server;
            let before = server.cpu_time()?;
            let outcome = fio::run(job, server.socket(), SIZE, Some(settings.time))?;
            all[one].add(job, outcome, server.cpu_time()? - before);
        }
    }
    all.iter().for_each(|one| one.rate.print());
    all.iter().for_each(|one| one.cpu.print());
    Ok(all)
}

/// Writes each server's volume in full, so that reads have data to copy.
fn fill(servers: &[Rival]) -> Result<()> {
    for rival in servers {
        fio::run(&SEQUENTIAL_WRITE, rival.server.socket(), SIZE, None)?;
    }
    Ok(())
}

/// Volumes in memory: ours, nbdkit's.
fn memory_servers(directory: &Path) -> Result<[Rival; 2]> {
    let socket = directory.join("nbdkit");
    let arguments = ["-f", "-U", path(&socket), "memory", &SIZE.to_string()].map(String::from);
    let servers = [
        Rival {
            name: "volmux",
            server: serve::memory(directory, SIZE)?,
        },
        Rival {
            name: "nbdkit",
            server: Server::start("nbdkit", &arguments, &socket)?,
        },
    ];
    fill(&servers)?;
    Ok(servers)
}

fn memory(settings: &Settings) -> Result<()> {
    println!("info -- a volume in memory: volmux memory: against nbdkit memory");
    let directory = tempfile::tempdir()?;
    let servers = memory_servers(directory.path())?;
    for (what, job) in [
        ("randread-qd1", READ_QD1),
        ("randread-qd32", READ_QD32),
        ("randwrite-qd32", WRITE_QD32),
        ("randread-qd32-4conn", READ_QD32.on(4)),
        ("seqread", SEQUENTIAL_READ),
        ("seqwrite", SEQUENTIAL_WRITE),
    ] {
        let all = compare(what, &job, &servers, settings)?;
        let name = format!("nbd-memory-{what}-vs-nbdkit");
        ratio(&name, &all[0].rate, &all[1].rate);
        if what == "randread-qd32" {
            ratio(
                "nbd-memory-cpu-per-read-vs-nbdkit",
                &all[0].cpu,
                &all[1].cpu,
            );
        }
    }
    Ok(())
}

/// One request at a time on processors that halt between any two, if nothing else keeps them busy.
fn halting(settings: &Settings) -> Result<()> {
    println!("info -- a volume in memory, on processors that may halt");
    let directory = tempfile::tempdir()?;
    let servers = memory_servers(directory.path())?;
    let all = compare("randread-qd1-halting", &READ_QD1, &servers, settings)?;
    let value = all[0].rate.median() / all[1].rate.median();
    println!("info randread-qd1-halting: {value:.3} of nbdkit");
    Ok(())
}

/// A volume of a directory pool, and beside it on the same file system the files of `qemu-nbd`.
struct OnXfs {
    // In this order: the servers end before what they serve.
    servers: [Rival; 3],
    _sockets: TempDir,
    _scratch: LoopFs,
}

impl OnXfs {
    fn new(scratch: LoopFs) -> Result<Self> {
        let sockets = tempfile::tempdir()?;
        let pool = make_pool(&scratch, SIZE)?;
        let qemu_nbd = |cache: &str| -> Result<Server> {
            let (file, socket) = (scratch.path().join(cache), sockets.path().join(cache));
            File::create_new(&file)?.set_len(SIZE)?;
            let cache = format!("--cache={cache}");
            let arguments = [
                "-t",
                "-e",
                "8",
                "-f",
                "raw",
                "--aio=io_uring",
                "--discard=unmap",
            ];
            let arguments = arguments
                .into_iter()
                .chain([cache.as_str(), "-k", path(&socket)]);
            Server::start("qemu-nbd", arguments.chain([path(&file)]), &socket)
        };
        let servers = [
            Rival {
                name: "volmux",
                server: serve::dir(sockets.path(), &pool)?,
            },
            Rival {
                name: "qemu-nbd --cache=none",
                server: qemu_nbd("none")?,
            },
            Rival {
                name: "qemu-nbd --cache=writeback",
                server: qemu_nbd("writeback")?,
            },
        ];
        fill(&servers)?;
        rustix::fs::syncfs(File::open(scratch.path())?)?;
        Ok(OnXfs {
            servers,
            _sockets: sockets,
            _scratch: scratch,
        })
    }
}

/// A directory pool on `scratch` that holds the volume [`serve::VOLUME`].
fn make_pool(scratch: &LoopFs, size: u64) -> Result<PathBuf> {
    let root = scratch.path().join("pool");
    std::fs::create_dir(&root)?;
    Runtime::new()?.block_on(async {
        let pool = DirPool::open(DirConfig::new(&root)).await?;
        let options = CreateOptions::thin(ByteSize::new(size));
        pool.create_volume(&VolumeName::new(serve::VOLUME)?, options)
            .await?;
        Ok(root)
    })
}

fn dir(settings: &Settings) -> Result<()> {
    println!("info -- a volume of a directory pool against qemu-nbd, both on XFS in memory");
    println!(
        "info volmux goes through the page cache, as qemu-nbd --cache=writeback does; with \
         --cache=none, what most people run, qemu-nbd does not"
    );
    let xfs = OnXfs::new(LoopFs::xfs_in_memory(4 << 30))?;
    for (what, job) in [
        ("randread-qd1", READ_QD1),
        ("randread-qd32", READ_QD32),
        ("randwrite-qd32", WRITE_QD32),
    ] {
        let all = compare(what, &job, &xfs.servers, settings)?;
        let name = format!("nbd-dir-{what}-vs-qemu-nbd");
        ratio(&name, &all[0].rate, &all[1].rate);
        let like = all[0].rate.median() / all[2].rate.median();
        println!("info {what}: {like:.3} of qemu-nbd --cache=writeback");
    }
    Ok(())
}

fn durable(settings: &Settings) -> Result<()> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    println!(
        "info -- the same on XFS on an image in {}, with a flush after every 32 writes",
        directory.display()
    );
    let xfs = OnXfs::new(LoopFs::xfs_in(directory, 4 << 30))?;
    let job = WRITE_QD32.flush_every(32);
    let all = compare("randwrite-qd32-flush32", &job, &xfs.servers, settings)?;
    for (one, rival) in all.iter().zip(&xfs.servers).skip(1) {
        let value = all[0].rate.median() / one.rate.median();
        println!("info randwrite-qd32-flush32: {value:.3} of {}", rival.name);
    }
    Ok(())
}

/// How much memory a server takes that is sent 256 MiB in writes of 1 MiB at once.
fn many_writes(settings: &Settings) -> Result<()> {
    println!("info -- memory of the server with 256 writes of 1 MiB in flight");
    println!("info {}", serve::budgets());
    let directory = tempfile::tempdir()?;
    let size = 64 * MIB;
    let writes = |server: &Server, job: &Job, name: &str| -> Result<()> {
        let before = server.peak_rss_bytes()?;
        fio::run(job, server.socket(), size, Some(settings.time))?;
        println!("info {name}: {} MiB before", before / MIB);
        count(name, server.peak_rss_bytes()? / MIB);
        Ok(())
    };
    let job = Job::new("randwrite", MIB, 256);
    let server = serve::memory(directory.path(), size)?;
    println!("info the volume in memory takes {} MiB itself", size / MIB);
    writes(&server, &job, "nbd-memory-256-writes-rss-mib")?;
    drop(server);

    let scratch = LoopFs::xfs(1 << 30);
    let pool = make_pool(&scratch, size)?;
    let server = serve::dir(directory.path(), &pool)?;
    writes(&server, &job, "nbd-dir-256-writes-rss-mib")?;
    let job = Job::new("randwrite", MIB, 64).on(4);
    writes(&server, &job, "nbd-dir-256-writes-on-4-connections-rss-mib")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary path is ASCII")
}

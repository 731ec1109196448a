//! Pools in NFS exports against `cp` and `qemu-img create` on the same mount. All of one comparison in
//! one run, taking turns, medians. In the lab: `make bench-nfs`. The server's file system lies on
//! memory. A rival's time is that of its process, from start to end: so it costs its user.
//!
//! `cargo bench … -- chain copy` runs only those parts.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions as FileOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use volmux::{
    ByteSize, CloneOptions, CopyOptions, CreateOptions, OpenOptions, Pool, SnapshotOptions,
    VolumeName,
};
use volmux_bench::{Result, Samples, header, ratio};
use volmux_conformance::nfs::{Export, run};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// What is copied is not all: in the lab each byte costs as much as twenty elsewhere.
const COPIED: u64 = 64 * MIB;
/// Data in the volumes and files of which chains are made, which never move any of it.
const BELOW: u64 = 4 * MIB;

fn main() -> Result<()> {
    header("pools in NFS 4.2 exports, in the lab: only ratios say something of other machines")?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    let wanted = |part| {
        let mut named = arguments.iter().filter(|a| !a.starts_with("--")).peekable();
        named.peek().is_none() || named.any(|name| name == part)
    };
    let bench = Bench::new("xfs", 3 * GIB)?;
    if wanted("snapshot") {
        bench.snapshot()?;
    }
    if wanted("chain") {
        Bench::new("ext4", GIB)?.chain()?;
    }
    if wanted("copy") {
        println!(
            "info -- a copy of {} MiB, over a file system that could clone",
            COPIED / MIB
        );
        let times = bench.copy(&["--reflink=never"])?;
        ratio("nfs-copy-vs-cp", &times.0, &times.1);
        drop(bench);
        println!("info -- the same over ext4, where the server copies by itself");
        Bench::new("ext4", GIB)?.copy(&[])?;
    }
    Ok(())
}

/// What takes turns in [`Bench::chain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Of a volume.
    Snapshot,
    /// Of a snapshot.
    Clone,
    /// An image above a raw file by `qemu-img`, as it leaves it: closed, and so on the server.
    Create,
    /// The same, with an fsync of the image and its directory, which `qemu-img` does not do.
    DurableCreate,
    /// `qemu-img` does nothing.
    Start,
}

const SIDES: [Side; 5] = [
    Side::Snapshot,
    Side::Clone,
    Side::Create,
    Side::DurableCreate,
    Side::Start,
];

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Snapshot => "volmux snapshot_volume",
            Side::Clone => "volmux clone_volume of a snapshot",
            Side::Create => "qemu-img create -b",
            Side::DurableCreate => "qemu-img create -b, fsync of both",
            Side::Start => "qemu-img --version",
        }
    }
}

const SOURCE: &str = "source";
const BELOW_CLONE: &str = "below";
const MADE: &str = "made";
const RIVAL_BASE: &str = "rival.raw";
const RIVAL_IMAGE: &str = "rival.qcow2";

/// How many requests of each kind.
struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// In words: those that came since `before`.
    fn since(&self, before: &Requests) -> String {
        let more = |(name, now): (&String, &u64)| {
            let new = now - before.0.get(name).copied().unwrap_or_default();
            (new > 0).then(|| (name.clone(), new))
        };
        let mut new: Vec<_> = self.0.iter().filter_map(more).collect();
        new.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
        let all: u64 = new.iter().map(|(_, number)| number).sum();
        let each = new.iter().map(|(name, number)| format!("{number} {name}"));
        format!("{all} requests: {}", each.collect::<Vec<_>>().join(", "))
    }
}

/// A pool, and the mount that it lies on.
struct Bench {
    runtime: Runtime,
    pool: Arc<dyn Pool>,
    /// The pool's directory, as the pool itself sees it.
    root: PathBuf,
    _export: Export,
}

impl Bench {
    fn new(kind: &str, bytes: u64) -> Result<Self> {
        let export = Export::new(kind, bytes);
        fs::create_dir(export.path().join("pool"))?;
        let config = export.config("pool", "4.2");
        let source = format!("{}:{}", config.host, config.export);
        let root = PathBuf::from(format!("/mnt/{kind}"));
        fs::create_dir_all(&root)?;
        let options = ["-t", "nfs", "-o", "vers=4.2,hard"];
        run("mount", &[&options[..], &[&source, text(&root)?]].concat());
        let runtime = Runtime::new()?;
        let pool = runtime.block_on(volmux::nfs::open(config))?;
        Ok(Bench {
            runtime,
            pool,
            root,
            _export: export,
        })
    }

    /// A volume that is full of data, durably, and its file.
    fn full(&self, name: &str, size: u64) -> Result<(VolumeName, PathBuf)> {
        let name = VolumeName::new(name)?;
        let before = self.files()?;
        self.make(&name, size, size)?;
        let mut files = self.files()?.into_iter();
        let file = files.find(|file| !before.contains(file));
        Ok((name, file.ok_or("the volume has no file")?))
    }

    /// A volume that begins with so much data, durably.
    fn make(&self, name: &VolumeName, size: u64, data: u64) -> Result<()> {
        Ok(self.runtime.block_on(async {
            let options = CreateOptions::thin(ByteSize::new(size));
            self.pool.create_volume(name, options).await?;
            let device = self
                .pool
                .open_volume(name, OpenOptions::read_write())
                .await?;
            let bytes = Bytes::from(vec![0x5a; MIB as usize]);
            for at in (0..data).step_by(MIB as usize) {
                device.write_at(at, bytes.clone()).await?;
            }
            device.flush().await
        })?)
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let Ok(list) = fs::read_dir(self.root.join("data")) else {
            return Ok(Vec::new());
        };
        list.map(|entry| Ok(entry?.path())).collect()
    }

    fn snapshot(&self) -> Result<()> {
        println!("info -- snapshot and clone of 1 GiB");
        let (source, file) = self.full("whole", GIB)?;
        let mut snapshot = Samples::new("volmux snapshot_volume");
        let mut clone = Samples::new("volmux clone_volume");
        let mut cp = Samples::new("cp --reflink=always");
        let rival = self.root.join("rival");
        for turn in 0..25 {
            for side in [turn % 3, (turn + 1) % 3, (turn + 2) % 3] {
                let made = VolumeName::new("made")?;
                if side == 2 {
                    cp.time(|| copied(&["--reflink=always"], &file, &rival))?;
                    fs::remove_file(&rival)?;
                    continue;
                }
                let samples = if side == 0 { &mut snapshot } else { &mut clone };
                samples.time(|| {
                    self.runtime.block_on(async {
                        if side == 0 {
                            let options = SnapshotOptions::default();
                            self.pool.snapshot_volume(&source, &made, options).await
                        } else {
                            let options = CloneOptions::default();
                            self.pool.clone_volume(&source, &made, options).await
                        }
                    })
                })?;
                self.runtime.block_on(self.pool.delete_volume(&made))?;
            }
        }
        for samples in [&snapshot, &clone, &cp] {
            samples.print();
        }
        ratio("nfs-snapshot-vs-cp-reflink", &snapshot, &cp);
        println!(
            "info clone: {:.3} of cp",
            clone.median().as_secs_f64() / cp.median().as_secs_f64()
        );
        Ok(self.runtime.block_on(self.pool.delete_volume(&source))?)
    }

    /// Snapshots and clones as images above a file that has none yet, of 1 GiB.
    fn chain(&self) -> Result<()> {
        println!("info -- snapshot and clone of 1 GiB over ext4, as qcow2 images");
        into_memory("qemu-img")?;
        let mut all = SIDES.map(|side| Samples::new(side.name()));
        for turn in 0..25 {
            for side in (turn..turn + SIDES.len()).map(|side| side % SIDES.len()) {
                self.prepare(SIDES[side])?;
                all[side].time(|| self.work(SIDES[side]))?;
                self.clean(SIDES[side])?;
            }
        }
        all.iter().for_each(Samples::print);
        for side in SIDES {
            self.prepare(side)?;
            let before = self.requests()?;
            self.work(side)?;
            // Files that were closed are given back to the server a little later.
            thread::sleep(Duration::from_secs(1));
            let requests = self.requests()?.since(&before);
            println!("info {} takes {requests}", side.name());
            self.clean(side)?;
        }
        let [snapshot, clone, create, ..] = &all;
        ratio("nfs-chain-snapshot-vs-qemu-img-create", snapshot, create);
        ratio("nfs-chain-clone-vs-qemu-img-create", clone, create);
        Ok(())
    }

    /// What a turn of `side` begins with: each has data of its own below, which is durable.
    fn prepare(&self, side: Side) -> Result<()> {
        let source = VolumeName::new(SOURCE)?;
        match side {
            Side::Snapshot => self.make(&source, GIB, BELOW),
            Side::Clone => {
                self.make(&source, GIB, BELOW)?;
                self.duplicate(Side::Snapshot, &source, &VolumeName::new(BELOW_CLONE)?)
            }
            Side::Create | Side::DurableCreate => {
                let file = File::create_new(self.root.join(RIVAL_BASE))?;
                file.set_len(GIB)?;
                file.write_all_at(&vec![0x5a; BELOW as usize], 0)?;
                Ok(file.sync_all()?)
            }
            Side::Start => Ok(()),
        }
    }

    /// The part that is timed.
    fn work(&self, side: Side) -> Result<()> {
        let made = VolumeName::new(MADE)?;
        let (base, image) = (self.root.join(RIVAL_BASE), self.root.join(RIVAL_IMAGE));
        match side {
            Side::Snapshot => self.duplicate(side, &VolumeName::new(SOURCE)?, &made),
            Side::Clone => self.duplicate(side, &VolumeName::new(BELOW_CLONE)?, &made),
            Side::Create | Side::DurableCreate => {
                let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
                finish(Command::new("qemu-img").args(options).arg(base).arg(&image))?;
                if side == Side::DurableCreate {
                    File::open(&image)?.sync_all()?;
                    File::open(&self.root)?.sync_all()?;
                }
                Ok(())
            }
            Side::Start => finish(
                Command::new("qemu-img")
                    .arg("--version")
                    .stdout(Stdio::null()),
            ),
        }
    }

    fn duplicate(&self, side: Side, source: &VolumeName, made: &VolumeName) -> Result<()> {
        self.runtime.block_on(async {
            if side == Side::Snapshot {
                let options = SnapshotOptions::default();
                self.pool.snapshot_volume(source, made, options).await
            } else {
                let options = CloneOptions::default();
                self.pool.clone_volume(source, made, options).await
            }
        })?;
        Ok(())
    }

    /// Removes all that a turn of `side` made.
    fn clean(&self, side: Side) -> Result<()> {
        match side {
            Side::Snapshot | Side::Clone => self.runtime.block_on(async {
                for name in [MADE, BELOW_CLONE, SOURCE] {
                    self.pool.delete_volume(&VolumeName::new(name)?).await?;
                }
                self.pool.collect_garbage().await?;
                Ok(())
            }),
            Side::Create | Side::DurableCreate => {
                fs::remove_file(self.root.join(RIVAL_IMAGE))?;
                Ok(fs::remove_file(self.root.join(RIVAL_BASE))?)
            }
            Side::Start => Ok(()),
        }
    }

    /// What the server was asked through this mount so far.
    fn requests(&self) -> Result<Requests> {
        let stats = fs::read_to_string("/proc/self/mountstats")?;
        let mounted = format!(" mounted on {} ", text(&self.root)?);
        let lines = stats.lines().skip_while(|line| !line.contains(&mounted));
        let lines = lines.skip_while(|line| line.trim() != "per-op statistics");
        let mut counts = BTreeMap::new();
        for line in lines.skip(1).take_while(|line| !line.is_empty()) {
            let (name, numbers) = line.trim().split_once(": ").ok_or("no request's name")?;
            let count = numbers.split(' ').next().ok_or("no number")?;
            counts.insert(name.to_owned(), count.parse()?);
        }
        Ok(Requests(counts))
    }

    /// A copy by us, and by `cp`; both end once it is durable.
    fn copy(&self, options: &[&str]) -> Result<(Samples, Samples)> {
        let (source, file) = self.full("part", COPIED)?;
        let (mut copy, mut cp) = (
            Samples::new("volmux copy_volume"),
            Samples::new(format!("cp {} and sync", options.join(" "))),
        );
        let rival = self.root.join("rival");
        for turn in 0..9 {
            for side in [turn % 2, (turn + 1) % 2] {
                let made = VolumeName::new("made")?;
                if side == 0 {
                    copy.time(|| {
                        let options = CopyOptions::default();
                        let copied = self.pool.copy_volume(&source, &made, options);
                        self.runtime.block_on(copied)
                    })?;
                    self.runtime.block_on(self.pool.delete_volume(&made))?;
                } else {
                    cp.time(|| -> Result<()> {
                        copied(options, &file, &rival)?;
                        Ok(fs::File::open(&rival)?.sync_all()?)
                    })?;
                    fs::remove_file(&rival)?;
                }
            }
        }
        copy.print();
        cp.print();
        println!(
            "info copy: {:.3} of cp",
            copy.median().as_secs_f64() / cp.median().as_secs_f64()
        );
        self.runtime.block_on(self.pool.delete_volume(&source))?;
        Ok((copy, cp))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The lab forgets it anyway.
        let _ = Command::new("umount").arg("-l").arg(&self.root).status();
    }
}

fn text(path: &Path) -> Result<&str> {
    Ok(path.to_str().ok_or("a path that is no UTF-8")?)
}

fn copied(options: &[&str], from: &Path, to: &Path) -> Result<()> {
    finish(Command::new("cp").args(options).arg(from).arg(to))
}

fn finish(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {status}").into())
    }
}

/// Has the lab keep a program and its libraries in memory, where `cp` is: by itself it asks the host
/// for them, and to start the program would take longer than what it does.
fn into_memory(program: &str) -> Result<()> {
    let path = run("which", &[program]);
    let libraries = run("ldd", &[path.trim()]);
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in paths.chain([path.trim()]) {
        // The lab's root is an overlay, which copies what may be written.
        FileOptions::new().append(true).open(path)?;
    }
    Ok(())
}

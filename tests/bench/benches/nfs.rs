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
use std::process::Command;
use std::sync::Arc;

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

    /// Snapshots and clones as images above a file, each of a file that has none yet.
    fn chain(&self) -> Result<()> {
        println!("info -- snapshot and clone of 1 GiB over ext4, as qcow2 images");
        into_memory("qemu-img")?;
        let mut all = [
            Samples::new("volmux snapshot_volume"),
            Samples::new("volmux clone_volume of a snapshot"),
            Samples::new("qemu-img create -b"),
            Samples::new("qemu-img create -b, fsync of file and directory"),
            Samples::new("qemu-img --version"),
        ];
        let sides = all.len();
        // Whoever does it first finds nothing in the caches.
        for side in 0..sides {
            let before = self.requests()?;
            self.chain_turn(side, &mut Samples::new(""))?;
            let requests = added(&before, &self.requests()?);
            println!("info requests of one turn {side}, all of it: {requests}");
        }
        for turn in 0..25 {
            for side in (turn..turn + sides).map(|side| side % sides) {
                self.chain_turn(side, &mut all[side])?;
            }
        }
        all.iter().for_each(Samples::print);
        let [snapshot, clone, create, ..] = &all;
        ratio("nfs-chain-snapshot-vs-qemu-img-create", snapshot, create);
        ratio("nfs-chain-clone-vs-qemu-img-create", clone, create);
        Ok(())
    }

    /// One of the sides of [`chain`](Self::chain); it leaves nothing behind.
    fn chain_turn(&self, side: usize, samples: &mut Samples) -> Result<()> {
        todo!()
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
    let status = Command::new("cp")
        .args(options)
        .arg(from)
        .arg(to)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cp {from:?}: {status}").into())
    }
}

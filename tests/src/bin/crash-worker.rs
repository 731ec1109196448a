//! Does random operations on a pool until it is killed; writes into a log what it is about to do and
//! what it has done. Started by `tests/crash.rs`, `tests/lvm_crash.rs`, `tests/lvm_power.rs` and
//! `tests/nfs_power.rs`.
//!
//! `crash-worker POOL LOG SEED PREFIX [CHECK]`: POOL is a directory or the URL of an LVM or NFS pool. Its
//! volumes' names begin with PREFIX, and it leaves others alone. Where the directory CHECK is given,
//! the pool is first held against the images `before` and `after` and the operation `op` in it, and
//! what it holds is written to `found`. With a SEED of `none` that is all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use volmux::lvm::{LvmConfig, LvmPool};
use volmux::nfs::{DirConfig, DirPool, NfsConfig};
use volmux::{
    AuditOptions, ByteRange, ByteSize, OpenOptions, Pool, PoolExt, ResizeOptions, Result, Support,
    Volume, VolumeName,
};
use volmux_conformance::chains::Chains;
use volmux_conformance::crash::{How, Images, Op};
use volmux_conformance::killed::{self, Expected};
use volmux_conformance::lvm::place_foreign;
use volmux_conformance::{Expect, checked_name, pattern};

/// Where the pool is.
enum Place {
    Directory(PathBuf),
    Export(Box<NfsConfig>),
    Group(Box<LvmConfig>),
}

impl Place {
    fn new(pool: &str) -> Place {
        if pool.starts_with("nfs:") {
            let config = NfsConfig::from_url(&pool.parse().expect("a URL"));
            let mut config = config.expect("a configuration");
            config.init = true;
            return Place::Export(Box::new(config));
        }
        if !pool.starts_with("lvm:") {
            return Place::Directory(pool.into());
        }
        let config = LvmConfig::from_url(&pool.parse().expect("a URL"));
        Place::Group(Box::new(config.expect("a configuration")))
    }

    async fn open(&self) -> Arc<dyn Pool> {
        match self {
            Place::Directory(root) => {
                let mut config = DirConfig::new(root);
                config.init = true;
                DirPool::open(config).await.expect("the pool opens")
            }
            Place::Export(config) => {
                let pool = volmux::nfs::open(config.as_ref().clone()).await;
                pool.expect("the pool opens")
            }
            Place::Group(config) => {
                let pool = LvmPool::open(config.as_ref().clone()).await;
                pool.expect("the pool opens")
            }
        }
    }

    /// What to expect of the pool: of that, the unit and how volumes are provisioned count.
    fn expect(&self) -> Expect {
        match self {
            Place::Directory(_) | Place::Export(_) => Expect::DIR_CHAIN,
            Place::Group(config) if config.pool.is_some() => Expect::LVM_THIN,
            Place::Group(_) => Expect::LVM_THICK,
        }
    }

    /// More volumes than this are not made: the pool has to fit a small file system, and to look at a
    /// volume takes a group a while.
    fn most(&self) -> usize {
        match self {
            Place::Directory(_) | Place::Export(_) => 14,
            Place::Group(_) => 6,
        }
    }

    /// The directory in which the pool is, where there is one.
    fn root(&self) -> Option<PathBuf> {
        match self {
            Place::Directory(root) => Some(root.clone()),
            // Where the lab's server has it.
            Place::Export(config) => Some(PathBuf::from(format!("/srv/nfs{}", config.export))),
            Place::Group(_) => None,
        }
    }

    /// Makes what will be adopted.
    fn put(&self, what: &str, seed: u64, size: u64) {
        let data = pattern(seed, size as usize);
        match self {
            Place::Directory(root) => {
                std::fs::write(root.join(what), data).expect("a foreign file");
            }
            Place::Export(config) => {
                // Where the lab's server has it, and durably: nothing that a client does later would
                // have the server keep what was written there and not through it.
                let root = format!("/srv/nfs{}", config.export);
                let file = File::create(Path::new(&root).join(what));
                let mut file = file.expect("a foreign file");
                file.write_all(&data).expect("write");
                file.sync_all().expect("sync");
            }
            Place::Group(config) => {
                place_foreign(&config.group, config.pool.as_deref(), what, &data);
            }
        }
    }
}

struct Worker {
    place: Place,
    pool: Arc<dyn Pool>,
    prefix: String,
    numbers: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, pool, log, seed, prefix, check @ ..] = &args[..] else {
        panic!("usage: crash-worker POOL LOG SEED PREFIX [CHECK]");
    };
    let place = Place::new(pool);
    let pool = place.open().await;
    if let [check] = check {
        hold_against(&place, pool.as_ref(), Path::new(check)).await;
    }
    if seed == "none" {
        return;
    }
    let mut log = File::options().append(true).open(log).expect("the log");
    let mut worker = Worker {
        place,
        pool,
        prefix: prefix.clone(),
        numbers: seed.parse().expect("a number"),
    };
    loop {
        let op = worker.choose().await;
        // One write a line, so that no line is cut.
        log.write_all(format!("begin {op}\n").as_bytes())
            .expect("log");
        match worker.run(&op).await {
            Ok(()) => log.write_all(b"done\n").expect("log"),
            Err(error) => {
                log.write_all(format!("fail {error:?}\n").as_bytes())
                    .expect("log");
                std::process::exit(1);
            }
        }
    }
}

async fn hold_against(place: &Place, pool: &dyn Pool, directory: &Path) {
    let op = std::fs::read_to_string(directory.join("op")).expect("the operation");
    let expected = Expected {
        before: Images::load(&directory.join("before")),
        after: Images::load(&directory.join("after")),
        op: (!op.is_empty()).then(|| op.parse().expect("an operation")),
    };
    let found = killed::check(pool, &expected, |_| ()).await;
    if let Some(root) = place.root().filter(|root| root.join("data").exists()) {
        // Images are whole by what QEMU says, and a collection changes no volume.
        Chains::of(&root).check();
        pool.collect_garbage().await.expect("collect");
        assert!(Images::of(pool).await == found, "a collection changed it");
        Chains::of(&root).check();
    }
    found.save(&directory.join("found"));
}

impl Worker {
    fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.numbers = self.numbers.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.numbers;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn new_name(&mut self) -> String {
        let number = self.below(1 << 48);
        format!("{}{number:012x}", self.prefix)
    }

    fn size(&mut self) -> u64 {
        let unit = self.place.expect().size_unit;
        (1 + self.below((256 << 10) / unit)) * unit
    }

    fn pick<'a>(&mut self, volumes: &'a [Volume]) -> &'a Volume {
        &volumes[self.below(volumes.len() as u64) as usize]
    }

    /// An operation that must succeed.
    async fn choose(&mut self) -> Op {
        let capabilities = self.pool.capabilities();
        loop {
            let op = self.choose_any().await;
            let support = match &op {
                Op::Derive { how, .. } => match how {
                    How::Snapshot => capabilities.snapshot,
                    How::Clone => capabilities.clone,
                    How::Copy => Support::Native,
                },
                Op::Discard { .. } => capabilities.discard,
                _ => Support::Native,
            };
            if support != Support::None {
                return op;
            }
        }
    }

    async fn choose_any(&mut self) -> Op {
        let mut volumes = self.pool.volumes().await.expect("list");
        volumes.retain(|volume| volume.name.as_str().starts_with(&self.prefix));
        let writable: Vec<Volume> = volumes
            .iter()
            .filter(|v| !v.is_snapshot())
            .cloned()
            .collect();
        if writable.is_empty() {
            let (name, size) = (self.new_name(), self.size());
            return Op::Create { name, size };
        }
        if volumes.len() >= self.place.most() {
            let name = self.pick(&volumes).name.to_string();
            return Op::Delete { name };
        }
        let volume = self.pick(&writable);
        let size = volume.virtual_size.bytes();
        let name = volume.name.to_string();
        let offset = self.below(size);
        let length = 1 + self.below(size - offset);
        match self.below(16) {
            0 => Op::Create {
                name: self.new_name(),
                size: self.size(),
            },
            1..=4 => Op::Write {
                name,
                seed: self.below(1 << 32),
                offset,
                length,
            },
            5 => Op::Discard {
                name,
                offset,
                length,
            },
            kind @ 6..=9 => Op::Derive {
                how: [How::Snapshot, How::Snapshot, How::Clone, How::Copy][kind as usize - 6],
                source: self.pick(&volumes).name.to_string(),
                name: self.new_name(),
            },
            10 | 11 => self.revert(volume, &volumes),
            12 => Op::Resize {
                name,
                size: self.size(),
            },
            13 => Op::Rename {
                name: self.pick(&volumes).name.to_string(),
                to: self.new_name(),
            },
            14 => Op::Adopt {
                name: self.new_name(),
                seed: self.below(1 << 32),
                size: self.size(),
            },
            _ => self.rarely(name, &volumes),
        }
    }

    fn revert(&mut self, volume: &Volume, volumes: &[Volume]) -> Op {
        let own: Vec<Volume> = volumes
            .iter()
            .filter(|v| v.is_snapshot())
            .filter(|v| v.origin.as_ref().is_some_and(|o| o.parent_id == volume.id))
            .cloned()
            .collect();
        if own.is_empty() {
            return Op::Derive {
                how: How::Snapshot,
                source: volume.name.to_string(),
                name: self.new_name(),
            };
        }
        Op::Revert {
            name: volume.name.to_string(),
            snapshot: self.pick(&own).name.to_string(),
        }
    }

    fn rarely(&mut self, writable: String, volumes: &[Volume]) -> Op {
        match self.below(5) {
            0 => Op::Audit,
            1 | 2 => Op::Collect,
            3 => Op::Flatten { name: writable },
            _ => Op::Delete {
                name: self.pick(volumes).name.to_string(),
            },
        }
    }

    async fn run(&self, op: &Op) -> Result<()> {
        let pool = self.pool.as_ref();
        match op {
            Op::Create { name, size } => {
                let options = self.place.expect().volume(*size);
                let made = pool.create_volume(&checked_name(name), options).await;
                made.map(drop)
            }
            Op::Write {
                name,
                seed,
                offset,
                length,
            } => {
                let name = checked_name(name);
                let device = pool.open_volume(&name, OpenOptions::read_write()).await?;
                let data = pattern(*seed, *length as usize);
                device.write_at(*offset, data).await?;
                device.flush().await
            }
            Op::Discard {
                name,
                offset,
                length,
            } => {
                let name = checked_name(name);
                let device = pool.open_volume(&name, OpenOptions::read_write()).await?;
                device.discard(ByteRange::new(*offset, *length)).await?;
                device.flush().await
            }
            Op::Derive { how, source, name } => {
                derive(pool, *how, &checked_name(source), &checked_name(name)).await
            }
            Op::Revert { name, snapshot } => {
                let (name, snapshot) = (checked_name(name), checked_name(snapshot));
                let reverted = pool.revert_volume(&name, &snapshot, Default::default());
                reverted.await.map(drop)
            }
            Op::Resize { name, size } => {
                let options = ResizeOptions {
                    size: ByteSize::new(*size),
                    allow_shrink: true,
                };
                let resized = pool.resize_volume(&checked_name(name), options).await;
                resized.map(drop)
            }
            Op::Rename { name, to } => {
                let (name, to) = (checked_name(name), checked_name(to));
                pool.rename_volume(&name, &to).await.map(drop)
            }
            Op::Delete { name } => pool.delete_volume(&checked_name(name)).await,
            Op::Adopt { name, seed, size } => {
                let what = format!("foreign-{name}");
                self.place.put(&what, *seed, *size);
                pool.adopt_volume(&what, &checked_name(name))
                    .await
                    .map(drop)
            }
            Op::Audit => {
                let report = pool.audit(AuditOptions { repair: true }).await;
                report.map(drop)
            }
            Op::Collect => pool.collect_garbage().await.map(drop),
            Op::Flatten { name } => {
                let name = checked_name(name);
                let flattened = pool.flatten_volume(&name, Default::default());
                flattened.await.map(drop)
            }
        }
    }
}

async fn derive(pool: &dyn Pool, how: How, source: &VolumeName, name: &VolumeName) -> Result<()> {
    let made = match how {
        How::Snapshot => pool.snapshot_volume(source, name, Default::default()).await,
        How::Clone => pool.clone_volume(source, name, Default::default()).await,
        How::Copy => pool.copy_volume(source, name, Default::default()).await,
    };
    made.map(drop)
}

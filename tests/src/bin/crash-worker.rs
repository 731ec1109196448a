//! Does random operations on a directory pool until it is killed; writes into a log what it is
//! about to do and what it has done. Started by `tests/crash.rs`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    AuditOptions, ByteRange, ByteSize, CreateOptions, OpenOptions, Pool, PoolExt, ResizeOptions,
    Result, Volume, VolumeName,
};
use volmux_conformance::crash::{How, Op};
use volmux_conformance::{checked_name, pattern};

/// More volumes than this are not made: the pool has to fit a small file system.
const MANY: usize = 14;

struct Worker {
    root: PathBuf,
    pool: std::sync::Arc<dyn Pool>,
    numbers: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, root, log, seed] = &args[..] else {
        panic!("usage: crash-worker POOL LOG SEED");
    };
    let mut log = File::options().append(true).open(log).expect("the log");
    let mut config = DirConfig::new(root);
    config.init = true;
    let mut worker = Worker {
        root: root.into(),
        pool: DirPool::open(config).await.expect("the pool opens"),
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
        format!("v{:012x}", self.below(1 << 48))
    }

    fn size(&mut self) -> u64 {
        (1 + self.below(512)) * 512
    }

    fn pick<'a>(&mut self, volumes: &'a [Volume]) -> &'a Volume {
        &volumes[self.below(volumes.len() as u64) as usize]
    }

    /// An operation that must succeed.
    async fn choose(&mut self) -> Op {
        let volumes = self.pool.volumes().await.expect("list");
        let writable: Vec<Volume> = volumes
            .iter()
            .filter(|v| !v.is_snapshot())
            .cloned()
            .collect();
        if writable.is_empty() {
            let (name, size) = (self.new_name(), self.size());
            return Op::Create { name, size };
        }
        if volumes.len() >= MANY {
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
            _ => self.rarely(&volumes),
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

    fn rarely(&mut self, volumes: &[Volume]) -> Op {
        if self.below(2) == 0 {
            return Op::Audit;
        }
        Op::Delete {
            name: self.pick(volumes).name.to_string(),
        }
    }

    async fn run(&self, op: &Op) -> Result<()> {
        let pool = self.pool.as_ref();
        match op {
            Op::Create { name, size } => {
                let options = CreateOptions::thin(ByteSize::new(*size));
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
                place(&self.root.join(&what), *seed, *size);
                pool.adopt_volume(&what, &checked_name(name))
                    .await
                    .map(drop)
            }
            Op::Audit => {
                let report = pool.audit(AuditOptions { repair: true }).await;
                report.map(drop)
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

/// The file that will be adopted.
fn place(path: &Path, seed: u64, size: u64) {
    std::fs::write(path, pattern(seed, size as usize)).expect("a foreign file");
}

//! Snapshots and clones of an array of tgt over a directory on XFS: whether they take longer where
//! the volume is longer. Both are written from end to end, in one piece, and take turns.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;
use volmux::{
    ByteSize, CloneOptions, CreateOptions, OpenOptions, Pool, SnapshotOptions, VolumeName,
};
use volmux_bench::{Result, Samples, ratio};
use volmux_conformance::iscsi::Tgtd;
use volmux_conformance::scratch::LoopFs;

use crate::MIB;

const SIZES: [u64; 2] = [16 * MIB, 1024 * MIB];

/// Prints how the greater of both compares with the smaller.
pub fn compare(repeats: usize) -> Result<()> {
    // Mounted first: the target sees what its thread sees.
    let fs = LoopFs::xfs_in_memory(4 << 30);
    let tgtd = Tgtd::start();
    let store = format!("dir://{}", fs.path().display());
    let url = tgtd.url("iqn.2026-11.org.example:bench", &store);
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let pool = volmux::registry().open(&url).await?;
        let mut volumes = Vec::new();
        for size in SIZES {
            volumes.push(written(&pool, size).await?);
        }
        let named = |what: &str| {
            SIZES
                .map(|size| Samples::new(format!("{what} through control=tgt, {} MiB", size / MIB)))
        };
        let (mut snapshots, mut clones) = (named("snapshot"), named("clone"));
        for _ in 0..repeats {
            for (at, volume) in volumes.iter().enumerate() {
                time(&pool, &mut snapshots[at], async |made| {
                    let options = SnapshotOptions::default();
                    pool.snapshot_volume(volume, made, options).await.map(drop)
                })
                .await?;
                time(&pool, &mut clones[at], async |made| {
                    let options = CloneOptions::default();
                    pool.clone_volume(volume, made, options).await.map(drop)
                })
                .await?;
            }
        }
        snapshots.iter().chain(&clones).for_each(Samples::print);
        ratio("iscsi-snapshot-1gib-vs-16mib", &snapshots[1], &snapshots[0]);
        ratio("iscsi-clone-1gib-vs-16mib", &clones[1], &clones[0]);
        Ok(())
    })
}

async fn written(pool: &Arc<dyn Pool>, size: u64) -> Result<VolumeName> {
    let name = VolumeName::new(format!("volume-{size}"))?;
    let options = CreateOptions::thin(ByteSize::new(size));
    pool.create_volume(&name, options).await?;
    let device = pool.open_volume(&name, OpenOptions::read_write()).await?;
    let data = Bytes::from(vec![0x5a; MIB as usize]);
    for part in 0..size / MIB {
        device.write_at(part * MIB, data.clone()).await?;
    }
    device.flush().await?;
    Ok(name)
}

/// Makes a volume, and deletes it outside of the time.
async fn time(
    pool: &Arc<dyn Pool>,
    samples: &mut Samples,
    make: impl AsyncFnOnce(&VolumeName) -> volmux::Result<()>,
) -> Result<()> {
    let name = VolumeName::new("made")?;
    let start = std::time::Instant::now();
    make(&name).await?;
    samples.add(start.elapsed());
    Ok(pool.delete_volume(&name).await?)
}

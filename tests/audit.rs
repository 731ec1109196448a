//! An audit beside work that moves records about: what it does not see, it must not take away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    AuditOptions, ByteSize, CreateOptions, FindingKind, Pool, PoolExt, ResizeOptions, VolumeName,
};
use volmux_conformance::scratch::LoopFs;

/// Enough that the directory is read in several pieces, with renames in between.
const VOLUMES: usize = 1500;
const MOVED: usize = 48;
const AUDITS: usize = 25;

fn name(kind: &str, number: usize) -> VolumeName {
    VolumeName::new(format!("{kind}-{number:04}-{}", "x".repeat(60))).expect("a good name")
}

/// A directory that is read while an entry is renamed may show it under neither name.
#[test]
fn an_audit_takes_no_volume_that_is_just_renamed() {
    let fs = LoopFs::xfs_in_memory(512 << 20);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let open = || DirPool::open(DirConfig::new(fs.path()));
        let (pool, other) = (open().await.expect("open"), open().await.expect("open"));
        let size = ByteSize::kib(4);
        for number in 0..VOLUMES {
            let made = pool
                .create_volume(&name("a", number), CreateOptions::thin(size))
                .await;
            made.expect("create");
        }
        let done = Arc::new(AtomicBool::new(false));
        let movers: Vec<_> = (0..8)
            .map(|first| tokio::spawn(move_about(pool.clone(), first, done.clone())))
            .collect();
        for _ in 0..AUDITS {
            let report = other
                .audit(AuditOptions { repair: true })
                .await
                .expect("audit");
            let taken = report.findings.iter().find(|f| {
                f.kind == FindingKind::Leftover && f.object.starts_with("data/") && f.repaired
            });
            assert!(taken.is_none(), "the audit took {taken:?}");
        }
        done.store(true, Ordering::Relaxed);
        for mover in movers {
            mover.await.expect("mover");
        }
        let volumes = pool.volumes().await.expect("every volume has its data");
        assert_eq!(volumes.len(), VOLUMES);
        let report = pool.audit(AuditOptions::default()).await.expect("audit");
        assert!(report.is_clean(), "{report:?}");
    });
}

/// Renames every eighth of the moved volumes to and fro, and replaces their records by resizing.
async fn move_about(pool: Arc<dyn Pool>, first: usize, done: Arc<AtomicBool>) {
    for round in 1.. {
        for number in (first..MOVED).step_by(8) {
            let (a, z) = (name("a", number), name("z", number));
            pool.rename_volume(&a, &z).await.expect("rename");
            let size = ByteSize::kib(4 + 4 * round);
            pool.resize_volume(&z, ResizeOptions::grow(size))
                .await
                .expect("grow");
            pool.rename_volume(&z, &a).await.expect("rename back");
        }
        if done.load(Ordering::Relaxed) {
            return;
        }
    }
}

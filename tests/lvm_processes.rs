//! How many processes the operations of LVM pools start. In the lab.

use std::sync::Arc;

use futures::TryStreamExt;
use volmux::lvm::{LvmConfig, LvmPool};
use volmux::{
    ByteSize, CloneOptions, CreateOptions, Pool, ResizeOptions, SnapshotOptions, VolumeName,
};
use volmux_conformance::lvm::{ScratchGroup, lvm};
use volmux_conformance::on;

const MIB: u64 = 1 << 20;

/// A pool, and how many of its processes were accounted for.
struct Counted {
    pool: Arc<LvmPool>,
    seen: u64,
}

impl Counted {
    async fn open(group: &ScratchGroup) -> Counted {
        let pool = LvmPool::open(LvmConfig::thin(group.name(), "pool")).await;
        let pool = pool.expect("the pool opens");
        Counted { pool, seen: 0 }
    }

    /// How many were started since this was called last.
    fn started(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.seen, self.pool.processes_started());
        self.seen - before
    }

    async fn list(&self) -> usize {
        let all: Vec<_> = self.pool.list_volumes().try_collect().await.expect("list");
        all.len()
    }
}

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn one_for_a_change_and_none_for_what_is_known() {
    let group = ScratchGroup::with_pool(64 * MIB, 4 * MIB);
    on(async {
        let mut counted = Counted::open(&group).await;
        assert_eq!(counted.started(), 1, "open");
        let pool = counted.pool.clone();
        let (web, monday, copy, other) = (name("web"), name("monday"), name("copy"), name("other"));

        let options = CreateOptions::thin(ByteSize::mib(8));
        pool.create_volume(&web, options).await.expect("create");
        assert_eq!(counted.started(), 1, "create");

        let options = SnapshotOptions::default();
        let made = pool.snapshot_volume(&web, &monday, options).await;
        made.expect("snapshot");
        assert_eq!(counted.started(), 1, "snapshot");

        let options = CloneOptions::default();
        let made = pool.clone_volume(&monday, &copy, options).await;
        made.expect("clone");
        assert_eq!(counted.started(), 1, "clone");

        let options = ResizeOptions::grow(ByteSize::mib(16));
        pool.resize_volume(&copy, options).await.expect("grow");
        assert_eq!(counted.started(), 1, "grow");

        pool.rename_volume(&copy, &other).await.expect("rename");
        assert_eq!(counted.started(), 1, "rename");

        pool.delete_volume(&monday).await.expect("delete");
        assert_eq!(counted.started(), 1, "delete");

        assert_eq!(counted.list().await, 2);
        pool.usage().await.expect("usage");
        assert_eq!(counted.started(), 0, "what is known already");
    });
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn another_one_after_somebody_else_changed_the_group() {
    let group = ScratchGroup::with_pool(64 * MIB, 4 * MIB);
    on(async {
        let mut counted = Counted::open(&group).await;
        let pool = counted.pool.clone();
        let options = CreateOptions::thin(ByteSize::mib(8));
        let made = pool.create_volume(&name("web"), options).await;
        made.expect("create");
        counted.started();

        let mut fresh = Counted::open(&group).await;
        assert_eq!(fresh.list().await, 1);
        assert_eq!(fresh.started(), 1, "open and list");

        lvm(&[
            "lvcreate",
            "-y",
            "-an",
            "-V",
            "8m",
            "--thinpool",
            "pool",
            "-n",
            "by-hand",
            group.name(),
        ]);
        let made = pool.create_volume(&name("other"), options).await;
        made.expect("create");
        assert_eq!(counted.started(), 2, "create after a change by hand");
        assert_eq!(counted.list().await, 2);
        assert_eq!(counted.started(), 0, "list after a change of one's own");
        assert_eq!(fresh.list().await, 2);
        assert_eq!(
            fresh.started(),
            1,
            "list after a change of another pool object"
        );
    });
}

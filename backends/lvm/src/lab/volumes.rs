//! Volumes whose devices others use too.

use std::sync::Arc;
use std::time::Duration;

use volmux_core::{
    Access, AttachOptions, AttachTarget, BlockDevice, ByteSize, CreateOptions, Error, ErrorKind,
    Holder, OpenOptions, Pool, Sharing, VolumeName,
};

use super::{Lab, MIB, run};
use crate::{LvmConfig, LvmPool, dm};

const SHARED: OpenOptions = OpenOptions {
    access: Access::ReadWrite,
    sharing: Sharing::Shared,
    take_over: false,
};

fn n(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a good name")
}

fn options(host: &str, access: Access) -> AttachOptions {
    AttachOptions {
        holder: Holder::new(host).expect("a good holder"),
        access,
        sharing: Sharing::Exclusive,
    }
}

/// A pool with the volume `a`.
async fn pool(lab: &Lab) -> Arc<LvmPool> {
    let config = LvmConfig::thin(lab.group.as_str(), Lab::POOL);
    let pool = LvmPool::open(config).await.expect("open the pool");
    let size = CreateOptions::thin(ByteSize::new(4 * MIB));
    pool.create_volume(&n("a"), size).await.expect("create");
    pool
}

impl Lab {
    fn is_active(&self, name: &str) -> bool {
        let name = dm::dm_name(&self.group, name);
        dm::info(&name).expect("it answers").is_some()
    }

    async fn goes_away(&self, name: &str) {
        for _ in 0..1000 {
            if !self.is_active(name) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} stays active");
    }
}

async fn open(pool: &LvmPool, options: OpenOptions) -> Result<Arc<dyn BlockDevice>, Error> {
    pool.open_volume(&n("a"), options).await
}

async fn attach(pool: &LvmPool, host: &str, access: Access) -> std::path::PathBuf {
    let attached = pool.attach_volume(&n("a"), options(host, access)).await;
    match attached.expect("attach").target {
        AttachTarget::BlockDevice { path } => path,
        other => panic!("{other:?}"),
    }
}

async fn detach(pool: &LvmPool, host: &str) -> Result<(), Error> {
    let holder = Holder::new(host).expect("a good holder");
    pool.detach_volume(&n("a"), &holder).await
}

fn assert_busy<T: std::fmt::Debug>(result: Result<T, Error>, who: &str) {
    let error = result.expect_err("somebody uses it");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    assert!(error.to_string().contains(who), "{error:?}");
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn a_device_is_there_as_long_as_it_is_open() {
    let lab = Lab::new("open", 64 << 10, "");
    let pool = pool(&lab).await;
    assert!(!lab.is_active("a"));
    let writer = open(&pool, OpenOptions::read_write()).await.expect("open");
    let started = pool.processes_started();
    let reader = open(&pool, OpenOptions::read_only()).await.expect("open");
    assert_eq!(pool.processes_started(), started, "it is there already");
    drop(writer);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(lab.is_active("a"), "somebody reads it");
    let renamed = pool.rename_volume(&n("a"), &n("b")).await;
    renamed.expect("rename");
    drop(reader);
    lab.goes_away("b").await;
    // Opened while it is being closed.
    for _ in 0..5 {
        let device = pool.open_volume(&n("b"), OpenOptions::read_write()).await;
        let device = device.expect("open");
        device
            .write_at(0, vec![1; 512].into())
            .await
            .expect("write");
        drop(device);
        tokio::time::sleep(Duration::from_millis(55)).await;
    }
    lab.goes_away("b").await;
}

#[test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
fn a_device_can_be_dropped_anywhere() {
    let lab = Lab::new("drop", 64 << 10, "");
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all().build().expect("a runtime")
    };
    let first = runtime();
    let (pool, device) = first.block_on(async {
        let pool = pool(&lab).await;
        let device = open(&pool, OpenOptions::read_write()).await;
        (pool, device.expect("open"))
    });
    drop(device);
    first.block_on(lab.goes_away("a"));
    let device = first.block_on(open(&pool, OpenOptions::read_write()));
    let device = device.expect("open");
    drop(first);
    drop(device);
    let second = runtime();
    second.block_on(async {
        drop(open(&pool, OpenOptions::read_write()).await.expect("free"));
        lab.goes_away("a").await;
    });
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn what_another_device_is_made_of_is_not_written() {
    let lab = Lab::new("claimed", 64 << 10, "");
    let pool = pool(&lab).await;
    let path = attach(&pool, "host-1", Access::ReadOnly).await;
    let table = format!("0 8192 linear {} 0", path.display());
    let mut created = std::process::Command::new("dmsetup");
    created.args(["create", "-r", "above", "--table", &table]);
    assert!(created.status().expect("it starts").success());
    for options in [OpenOptions::read_write(), SHARED] {
        assert_busy(open(&pool, options).await, "(above)");
    }
    let options = options("host-2", Access::ReadWrite);
    assert_busy(pool.attach_volume(&n("a"), options).await, "(above)");
    drop(
        open(&pool, OpenOptions::read_only())
            .await
            .expect("reading"),
    );
    assert_busy(detach(&pool, "host-1").await, "(above)");
    assert!(lab.is_active("a"));
    run("dmsetup remove above");
    drop(open(&pool, OpenOptions::read_write()).await.expect("free"));
    detach(&pool, "host-1").await.expect("detach");
    lab.goes_away("a").await;
    let loud = open(&pool, SHARED).await.expect("shared");
    drop(open(&pool, SHARED).await.expect("shared too"));
    drop(loud);
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn what_a_host_has_open_stays_attached() {
    let lab = Lab::new("held", 64 << 10, "");
    let pool = pool(&lab).await;
    let path = attach(&pool, "host-1", Access::ReadWrite).await;
    let file = std::fs::File::open(&path).expect("the host opens it");
    let pid = format!("pid {}", std::process::id());
    assert_busy(detach(&pool, "host-1").await, &pid);
    assert_busy(open(&pool, OpenOptions::read_write()).await, "host-1");
    // Through a handle it can be read as long as it likes.
    let reader = open(&pool, OpenOptions::read_only()).await.expect("open");
    assert_busy(detach(&pool, "host-1").await, &pid);
    drop(file);
    detach(&pool, "host-1").await.expect("detach");
    assert!(lab.is_active("a"));
    reader.read_at(0, 512).await.expect("read");
    drop(reader);
    lab.goes_away("a").await;
    detach(&pool, "host-1").await.expect("detach again");
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn what_is_attached_for_reading_takes_no_writes() {
    let lab = Lab::new("reading", 64 << 10, "");
    let pool = pool(&lab).await;
    let path = attach(&pool, "host-1", Access::ReadOnly).await;
    let write = |path: &std::path::Path| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(path)?;
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_all()
    };
    write(&path).expect_err("the kernel refuses it");
    let writer = open(&pool, OpenOptions::read_write()).await.expect("open");
    writer
        .write_at(0, vec![2; 512].into())
        .await
        .expect("write");
    writer.flush().await.expect("flush");
    drop(writer);
    attach(&pool, "host-2", Access::ReadOnly).await;
    write(&path).expect_err("the kernel refuses it again");
    let third = attach(&pool, "host-3", Access::ReadWrite).await;
    write(&third).expect("it is attached for that");
    for host in ["host-1", "host-3", "host-2"] {
        detach(&pool, host).await.expect("detach");
    }
    lab.goes_away("a").await;
    let device = open(&pool, OpenOptions::read_write()).await.expect("open");
    let found = device.read_at(0, 512).await.expect("read");
    assert_eq!(found, vec![1; 512]);
    device
        .write_at(0, vec![3; 512].into())
        .await
        .expect("write");
}

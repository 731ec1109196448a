//! LVM pools at their limits: a thousand snapshots, no room left for data, none for metadata. In
//! the lab.

use std::sync::Arc;
use std::time::{Duration, Instant};

use volmux::lvm::{LvmConfig, LvmPool};
use volmux::{
    AuditOptions, BlockDevice, ByteSize, CreateOptions, ErrorKind, OpenOptions, Pool, PoolExt,
    Result,
};
use volmux_conformance::lvm::{ScratchGroup, lvm};
use volmux_conformance::{checked_name as n, on, pattern};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;

async fn open(group: &ScratchGroup) -> Arc<LvmPool> {
    let mut config = LvmConfig::thin(group.name(), "pool");
    config.refuse_percent = Some(100.0);
    LvmPool::open(config).await.expect("the pool opens")
}

async fn create(pool: &LvmPool, name: &str, size: u64) {
    let options = CreateOptions::thin(ByteSize::new(size));
    pool.create_volume(&n(name), options).await.expect("create");
}

async fn writer(pool: &LvmPool, name: &str) -> Arc<dyn BlockDevice> {
    let opened = pool.open_volume(&n(name), OpenOptions::read_write()).await;
    opened.expect("open for writing")
}

/// Bytes of `lvs` for one column.
fn column(group: &ScratchGroup, lv: &str, column: &str) -> String {
    let path = format!("{}/{lv}", group.name());
    let printed = lvm(&["lvs", "--noheadings", "-o", column, &path]);
    printed.trim().to_owned()
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_volume_has_a_thousand_snapshots() {
    const SNAPSHOTS: u64 = 1000;
    let group = ScratchGroup::with_pool(64 * MIB, 16 * MIB);
    on(async {
        let pool = open(&group).await;
        create(&pool, "a", MIB).await;
        let name = |number: u64| n(&format!("s{number:04}"));
        let begun = Instant::now();
        for number in 0..SNAPSHOTS {
            if number % 100 == 0 {
                let device = writer(&pool, "a").await;
                let data = pattern(number, 4096);
                device.write_at(0, data).await.expect("write");
                device.flush().await.expect("flush");
            }
            let (source, name) = (n("a"), name(number));
            let made = pool.snapshot_volume(&source, &name, Default::default());
            made.await.expect("snapshot");
        }
        let made = begun.elapsed();
        let begun = Instant::now();
        let fresh = open(&group).await;
        let listed = fresh.volumes().await.expect("list");
        let time_listed = begun.elapsed();
        assert_eq!(listed.len() as u64, SNAPSHOTS + 1);
        let parents = listed.iter().filter(|v| v.is_snapshot());
        assert_eq!(parents.count() as u64, SNAPSHOTS);
        for number in [0, 99, 100, 555, 999] {
            let opened = pool
                .open_volume(&name(number), OpenOptions::read_only())
                .await;
            let found = opened.expect("open").read_at(0, 4096).await;
            assert!(found.expect("read") == pattern(number / 100 * 100, 4096));
        }
        let begun = Instant::now();
        // From all over the chain. The others go with the group: each takes lvm2 as long as it took
        // to make.
        for number in (0..SNAPSHOTS).step_by(10) {
            pool.delete_volume(&name(number)).await.expect("delete");
        }
        let deleted = begun.elapsed();
        println!(
            "{SNAPSHOTS} snapshots: made in {} s, listed in {} ms, a tenth deleted in {} s",
            made.as_secs(),
            time_listed.as_millis(),
            deleted.as_secs()
        );
        let left = pool.volumes().await.expect("list").len() as u64;
        assert_eq!(left, SNAPSHOTS / 10 * 9 + 1);
        let last = pool.open_volume(&name(999), OpenOptions::read_only()).await;
        let found = last.expect("open").read_at(0, 4096).await;
        assert!(found.expect("read") == pattern(900, 4096));
        let report = pool.audit(AuditOptions { repair: false }).await;
        assert_eq!(report.expect("audit").findings, []);
    });
}

/// Writes and flushes pieces until that fails, and returns how many were flushed, and the error.
async fn fill(device: &dyn BlockDevice, piece: u64, most: u64) -> (u64, volmux::Error) {
    for number in 0..most {
        let data = pattern(number, piece as usize);
        let written: Result<()> = async {
            device.write_at(number * piece, data).await?;
            device.flush().await
        }
        .await;
        if let Err(error) = written {
            return (number, error);
        }
    }
    panic!("{most} pieces of {piece} bytes fit");
}

/// Asserts that all is there that was flushed.
async fn assert_kept(pool: &LvmPool, name: &str, piece: u64, flushed: u64) {
    let device = pool.open_volume(&n(name), OpenOptions::read_only()).await;
    let device = device.expect("open for reading");
    for number in 0..flushed {
        let found = device.read_at(number * piece, piece as usize).await;
        let right = found.expect("read") == pattern(number, piece as usize);
        assert!(right, "piece {number} of {flushed} that were flushed");
    }
}

/// Fails each write beyond, keeps what was flushed, and goes on when there is room again.
async fn assert_full_and_recovers(group: &ScratchGroup, pool: &LvmPool) {
    create(pool, "b", MIB).await;
    create(pool, "a", 64 * MIB).await;
    let device = writer(pool, "a").await;
    let (flushed, error) = fill(device.as_ref(), MIB, 64).await;
    assert!((10..=16).contains(&flushed), "{flushed} MiB fit");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(error.get("volume"), Some("a"), "{error}");
    let help = error.get("help").expect("it says what to do");
    assert!(help.contains("lvextend"), "{help}");
    drop(device);
    assert_kept(pool, "a", MIB, flushed).await;
    let usage = pool.usage().await.expect("usage");
    assert!(usage.used_percent() > 99.0, "{usage:?}");
    // What needs no new chunk goes on.
    let device = writer(pool, "a").await;
    device
        .write_at(0, pattern(0, MIB as usize))
        .await
        .expect("write over");
    device.flush().await.expect("flush");
    drop(device);
    let path = format!("{}/pool", group.name());
    lvm(&["lvextend", "-L", "+16m", &path]);
    let device = writer(pool, "a").await;
    for number in 0..flushed + 10 {
        let data = pattern(number, MIB as usize);
        device
            .write_at(number * MIB, data)
            .await
            .expect("there is room");
    }
    device.flush().await.expect("flush");
    drop(device);
    assert_kept(pool, "a", MIB, flushed + 10).await;
    create(pool, "new", MIB).await;
    let report = pool.audit(AuditOptions { repair: true }).await;
    assert!(report.expect("audit").is_clean());
}

/// A group with a small pool, and room to make it larger.
fn small_pool(metadata: u64) -> ScratchGroup {
    let group = ScratchGroup::new(96 * MIB);
    group.make_pool("pool", 16 * MIB, metadata, &[]);
    group
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_full_pool_that_fails_at_once_loses_nothing() {
    let group = small_pool(2 * MIB);
    let path = format!("{}/pool", group.name());
    lvm(&["lvchange", "--errorwhenfull", "y", &path]);
    on(async {
        let pool = open(&group).await;
        assert_full_and_recovers(&group, &pool).await;
    });
}

/// How long the kernel lets a write wait for room, in seconds.
fn let_writes_wait(seconds: u64) {
    let path = "/sys/module/dm_thin_pool/parameters/no_space_timeout";
    std::fs::write(path, seconds.to_string()).expect("a parameter of the kernel");
}

/// As pools are if nothing else is said: writes wait for room, for a while.
#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_full_pool_that_waits_loses_nothing() {
    let group = small_pool(2 * MIB);
    let path = format!("{}/pool", group.name());
    on(async {
        let pool = open(&group).await;
        let_writes_wait(600);
        create(&pool, "w", 64 * MIB).await;
        let device = writer(&pool, "w").await;
        let writes = tokio::spawn(async move {
            for number in 0..20 {
                let data = pattern(number, MIB as usize);
                device.write_at(number * MIB, data).await.expect("it waits");
                device.flush().await.expect("flush");
            }
        });
        let full = async || column(&group, "pool", "data_percent") == "100.00";
        while !full().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!writes.is_finished(), "the write waits for room");
        lvm(&["lvextend", "-L", "+16m", &path]);
        writes.await.expect("it went on");
        assert_kept(&pool, "w", MIB, 20).await;
        pool.delete_volume(&n("w")).await.expect("delete");
    });
    drop(group);
    let group = small_pool(2 * MIB);
    on(async {
        let pool = open(&group).await;
        let_writes_wait(3);
        assert_full_and_recovers(&group, &pool).await;
        let_writes_wait(60);
    });
}

/// What `dmsetup` printed, if it succeeded.
fn dmsetup(args: &[&str]) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/dmsetup")
        .args(args)
        .output();
    let output = output.expect("dmsetup");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    output.status.success().then_some(printed)
}

/// Fills the metadata up to `left` blocks, or as far as it goes, with thin devices that LVM knows
/// nothing of.
fn fill_metadata(group: &ScratchGroup, left: u64) {
    let target = format!("{}-pool-tpool", group.name());
    let mut ids = 10_000 * (100 - left)..;
    loop {
        let status = dmsetup(&["status", &target]).expect("the pool's status");
        let used = status.split(' ').nth(4).expect("metadata blocks");
        let (used, total) = used.split_once('/').expect("used and total");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let room = number(total).saturating_sub(number(used) + left);
        if room == 0 {
            return;
        }
        // Each takes a block, and now and then another one.
        for id in ids.by_ref().take(usize::max(1, room as usize / 2)) {
            if dmsetup(&["message", &target, "0", &format!("create_thin {id}")]).is_none() {
                return;
            }
        }
    }
}

/// Writes one chunk and flushes it.
async fn write_chunk(device: &dyn BlockDevice, seed: u64) -> Result<()> {
    let data = pattern(seed, CHUNK as usize);
    device.write_at(0, data).await?;
    device.flush().await
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_pool_with_full_metadata_loses_nothing() {
    const VOLUMES: u64 = 16;
    let group = small_pool(2 * MIB);
    let path = format!("{}/pool", group.name());
    let name = |number: u64| format!("v{number:02}");
    let flushed = on(async {
        let pool = open(&group).await;
        for number in 0..VOLUMES {
            create(&pool, &name(number), MIB).await;
        }
        let device = writer(&pool, &name(0)).await;
        write_chunk(device.as_ref(), 0)
            .await
            .expect("there is room");
        fill_metadata(&group, 12);
        let options = CreateOptions::thin(ByteSize::new(MIB));
        let refused = pool.create_volume(&n("new"), options).await;
        let refused = refused.expect_err("lvm2 makes none any more");
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused:?}");
        let help = refused.get("help").expect("it says what to do");
        assert!(help.contains("poolmetadatasize"), "{help}");
        let mut flushed = 1;
        let error = loop {
            assert!(flushed < VOLUMES, "the metadata is full at some time");
            fill_metadata(&group, 12u64.saturating_sub(flushed));
            let device = writer(&pool, &name(flushed)).await;
            match write_chunk(device.as_ref(), flushed).await {
                Ok(()) => flushed += 1,
                Err(error) => {
                    let again = device.flush().await;
                    again.expect_err("what was lost stays lost");
                    break error;
                }
            }
        };
        let kinds = [
            ErrorKind::NoSpace,
            ErrorKind::Corrupt,
            ErrorKind::Unavailable,
        ];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        let help = error.get("help").expect("it says what to do");
        assert!(help.contains("poolmetadatasize"), "{error}");
        flushed
    });
    println!("{flushed} writes were flushed before the metadata was full");
    // As the error says.
    lvm(&["vgchange", "-an", group.name()]);
    lvm(&["lvextend", "--poolmetadatasize", "+8m", &path]);
    lvm(&["lvchange", "-ay", &path]);
    on(async {
        let pool = open(&group).await;
        for number in 0..flushed {
            let device = writer(&pool, &name(number)).await;
            let found = device.read_at(0, CHUNK as usize).await.expect("read");
            assert!(found == pattern(number, CHUNK as usize), "write {number}");
        }
        let device = writer(&pool, &name(VOLUMES - 1)).await;
        write_chunk(device.as_ref(), 1)
            .await
            .expect("there is room");
        drop(device);
        create(&pool, "new", MIB).await;
        let report = pool.audit(AuditOptions { repair: true }).await;
        let report = report.expect("audit");
        assert!(report.is_clean(), "{report:?}");
        let report = pool.audit(AuditOptions { repair: false }).await;
        assert_eq!(report.expect("audit").findings, []);
    });
}

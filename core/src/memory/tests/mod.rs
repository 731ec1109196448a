mod model;
mod space;

use std::sync::Arc;

use bytes::Bytes;

use super::tree::BLOCK;
use super::{MemoryBackend, MemoryConfig, MemoryPool};
use crate::{
    BlockDevice, ByteRange, ByteSize, CloneOptions, Control, CopyOptions, CreateOptions, ErrorKind,
    ExtentQuery, FlattenOptions, Grade, OpenOptions, Pool, PoolExt, Provisioning, Registry,
    ResizeOptions, Result, RevertOptions, Sharing, SnapshotOptions, VolumeName, ZeroOptions,
};

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("the name is right")
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it must fail"),
        Err(error) => error.kind(),
    }
}

fn pool_of_blocks(blocks: u64) -> Arc<MemoryPool> {
    MemoryPool::new(MemoryConfig {
        refuse_percent: Some(100.0),
        ..MemoryConfig::with_total(ByteSize::new(blocks * BLOCK))
    })
    .expect("the configuration is right")
}

async fn used(pool: &MemoryPool) -> u64 {
    pool.usage().await.expect("usage").used.bytes() / BLOCK
}

async fn thin(pool: &MemoryPool, volume: &str, blocks: u64) -> Arc<dyn BlockDevice> {
    let options = CreateOptions::thin(ByteSize::new(blocks * BLOCK));
    pool.create_volume(&name(volume), options)
        .await
        .expect("create");
    open(pool, volume).await
}

async fn open(pool: &MemoryPool, volume: &str) -> Arc<dyn BlockDevice> {
    pool.open_volume(&name(volume), OpenOptions::read_write())
        .await
        .expect("open")
}

async fn snapshot(pool: &MemoryPool, source: &str, to: &str) {
    pool.snapshot_volume(&name(source), &name(to), SnapshotOptions::default())
        .await
        .expect("snapshot");
}

fn filled(byte: u8, blocks: u64) -> Bytes {
    vec![byte; (blocks * BLOCK) as usize].into()
}

#[tokio::test]
async fn snapshots_keep_what_they_show_and_revert_puts_it_back() {
    let pool = MemoryPool::unlimited();
    let device = thin(&pool, "a", 100).await;
    device.write_at(BLOCK, filled(1, 3)).await.expect("write");
    snapshot(&pool, "a", "s").await;
    device
        .write_at(2 * BLOCK, filled(2, 1))
        .await
        .expect("write");
    assert_eq!(used(&pool).await, 4);

    let changed = pool
        .extents(&name("a"), ExtentQuery::changed_since(name("s")))
        .await
        .expect("extents");
    assert_eq!(
        (changed.grade(), changed.granularity()),
        (Grade::Exact, 4096)
    );
    let changed = changed.collect_joined().await.expect("extents");
    assert_eq!(changed, [ByteRange::new(2 * BLOCK, BLOCK)]);

    drop(device);
    pool.revert_volume(&name("a"), &name("s"), RevertOptions::default())
        .await
        .expect("revert");
    let device = open(&pool, "a").await;
    let data = device
        .read_at(BLOCK, 3 * BLOCK as usize)
        .await
        .expect("read");
    assert_eq!(data, filled(1, 3));
    assert_eq!(used(&pool).await, 3);
}

#[tokio::test]
async fn the_largest_volume_works_and_zeros_take_no_memory() {
    let pool = MemoryPool::unlimited();
    let largest = ByteSize::new(i64::MAX as u64 / 512 * 512);
    pool.create_volume(&name("a"), CreateOptions::thin(largest))
        .await
        .expect("create");
    let device = open(&pool, "a").await;
    let whole = ByteRange::new(0, device.size());
    let last = device.size() - 1000;
    device
        .write_at(last, vec![7; 1000].into())
        .await
        .expect("write");
    assert_eq!(
        device.read_at(last, 1000).await.expect("read"),
        vec![7; 1000]
    );
    assert_eq!(
        kind(device.read_at(0, i64::MAX as usize - 511).await),
        ErrorKind::InvalidInput
    );

    device
        .write_zeroes(whole, ZeroOptions::default())
        .await
        .expect("zero");
    assert_eq!(used(&pool).await, 1 << 51);
    snapshot(&pool, "a", "s").await;
    device.write_at(1 << 50, filled(1, 2)).await.expect("write");
    assert_eq!(used(&pool).await, (1 << 51) + 2);
    let volume = pool.volume(&name("a")).await.expect("volume");
    assert_eq!(volume.exclusive, Some(ByteSize::new(2 * BLOCK)));
    let extents = device.extents(whole).await.expect("extents");
    assert_eq!(extents.collect_joined().await.expect("extents"), [whole]);
    let query = ExtentQuery::changed_since(name("s"));
    let changed = pool.extents(&name("a"), query).await.expect("extents");
    let changed = changed.collect_joined().await.expect("extents");
    assert_eq!(changed, [ByteRange::new(1 << 50, 2 * BLOCK)]);
    pool.delete_volume(&name("s")).await.expect("delete");
    assert_eq!(used(&pool).await, 1 << 51);
    device.discard(whole).await.expect("discard");
    assert_eq!(used(&pool).await, 0);

    for size in [0, i64::MAX as u64, u64::MAX] {
        let options = CreateOptions::thin(ByteSize::new(size));
        assert_eq!(
            kind(pool.create_volume(&name("b"), options).await),
            ErrorKind::InvalidInput
        );
    }
}

#[tokio::test]
async fn calls_can_be_repeated_but_not_with_other_arguments() {
    let pool = MemoryPool::unlimited();
    drop(thin(&pool, "a", 1).await);
    drop(thin(&pool, "b", 1).await);
    let same = CreateOptions::thin(ByteSize::new(BLOCK - 100));
    let again = pool
        .create_volume(&name("a"), same)
        .await
        .expect("the same after rounding");
    assert_eq!(again.id, pool.volume(&name("a")).await.expect("volume").id);
    let larger = CreateOptions::thin(ByteSize::new(2 * BLOCK));
    assert_eq!(
        kind(pool.create_volume(&name("a"), larger).await),
        ErrorKind::AlreadyExists
    );

    let (a, b, s) = (name("a"), name("b"), name("s"));
    let options = SnapshotOptions::default;
    let made = pool
        .snapshot_volume(&a, &s, options())
        .await
        .expect("snapshot");
    let again = pool
        .snapshot_volume(&a, &s, options())
        .await
        .expect("again");
    assert_eq!(made, again);
    assert_eq!(
        kind(pool.snapshot_volume(&b, &s, options()).await),
        ErrorKind::AlreadyExists
    );
    let cloned = pool.clone_volume(&a, &s, CloneOptions::default()).await;
    assert_eq!(kind(cloned), ErrorKind::AlreadyExists);
    let copied = pool.copy_volume(&a, &b, CopyOptions::default()).await;
    assert_eq!(kind(copied), ErrorKind::AlreadyExists);
    assert_eq!(
        kind(pool.snapshot_volume(&a, &a, options()).await),
        ErrorKind::InvalidInput
    );

    pool.delete_volume(&a).await.expect("delete");
    pool.delete_volume(&a).await.expect("again");
    let again = pool
        .snapshot_volume(&a, &s, options())
        .await
        .expect("the parent is gone");
    assert_eq!(made, again);
    let missing = pool.snapshot_volume(&a, &name("t"), options()).await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_volume_in_use_stays() {
    let pool = MemoryPool::unlimited();
    let writer = thin(&pool, "a", 4).await;
    snapshot(&pool, "a", "s").await;
    let a = name("a");
    let shrink = ResizeOptions {
        size: ByteSize::new(BLOCK),
        allow_shrink: true,
    };
    assert_eq!(
        kind(pool.open_volume(&a, OpenOptions::read_write()).await),
        ErrorKind::Busy
    );
    let shared = OpenOptions {
        sharing: Sharing::Shared,
        ..OpenOptions::read_write()
    };
    assert_eq!(kind(pool.open_volume(&a, shared).await), ErrorKind::Busy);
    let reader = pool
        .open_volume(&a, OpenOptions::read_only())
        .await
        .expect("a reader");
    drop(writer);
    assert_eq!(kind(pool.delete_volume(&a).await), ErrorKind::Busy);
    assert_eq!(kind(pool.resize_volume(&a, shrink).await), ErrorKind::Busy);
    let reverted = pool
        .revert_volume(&a, &name("s"), RevertOptions::default())
        .await;
    assert_eq!(kind(reverted), ErrorKind::Busy);
    pool.resize_volume(&a, ResizeOptions::grow(ByteSize::new(5 * BLOCK)))
        .await
        .expect("grow");
    assert_eq!(reader.size(), 5 * BLOCK);
    pool.rename_volume(&a, &name("b")).await.expect("rename");
    reader
        .read_at(4 * BLOCK, 1)
        .await
        .expect("the handle goes on");
    let first = pool.open_volume(&name("b"), shared).await.expect("shared");
    let second = pool.open_volume(&name("b"), shared).await.expect("shared");
    drop((first, reader));
    assert_eq!(kind(pool.delete_volume(&name("b")).await), ErrorKind::Busy);
    drop(second);
    pool.resize_volume(&name("b"), shrink)
        .await
        .expect("shrink");
    pool.delete_volume(&name("b")).await.expect("delete");
}

#[tokio::test]
async fn a_writer_whose_volume_was_taken_over_is_fenced() {
    let pool = MemoryPool::unlimited();
    let old = thin(&pool, "a", 1).await;
    let reader = pool
        .open_volume(&name("a"), OpenOptions::read_only())
        .await
        .expect("open");
    let take = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let new = pool.open_volume(&name("a"), take).await.expect("take over");
    assert_eq!(kind(old.write_at(0, filled(1, 1)).await), ErrorKind::Fenced);
    assert_eq!(kind(old.flush().await), ErrorKind::Fenced);
    assert_eq!(
        kind(old.discard(ByteRange::new(0, BLOCK)).await),
        ErrorKind::Fenced
    );
    assert_eq!(kind(old.read_at(0, 1).await), ErrorKind::Fenced);
    assert_eq!(reader.read_at(0, 1).await.expect("read"), vec![0]);
    new.write_at(0, filled(2, 1)).await.expect("write");
    drop((new, reader));
    // The fenced handle is not a user any more.
    pool.delete_volume(&name("a")).await.expect("delete");
    drop(old);
}

#[tokio::test]
async fn snapshots_are_read_only_and_reverting_needs_ones_own() {
    let pool = MemoryPool::unlimited();
    drop(thin(&pool, "a", 1).await);
    drop(thin(&pool, "b", 1).await);
    snapshot(&pool, "a", "s").await;
    snapshot(&pool, "s", "t").await;
    let (a, b, s, t) = (name("a"), name("b"), name("s"), name("t"));
    let opened = pool.open_volume(&s, OpenOptions::read_write()).await;
    assert_eq!(kind(opened), ErrorKind::InvalidInput);
    let grow = ResizeOptions::grow(ByteSize::new(2 * BLOCK));
    assert_eq!(
        kind(pool.resize_volume(&s, grow).await),
        ErrorKind::InvalidInput
    );
    for (volume, snapshot) in [(&b, &s), (&s, &t), (&a, &b), (&a, &t)] {
        let reverted = pool
            .revert_volume(volume, snapshot, RevertOptions::default())
            .await;
        assert_eq!(
            kind(reverted),
            ErrorKind::InvalidInput,
            "{volume} to {snapshot}"
        );
    }
    let reader = pool
        .open_volume(&s, OpenOptions::read_only())
        .await
        .expect("open");
    assert_eq!(
        kind(reader.write_at(0, filled(1, 1)).await),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(reader.read_at(BLOCK, 1).await),
        ErrorKind::InvalidInput
    );
}

#[tokio::test]
async fn flattening_has_nothing_to_do() {
    let pool = MemoryPool::unlimited();
    drop(thin(&pool, "a", 1).await);
    snapshot(&pool, "a", "s").await;
    let (a, s) = (name("a"), name("s"));
    let device = open(&pool, "a").await;
    let flat = pool.flatten_volume(&a, FlattenOptions::default()).await;
    let flat = flat.expect("flatten, also while it is open");
    assert_eq!(flat, pool.volume(&a).await.expect("volume"));
    assert_eq!(flat.depth, None);
    drop(device);
    for (volume, expected) in [
        (&s, ErrorKind::InvalidInput),
        (&name("x"), ErrorKind::NotFound),
    ] {
        let flat = pool.flatten_volume(volume, FlattenOptions::default()).await;
        assert_eq!(kind(flat), expected, "{volume}");
    }
    let options = FlattenOptions::default();
    options.control.cancel();
    let flat = pool.flatten_volume(&a, options).await;
    assert_eq!(kind(flat), ErrorKind::TimedOut);
}

#[tokio::test]
async fn opens_from_a_url_and_refuses_what_it_does_not_know() {
    let registry = Registry::new().with(MemoryBackend);
    let pool = registry
        .open("memory:?total=10GiB&warn_percent=50")
        .await
        .expect("open");
    assert_eq!(pool.usage().await.expect("usage").total, ByteSize::gib(10));
    assert_eq!(pool.policy().warn_percent, 50.0);
    for url in [
        "memory:?totl=1GiB",
        "memory:?total=much",
        "memory:?total=0",
        "memory://host",
        "memory:path",
        "memory:?warn_percent=101",
    ] {
        assert_eq!(
            kind(registry.open(url).await),
            ErrorKind::InvalidConfig,
            "{url}"
        );
    }
}

#[tokio::test]
async fn lists_and_counts_its_volumes() {
    use futures::StreamExt;
    let pool = MemoryPool::unlimited();
    for volume in ["a", "b", "c"] {
        drop(thin(&pool, volume, 1).await);
    }
    let listing = pool.list_volumes();
    pool.delete_volume(&name("b")).await.expect("delete");
    let names: Vec<String> = listing
        .map(|volume| volume.expect("volume").name.to_string())
        .collect()
        .await;
    assert_eq!(names, ["a", "c"]);
    let report = pool.audit(Default::default()).await.expect("audit");
    assert!(report.is_clean());
    assert_eq!(report.volumes, 2);
}

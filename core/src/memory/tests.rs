use std::sync::Arc;

use bytes::Bytes;

use super::tree::BLOCK;
use super::{MemoryBackend, MemoryConfig, MemoryPool};
use crate::{
    BlockDevice, ByteRange, ByteSize, CloneOptions, Control, CopyOptions, CreateOptions, Error,
    ErrorKind, ExtentQuery, Grade, OpenOptions, Pool, Registry, ResizeOptions, Result,
    RevertOptions, Sharing, SnapshotOptions, VolumeName, ZeroOptions,
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

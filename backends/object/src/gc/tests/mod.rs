//! Collections on pools that are used as others would use them.

mod collecting;
mod concurrent;
mod late;
mod meanwhile;
mod needed;
mod rewriting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uuid::Uuid;
use volmux_core::{
    BlockDevice, ByteRange, ByteSize, CreateOptions, ErrorKind, OpenOptions, Pool, ResizeOptions,
    VolumeId, VolumeName,
};

use super::*;
use crate::catalog::Entry;
use crate::catalog::tests::rough::Rough;
use crate::config::{Compression, Location, ObjectConfig};
use crate::keys::{Named, ObjectKey};
use crate::manifest::{Manifest, Phase};
use crate::owner::Living;
use crate::pool::{ObjectPool, Ready};
use crate::tip::{BLOCK, TailItem, Tip};

const OP: &str = "test";
/// Blocks of each volume.
const BLOCKS: u64 = 64;

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}

/// A pool as another process would have it.
async fn pool(store: &Arc<Rough>) -> Arc<ObjectPool> {
    pool_with(store, ByteSize::mib(1)).await
}

async fn pool_with(store: &Arc<Rough>, cache: ByteSize) -> Arc<ObjectPool> {
    pool_compressed(store, cache, Compression::None).await
}

async fn pool_compressed(
    store: &Arc<Rough>,
    cache: ByteSize,
    compression: Compression,
) -> Arc<ObjectPool> {
    // Of writers in one process, no two may have the same identity, whatever store they are on.
    static SEED: AtomicU64 = AtomicU64::new(1 << 40);
    let seed = SEED.fetch_add(1, Relaxed);
    let mut config = ObjectConfig::new(Location::Memory);
    config.object_size = Some(ByteSize::kib(64));
    config.cache = Some(cache);
    config.compression = Some(compression);
    let store: Arc<dyn ObjectStore> = store.clone();
    ObjectPool::over(store, config, seed)
        .await
        .expect("it opens")
}

async fn ready(pool: &ObjectPool) -> Arc<Ready> {
    let ready = pool.look(OP).await.expect("the store works");
    ready.expect("it has volumes").clone()
}

async fn create(pool: &ObjectPool, volume: &str) {
    let options = CreateOptions::thin(ByteSize::new(BLOCKS * BLOCK));
    pool.create_volume(&name(volume), options)
        .await
        .expect("create");
}

async fn writer(pool: &ObjectPool, volume: &str) -> Arc<dyn BlockDevice> {
    let opened = pool
        .open_volume(&name(volume), OpenOptions::read_write())
        .await;
    opened.expect("open for writing")
}

async fn fill(device: &dyn BlockDevice, blocks: impl Iterator<Item = u64>, tag: u8) {
    for block in blocks {
        let content = Bytes::from(vec![tag; BLOCK as usize]);
        device
            .write_at(block * BLOCK, content)
            .await
            .expect("write");
    }
    device.flush().await.expect("flush");
}

/// Opens a volume, fills some of it and closes it.
async fn filled(pool: &ObjectPool, volume: &str, blocks: std::ops::Range<u64>, tag: u8) {
    let device = writer(pool, volume).await;
    fill(&*device, blocks, tag).await;
    drop(device);
    settle().await;
}

/// Waits until what was closed is closed, in the store too.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// The first byte of each block; all others must be the same.
async fn content(pool: &ObjectPool, volume: &str) -> Vec<u8> {
    let opened = pool
        .open_volume(&name(volume), OpenOptions::read_only())
        .await;
    let device = opened.expect("open for reading");
    let all = device
        .read_at(0, device.size() as usize)
        .await
        .expect("read");
    drop(device);
    settle().await;
    let blocks = all.chunks(BLOCK as usize);
    blocks
        .map(|block| {
            assert!(
                block.iter().all(|byte| *byte == block[0]),
                "half of a block"
            );
            block[0]
        })
        .collect()
}

/// Names and lengths of everything there is.
async fn everything(store: &Rough) -> BTreeMap<String, u64> {
    use futures::TryStreamExt;
    let listed = store.inner.list(None);
    let all: Vec<_> = listed.try_collect().await.expect("it is in memory");
    all.into_iter()
        .map(|meta| (meta.location.to_string(), meta.size))
        .collect()
}

async fn objects(store: &Rough) -> Vec<ObjectKey> {
    let all = everything(store).await;
    let keys = all.keys().filter_map(|name| match name.parse() {
        Ok(Named::Data(key)) => Some(key),
        _ => None,
    });
    keys.collect()
}

async fn put(store: &Rough, name: &str, bytes: Vec<u8>) {
    let put = store.inner.put(&Path::from(name), bytes.into()).await;
    put.expect("it is in memory");
}

async fn collect(pool: &ObjectPool) -> Survey {
    let ready = ready(pool).await;
    let collector = Collector::new(OP, &ready.shared, &ready.catalog);
    collector.collect().await.expect("a collection")
}

/// What a volume holds, as far as it is committed.
async fn tip_of(pool: &ObjectPool, volume: &str) -> (LogId, Manifest) {
    let ready = ready(pool).await;
    let log = ready
        .catalog
        .read(|state| state.by_name(&name(volume)).and_then(|entry| entry.log));
    let log = log.expect("it can be written");
    let newest = ready.shared.newest_manifest(OP, log, 0).await;
    (
        log,
        newest.expect("the store works").expect("it was written"),
    )
}

fn named(tip: &Tip) -> Vec<String> {
    let objects = tip.tail.iter().filter_map(|item| match item {
        TailItem::Object { key, .. } => Some(key.to_string()),
        TailItem::Cut(_) => None,
    });
    objects.collect()
}

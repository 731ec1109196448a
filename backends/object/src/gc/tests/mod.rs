//! Collections on pools that are used as others would use them.

mod concurrent;
mod late;
mod meanwhile;
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

#[tokio::test(start_paused = true)]
async fn what_is_needed_stays_and_what_was_overwritten_goes() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let none = pool.collect_garbage().await.expect("no pool yet");
    assert_eq!(none.objects, 0);
    create(&pool, "a").await;
    filled(&pool, "a", 0..BLOCKS, 1).await;
    let first = objects(&store).await.len();
    let before = everything(&store).await;
    let mut collected = collect(&pool).await;
    let after = everything(&store).await;
    assert_eq!(content(&pool, "a").await, [1; BLOCKS as usize]);
    assert!(objects(&store).await.len() == first, "{collected:?}");
    assert_eq!(collected.kept.objects, after.len() as u64);
    assert_eq!(collected.kept.bytes, after.values().sum::<u64>());
    let gone = before.iter().filter(|(name, _)| !after.contains_key(*name));
    assert_eq!(
        collected.freed().bytes,
        gone.clone().map(|(_, bytes)| bytes).sum::<u64>()
    );
    assert_eq!(collected.freed().objects, gone.count() as u64);
    for tag in 2..30 {
        filled(&pool, "a", 0..BLOCKS, tag).await;
    }
    let many = objects(&store).await.len();
    assert!(many > 20 * first, "{many}");
    collected = collect(&pool).await;
    let few = objects(&store).await.len();
    assert!(few < 12 * first, "{many} became {few}: {collected:?}");
    assert!(collected.freed().objects >= (many - few) as u64);
    assert_eq!(content(&pool, "a").await, [29; BLOCKS as usize]);
    let again = collect(&pool).await;
    // One record of the catalogue more: the first collection's own.
    let kept = collected.kept.objects + 1;
    assert_eq!((again.freed().objects, again.kept.objects), (0, kept));
}

#[tokio::test(start_paused = true)]
async fn deleting_gives_back_all_that_nobody_shares() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    filled(&pool, "a", 0..BLOCKS, 1).await;
    pool.snapshot_volume(&name("a"), &name("s"), Default::default())
        .await
        .expect("snapshot");
    filled(&pool, "a", 0..BLOCKS, 2).await;
    pool.clone_volume(&name("s"), &name("c"), Default::default())
        .await
        .expect("clone");
    filled(&pool, "c", 0..8, 3).await;
    pool.copy_volume(&name("a"), &name("d"), Default::default())
        .await
        .expect("copy");
    settle().await;
    collect(&pool).await;
    let full = objects(&store).await.len();
    pool.delete_volume(&name("a")).await.expect("delete");
    pool.delete_volume(&name("s")).await.expect("delete");
    let freed = collect(&pool).await;
    assert!(freed.freed().bytes > BLOCKS * BLOCK, "{freed:?}");
    assert!(objects(&store).await.len() < full);
    let c: Vec<u8> = [vec![3; 8], vec![1; BLOCKS as usize - 8]].concat();
    assert_eq!(content(&pool, "c").await, c);
    assert_eq!(content(&pool, "d").await, [2; BLOCKS as usize]);
    for volume in ["c", "d"] {
        pool.delete_volume(&name(volume)).await.expect("delete");
    }
    collect(&pool).await;
    let left = everything(&store).await;
    let others: Vec<_> = left
        .keys()
        .filter(|n| *n != keys::POOL && !n.starts_with("catalog"))
        .collect();
    assert_eq!(others, Vec::<&String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_a_writer_has_under_way_is_left_alone() {
    let store = Rough::new(1);
    let (ours, theirs) = (pool(&store).await, pool(&store).await);
    create(&theirs, "a").await;
    let device = writer(&theirs, "a").await;
    let manifests = |all: &BTreeMap<String, u64>| {
        let manifests = all.keys().filter(|name| name.contains("/m/"));
        manifests.cloned().collect::<Vec<_>>()
    };
    let mut uncommitted = 0;
    for tag in 1..40u8 {
        // Whole objects are put before anything is committed.
        for block in 0..40 {
            let content = Bytes::from(vec![tag; BLOCK as usize]);
            device
                .write_at(block * BLOCK, content)
                .await
                .expect("write");
        }
        let before = (objects(&store).await, manifests(&everything(&store).await));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let after = (objects(&store).await, manifests(&everything(&store).await));
        uncommitted += usize::from(after.0.len() > before.0.len() && after.1 == before.1);
        collect(&ours).await;
        if tag % 3 == 0 {
            device.flush().await.expect("flush");
            collect(&ours).await;
        }
        let read = device.read_at(0, 40 * BLOCK as usize).await.expect("read");
        assert!(read.iter().all(|byte| *byte == tag), "{tag}");
    }
    assert!(uncommitted > 10, "{uncommitted}");
    device.flush().await.expect("flush");
    drop(device);
    assert_eq!(content(&ours, "a").await[..40], [39; 40]);
}

#[tokio::test(start_paused = true)]
async fn what_crashes_leave_behind_is_collected() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    filled(&pool, "a", 0..BLOCKS, 1).await;
    collect(&pool).await;
    let clean = everything(&store).await;
    let ready = ready(&pool).await;
    let log = ready
        .catalog
        .read(|state| state.by_name(&name("a")).and_then(|entry| entry.log));
    let log = log.expect("it was written");
    let newest = ready
        .shared
        .newest_manifest(OP, log, 0)
        .await
        .expect("it works");
    let newest = newest.expect("it was written");
    // A shrink that was not published; a copier that died; a stale writer's last object.
    let elsewhere = LogId(ready.shared.ids.uuid());
    let key = |log, epoch, seq| ObjectKey { log, epoch, seq }.to_string();
    put(&store, &key(elsewhere, 0, 0), vec![1; 100]).await;
    let copying = LogId(ready.shared.ids.uuid());
    let died = Living::begin(ready.shared.ids.uuid()).owner().clone();
    let left = Manifest {
        log: copying,
        owner: died,
        number: 1,
        epoch: 1,
        phase: Phase::Open,
        ..newest.clone()
    };
    let (manifest, body) = ready.shared.wrap_manifest(OP, &left).expect("it fits");
    put(&store, &manifest, body.to_vec()).await;
    put(&store, &key(copying, 1, 7), vec![1; 100]).await;
    put(&store, &key(log, newest.epoch - 1, 9), vec![1; 100]).await;
    put(
        &store,
        &key(log, newest.epoch, newest.in_flight + 3),
        vec![1; 100],
    )
    .await;
    let looked = Collector::new(OP, &ready.shared, &ready.catalog)
        .look()
        .await
        .expect("a look");
    assert_eq!(looked.garbage.len(), 5, "{:?}", looked.garbage);
    assert_eq!(
        everything(&store).await.len(),
        clean.len() + 5,
        "looking deletes nothing"
    );
    assert_eq!(collect(&pool).await.freed().objects, 5);
    let mut after = everything(&store).await;
    after.retain(|name, _| !name.starts_with(keys::CATALOG));
    let mut clean = clean;
    clean.retain(|name, _| !name.starts_with(keys::CATALOG));
    assert_eq!(after, clean);
    assert_eq!(content(&pool, "a").await, [1; BLOCKS as usize]);
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

#[tokio::test(start_paused = true)]
async fn what_somebody_copies_into_or_from_stays_as_long_as_he_lives() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    for volume in ["a", "b"] {
        create(&pool, volume).await;
        filled(&pool, volume, 0..BLOCKS, 1).await;
    }
    let (_, from) = tip_of(&pool, "a").await;
    let (_, into) = tip_of(&pool, "b").await;
    let (ready, living) = (ready(&pool).await, Living::begin(Uuid::from_u128(7 << 90)));
    let copying = Manifest {
        log: LogId(ready.shared.ids.uuid()),
        number: 1,
        epoch: 1,
        phase: Phase::Open,
        owner: living.owner().clone(),
        tip: into.tip.clone(),
        pin: Some(from.tip.clone()),
        ..from.clone()
    };
    let (manifest, body) = ready.shared.wrap_manifest(OP, &copying).expect("it fits");
    put(&store, &manifest, body.to_vec()).await;
    for volume in ["a", "b"] {
        pool.delete_volume(&name(volume)).await.expect("delete");
    }
    let held = [named(&from.tip), named(&into.tip)].concat();
    assert!(held.len() > 6, "{held:?}");
    collect(&pool).await;
    let there = everything(&store).await;
    assert!(held.iter().all(|object| there.contains_key(object)));
    drop(living);
    collect(&pool).await;
    let there = everything(&store).await;
    assert!(!held.iter().any(|object| there.contains_key(object)));
}

#[tokio::test(start_paused = true)]
async fn what_comes_into_the_catalogue_in_between_is_needed() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    filled(&pool, "a", 0..BLOCKS, 1).await;
    let (log, newest) = tip_of(&pool, "a").await;
    let ready = ready(&pool).await;
    let entry = ready
        .catalog
        .read(|state| state.by_log(log).cloned())
        .expect("it is there");
    pool.delete_volume(&name("a")).await.expect("delete");
    let inventory = Inventory::take(OP, &ready.shared.store)
        .await
        .expect("a listing");
    let mut pass = Pass::new(OP, ready.shared.clone(), &ready.catalog);
    pass.follow(&inventory).await.expect("all can be read");
    let garbage = pass.garbage(&inventory);
    assert_eq!(garbage.len(), named(&newest.tip).len());
    // Somebody who read the old manifest before, and decided on this head.
    let late = Entry {
        id: VolumeId::random(),
        log: None,
        base: Arc::new(newest.tip),
        ..Entry::clone(&entry)
    };
    let head = ready.catalog.head();
    let done = ready
        .catalog
        .try_commit(OP, head, vec![Change::Put(late.clone())])
        .await;
    assert!(done.expect("the store works"));
    let again = Inventory::take(OP, &ready.shared.store)
        .await
        .expect("a listing");
    pass.follow(&again).await.expect("all can be read");
    assert!(garbage.iter().all(|(key, _)| pass.is_needed(key)));
    // Whoever decided on a head from before a collection that deletes something comes too late.
    let head = ready.catalog.head();
    let gone = vec![Change::Remove(late.id)];
    assert!(
        ready
            .catalog
            .try_commit(OP, head, gone)
            .await
            .expect("the store works")
    );
    let head = ready.catalog.head();
    assert!(collect(&pool).await.freed().objects > 0);
    let too_late = ready
        .catalog
        .try_commit(OP, head, vec![Change::Put(late)])
        .await;
    assert!(!too_late.expect("the store works"));
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_process_may_have_named_stays_until_nobody_can_find_it() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    filled(&pool, "a", 0..4, 1).await;
    let (log, newest) = tip_of(&pool, "a").await;
    let ready = ready(&pool).await;
    let died = || Living::begin(ready.shared.ids.uuid()).owner().clone();
    let number = newest.number + 1;
    let open = |log, number, owner| Manifest {
        log,
        number,
        epoch: number,
        phase: Phase::Open,
        owner,
        ..newest.clone()
    };
    // A writer who died, and a collection of the same process.
    let own = LogId(ready.shared.ids.uuid());
    let collecting = Manifest {
        tip: Tip::EMPTY,
        pin: Some(Tip::EMPTY),
        ..open(own, 1, died())
    };
    for manifest in [open(log, number, died()), collecting] {
        let (manifest, body) = ready.shared.wrap_manifest(OP, &manifest).expect("it fits");
        put(&store, &manifest, body.to_vec()).await;
    }
    let object = ObjectKey {
        log: own,
        epoch: 1,
        seq: 3,
    };
    put(&store, &object.to_string(), vec![1; 100]).await;
    collect(&pool).await;
    assert!(objects(&store).await.contains(&object));
    filled(&pool, "a", 4..8, 2).await;
    collect(&pool).await;
    assert!(!objects(&store).await.contains(&object));
}

#[tokio::test(start_paused = true)]
async fn a_copy_in_progress_and_what_it_copies_stay() {
    let store = Rough::new(1);
    let (ours, theirs) = (pool(&store).await, pool(&store).await);
    create(&theirs, "a").await;
    filled(&theirs, "a", 0..BLOCKS, 1).await;
    store.slow.store(true, Relaxed);
    for round in 0..10u8 {
        let (volume, copy) = (format!("v{round}"), format!("c{round}"));
        theirs
            .clone_volume(&name("a"), &name(&volume), Default::default())
            .await
            .expect("clone");
        filled(&theirs, &volume, 0..BLOCKS, 7).await;
        let (from, to) = (name(&volume), name(&copy));
        let copying = theirs.copy_volume(&from, &to, Default::default());
        let meddling = async {
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            filled(&ours, &volume, 0..BLOCKS, 8).await;
            collect(&ours).await;
            ours.delete_volume(&name(&volume)).await.expect("delete");
            collect(&ours).await;
        };
        let (copied, ()) = futures::join!(copying, meddling);
        match copied {
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            Ok(_) => {
                let copied = content(&ours, &copy).await;
                assert!(
                    copied == [7; BLOCKS as usize] || copied.iter().all(|b| [7, 8].contains(b))
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_fences_a_stale_writer_is_never_deleted() {
    let store = Rough::new(1);
    let (ours, theirs) = (pool(&store).await, pool(&store).await);
    create(&theirs, "a").await;
    let stale = writer(&theirs, "a").await;
    fill(&*stale, 0..4, 1).await;
    let take_over = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let device = ours
        .open_volume(&name("a"), take_over)
        .await
        .expect("take over");
    for tag in 2..60 {
        fill(&*device, 0..4, tag).await;
    }
    drop(device);
    settle().await;
    collect(&ours).await;
    stale.write_at(0, Bytes::from(vec![9; 4096])).await.ok();
    let error = stale.flush().await.expect_err("it is fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(content(&ours, "a").await[..5], [59, 59, 59, 59, 0]);
    // Old manifests that fence nobody are gone.
    let left = everything(&store).await;
    let manifests = left.keys().filter(|name| name.contains("/m/")).count();
    assert_eq!(manifests, 2, "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_map_that_cannot_be_read_keeps_everything() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    create(&pool, "b").await;
    // So many objects that closing makes a checkpoint.
    for volume in ["a", "b"] {
        let device = writer(&pool, volume).await;
        for tag in 1..20 {
            fill(&*device, 0..BLOCKS, tag).await;
        }
    }
    let ready = ready(&pool).await;
    settle().await;
    let log = ready
        .catalog
        .read(|state| state.by_name(&name("a")).and_then(|entry| entry.log));
    let newest = ready
        .shared
        .newest_manifest(OP, log.expect("a log"), 0)
        .await
        .expect("it works");
    let page = newest
        .expect("written")
        .tip
        .root
        .page
        .expect("a checkpoint");
    let object = page.object.to_string();
    let path = Path::from(object.as_str());
    let whole = store
        .inner
        .get(&path)
        .await
        .expect("there")
        .bytes()
        .await
        .expect("there")
        .to_vec();
    let mut flipped = whole.clone();
    flipped[page.offset as usize + 50] ^= 1;
    put(&store, &object, flipped).await;
    let before = objects(&store).await;
    let error = pool.collect_garbage().await.expect_err("it can't know");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(error.get("object"), Some(object.as_str()), "{error}");
    assert_eq!(error.get("volume"), Some("a"), "{error}");
    assert_eq!(objects(&store).await, before);
    store.inner.delete(&path).await.expect("there");
    let error = pool.collect_garbage().await.expect_err("it can't know");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    put(&store, &object, whole).await;
    assert!(collect(&pool).await.freed().objects > 10);
    assert_eq!(content(&pool, "b").await, [19; BLOCKS as usize]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_is_told_and_left() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    for foreign in ["readme.txt", "logs/readme", "catalog/1", "readers/x/y"] {
        put(&store, foreign, vec![1; 10]).await;
    }
    let ready = ready(&pool).await;
    let looked = Collector::new(OP, &ready.shared, &ready.catalog)
        .look()
        .await
        .expect("a look");
    assert_eq!(looked.foreign.len(), 4);
    collect(&pool).await;
    assert!(everything(&store).await.contains_key("readme.txt"));
}

#[tokio::test(start_paused = true)]
async fn a_pool_opened_for_reading_is_not_changed() {
    let store = Rough::new(1);
    create(&*pool(&store).await, "a").await;
    let mut config = ObjectConfig::new(Location::Memory);
    config.read_only = true;
    let pool = ObjectPool::over(store, config, 1 << 50)
        .await
        .expect("it opens");
    let error = pool.collect_garbage().await.expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

//! What a collection takes, and what it leaves.

use super::*;

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

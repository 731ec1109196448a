//! What arrives late, what is left of those who are gone, and who is superseded meanwhile.

use object_store::{PutMode, PutOptions};

use super::rewriting::{WHOLE, collect_all, expected, pool_snapshot, sparse, sparsen, stored};
use super::*;
use crate::owner::Owner;

/// Puts a manifest as its writer would have, and says whether it was taken.
async fn arrives(store: &Rough, ready: &Ready, manifest: &Manifest) -> bool {
    let (name, body) = ready.shared.wrap_manifest(OP, manifest).expect("it fits");
    let options = PutOptions::from(PutMode::Create);
    let path = Path::from(name);
    let put = store.inner.put_opts(&path, body.into(), options).await;
    put.is_ok()
}

fn died(ready: &Ready) -> Owner {
    Living::begin(ready.shared.ids.uuid()).owner().clone()
}

fn elsewhere(ready: &Ready) -> Owner {
    Owner {
        boot: "another".into(),
        ..died(ready)
    }
}

async fn entry(pool: &ObjectPool, volume: &str) -> Arc<Entry> {
    let entry = ready(pool).await.entry(OP, &name(volume));
    entry.expect("it is there")
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_arrives_late_names_nothing_that_is_collected() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let expected = sparse(&pool, "a").await;
    let snapshot = pool_snapshot(&pool, "a", "s").await;
    pool.clone_volume(&snapshot, &name("c"), Default::default())
        .await
        .expect("clone");
    let (_, some) = tip_of(&pool, "a").await;
    let (ready, never_opened) = (ready(&pool).await, entry(&pool, "c").await);
    // Somebody opened it and was killed: his first manifest is under way.
    let late = Manifest {
        log: never_opened.log.expect("a clone can be written"),
        number: 1,
        epoch: 1,
        owner: died(&ready),
        phase: Phase::Open,
        tip: Tip::clone(&never_opened.base),
        in_flight: 0,
        ..some
    };
    collect_all(&pool).await;
    assert!(stored(&store).await < WHOLE);
    arrives(&store, &ready, &late).await;
    collect_all(&pool).await;
    assert_eq!(content(&pool, "c").await, expected);
    filled(&pool, "c", 1..2, 9).await;
    assert_eq!(content(&pool, "c").await[..3], [1, 9, 11]);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_deleted_volume_keeps_nothing() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "other").await;
    filled(&pool, "other", 0..4, 1).await;
    let (other, newest) = tip_of(&pool, "other").await;
    let ready = ready(&pool).await;
    let log = LogId(ready.shared.ids.uuid());
    let key = |epoch, seq| ObjectKey { log, epoch, seq };
    let gone = |seq| TailItem::Object {
        key: key(3, seq),
        bytes: 10_000,
    };
    // By somebody on another host, or of the process that died with another volume open.
    for (number, owner) in [(3, elsewhere(&ready)), (4, died(&ready))] {
        let claim = Manifest {
            log,
            number,
            epoch: number,
            owner,
            phase: Phase::Open,
            tip: Tip {
                root: Tip::EMPTY.root,
                tail: vec![gone(0)],
            },
            in_flight: 0,
            fences: true,
            ..newest.clone()
        };
        assert!(arrives(&store, &ready, &claim).await);
        for epoch in [number, number + 1] {
            put(&store, &key(epoch, 5).to_string(), vec![1; 100]).await;
        }
        let open = Manifest {
            log: other,
            number: newest.number + 1,
            epoch: newest.number + 1,
            owner: died(&ready),
            phase: Phase::Open,
            ..newest.clone()
        };
        arrives(&store, &ready, &open).await;
        collect(&pool).await;
        let left = objects(&store).await;
        assert!(left.iter().all(|key| key.log != log), "{left:?}");
        assert_eq!(content(&pool, "other").await[..4], [1; 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_what_is_gone_hides_nothing() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let expected = sparse(&pool, "a").await;
    pool_snapshot(&pool, "a", "s").await;
    filled(&pool, "a", 0..4, 77).await;
    let (_, newest) = tip_of(&pool, "a").await;
    let ready = ready(&pool).await;
    // A copy was begun on another host, on something that shares pages with the snapshot and of
    // which another page was just collected.
    let base = entry(&pool, "s").await.base.clone();
    let page = base.root.page.expect("it has a map");
    let mut missing = Tip::clone(&base);
    missing.root.page = Some(crate::tip::PagePtr {
        object: ObjectKey {
            seq: page.object.seq + 1000,
            ..page.object
        },
        ..page
    });
    for (number, pin) in [(1, missing), (2, Tip::clone(&base))] {
        let copying = Manifest {
            log: LogId(ready.shared.ids.uuid()),
            number,
            epoch: number,
            owner: elsewhere(&ready),
            phase: Phase::Open,
            tip: Tip::EMPTY,
            pin: Some(pin),
            ..newest.clone()
        };
        assert!(arrives(&store, &ready, &copying).await);
    }
    collect(&pool).await;
    collect_all(&pool).await;
    assert_eq!(content(&pool, "s").await, expected);
    pool.delete_volume(&name("s")).await.expect("delete");
    pool.delete_volume(&name("a")).await.expect("delete");
    collect(&pool).await;
    let there = everything(&store).await;
    assert!(there.contains_key(&page.object.to_string()), "it is copied");
}

#[tokio::test(start_paused = true)]
async fn who_dies_while_a_collection_looks_may_have_named_what_another_put() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    filled(&pool, "a", 0..4, 1).await;
    let (log, newest) = tip_of(&pool, "a").await;
    let ready = ready(&pool).await;
    let own = Manifest {
        log: LogId(ready.shared.ids.uuid()),
        number: 1,
        epoch: 1,
        owner: died(&ready),
        phase: Phase::Open,
        tip: Tip::EMPTY,
        in_flight: 0,
        pin: Some(Tip::EMPTY),
        ..newest.clone()
    };
    assert!(arrives(&store, &ready, &own).await);
    let object = ObjectKey {
        log: own.log,
        epoch: 1,
        seq: 0,
    };
    put(&store, &object.to_string(), vec![1; 100]).await;
    let mut pass = Pass::new(OP, ready.shared.clone(), &ready.catalog);
    let listed = |ready: Arc<Ready>| async move {
        let inventory = Inventory::take(OP, &ready.shared.store).await;
        inventory.expect("a listing")
    };
    let first = listed(ready.clone()).await;
    pass.follow(&first).await.expect("all can be read");
    let garbage = pass.garbage(&first);
    assert!(garbage.iter().any(|(key, _)| *key == object));
    // The same process opened the volume while that was listed.
    let claim = Manifest {
        number: newest.number + 1,
        epoch: newest.number + 1,
        owner: died(&ready),
        phase: Phase::Open,
        log,
        ..newest
    };
    assert!(arrives(&store, &ready, &claim).await);
    let again = listed(ready.clone()).await;
    pass.follow(&again).await.expect("all can be read");
    assert!(pass.is_needed(&object));
}

#[tokio::test(start_paused = true)]
async fn a_writer_who_was_superseded_is_no_obstacle() {
    let store = Rough::new(1);
    // It remembers next to nothing.
    let ours = pool_with(&store, ByteSize::kib(1)).await;
    let theirs = pool(&store).await;
    create(&ours, "a").await;
    let device = writer(&ours, "a").await;
    fill(&*device, 0..BLOCKS, 1).await;
    sparsen(&*device).await;
    ready(&ours).await.collect(OP).await.expect("a checkpoint");
    fill(&*device, 0..BLOCKS, 1).await;
    sparsen(&*device).await;
    let engine = {
        let ready = ready(&ours).await;
        let id = ready.entry(OP, &name("a")).expect("it is there").id;
        ready.uses.of(id).engine().expect("it is open")
    };
    engine.checkpoint().await.expect("a checkpoint");
    engine.commit(OP).await.expect("committed");
    let mut options = OpenOptions::read_write();
    options.take_over = true;
    let other = theirs.open_volume(&name("a"), options).await;
    let other = other.expect("taken over");
    fill(&*other, 0..BLOCKS, 12).await;
    ready(&theirs)
        .await
        .collect(OP)
        .await
        .expect("a checkpoint");
    // What the superseded writer goes on from is collected by now.
    let written = device.write_at(0, vec![1; BLOCK as usize].into()).await;
    written.expect("written");
    assert!(engine.checkpoint().await.is_err());
    collect_all(&ours).await;
    fill(&*other, 0..BLOCKS, 1).await;
    sparsen(&*other).await;
    assert_eq!(firsts(&*other).await, expected());
    drop((device, other, engine));
    settle().await;
    collect_all(&theirs).await;
    assert!(stored(&store).await < WHOLE);
    assert_eq!(content(&theirs, "a").await, expected());
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_closed_while_it_is_given_a_new_tree() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    create(&pool, "a").await;
    let device = writer(&pool, "a").await;
    sparsen(&*device).await;
    let ready = ready(&pool).await;
    let id = ready.entry(OP, &name("a")).expect("it is there").id;
    let engine = ready.uses.of(id).engine().expect("it is open");
    let (root, living) = (engine.root(), Living::begin(ready.shared.ids.uuid()));
    let living = Arc::new(living);
    let relocating = engine.relocate(OP, &root, root, &living);
    let closing = async { drop(device) };
    let both = futures::future::join(relocating, closing);
    let (relocated, ()) = tokio::time::timeout(Duration::from_secs(600), both)
        .await
        .expect("they do not wait for each other");
    assert!(relocated.expect("committed"));
    engine.ended().await;
    assert_eq!(Arc::strong_count(&living), 1, "it is committed");
    assert_eq!(tip_of(&pool, "a").await.1.phase, Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_full_store_is_not_filled_by_giving_up_objects() {
    let store = Rough::new(1);
    let pool = pool(&store).await;
    let expected = sparse(&pool, "a").await;
    collect(&pool).await;
    let before = stored(&store).await;
    store.room.store(8000, Relaxed);
    let done = pool.collect_garbage().await;
    done.expect("what can be deleted is deleted");
    store.room.store(usize::MAX, Relaxed);
    assert_eq!(stored(&store).await, before);
    assert_eq!(content(&pool, "a").await, expected);
    collect_all(&pool).await;
    assert!(stored(&store).await < WHOLE);
    assert_eq!(content(&pool, "a").await, expected);
}

#[tokio::test(start_paused = true)]
async fn who_begins_to_read_while_blocks_are_moved_finds_them() {
    let mut put_back = 0;
    for delay in (0..600).step_by(20) {
        let store = Rough::new(delay);
        let (ours, theirs) = (pool(&store).await, pool(&store).await);
        let expected = sparse(&ours, "a").await;
        let snapshot = pool_snapshot(&ours, "a", "s").await;
        ours.delete_volume(&name("a")).await.expect("delete");
        collect(&ours).await;
        let (before, head) = (entry(&ours, "s").await.base.clone(), head(&ours).await);
        store.slow.store(true, Relaxed);
        let reading = async {
            for _ in 0..delay {
                tokio::task::yield_now().await;
            }
            let opened = theirs.open_volume(&snapshot, OpenOptions::read_only());
            let device = opened.await.expect("open for reading");
            assert_eq!(firsts(&*device).await, expected, "{delay}");
            device
        };
        let (done, device) = futures::join!(ours.collect_garbage(), reading);
        done.expect("a collection");
        assert_eq!(firsts(&*device).await, expected, "{delay}");
        let same = entry(&ours, "s").await.base == before;
        put_back += u32::from(same && self::head(&ours).await >= head + 2);
        drop(device);
        settle().await;
        collect_all(&ours).await;
        assert!(stored(&store).await < WHOLE, "{delay}");
        assert_eq!(content(&theirs, "s").await, expected, "{delay}");
    }
    assert!(put_back > 0, "it is not tried");
}

async fn head(pool: &ObjectPool) -> u64 {
    let refreshed = ready(pool).await.catalog.refresh(OP).await;
    refreshed.expect("the store works")
}

/// The first byte of each block.
async fn firsts(device: &dyn BlockDevice) -> Vec<u8> {
    let read = device.read_at(0, device.size() as usize).await;
    let read = read.expect("read");
    read.iter().step_by(BLOCK as usize).copied().collect()
}

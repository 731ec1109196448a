//! What is needed by somebody who has not said so yet.

use super::*;

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

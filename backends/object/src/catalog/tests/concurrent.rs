//! Several handles on one catalogue, on a store that fails and loses answers.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What somebody wants to do.
#[derive(Clone, Debug)]
enum Wish {
    Create(u8),
    Rename(u8, u8),
    Delete(u8),
    Grow(u8),
    Swap(u8, u8),
    Look,
}

fn any_wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        3 => (0..6u8).prop_map(Wish::Create),
        2 => (0..6u8, 0..6u8).prop_map(|(a, b)| Wish::Rename(a, b)),
        2 => (0..6u8).prop_map(Wish::Delete),
        2 => (0..6u8).prop_map(Wish::Grow),
        1 => (0..6u8, 0..6u8).prop_map(|(a, b)| Wish::Swap(a, b)),
        1 => Just(Wish::Look),
    ]
}

fn called(number: u8) -> VolumeName {
    name(&format!("v{number}"))
}

/// The changes that fulfil a wish on this state; none where there is nothing to do.
fn decide(state: &State, wish: &Wish, new: u128) -> Vec<Change> {
    let get = |number: &u8| {
        state
            .by_name(&called(*number))
            .map(|entry| (**entry).clone())
    };
    match wish {
        Wish::Look => Vec::new(),
        Wish::Create(a) if get(a).is_some() => Vec::new(),
        Wish::Create(a) => vec![Change::Put(entry(new, called(*a).as_str()))],
        Wish::Rename(_, b) if get(b).is_some() => Vec::new(),
        Wish::Rename(a, b) => get(a)
            .map(|volume| {
                Change::Put(Entry {
                    name: called(*b),
                    ..volume
                })
            })
            .into_iter()
            .collect(),
        Wish::Delete(a) => get(a)
            .map(|volume| Change::Remove(volume.id))
            .into_iter()
            .collect(),
        Wish::Grow(a) => get(a)
            .map(|volume| {
                Change::Put(Entry {
                    size: volume.size + 1,
                    ..volume
                })
            })
            .into_iter()
            .collect(),
        Wish::Swap(a, b) => match (get(a), get(b)) {
            (Some(one), Some(two)) if a != b => vec![
                Change::Remove(one.id),
                Change::Put(Entry {
                    name: called(*a),
                    ..two
                }),
                Change::Put(Entry {
                    name: called(*b),
                    ..one
                }),
            ],
            _ => Vec::new(),
        },
    }
}

/// Fulfils wishes one after the other, and returns the numbers of the records it knows it made.
async fn fulfil(catalog: &Catalog, who: u128, wishes: &[Wish]) -> Vec<u64> {
    let mut made = Vec::new();
    for (step, wish) in wishes.iter().enumerate() {
        if matches!(wish, Wish::Look) {
            // It may fail; then what is known here is old, which is allowed.
            let _ = catalog.refresh(OP).await;
        }
        let new = who << 64 | step as u128;
        loop {
            let (head, changes) = catalog.read(|state| (state.head(), decide(state, wish, new)));
            if changes.is_empty() {
                break;
            }
            match catalog.try_commit(OP, head, changes).await {
                Ok(true) => {
                    made.push(head + 1);
                    break;
                }
                Ok(false) => assert!(catalog.head() > head, "it has read what was new"),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    break;
                }
            }
        }
    }
    made
}

/// The state by a simple model, from the records themselves.
async fn modelled(store: &Rough) -> (u64, BTreeMap<VolumeId, Entry>) {
    let mut volumes = BTreeMap::new();
    for number in 1.. {
        let object = keys::catalog_record(number);
        let Ok(got) = store.inner.get(&Path::from(object.as_str())).await else {
            return (number - 1, volumes);
        };
        let sealed = got.bytes().await.expect("it is in memory");
        let body = seal()
            .unwrap(Kind::CatalogRecord, &object, &sealed)
            .expect("it is whole");
        let record = record::decode(number, &body).expect("it is whole");
        for change in record.changes {
            match change {
                Change::Put(entry) => {
                    volumes.insert(entry.id, entry);
                }
                Change::Remove(id) => {
                    assert!(volumes.remove(&id).is_some(), "decided on an old state");
                }
                Change::Gc { .. } => {}
            }
        }
        let names: std::collections::BTreeSet<_> = volumes.values().map(|v| &v.name).collect();
        assert_eq!(names.len(), volumes.len(), "a name twice");
    }
    unreachable!("the numbers do not end")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn all_handles_end_with_the_same_state_and_no_update_is_lost(
        seed in any::<u64>(),
        failing in prop_oneof![Just(0u64), Just(1), Just(20)],
        wishes in vec(vec(any_wish(), 0..40), 3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let store = Rough::new(seed);
            let handles = join_all((0..3).map(|n| open(&store, seed ^ n))).await;
            store.slow.store(true, Relaxed);
            store.failing.store(failing, Relaxed);
            let work = handles.iter().zip(&wishes).zip(1..);
            let made = join_all(work.map(|((handle, wishes), who)| fulfil(handle, who, wishes)));
            let mut made = made.await.concat();
            store.failing.store(0, Relaxed);
            made.sort_unstable();
            assert!(made.windows(2).all(|two| two[0] < two[1]), "two made the same record");
            let (head, volumes) = modelled(&store).await;
            assert!(made.last().is_none_or(|last| *last <= head), "a record got lost");
            let mut expected: Vec<_> = volumes.into_values().collect();
            expected.sort_by(|a, b| a.name.cmp(&b.name));
            let late = open(&store, seed ^ 9).await;
            for handle in handles.iter().chain([&late]) {
                assert_eq!(handle.refresh(OP).await.expect("the store works"), head);
                assert_eq!(all(handle), expected);
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_answer_is_lost_counts_once() {
    let store = Rough::new(1);
    let (one, two) = (open(&store, 1).await, open(&store, 2).await);
    store.lost.store(1, Relaxed);
    commit(&one, vec![Change::Put(entry(1, "a"))]).await;
    assert_eq!(one.head(), 1);
    // Another one's record at the same number is not taken for one's own.
    store.lost.store(1, Relaxed);
    let same = vec![Change::Put(entry(1, "a"))];
    assert!(!two.try_commit(OP, 0, same).await.expect("the store works"));
    assert_eq!((two.head(), all(&two)), (1, vec![entry(1, "a")]));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_leaves_all_as_it_was() {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    store.refused.store(usize::MAX, Relaxed);
    let new = vec![Change::Put(entry(1, "a"))];
    let error = catalog
        .try_commit(OP, 0, new.clone())
        .await
        .expect_err("the store is down");
    assert!(error.is_retryable(), "{error}");
    assert_eq!((catalog.head(), all(&catalog).len()), (0, 0));
    store.refused.store(0, Relaxed);
    commit(&catalog, new).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_keeps_nobody_waiting_for_the_others() {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    store.failing.store(100, Relaxed);
    let start = tokio::time::Instant::now();
    for done in join_all((0..100).map(|_| catalog.refresh(OP))).await {
        assert_eq!(done.expect_err("down").kind(), ErrorKind::Unavailable);
    }
    assert!(
        start.elapsed() < Duration::from_millis(250),
        "{:?}",
        start.elapsed()
    );
    store.failing.store(0, Relaxed);
    assert_eq!(catalog.refresh(OP).await.expect("it is back"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_commit_leaves_a_handle_that_works() {
    for polls in 0..12 {
        let store = Rough::new(polls);
        let (one, two) = (open(&store, 1).await, open(&store, 2).await);
        for number in 1..=70u128 {
            store.slow.store(true, Relaxed);
            let mut dropped = Box::pin(one.try_commit(
                OP,
                one.head(),
                vec![Change::Put(entry(number << 32, "dropped"))],
            ));
            for _ in 0..(polls as u128 + number) % 9 {
                if futures::poll!(dropped.as_mut()).is_ready() {
                    break;
                }
            }
            drop(dropped);
            store.slow.store(false, Relaxed);
            let head = one.refresh(OP).await.expect("the store works");
            let dropped = one.read(|state| state.by_name(&name("dropped")).map(|e| e.id));
            let new = Change::Put(entry(number, &format!("v{number}")));
            let mut changes: Vec<_> = dropped.map(Change::Remove).into_iter().collect();
            changes.push(new);
            assert!(one.try_commit(OP, head, changes).await.expect("it fits"));
        }
        two.refresh(OP).await.expect("the store works");
        assert_eq!((all(&one), all(&one).len()), (all(&two), 70));
    }
}

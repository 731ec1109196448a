//! What a catalogue does alone, on a store that works.

mod concurrent;
mod damage;
pub(crate) mod rough;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::path::Path;
use volmux_core::OriginKind;

use super::*;
use crate::ids::Ids;
use crate::keys::ObjectKey;
use crate::store::Patience;
use crate::tip::TailItem;
use rough::Rough;

const OP: &str = "test";

fn seal() -> Seal {
    Seal::plain(Uuid::from_u128(99))
}

/// A handle on the catalogue in `store`; handles at one time need different seeds.
async fn try_open(store: &Arc<Rough>, seed: u64) -> Result<Catalog> {
    let patience = Patience {
        request: Duration::from_secs(1),
        read: Duration::from_millis(100),
        write: Duration::from_millis(100),
    };
    let ids = Arc::new(Ids::seeded(seed));
    let store = Store::new(store.clone(), Path::default(), "rough:", patience, ids);
    Catalog::open(OP, store, seal()).await
}

async fn open(store: &Arc<Rough>, seed: u64) -> Catalog {
    try_open(store, seed).await.expect("it opens")
}

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}

fn id(number: u128) -> VolumeId {
    Uuid::from_u128(number).to_string().parse().expect("an id")
}

fn tip(seq: u64) -> Arc<Tip> {
    let log = LogId(Uuid::from_u128(u128::from(seq)));
    let object = |seq| TailItem::Object {
        key: ObjectKey { log, epoch: 1, seq },
        bytes: 8 << 20,
    };
    Arc::new(Tip {
        tail: (0..seq % 20).map(object).collect(),
        ..Tip::EMPTY
    })
}

fn entry(number: u128, called: &str) -> Entry {
    Entry {
        id: id(number),
        name: name(called),
        size: 1 << 30,
        provisioning: Provisioning::Thin,
        origin: None,
        created: SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 123_456_789),
        log: Some(LogId(Uuid::from_u128(number))),
        base: Arc::new(Tip::EMPTY),
    }
}

fn clone_of(parent: &Entry, number: u128, called: &str, base: &Tip) -> Entry {
    Entry {
        origin: Some(Origin {
            kind: OriginKind::Clone,
            parent_id: parent.id,
            parent_name: parent.name.clone(),
        }),
        base: Arc::new(base.clone()),
        ..entry(number, called)
    }
}

async fn commit(catalog: &Catalog, changes: Vec<Change>) {
    let head = catalog.head();
    let done = catalog.try_commit(OP, head, changes).await;
    assert!(done.expect("the store works"), "nobody else commits");
}

fn all(catalog: &Catalog) -> Vec<Entry> {
    catalog.read(|state| state.iter().map(|entry| (**entry).clone()).collect())
}

async fn remove(store: &Rough, name: &str) {
    store
        .inner
        .delete(&Path::from(name))
        .await
        .expect("it is there");
}

#[tokio::test(start_paused = true)]
async fn what_was_put_is_there_and_is_found_each_way() {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    assert_eq!((catalog.head(), all(&catalog).len()), (0, 0));
    let base = entry(1, "base");
    commit(&catalog, vec![Change::Put(base.clone())]).await;
    let twin = clone_of(&base, 2, "a twin".replace(' ', "-").as_str(), &tip(5));
    commit(&catalog, vec![Change::Put(twin.clone())]).await;
    let other = open(&store, 2).await;
    for catalog in [&catalog, &other] {
        assert_eq!(all(catalog), [twin.clone(), base.clone()]);
        catalog.read(|state| {
            assert_eq!(state.by_id(id(2)).map(|e| &e.name), Some(&twin.name));
            assert_eq!(state.by_name(&base.name).map(|e| e.id), Some(id(1)));
            let log = LogId(Uuid::from_u128(2));
            assert_eq!(state.by_log(log).map(|e| e.id), Some(id(2)));
            assert_eq!(state.by_log(LogId(Uuid::from_u128(3))), None);
            assert_eq!(state.provisioned(), 2 << 30);
            assert_eq!((state.len(), state.head()), (2, 2));
            let after: Vec<_> = state.after(&twin.name).map(|e| e.id).collect();
            assert_eq!(after, [id(1)]);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_does_all_or_nothing() {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    let (a, b) = (entry(1, "a"), entry(2, "b"));
    commit(
        &catalog,
        vec![Change::Put(a.clone()), Change::Put(b.clone())],
    )
    .await;
    let before = store.requests();
    let renamed = Entry {
        name: name("c"),
        ..a.clone()
    };
    let mut same_log = entry(3, "d");
    same_log.log = a.log;
    let too_large = Entry {
        size: u64::MAX,
        ..a.clone()
    };
    for wrong in [
        Change::Put(Entry {
            name: name("b"),
            ..a.clone()
        }),
        Change::Put(same_log),
        Change::Put(too_large),
        Change::Remove(id(7)),
    ] {
        let steps = vec![Change::Put(renamed.clone()), Change::Remove(b.id), wrong];
        let steps = match &steps[2] {
            Change::Put(e) if e.name == name("b") => vec![steps[0].clone(), steps[2].clone()],
            _ => steps,
        };
        let error = catalog.try_commit(OP, 1, steps).await.expect_err("unfit");
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        assert_eq!(all(&catalog), [a.clone(), b.clone()]);
        assert_eq!(catalog.read(State::provisioned), 2 << 30);
    }
    assert_eq!(store.requests(), before, "nothing was asked of the store");
    // Names may change hands within a record.
    let swapped = Entry {
        name: name("a"),
        ..b.clone()
    };
    commit(
        &catalog,
        vec![
            Change::Put(renamed),
            Change::Put(swapped),
            Change::Remove(a.id),
        ],
    )
    .await;
    assert_eq!(
        all(&open(&store, 2).await),
        [Entry {
            name: name("a"),
            ..b
        }]
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_is_behind_decides_again() {
    let store = Rough::new(1);
    let (one, two) = (open(&store, 1).await, open(&store, 2).await);
    commit(&one, vec![Change::Put(entry(1, "a"))]).await;
    let late = vec![Change::Put(entry(2, "a"))];
    let done = two.try_commit(OP, 0, late.clone()).await;
    assert!(!done.expect("the store works"));
    assert_eq!((two.head(), all(&two)), (1, vec![entry(1, "a")]));
    let error = two
        .try_commit(OP, 1, late)
        .await
        .expect_err("the name is taken");
    assert_eq!(error.kind(), ErrorKind::Internal);
    let gc = vec![Change::Gc {
        marker: Uuid::from_u128(1),
    }];
    assert!(two.try_commit(OP, 1, gc).await.expect("it fits"));
    let done = one.try_commit(OP, 1, vec![Change::Remove(id(1))]).await;
    assert!(
        !done.expect("the store works"),
        "a collection moves the head"
    );
    assert_eq!(one.head(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_request_tells_that_nothing_is_new_and_many_callers_share_it() {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    commit(&catalog, vec![Change::Put(entry(1, "a"))]).await;
    let before = store.requests();
    assert_eq!(catalog.refresh(OP).await.expect("the store works"), 1);
    assert_eq!(store.requests() - before, 1);
    // With any number of callers at once it is two: the first one's, and one for all the others.
    store.slow.store(true, Relaxed);
    let before = store.requests();
    for done in join_all((0..100).map(|_| catalog.refresh(OP))).await {
        assert_eq!(done.expect("the store works"), 1);
    }
    assert_eq!(store.requests() - before, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_sees_what_was_created_before_it_was_called() {
    let store = Rough::new(3);
    let (one, two) = (open(&store, 1).await, open(&store, 2).await);
    store.slow.store(true, Relaxed);
    for number in 1..=40 {
        let called = format!("v{number}");
        // Its begin is before the commit, its end may be after.
        let early = two.refresh(OP);
        let commit = commit(&one, vec![Change::Put(entry(number, &called))]);
        let late = async {
            commit.await;
            two.refresh(OP).await.expect("the store works")
        };
        let (_, seen) = futures::join!(early, late);
        assert_eq!(u128::from(seen), number);
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_and_the_records_after_it_give_the_same_state() {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    for number in 1..=200u128 {
        let called = format!("v{number}");
        let mut changes = vec![Change::Put(Entry {
            base: tip(number as u64 % 7),
            ..clone_of(&entry(number % 5, "old"), number, &called, &Tip::EMPTY)
        })];
        if number % 3 == 0 {
            changes.push(Change::Remove(id(number - 1)));
        }
        commit(&catalog, changes).await;
    }
    let mut there = catalog.checkpoints(OP).await.expect("the store works");
    assert_eq!(there, [128, 192], "the newest two are kept");
    let opened = open(&store, 2).await;
    assert_eq!(all(&opened), all(&catalog));
    assert_eq!(opened.head(), 200);
    // Both go on to the same next checkpoint.
    for number in 201..=260 {
        let (writer, reader) = match number % 2 {
            0 => (&catalog, &opened),
            _ => (&opened, &catalog),
        };
        commit(
            writer,
            vec![Change::Gc {
                marker: Uuid::from_u128(number),
            }],
        )
        .await;
        reader.refresh(OP).await.expect("the store works");
    }
    there.push(256);
    assert_eq!(
        catalog.checkpoints(OP).await.expect("the store works"),
        there[1..]
    );
    let bytes = |catalog: &Catalog| {
        let volumes: Vec<_> = catalog.read(|state| state.in_id_order().cloned().collect());
        record::encode_checkpoint(260, &volumes).expect("it can be encoded")
    };
    assert_eq!(bytes(&catalog), bytes(&opened));
    for checkpoint in [192, 256] {
        remove(&store, &keys::catalog_checkpoint(checkpoint)).await;
        assert_eq!(
            all(&open(&store, 3).await),
            all(&catalog),
            "without {checkpoint}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_far_behind_goes_on_from_a_checkpoint() {
    let store = Rough::new(1);
    let (one, two) = (open(&store, 1).await, open(&store, 2).await);
    for number in 1..=1000 {
        commit(&one, vec![Change::Put(entry(1, &format!("v{number}")))]).await;
    }
    let before = store.requests();
    assert_eq!(two.refresh(OP).await.expect("the store works"), 1000);
    assert_eq!(all(&two), all(&one));
    assert!(
        store.requests() - before < 200,
        "{}",
        store.requests() - before
    );
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_clones_are_small_and_quick_to_open() {
    const CLONES: u128 = 10_000;
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    let base = entry(1 << 100, "base");
    commit(&catalog, vec![Change::Put(base.clone())]).await;
    let held = tip(19);
    let (requests, bytes) = (store.requests(), store.put_bytes.load(Relaxed));
    for number in 0..CLONES {
        let clone = clone_of(&base, number, &format!("clone-{number:05}"), &held);
        commit(&catalog, vec![Change::Put(clone)]).await;
    }
    let requests = store.requests() - requests;
    assert!(requests < CLONES as usize * 21 / 20, "{requests} requests");
    let each = (store.put_bytes.load(Relaxed) - bytes) / CLONES as usize;
    assert!(
        each < 12_000,
        "{each} bytes for each clone, checkpoints included"
    );

    let volumes: Vec<_> = catalog.read(|state| state.in_id_order().cloned().collect());
    assert!(
        volumes[1..]
            .iter()
            .all(|v| Arc::ptr_eq(&v.base, &volumes[1].base) || v.id == base.id)
    );
    let body = record::encode_checkpoint(catalog.head(), &volumes).expect("it fits");
    assert!(body.len() / volumes.len() < 160, "{} bytes", body.len());

    let before = store.requests();
    let opened = open(&store, 2).await;
    let requests = store.requests() - before;
    assert!(requests <= 100, "{requests} requests to open");
    assert_eq!(all(&opened), all(&catalog));
    let tips: std::collections::BTreeSet<_> =
        opened.read(|state| state.iter().map(|e| Arc::as_ptr(&e.base)).collect());
    assert_eq!(tips.len(), 2, "each distinct tip is in memory once");
}

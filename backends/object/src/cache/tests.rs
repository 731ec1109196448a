use std::sync::atomic::AtomicU32;

use futures::{FutureExt, future};
use uuid::Uuid;

use super::*;
use crate::keys::{LogId, ObjectKey};

const MIB: u64 = 1 << 20;

fn cache(budget: u64) -> Cache<String> {
    Cache::new(budget).unwrap()
}

fn block(seed: u32) -> Bytes {
    Bytes::from(seed.to_le_bytes().repeat(SLOT / 4))
}

pub(super) fn at(offset: u32) -> PagePtr {
    let log = LogId(Uuid::nil());
    let object = ObjectKey {
        log,
        epoch: 1,
        seq: 1,
    };
    PagePtr {
        object,
        offset,
        length: 9,
    }
}

#[test]
fn blocks_come_back_as_they_were_put() {
    let cache = cache(8 * MIB);
    let run: Vec<u8> = (0..100).flat_map(block).collect();
    cache.put_blocks(7, 1000, &run);
    for n in 0..100 {
        assert_eq!(cache.block(7, 1000 + n).unwrap()[..], block(n)[..]);
    }
    assert_eq!(cache.block(7, 1100), None);
    assert_eq!(cache.block(8, 1000), None);
    assert_eq!(cache.stats().hits, 100);
    assert_eq!(cache.stats().bytes, 100 * (SLOT as u64 + ENTRY));
}

#[test]
fn the_budget_holds_whatever_is_put() {
    let cache = cache(8 * MIB);
    for n in 0..20_000 {
        cache.put_block(n / 100, n % 100, &block(n));
        cache.put_page(at(n), Arc::new(n.to_string()), n % 100_000);
        assert!(cache.stats().bytes <= 8 * MIB, "{n}");
    }
    assert!(cache.stats().bytes > 7 * MIB);
    for n in 0..20_000 {
        if let Some(found) = cache.block(n / 100, n % 100) {
            assert_eq!(found[..], block(n)[..]);
        }
    }
}

#[test]
fn a_cache_of_nothing_keeps_nothing_and_works() {
    let cache = cache(0);
    cache.put_blocks(1, 0, &block(1));
    cache.put_page(at(0), Arc::new(String::new()), 10);
    assert_eq!((cache.block(1, 0), cache.page(&at(0))), (None, None));
    assert!(matches!(cache.fetch(1, 0), Fetch::Lead(_)));
}

#[test]
fn a_page_larger_than_its_part_is_not_kept() {
    let cache = cache(MIB);
    cache.put_page(at(0), Arc::new(String::new()), u32::MAX);
    assert_eq!(cache.page(&at(0)), None);
    assert_eq!(cache.stats().bytes, 0);
}

#[test]
fn one_long_read_does_not_evict_what_is_used_again_and_again() {
    let cache = cache(64 * MIB);
    let hot = 1000;
    for n in 0..hot {
        cache.put_block(0, n, &block(n));
    }
    for _ in 0..3 {
        assert!((0..hot).all(|n| cache.block(0, n).is_some()));
    }
    for n in 0..100_000 {
        cache.put_block(1, n, &block(n));
    }
    let left = (0..hot).filter(|n| cache.block(0, *n).is_some()).count();
    assert!(left > 950, "{left} of {hot} left");
}

#[test]
fn what_readers_hold_stays_as_it_is() {
    let cache = cache(MIB);
    let held: Vec<Bytes> = (0..500).map(|n| cache.put_block(0, n, &block(n))).collect();
    for n in 0..5000 {
        cache.put_block(1, n, &block(!n));
    }
    assert!(
        held.iter()
            .zip(0..)
            .all(|(bytes, n)| bytes[..] == block(n)[..])
    );
    drop(held);
    cache.put_block(2, 0, &block(5));
    assert!(cache.block(2, 0).is_some());
}

#[test]
fn readers_that_hold_everything_cost_only_the_cache() {
    let cache = cache(MIB);
    let held: Vec<Bytes> = (0..3000)
        .map(|n| cache.put_block(0, n, &block(n)))
        .collect();
    assert!(
        held.iter()
            .zip(0..)
            .all(|(bytes, n)| bytes[..] == block(n)[..])
    );
    assert_eq!(cache.block(0, 2999), None, "no slot was left");
    drop(held);
    assert_eq!(
        cache.put_block(0, 2999, &block(1)),
        cache.block(0, 2999).unwrap()
    );
}

#[test]
fn forgotten_is_what_was_named() {
    let cache = cache(8 * MIB);
    for object in 0..10 {
        cache.put_blocks(object, 0, &block(object));
        cache.put_page(at(object), Arc::new(object.to_string()), 10);
    }
    cache.forget_objects(|object| object % 2 == 0);
    cache.forget_pages(|at| at.offset < 5);
    for object in 0..10 {
        assert_eq!(cache.block(object, 0).is_some(), object % 2 == 1);
        assert_eq!(cache.page(&at(object)).is_some(), object >= 5);
    }
}

#[tokio::test]
async fn a_missing_block_is_loaded_by_one() {
    let cache = cache(8 * MIB);
    let Fetch::Lead(lead) = cache.fetch(1, 2) else {
        panic!("nobody else loads it");
    };
    let follows: Vec<_> = (0..3)
        .map(|_| match cache.fetch(1, 2) {
            Fetch::Follow(follow) => follow,
            other => panic!("{other:?}"),
        })
        .collect();
    let (object, index) = lead.key();
    lead.land(cache.put_block(object, index, &block(3)));
    for follow in follows {
        assert_eq!(follow.wait().await.unwrap().unwrap()[..], block(3)[..]);
    }
    assert!(matches!(cache.fetch(1, 2), Fetch::Found(found) if found[..] == block(3)[..]));
    let CacheStats { hits, misses, .. } = cache.stats();
    assert_eq!((hits, misses), (4, 1));
}

#[tokio::test]
async fn a_page_is_loaded_once_for_all() {
    let cache = cache(8 * MIB);
    let loads = AtomicU32::new(0);
    let load = || {
        cache.page_or_load(at(4), async {
            loads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok((Arc::new("page".to_owned()), 4))
        })
    };
    for page in future::join_all((0..10).map(|_| load())).await {
        assert_eq!(*page.unwrap(), "page");
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    load().await.unwrap();
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_page_that_fails_fails_for_all_that_wait_and_is_tried_again_by_the_next() {
    let cache = cache(8 * MIB);
    let loads = AtomicU32::new(0);
    let load = || {
        cache.page_or_load(at(4), async {
            loads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            match loads.load(Ordering::Relaxed) {
                1 => Err(Error::new(ErrorKind::Corrupt, "read_at")),
                _ => Ok((Arc::new("page".to_owned()), 4)),
            }
        })
    };
    for page in future::join_all((0..10).map(|_| load())).await {
        assert_eq!(page.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    assert_eq!(*load().await.unwrap(), "page");
}

#[tokio::test]
async fn a_page_whose_reader_goes_away_is_loaded_by_the_next_in_line() {
    let cache = cache(8 * MIB);
    let mut first = Box::pin(cache.page_or_load(at(4), future::pending()));
    assert!((&mut first).now_or_never().is_none());
    let mut second =
        Box::pin(cache.page_or_load(at(4), async { Ok((Arc::new("second".to_owned()), 6)) }));
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    assert_eq!(*second.await.unwrap(), "second");
}

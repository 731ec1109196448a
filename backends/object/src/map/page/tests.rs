use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::fuzz::map_page;
use crate::tip::tests::any_key;

/// Runs of a leaf: gaps, lengths and places.
fn any_leaf() -> impl Strategy<Value = (u64, Vec<(u64, u64, ObjectKey, u32)>)> {
    let run = (0..30u64, 1..60u64, any_key(), 0..5000u32);
    (0..1u64 << 40, vec(run, 0..80))
}

fn made(table: &ObjectTable, number: u64, parts: &[(u64, u64, ObjectKey, u32)]) -> Page {
    let mut runs = Vec::new();
    let mut at = number << LEAF_BITS;
    for (gap, blocks, key, index) in parts {
        let info = ObjectInfo {
            key: *key,
            start: key.seq as u16,
            framed: key.epoch == 1,
        };
        let object = table.intern(&info).unwrap();
        let index = *index;
        let run = Run {
            start: at + gap,
            blocks: *blocks,
            place: Some(Place { object, index }),
        };
        if run.end() <= (number + 1) << LEAF_BITS {
            at = run.end();
            runs.push(run);
        }
    }
    Page::leaf(number, &runs)
}

fn any_inner() -> impl Strategy<Value = Page> {
    let child = (any_key(), any::<u32>(), any::<u32>(), 1..2048u64);
    (1..6u8, 0..16u64, btree_map(0..512u16, child, 0..40)).prop_map(|(level, number, children)| {
        let child = |(slot, (object, offset, length, mapped))| Child {
            slot,
            page: PagePtr {
                object,
                offset,
                length,
            },
            mapped,
        };
        let children: Vec<Child> = children.into_iter().map(child).collect();
        Page::inner(level, if level == TOP { 0 } else { number }, &children)
    })
}

/// Mostly a page that is in order, with some bytes changed.
fn damaged(mut body: Vec<u8>, changes: &[(usize, u8)], length: usize) -> Vec<u8> {
    for (at, value) in changes {
        let at = at % body.len();
        body[at] = *value;
    }
    let length = length % (2 * body.len());
    body.truncate(length.max(1));
    body
}

proptest! {
    #[test]
    fn a_leaf_reads_back_in_any_table((number, parts) in any_leaf(), from in 0..2048u64, n in 0..2048u64) {
        let table = ObjectTable::new();
        let page = made(&table, number, &parts);
        let body = page.encode(&table).unwrap();
        prop_assert_eq!(Page::decode(&body, &table), Ok(page.clone()));
        let other = ObjectTable::new();
        other.reserve(&ObjectKey { log: LogId(Uuid::from_u128(9)), epoch: 0, seq: 0 }).unwrap();
        let read = Page::decode(&body, &other).unwrap();
        let named = |table: &ObjectTable, run: Run| {
            let place = run.place.unwrap();
            (run.start, run.blocks, table.info(place.object).unwrap(), place.index)
        };
        let (from, to) = (page.base() + from, page.base() + from + n);
        let a: Vec<_> = page.runs(from, to).map(|run| named(&table, run)).collect();
        let b: Vec<_> = read.runs(from, to).map(|run| named(&other, run)).collect();
        prop_assert_eq!(&a, &b);
        prop_assert!(a.iter().all(|run| run.0 >= from && run.0 + run.1 <= to));
        let all: Vec<Run> = page.runs(0, u64::MAX).collect();
        let wanted: Vec<Run> = all.iter().filter(|run| run.start < to && run.end() > from)
            .filter(|_| n > 0).map(|run| run.clip(from, to)).collect();
        prop_assert_eq!(page.runs(from, to).collect::<Vec<_>>(), wanted);
        prop_assert_eq!(page.mapped(), all.iter().map(|run| run.blocks).sum::<u64>());
    }

    #[test]
    fn a_page_above_the_leaves_reads_back(page in any_inner(), slot in 0..513u64) {
        let table = ObjectTable::new();
        let body = page.encode(&table).unwrap();
        prop_assert_eq!(Page::decode(&body, &table), Ok(page.clone()));
        let from: Vec<Child> = page.children_from(slot).collect();
        let all = page.children().filter(|child| u64::from(child.slot) >= slot);
        prop_assert_eq!(from, all.collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_make_it_panic(
        (number, parts) in any_leaf(),
        inner in any_inner(),
        changes in vec((any::<usize>(), any::<u8>()), 0..4),
        length in any::<usize>(),
        noise in vec(any::<u8>(), 0..100),
    ) {
        let table = ObjectTable::new();
        let leaf = made(&table, number, &parts).encode(&table).unwrap();
        map_page(&damaged(leaf, &changes, length));
        map_page(&damaged(inner.encode(&table).unwrap(), &changes, length));
        map_page(&noise);
    }
}

#[test]
fn no_blocks_hold_no_run() {
    let key = ObjectKey {
        log: LogId(Uuid::nil()),
        epoch: 1,
        seq: 1,
    };
    let page = made(&ObjectTable::new(), 0, &[(0, 4, key, 0)]);
    assert_eq!(page.runs(1, 3).count(), 1);
    for from in 0..6 {
        assert_eq!(page.runs(from, from).count(), 0, "{from}");
    }
}

#[test]
fn an_object_that_is_not_complete_cannot_be_named() {
    let table = ObjectTable::new();
    let key = ObjectKey {
        log: LogId(Uuid::nil()),
        epoch: 1,
        seq: 1,
    };
    let object = table.reserve(&key).unwrap();
    let run = Run {
        start: 0,
        blocks: 1,
        place: Some(Place { object, index: 0 }),
    };
    let error = Page::leaf(0, &[run]).encode(&table).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[test]
fn pages_that_disagree_on_an_object_are_refused() {
    let (one, other) = (ObjectTable::new(), ObjectTable::new());
    let key = ObjectKey {
        log: LogId(Uuid::nil()),
        epoch: 1,
        seq: 1,
    };
    let info = |start| ObjectInfo {
        key,
        start,
        framed: false,
    };
    let object = one.intern(&info(1)).unwrap();
    other.intern(&info(2)).unwrap();
    let run = Run {
        start: 0,
        blocks: 1,
        place: Some(Place { object, index: 0 }),
    };
    let body = Page::leaf(0, &[run]).encode(&one).unwrap();
    assert!(Page::decode(&body, &other).is_err());
}

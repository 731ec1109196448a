use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::tree::tests::{Pages, Sink, block_on, object};
use super::super::{Overlay, Place, apply, lookup, push};
use super::*;

/// Some blocks of some objects, by object and index, that lie elsewhere by now.
#[derive(Debug, Default)]
struct Table(BTreeMap<Place, Place>);

impl Moves for Table {
    fn moved(&self, run: Run, out: &mut Vec<Run>) -> bool {
        let mut changed = false;
        for i in 0..run.blocks {
            let place = run.place.map(|place| place.plus(i));
            let now = place.and_then(|place| self.0.get(&place).copied());
            changed |= now.is_some();
            let (start, place) = (run.start + i, now.or(place));
            push(
                out,
                Run {
                    start,
                    blocks: 1,
                    place,
                },
            );
        }
        changed
    }
}

fn covering(pages: &Pages, root: &Root, end: u64) -> Vec<Run> {
    block_on(lookup(pages, root, 0, end)).expect("it is in memory")
}

const BLOCKS: u64 = 3 << 20;

fn any_changes() -> impl Strategy<Value = Vec<(u64, u64, u64, u32)>> {
    vec((0..BLOCKS - 3000, 1..3000u64, 0..4u64, 0..5000u32), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_block_is_found_where_it_is_and_pages_stay_shared(
        first in any_changes(),
        more in vec(any_changes(), 1..4),
        moved in vec((0..4u64, 0..6000u32), 0..500),
    ) {
        let pages = Pages::in_memory();
        // Trees that each go on from the one before.
        let mut roots = vec![Root::EMPTY];
        for changes in [vec![first], more].concat() {
            let mut overlay = Overlay::default();
            for (start, blocks, from, index) in changes {
                let object = object(&pages.table, from);
                overlay.insert(start, blocks, Some(Place { object, index }));
            }
            let before = roots[roots.len() - 1];
            let mut sink = Sink(&pages);
            let written = apply(&pages, &pages.table, &before, overlay.iter(), &mut sink);
            roots.push(block_on(written).expect("it is in memory"));
        }
        let mut moves = Table::default();
        for (at, (from, index)) in (0..).zip(moved) {
            let from = object(&pages.table, from);
            let to = Place { object: object(&pages.table, 9), index: at };
            moves.0.insert(Place { object: from, index }, to);
        }
        let before: Vec<_> = roots.iter().map(|root| covering(&pages, root, BLOCKS)).collect();
        let (count, _) = pages.written();
        let mut relocator = Relocator::new(&pages, &pages.table, &moves);
        let (mut new, mut loads) = (Vec::new(), pages.loads.load(Ordering::Relaxed));
        for root in &roots {
            let mut sink = Sink(&pages);
            new.push(block_on(relocator.tree(root, &mut sink)).expect("it is in memory"));
        }
        loads = pages.loads.load(Ordering::Relaxed) - loads;
        prop_assert!(loads <= count, "{loads} loads of {count} pages");
        prop_assert!(pages.written().0 <= 2 * count);
        for ((root, new), before) in roots.iter().zip(&new).zip(before) {
            let mut expected = Vec::new();
            let mut changed = false;
            for run in before {
                changed |= moves.moved(run, &mut expected);
            }
            prop_assert_eq!(covering(&pages, new, BLOCKS), expected);
            prop_assert_eq!((new.level, new.mapped), (root.level, root.mapped));
            prop_assert_eq!(new != root, changed);
        }
        // Once more, now that all is known: nothing is read or written.
        let written = pages.written();
        for (root, new) in roots.iter().zip(&new) {
            let mut sink = Sink(&pages);
            prop_assert_eq!(&block_on(relocator.tree(root, &mut sink)).expect("known"), new);
        }
        prop_assert_eq!(pages.written(), written);
    }
}

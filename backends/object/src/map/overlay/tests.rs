use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::measure::timed;
use super::*;

type Model = BTreeMap<u64, Option<Place>>;

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64, Option<Place>),
    Clear(u64, u64),
    Copy,
}

fn place(object: u32, index: u32) -> Place {
    Place {
        object: ObjectId(object),
        index,
    }
}

fn any_step(blocks: u64) -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 1..4u64, 1 => 1..blocks];
    // Few places, so that neighbours often continue one another.
    let place = proptest::option::of((0..2u32, 0..6u32).prop_map(|(o, i)| place(o, i)));
    prop_oneof![
        20 => (0..blocks, length.clone(), place).prop_map(|(s, n, p)| Step::Insert(s, n, p)),
        3 => (0..blocks, length).prop_map(|(s, n)| Step::Clear(s, n)),
        1 => Just(Step::Copy),
    ]
}

fn step(overlay: &mut Overlay, model: &mut Model, step: &Step) {
    match *step {
        Step::Insert(start, blocks, place) => {
            overlay.insert(start, blocks, place);
            for i in 0..blocks {
                model.insert(start + i, place.map(|place| place.plus(i)));
            }
        }
        Step::Clear(start, blocks) => {
            overlay.clear(start, blocks);
            model.retain(|block, _| *block < start || *block >= start + blocks);
        }
        Step::Copy => {}
    }
}

/// What the overlay must be made of: nothing that could be joined is in two.
fn runs(model: &Model) -> Vec<Run> {
    let mut runs = Vec::new();
    for (start, place) in model {
        let run = Run {
            start: *start,
            blocks: 1,
            place: *place,
        };
        super::super::push(&mut runs, run);
    }
    runs
}

fn check(overlay: &Overlay, model: &Model) {
    let entries: Vec<Run> = overlay.iter().collect();
    assert_eq!(entries, runs(model));
    assert_eq!(overlay.len(), entries.len());
    assert_eq!(overlay.is_empty(), entries.is_empty());
    assert_eq!(overlay.firsts.len(), overlay.pieces.len());
    for (first, piece) in overlay.firsts.iter().zip(&overlay.pieces) {
        assert_eq!(*first, { piece[0].start });
        assert!(piece.len() <= FULL);
    }
}

proptest! {
    #[test]
    fn it_says_what_a_plain_table_says(
        steps in vec(any_step(60), 0..120),
        from in 0..70u64,
        blocks in 0..70u64,
    ) {
        let (mut overlay, mut model) = (Overlay::default(), Model::default());
        for each in &steps {
            step(&mut overlay, &mut model, each);
            check(&overlay, &model);
        }
        for block in 0..130 {
            prop_assert_eq!(overlay.get(block), model.get(&block).copied());
        }
        let end = from + blocks;
        let mut at = from;
        for span in overlay.cover(from, end) {
            prop_assert_eq!(span.start, at);
            prop_assert!(span.blocks > 0 && span.end() <= end);
            for block in span.start..span.end() {
                let found = span.found.map(|p| p.map(|p| p.plus(block - span.start)));
                prop_assert_eq!(found, model.get(&block).copied());
            }
            at = span.end();
        }
        prop_assert_eq!(at, end);
        prop_assert_eq!(overlay.touches(from, end), model.range(from..end).next().is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn many_pieces_are_no_different(
        steps in vec(any_step(6000), 1000..2500),
        ranges in vec((0..6000u64, 1..6000u64), 0..8),
    ) {
        let (mut overlay, mut model) = (Overlay::default(), Model::default());
        let mut copies = Vec::new();
        for each in steps.iter().filter(|each| !matches!(each, Step::Insert(_, 100.., _))) {
            step(&mut overlay, &mut model, each);
            if matches!(each, Step::Copy) && copies.len() < 4 {
                copies.push((overlay.clone(), model.clone()));
            }
        }
        check(&overlay, &model);
        for (start, blocks) in ranges {
            step(&mut overlay, &mut model, &Step::Clear(start, blocks / 4));
            step(&mut overlay, &mut model, &Step::Insert(start, blocks, None));
            check(&overlay, &model);
        }
        for (overlay, model) in &copies {
            check(overlay, model);
        }
    }
}

#[test]
fn a_run_may_be_as_long_as_a_volume_or_an_object() {
    let mut overlay = Overlay::default();
    overlay.insert(5, (1 << 51) - 5, None);
    assert_eq!((overlay.len(), overlay.get(1 << 50)), (1, Some(None)));
    overlay.insert(7, 1 << 32, Some(place(1, 0)));
    let last = 6 + (1u64 << 32);
    assert_eq!(overlay.get(last), Some(Some(place(1, u32::MAX))));
    assert_eq!(
        (overlay.get(last + 1), overlay.get(6)),
        (Some(None), Some(None))
    );
    overlay.clear(0, 1 << 51);
    assert!(overlay.is_empty() && overlay.iter().next().is_none());
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
#[ignore = "a measurement: run with --release --nocapture"]
fn measure() {
    const ENTRIES: u64 = 500_000;
    let mut state = 42;
    let mut overlay = Overlay::default();
    let blocks: Vec<u64> = (0..ENTRIES).map(|_| random(&mut state) >> 36).collect();
    let timed = |what: &str, run: &mut dyn FnMut()| timed(what, ENTRIES, run);
    timed("insert, growing", &mut || {
        for (i, block) in blocks.iter().enumerate() {
            overlay.insert(*block, 1, Some(place(i as u32 / 2000, i as u32 % 2000)));
        }
    });
    println!(
        "{} entries, {} bytes each",
        overlay.len(),
        overlay.memory() / overlay.len()
    );
    timed("insert, among 500k", &mut || {
        for (i, block) in blocks.iter().enumerate() {
            overlay.insert(block ^ 1, 1, Some(place(i as u32 / 2000, i as u32 % 2000)));
            overlay.clear(block ^ 1, 1);
        }
    });
    let mut sum = 0;
    timed("lookup", &mut || {
        for block in &blocks {
            sum += overlay
                .get(block ^ 5)
                .flatten()
                .map_or(1, |place| place.index);
        }
    });
    timed("cover of 16 blocks", &mut || {
        for block in &blocks {
            sum += overlay.cover(*block, block + 16).count() as u32;
        }
    });
    timed("copy, a piece at a time", &mut || {
        sum += overlay.clone().len() as u32;
    });
    let mut overlay = Overlay::default();
    timed("insert in order", &mut || {
        for i in 0..ENTRIES {
            overlay.insert(i * 2, 1, Some(place(0, i as u32 * 3)));
        }
    });
    println!(
        "{} entries, {} bytes each",
        overlay.len(),
        overlay.memory() / overlay.len()
    );
    assert!(sum > 0);
}

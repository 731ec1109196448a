//! What the simulation is worth: a store that breaks its word must be found out.

use std::sync::{Mutex, PoisonError};

use volmux_sim::seed::{note_panics, run};
use volmux_sim::store::Flaw;
use volmux_sim::world::ObjectWorld;

/// A seed decides the identities of writers, and no two of one process may have the same: who
/// lives is known by that. So one seed is never run twice at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The first of `seeds` seeds that fails with the flaw, and what it says.
fn first_failure(flaw: Flaw, seeds: u64) -> Option<(u64, String)> {
    note_panics();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..seeds).find_map(|seed| {
        let report = run(
            seed,
            Box::new(ObjectWorld::by_seed(seed)),
            Some(flaw),
            false,
        );
        report.failure.map(|failure| (seed, failure.to_string()))
    })
}

fn is_found_out(flaw: Flaw, seeds: u64) {
    let (seed, failure) = first_failure(flaw, seeds).expect("the flaw is found out");
    println!("{flaw:?}: seed {seed}: {failure}");
}

#[test]
fn a_store_that_loses_what_was_put_is_found_out() {
    is_found_out(Flaw::LosesPuts, 20);
}

#[test]
fn a_store_that_lets_both_of_two_creations_win_is_found_out() {
    is_found_out(Flaw::LetsBothCreate, 20);
}

#[test]
fn a_store_that_gives_another_object_is_found_out() {
    is_found_out(Flaw::SwapsObjects, 20);
}

#[test]
fn a_store_that_flips_bits_is_found_out() {
    is_found_out(Flaw::FlipsBits, 20);
}

#[test]
fn a_store_that_deletes_more_than_it_was_told_is_found_out() {
    is_found_out(Flaw::DeletesMore, 100);
}

#[test]
fn a_store_whose_lists_leave_out_what_is_new_is_found_out() {
    is_found_out(Flaw::ListsLate, 200);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for seed in 0..10 {
        let run = || run(seed, Box::new(ObjectWorld::by_seed(seed)), None, true);
        let (a, b) = (run(), run());
        assert_eq!(a.trace, b.trace, "seed {seed}");
        assert_eq!((a.hash, a.events), (b.hash, b.events), "seed {seed}");
    }
}

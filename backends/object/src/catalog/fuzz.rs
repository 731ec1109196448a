//! What a fuzzer may throw at the decoders of the catalogue.

use std::sync::Arc;

use super::record;
use super::state::State;
use super::{Change, Entry};

/// The number that every record and checkpoint here has.
const NUMBER: u64 = 7;

/// A record, which then changes an empty catalogue, and one that holds what it says.
pub(crate) fn record(body: &[u8]) -> bool {
    let Ok(found) = record::decode(NUMBER, body) else {
        return false;
    };
    let again = record::encode(NUMBER, found.token, &found.changes).expect("it has a JSON form");
    let again = record::decode(NUMBER, &again).expect("what is written is read");
    assert_eq!(again, found);
    assert!(record::decode(NUMBER + 1, body).is_err());

    let mut state = State::default();
    for number in [1, 2] {
        let before = listed(&state);
        let may = state.check(found.changes.clone());
        assert_eq!(listed(&state), before, "to ask changes nothing");
        let done = state.apply(number, found.changes.clone());
        assert_eq!(done, may);
        if done.is_err() {
            assert_eq!((listed(&state), state.head()), (before, number - 1));
            return true;
        }
        says(&state, &found.changes);
    }
    true
}

/// A checkpoint, which is then written anew from the state that it gives.
pub(crate) fn checkpoint(body: &[u8]) -> bool {
    let Ok(entries) = record::decode_checkpoint(NUMBER, body) else {
        return false;
    };
    let count = entries.len();
    let Ok(state) = State::from_checkpoint(NUMBER, entries) else {
        return true;
    };
    assert_eq!((listed(&state).len(), state.head()), (count, NUMBER));
    let written = written(&state);
    let again = record::decode_checkpoint(NUMBER, &written).expect("what is written is read");
    let again = State::from_checkpoint(NUMBER, again).expect("and consistent");
    assert_eq!(listed(&again), listed(&state));
    assert_eq!(self::written(&again), written);
    true
}

fn written(state: &State) -> Vec<u8> {
    let entries: Vec<Arc<Entry>> = state.in_id_order().cloned().collect();
    record::encode_checkpoint(NUMBER, &entries).expect("it has a JSON form")
}

/// Every volume, by name; checks what the state says of them in other ways.
fn listed(state: &State) -> Vec<Arc<Entry>> {
    let all: Vec<Arc<Entry>> = state.iter().cloned().collect();
    assert!(all.is_sorted_by(|a, b| a.name < b.name), "a name is unique");
    assert_eq!(state.in_id_order().count(), all.len());
    let sizes = all.iter().map(|entry| u128::from(entry.size));
    assert_eq!(state.provisioned(), sizes.sum::<u128>());
    for entry in &all {
        assert_eq!(state.by_id(entry.id), Some(entry));
        assert_eq!(state.by_name(&entry.name), Some(entry));
        if let Some(log) = entry.log {
            assert_eq!(state.by_log(log), Some(entry), "a log has one volume");
        }
    }
    all
}

/// The last that the changes say of a volume is what the state says of it.
fn says(state: &State, changes: &[Change]) {
    listed(state);
    for (at, change) in changes.iter().enumerate() {
        let id = match change {
            Change::Put(entry) => entry.id,
            Change::Remove(id) => *id,
            Change::Gc { .. } => continue,
        };
        let later = changes[at + 1..].iter().any(|change| match change {
            Change::Put(entry) => entry.id == id,
            Change::Remove(other) => *other == id,
            Change::Gc { .. } => false,
        });
        let expected = match change {
            Change::Put(entry) => Some(entry),
            Change::Remove(_) | Change::Gc { .. } => None,
        };
        if !later {
            assert_eq!(state.by_id(id).map(|entry| &**entry), expected);
        }
    }
}

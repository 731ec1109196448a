//! Finds out whether a store keeps the promise that everything rests on: of two puts that create
//! the same object, one fails.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{join, join_all};
use volmux_core::{Error, ErrorKind, Result};

use crate::fault::{Fault, is_taken};
use crate::store::{Patience, Store};

/// Where the objects are that it makes and removes.
pub(crate) const PROBES: &str = "probe/";
/// Races in all. A store that looks first and writes then lets both win in most of them only: with
/// these lengths s3s-fs 0.14 in 19 of 20, also on a machine that is overloaded.
pub(crate) const RACES: usize = 12;
/// Races at once. Those after them meet another moment, and connections that are open already.
const AT_ONCE: usize = 4;
/// Lengths of the two objects of a race. While the long one is on its way, the short one overtakes
/// it at a store that looked for the name when it began.
const LENGTHS: [usize; 2] = [256 << 10, 4096];
/// How long it tries to remove what it put.
const CLEANING: Duration = Duration::from_secs(15);
/// How often it is done again when requests fail.
const TRIES: u32 = 5;

/// Races so many pairs of create-only puts.
///
/// # Errors
/// `Unsupported` if both of a pair win, if the wrong one's object is there, or if what exists can
/// be created again; that of the store if requests fail.
pub(crate) async fn probe(store: &Store, op: &'static str, races: usize) -> Result<()> {
    let (mut left, mut tries) = (races, 0);
    while left > 0 {
        let races = left.min(AT_ONCE);
        if round(store, op, races).await? {
            left -= races;
            continue;
        }
        tries += 1;
        if tries == TRIES {
            return Err(store
                .error(ErrorKind::Unavailable, op, PROBES)
                .reason("the store does not answer well enough to find out whether it is usable"));
        }
    }
    Ok(())
}

/// Whether so many races at once were run to their end.
async fn round(store: &Store, op: &'static str, races: usize) -> Result<bool> {
    let names: Vec<String> = (0..races)
        .map(|_| format!("{PROBES}{}", store.ids().uuid().simple()))
        .collect();
    let races = names.iter().map(|name| race(store, op, name));
    let outcome: Result<Vec<bool>> = join_all(races).await.into_iter().collect();
    // What cannot be removed is not used either, and whoever may not put may not delete.
    let patience = store.patience();
    let brief = store.with_patience(Patience {
        write: patience.write.min(CLEANING),
        ..patience
    });
    let cleared = brief.delete(op, names).await;
    let clear = outcome?.into_iter().all(|clear| clear);
    cleared?;
    Ok(clear)
}

/// Whether one race was run to its end; an error if the store is not usable.
async fn race(store: &Store, op: &'static str, name: &str) -> Result<bool> {
    let bodies = LENGTHS.map(|length| {
        let mut body = store.ids().uuid().as_bytes().to_vec();
        body.resize(length, 0);
        Bytes::from(body)
    });
    let (first, second) = join(
        create(store, op, name, bodies[0].clone()),
        create(store, op, name, bodies[1].clone()),
    )
    .await;
    let won = [first?, second?];
    let winner = match won {
        [Some(true), Some(true)] => {
            let reason = "of two puts that create an object, both succeed";
            return Err(unusable(store, op, reason));
        }
        [Some(true), Some(false)] => 0,
        [Some(false), Some(true)] => 1,
        // A request failed, or each of them was told of the other.
        _ => return Ok(false),
    };
    if store.get(op, name).await?.as_ref() != Some(&bodies[winner]) {
        let reason = "of two puts that create an object, the one that fails is stored";
        return Err(unusable(store, op, reason));
    }
    match create(store, op, name, bodies[1 - winner].clone()).await? {
        Some(true) => {
            let reason = "an object that exists is created again";
            Err(unusable(store, op, reason))
        }
        won => Ok(won == Some(false)),
    }
}

/// Whether a create-only put won; `None` if it failed for another reason, which may pass.
async fn create(store: &Store, op: &'static str, name: &str, body: Bytes) -> Result<Option<bool>> {
    let put = store.create(name, body);
    match tokio::time::timeout(store.patience().request, put).await {
        Ok(Ok(())) => Ok(Some(true)),
        Ok(Err(error)) if is_taken(&error) => Ok(Some(false)),
        Ok(Err(error)) => match Fault::from(error) {
            fault if fault.transient => Ok(None),
            fault => Err(store.failed_once(op, name, fault)),
        },
        Err(_) => Ok(None),
    }
}

fn unusable(store: &Store, op: &'static str, reason: &str) -> Error {
    store
        .error(ErrorKind::Unsupported, op, PROBES)
        .reason(format!("this store is not safe to write to: {reason}"))
        .help("use a store that honours If-None-Match: * at all times; reading is possible")
}

#[cfg(test)]
mod tests;

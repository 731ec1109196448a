//! Finds out whether a store keeps the promise that everything rests on: of two puts that create
//! the same object, one fails.

use bytes::Bytes;
use futures::future::{join, join_all};
use volmux_core::{Error, ErrorKind, Result};

use crate::fault::{Fault, is_taken};
use crate::store::Store;

/// Where the objects are that it makes and removes.
pub(crate) const PROBES: &str = "probe/";
/// Races that are run at once. A store that looks first and writes then lets both win in most of
/// them only: s3s-fs 0.14 in three of four, so that it would pass once in 16 million times.
const RACES: usize = 12;
/// Length of what is put.
const LENGTH: usize = 4096;
/// How often it is done again when requests fail.
const TRIES: u32 = 5;

/// Races pairs of create-only puts.
///
/// # Errors
/// `Unsupported` if both of a pair win, if the wrong one's object is there, or if what exists can
/// be created again; that of the store if requests fail.
pub(crate) async fn probe(store: &Store, op: &'static str) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        let names: Vec<String> = (0..RACES)
            .map(|_| format!("{PROBES}{}", store.ids().uuid().simple()))
            .collect();
        let races = names.iter().map(|name| race(store, op, name));
        let outcome: Result<Vec<bool>> = join_all(races).await.into_iter().collect();
        let cleared = store.delete(op, names).await;
        let clear = outcome?.into_iter().all(|clear| clear);
        cleared?;
        if clear {
            return Ok(());
        }
        if tries == TRIES {
            return Err(store
                .error(ErrorKind::Unavailable, op, PROBES)
                .reason("the store does not answer well enough to find out whether it is usable"));
        }
    }
}

/// Whether one race was run to its end; an error if the store is not usable.
async fn race(store: &Store, op: &'static str, name: &str) -> Result<bool> {
    let bodies = [0_u8, 1].map(|fill| {
        let mut body = store.ids().uuid().as_bytes().to_vec();
        body.resize(LENGTH, fill);
        Bytes::from(body)
    });
    let (first, second) = join(
        store.create(name, bodies[0].clone()),
        store.create(name, bodies[1].clone()),
    )
    .await;
    let won = [
        outcome(store, op, name, first)?,
        outcome(store, op, name, second)?,
    ];
    let winner = match won {
        [Some(true), Some(true)] => {
            return Err(unusable(
                store,
                op,
                "of two puts that create an object, both succeed",
            ));
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
    let again = store.create(name, bodies[1 - winner].clone()).await;
    match outcome(store, op, name, again)? {
        Some(true) => Err(unusable(
            store,
            op,
            "an object that exists is created again",
        )),
        won => Ok(won == Some(false)),
    }
}

/// Whether a create-only put won; `None` if it failed for another reason, which may pass.
fn outcome(
    store: &Store,
    op: &'static str,
    name: &str,
    put: object_store::Result<()>,
) -> Result<Option<bool>> {
    match put {
        Ok(()) => Ok(Some(true)),
        Err(error) if is_taken(&error) => Ok(Some(false)),
        Err(error) => {
            let fault = Fault::from(error);
            if fault.transient {
                return Ok(None);
            }
            Err(store.failed_once(op, name, fault))
        }
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

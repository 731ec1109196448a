//! Order among the operations of one pool object, for backends.
//!
//! An operation whose future was dropped may still be running. Whoever next wants to change the same
//! name waits for it here, so that calling again converges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::VolumeName;

type NameMutex = Arc<tokio::sync::Mutex<()>>;
/// One's turn on some names, until it is dropped.
pub type Turns = Vec<OwnedMutexGuard<()>>;

/// One waiting line a name.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<VolumeName, NameMutex>>);

impl Names {
    /// Waits for one's turn on each of `names`.
    pub async fn turn(&self, names: &[&VolumeName]) -> Turns {
        // In one order everywhere, so that two operations never wait for each other.
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        let mut turns = Vec::with_capacity(names.len());
        for name in names {
            let mutex = self.mutex(name);
            turns.push(mutex.lock_owned().await);
        }
        turns
    }

    fn mutex(&self, name: &VolumeName) -> NameMutex {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= 1024 {
            names.retain(|_, mutex| Arc::strong_count(mutex) > 1);
        }
        names.entry(name.clone()).or_default().clone()
    }
}

//! Loads under way: whoever wants what is being loaded already waits for that load.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxBuildHasher;
use volmux_core::{Error, Result};

use crate::watched::Watched;

/// What became of a load.
enum Flight<V> {
    UnderWay,
    Landed(Result<V, Arc<Error>>),
    GivenUp,
}

/// None as long as nobody waits.
type Waiting<V> = Option<Arc<Watched<Flight<V>>>>;

/// What is being loaded.
pub(crate) struct Flights<K, V>(Arc<Mutex<HashMap<K, Waiting<V>, FxBuildHasher>>>);

/// Whose turn it is to load something.
#[derive(Debug)]
pub(crate) enum Turn<K: Copy + Eq + Hash, V> {
    /// The caller's: it has to [`land`](Lead::land) it.
    Lead(Lead<K, V>),
    /// Somebody loads it.
    Follow(Follow<V>),
}

/// The right to load something, and the duty to tell the others. Dropped, it passes on.
///
/// Whoever leads several loads and follows others must land its own before it waits: two of
/// them could wait for each other otherwise.
#[must_use = "the others wait for it"]
pub(crate) struct Lead<K: Copy + Eq + Hash, V> {
    key: K,
    flights: Flights<K, V>,
    landed: bool,
}

/// Somebody else's load.
pub(crate) struct Follow<V>(Arc<Watched<Flight<V>>>);

impl<K: Copy + Eq + Hash, V: Clone> Flights<K, V> {
    /// None under way.
    pub(crate) fn new() -> Self {
        Flights(Arc::new(Mutex::new(HashMap::default())))
    }

    /// Begins to load `key`, or waits for it. The leader has to look once more whether the load
    /// is needed: another may have landed since it looked first.
    pub(crate) fn join(&self, key: K) -> Turn<K, V> {
        let mut map = self.map();
        if let Some(waiting) = map.get_mut(&key) {
            return Turn::Follow(followed(waiting));
        }
        map.insert(key, None);
        Turn::Lead(Lead {
            key,
            flights: Flights(Arc::clone(&self.0)),
            landed: false,
        })
    }

    /// Waits for `key` if it is being loaded.
    pub(crate) fn follow(&self, key: K) -> Option<Follow<V>> {
        self.map().get_mut(&key).map(followed)
    }
}

fn followed<V>(waiting: &mut Waiting<V>) -> Follow<V> {
    let flight = waiting.get_or_insert_with(|| Arc::new(Watched::new(Flight::UnderWay)));
    Follow(flight.clone())
}

impl<K: Eq + Hash, V> Flights<K, V> {
    fn map(&self) -> MutexGuard<'_, HashMap<K, Waiting<V>, FxBuildHasher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, key: &K) -> Waiting<V> {
        self.map().remove(key).flatten()
    }
}

impl<K: Copy + Eq + Hash, V> Lead<K, V> {
    /// What is to be loaded.
    #[cfg(test)]
    pub(crate) fn key(&self) -> K {
        self.key
    }

    /// Ends the load with what it brought. To be called once the value is where the next caller
    /// looks for it.
    pub(crate) fn land(self, value: V) {
        self.finish(Ok(value));
    }

    /// Ends the load with an error, which all that wait get a copy of.
    pub(crate) fn fail(self, error: &Error) {
        self.finish(Err(Arc::new(copy_of(error))));
    }

    fn finish(mut self, outcome: Result<V, Arc<Error>>) {
        self.landed = true;
        if let Some(flight) = self.flights.end(&self.key) {
            flight.change(|flight| *flight = Flight::Landed(outcome));
        }
    }
}

impl<K: Copy + Eq + Hash, V> Drop for Lead<K, V> {
    fn drop(&mut self) {
        if !self.landed
            && let Some(flight) = self.flights.end(&self.key)
        {
            flight.change(|flight| *flight = Flight::GivenUp);
        }
    }
}

impl<V: Clone> Follow<V> {
    /// What the load brought; none where it was given up: look again, and join again.
    pub(crate) async fn wait(self) -> Option<Result<V>> {
        let outcome = |flight: &Flight<V>| match flight {
            Flight::UnderWay => None,
            Flight::Landed(Ok(value)) => Some(Some(Ok(value.clone()))),
            Flight::Landed(Err(error)) => Some(Some(Err(copy_of(error)))),
            Flight::GivenUp => Some(None),
        };
        self.0.until(outcome).await
    }
}

/// The same error for another caller. Its cause is there as text only.
fn copy_of(error: &Error) -> Error {
    let copy = Error::new(error.kind(), error.op());
    let copy = error
        .context()
        .fold(copy, |copy, (key, value)| copy.with(key, value));
    match error.source() {
        None => copy,
        Some(source) => {
            let mut text = source.to_string();
            let mut next = source.source();
            while let Some(cause) = next {
                text = format!("{text}: {cause}");
                next = cause.source();
            }
            copy.with_source(text)
        }
    }
}

impl<K: Eq + Hash, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({})", self.map().len())
    }
}

impl<K: Copy + Eq + Hash + fmt::Debug, V> fmt::Debug for Lead<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lead({:?})", self.key)
    }
}

impl<V> fmt::Debug for Follow<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follow")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::FutureExt;
    use volmux_core::ErrorKind;

    use super::*;

    fn lead(flights: &Flights<u32, u32>, key: u32) -> Lead<u32, u32> {
        match flights.join(key) {
            Turn::Lead(lead) => lead,
            Turn::Follow(_) => panic!("{key} is under way"),
        }
    }

    fn follow(flights: &Flights<u32, u32>, key: u32) -> Follow<u32> {
        match flights.join(key) {
            Turn::Follow(follow) => follow,
            Turn::Lead(_) => panic!("{key} is not under way"),
        }
    }

    #[tokio::test]
    async fn all_get_what_the_leader_brought() {
        let flights = Flights::new();
        let first = lead(&flights, 1);
        let others: Vec<_> = (0..5).map(|_| follow(&flights, 1)).collect();
        let elsewhere = lead(&flights, 2);
        first.land(11);
        for other in others {
            assert_eq!(other.wait().await.unwrap().unwrap(), 11);
        }
        assert_eq!(lead(&flights, 1).key(), 1);
        assert!(follow(&flights, 2).wait().now_or_never().is_none());
        drop(elsewhere);
        assert_eq!(format!("{flights:?}"), "Flights(0)");
    }

    #[tokio::test]
    async fn a_leader_that_goes_away_hangs_nobody() {
        let flights = Flights::new();
        let first = lead(&flights, 1);
        let other = follow(&flights, 1);
        drop(first);
        assert!(other.wait().await.is_none());
        lead(&flights, 1).land(3);
    }

    #[tokio::test]
    async fn an_error_reaches_all_with_its_cause() {
        let flights = Flights::new();
        let first = lead(&flights, 1);
        let (a, b) = (follow(&flights, 1), follow(&flights, 1));
        let error = Error::new(ErrorKind::Unavailable, "read")
            .with("object", "x")
            .with_source("gone");
        first.fail(&error);
        for other in [a, b] {
            let copy = other.wait().await.unwrap().unwrap_err();
            assert_eq!(copy.to_string(), error.to_string());
            assert_eq!(copy.source().unwrap().to_string(), "gone");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_value_is_loaded_once_whoever_is_cancelled() {
        let flights = Flights::<u32, u32>::new();
        let cached = Arc::new(Mutex::new(HashMap::new()));
        let loads = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for n in 0..2000_u32 {
            let (flights, cached, loads) =
                (Flights(flights.0.clone()), cached.clone(), loads.clone());
            tasks.push(tokio::spawn(async move {
                let key = n % 50;
                loop {
                    let turn = flights.join(key);
                    match turn {
                        Turn::Lead(lead) => {
                            if let Some(found) = cached.lock().unwrap().get(&key).copied() {
                                lead.land(found);
                                return found;
                            }
                            tokio::time::sleep(Duration::from_micros(50)).await;
                            if n % 7 == 3 {
                                drop(lead);
                                tokio::task::yield_now().await;
                                continue;
                            }
                            loads.fetch_add(1, Ordering::Relaxed);
                            cached.lock().unwrap().insert(key, key * 3);
                            lead.land(key * 3);
                            return key * 3;
                        }
                        Turn::Follow(follow) => match follow.wait().await {
                            Some(value) => return value.unwrap(),
                            None => continue,
                        },
                    }
                }
            }));
        }
        for (n, task) in tasks.into_iter().enumerate() {
            if n % 11 == 5 {
                task.abort();
                continue;
            }
            // A leader that always gives up would never end; another takes its place here.
            assert_eq!(task.await.unwrap(), (n as u32 % 50) * 3);
        }
        assert_eq!(loads.load(Ordering::Relaxed), 50);
        assert!(flights.map().is_empty());
    }
}

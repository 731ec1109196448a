//! An object store in memory that outlives the programs that use it, and does to their requests what
//! a [`Faults`] says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, Result};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::faults::{Fate, Faults};
use crate::rng::{Rng, mix};
use crate::trace::{Trace, number};

/// What a test makes wrong on purpose, to see that it is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Some uploads are answered and never stored.
    LosesPuts,
    /// Of two create-only puts of one name, both win.
    LetsBothCreate,
    /// Some downloads of data are of another object of the same length, checksums and all.
    SwapsObjects,
    /// Now and then a bit of what is downloaded is another one.
    FlipsBits,
    /// Some deletes take another object along.
    DeletesMore,
    /// LIST leaves out what is newest.
    ListsLate,
}

/// An object store. Its clones are the same store.
#[derive(Clone, Debug)]
pub struct SimStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    trace: Trace,
    killed: Notify,
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) data: Bytes,
    pub(crate) version: u64,
    pub(crate) written: u64,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<Path, Object>,
    faults: Faults,
    flaw: Option<Flaw>,
    seed: u64,
    requests: u64,
    versions: u64,
    /// What is under way to the store, by when it arrives there.
    under_way: BTreeMap<(u64, u64), Change>,
    /// What became of what arrived, until its sender asks.
    done: BTreeMap<u64, Result<u64>>,
    life: Life,
}

/// One life of the programs that use the store.
#[derive(Debug, Default)]
struct Life {
    number: u64,
    began: u64,
    clock: Option<Instant>,
    now: u64,
    over: bool,
    kill_at: Option<u64>,
}

/// What a request changes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Puts an object; only where there is none if `create`.
    Put {
        key: Path,
        data: Bytes,
        create: bool,
    },
    /// Deletes one.
    Delete { key: Path },
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Request {
    store: SimStore,
    pub(crate) number: u64,
    pub(crate) fate: Fate,
    sent: u64,
    changes: bool,
    life: u64,
}

impl SimStore {
    /// An empty one.
    pub fn new(seed: u64, trace: Trace) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            faults: Faults::none(),
            flaw: None,
            seed,
            requests: 0,
            versions: 0,
            under_way: BTreeMap::new(),
            done: BTreeMap::new(),
            life: Life::default(),
        };
        SimStore {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                trace,
                killed: Notify::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the store wrong from now on.
    pub fn break_it(&self, flaw: Option<Flaw>) {
        self.lock().flaw = flaw;
    }

    /// Begins a life, in the runtime that it will have, `pause` milliseconds after the last one.
    /// It ends by itself at the request `kill_after`, counted from here.
    pub fn begin_life(&self, pause: u64, kill_after: Option<u64>) {
        let mut state = self.lock();
        let life = Life {
            number: state.life.number + 1,
            began: state.life.now + pause,
            clock: Some(Instant::now()),
            now: state.life.now + pause,
            over: false,
            kill_at: kill_after.map(|after| state.requests + after),
        };
        state.life = life;
        state.done.clear();
        state.pump(&self.shared.trace);
    }

    /// What goes wrong from now on. Outages count from now, too.
    pub fn set_faults(&self, mut faults: Faults) {
        let mut state = self.lock();
        let now = state.tick();
        for (from, to) in &mut faults.outages {
            (*from, *to) = (*from + now, *to + now);
        }
        state.faults = faults;
    }

    /// Ends the life: no request is heard of any more.
    pub fn end_life(&self) {
        let mut state = self.lock();
        state.tick();
        state.life.over = true;
        self.shared.killed.notify_one();
    }

    /// Returns once the life is over.
    pub async fn life_is_over(&self) {
        while !self.lock().life.over {
            self.shared.killed.notified().await;
        }
    }

    /// The time of the store, in milliseconds.
    pub fn now(&self) -> u64 {
        self.lock().tick()
    }

    /// Number of requests so far.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// The names of all objects.
    pub fn names(&self) -> Vec<String> {
        self.lock()
            .objects
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    /// Lets all that is under way arrive, whenever it would have.
    pub fn settle(&self) {
        let mut state = self.lock();
        let last = state.under_way.last_key_value().map(|((at, _), _)| *at);
        if let Some(last) = last {
            state.life.now = state.life.now.max(last);
            state.life.began = state.life.began.max(last);
            state.pump(&self.shared.trace);
        }
    }

    /// Takes a request on. Never returns once the life is over.
    pub(crate) async fn send(&self, what: &str, key: &Path, change: Option<Change>) -> Request {
        let request = self.admit(what, key, change);
        match request {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    fn admit(&self, what: &str, key: &Path, change: Option<Change>) -> Option<Request> {
        let mut state = self.lock();
        if state.life.over {
            return None;
        }
        let now = state.tick();
        state.requests += 1;
        let number = state.requests;
        let rng = Rng::new(mix(state.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let fate = state.faults.fate(rng, now);
        self.note(now, number, what, key, &fate);
        let request = Request {
            store: self.clone(),
            number,
            fate,
            sent: now,
            changes: change.is_some(),
            life: state.life.number,
        };
        if let (Some(change), Some(after)) = (change, fate.arrives) {
            state.under_way.insert((now + after, number), change);
        }
        if state.life.kill_at.is_some_and(|at| number >= at) {
            state.life.over = true;
            self.shared.killed.notify_one();
            // The request is on its way; what becomes of it is decided as for every orphan.
            drop(state);
            drop(request);
            return None;
        }
        Some(request)
    }

    fn note(&self, now: u64, request: u64, what: &str, key: &Path, fate: &Fate) {
        self.shared.trace.at(now);
        let name = key.as_ref();
        self.shared
            .trace
            .event(&[request, number(what), number(name)], || {
                let mut text = format!("  #{request} {what} {name}");
                match fate.arrives {
                    None => text += " [never arrives]",
                    Some(after) => text += &format!(" [+{after}"),
                }
                if fate.arrives.is_some() {
                    text += &format!(", answer +{}]", fate.answered);
                }
                if fate.error {
                    text += " ERROR";
                }
                text
            });
    }

    /// An object as it is now, or as a broken store gives it.
    pub(crate) fn look(&self, key: &Path, request: u64) -> Option<Object> {
        let mut state = self.lock();
        state.tick();
        state.pump(&self.shared.trace);
        let object = state.objects.get(key).cloned()?;
        Some(state.spoil(key, object, request))
    }

    /// At most a page of the names after `after` that `prefix` leads to, and whether there are more.
    pub(crate) fn page(
        &self,
        prefix: Option<&Path>,
        after: Option<&Path>,
    ) -> (Vec<(Path, Object)>, bool) {
        let mut state = self.lock();
        state.tick();
        state.pump(&self.shared.trace);
        let size = state.faults.page.max(1) as usize;
        let late = (state.flaw == Some(Flaw::ListsLate)).then_some(state.versions);
        let below = |key: &Path| {
            prefix.is_none_or(|prefix| {
                key.prefix_match(prefix)
                    .is_some_and(|mut parts| parts.next().is_some())
            })
        };
        let from = match (prefix, after) {
            (Some(prefix), Some(after)) => Some(prefix.max(after)),
            (prefix, after) => prefix.or(after),
        };
        let zero = Path::default();
        let mut found = state
            .objects
            .range(from.unwrap_or(&zero)..)
            .take_while(|(key, _)| {
                prefix.is_none_or(|prefix| key.as_ref().starts_with(prefix.as_ref()))
            })
            .filter(|(key, _)| after.is_none_or(|after| *key > after) && below(key))
            .filter(|(_, object)| late.is_none_or(|newest| object.version + 3 < newest))
            .map(|(key, object)| (key.clone(), object.clone()));
        let page = found.by_ref().take(size).collect();
        (page, found.next().is_some())
    }
}

impl State {
    /// Looks at the clock.
    fn tick(&mut self) -> u64 {
        // A clock is only asked in its runtime, and that is gone when a life is over.
        if let (false, Some(clock)) = (self.life.over, self.life.clock) {
            let passed = clock.elapsed().as_millis() as u64;
            self.life.now = self.life.now.max(self.life.began + passed);
        }
        self.life.now
    }

    /// Applies what has arrived by now.
    fn pump(&mut self, trace: &Trace) {
        while let Some(entry) = self.under_way.first_entry() {
            if entry.key().0 > self.life.now {
                break;
            }
            let ((at, request), change) = entry.remove_entry();
            let result = self.apply(change, request, at);
            trace.event(&[request, u64::from(result.is_ok())], || {
                format!(
                    "  #{request} arrived at {at}: {}",
                    if result.is_ok() { "done" } else { "refused" }
                )
            });
            self.done.insert(request, result);
        }
    }

    fn apply(&mut self, change: Change, request: u64, at: u64) -> Result<u64> {
        self.versions += 1;
        let version = self.versions;
        match change {
            Change::Put { key, data, create } => {
                // Pools look for this flaw with objects made for that, and would refuse the store.
                let probed = key.as_ref().starts_with("probe/");
                let both_win = self.flaw == Some(Flaw::LetsBothCreate) && !probed;
                if create && !both_win && self.objects.contains_key(&key) {
                    return Err(Error::AlreadyExists {
                        path: key.to_string(),
                        source: "there is an object of that name".into(),
                    });
                }
                let lost = self.flaw == Some(Flaw::LosesPuts) && mix(request).is_multiple_of(10);
                if !lost {
                    let object = Object {
                        data,
                        version,
                        written: at,
                    };
                    self.objects.insert(key, object);
                }
            }
            Change::Delete { key } => {
                self.objects.remove(&key);
                if self.flaw == Some(Flaw::DeletesMore) {
                    let next = self.objects.range(key..).next().map(|(key, _)| key.clone());
                    next.map(|next| self.objects.remove(&next));
                }
            }
        }
        Ok(version)
    }

    fn spoil(&self, key: &Path, object: Object, request: u64) -> Object {
        match self.flaw {
            Some(Flaw::SwapsObjects) if mix(request).is_multiple_of(5) => {
                let same = |other: &&Object| other.data.len() == object.data.len();
                let mut others = self.objects.iter().filter(|(other, _)| *other != key);
                others
                    .find(|(_, other)| same(other))
                    .map_or(object.clone(), |(_, o)| o.clone())
            }
            Some(Flaw::FlipsBits) if mix(request).is_multiple_of(20) && !object.data.is_empty() => {
                let mut data = object.data.to_vec();
                let at = mix(request ^ 1) as usize % data.len();
                data[at] ^= 4;
                Object {
                    data: data.into(),
                    ..object
                }
            }
            _ => object,
        }
    }
}

impl Request {
    /// Waits until the request reaches the store; an error if it never does or nobody answers.
    pub(crate) async fn arrive(&self) {
        if let Some(after) = self
            .fate
            .arrives
            .filter(|after| *after <= self.fate.answered)
        {
            tokio::time::sleep(Duration::from_millis(after)).await;
        }
    }

    /// Waits until the answer comes, and gives what the store made of a change.
    pub(crate) async fn answer(self) -> Result<u64> {
        let waited = {
            let mut state = self.store.lock();
            state.tick().saturating_sub(self.sent)
        };
        let rest = self.fate.answered.saturating_sub(waited);
        tokio::time::sleep(Duration::from_millis(rest)).await;
        let mut state = self.store.lock();
        state.tick();
        state.pump(&self.store.shared.trace);
        let done = state.done.remove(&self.number);
        drop(state);
        if self.fate.error {
            return Err(broken());
        }
        match done {
            Some(result) => result,
            None if self.changes => Err(broken()),
            None => Ok(0),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        state.done.remove(&self.number);
        let (Some(after), true) = (self.fate.arrives, self.changes) else {
            return;
        };
        // Answered, with the change yet to come: that is its fate, not its sender's.
        let answered = state.life.now >= self.sent + self.fate.answered;
        let same_life = self.life == state.life.number && !state.life.over;
        if answered && same_life {
            return;
        }
        if let Some(change) = state.under_way.remove(&(self.sent + after, self.number))
            && let Some(orphan) = self.fate.orphan
        {
            state
                .under_way
                .insert((self.sent + orphan.max(after), self.number), change);
        }
    }
}

/// The error of a connection that broke.
pub(crate) fn broken() -> Error {
    Error::Generic {
        store: "sim",
        source: "the connection was reset".into(),
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sim")
    }
}

//! One simulation: what its operations share.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use volmux_core::{Error, ErrorKind, Pool, VolumeName};

use crate::history::Moment;
use crate::model::{Doubt, Key, Model};
use crate::rng::Rng;
use crate::store::SimStore;
use crate::trace::{Trace, number};
use crate::view::HostStore;
use crate::world::World;

/// No operation takes longer than this, whatever goes wrong. Outages last a minute at most.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Something that must not happen has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure(text)
    }
}

/// The result of an operation of the simulation.
pub type Step<T = ()> = Result<T, Failure>;

/// How a call of the pool or a device ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// It succeeded.
    Done(T),
    /// It is not known whether it came about: the store could not be reached.
    Doubtful,
    /// It was refused, and nothing changed.
    Refused(ErrorKind),
}

/// A host: a pool that is open.
#[derive(Clone, Debug)]
pub struct Host {
    /// The pool.
    pub pool: Arc<dyn Pool>,
    /// How it reaches the store.
    pub store: HostStore,
    /// Told when the host dies.
    pub death: Rc<Death>,
}

/// Whether a host has died.
#[derive(Debug, Default)]
pub struct Death {
    dead: Cell<bool>,
    notify: Notify,
}

impl Death {
    /// Dies.
    pub fn come(&self) {
        self.dead.set(true);
        self.notify.notify_waiters();
    }

    /// Returns once the host has died.
    pub async fn wait(&self) {
        let told = self.notify.notified();
        if !self.dead.get() {
            told.await;
        }
    }
}

/// One simulation.
#[derive(Debug)]
pub struct Sim {
    /// What is simulated.
    pub world: Box<dyn World>,
    /// The store.
    pub store: SimStore,
    /// What happened.
    pub trace: Trace,
    /// What is known.
    pub model: RefCell<Model>,
    /// Chance.
    pub rng: RefCell<Rng>,
    /// The hosts, by number.
    pub hosts: RefCell<Vec<Option<Host>>>,
    /// Whether the store's faults may show.
    pub faulty: Cell<bool>,
    /// The seed.
    pub seed: u64,
}

impl Sim {
    /// A number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.rng.borrow_mut().below(end)
    }

    /// True in so many of a thousand cases.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.rng.borrow_mut().chance(per_mille)
    }

    /// One of `items`, if there are any.
    pub fn pick<T: Copy>(&self, items: &[T]) -> Option<T> {
        (!items.is_empty()).then(|| *self.rng.borrow_mut().pick(items))
    }

    /// The next moment.
    pub fn moment(&self) -> Moment {
        self.model.borrow_mut().moment()
    }

    /// Notes what happens.
    pub fn note(&self, what: &str, numbers: &[u64], text: impl FnOnce() -> String) {
        self.trace.at(self.store.now());
        let mut all = vec![number(what)];
        all.extend_from_slice(numbers);
        self.trace.event(&all, || format!("{what} {}", text()));
    }

    /// A host that is alive.
    pub fn host(&self) -> Option<usize> {
        let hosts = self.hosts.borrow();
        let alive: Vec<usize> = (0..hosts.len()).filter(|&h| hosts[h].is_some()).collect();
        drop(hosts);
        self.pick(&alive)
    }

    /// The pool of a host.
    pub fn pool(&self, host: usize) -> Option<Arc<dyn Pool>> {
        let hosts = self.hosts.borrow();
        hosts.get(host)?.as_ref().map(|host| host.pool.clone())
    }

    /// Awaits a call. Errors that never may be, and those that are not among `allowed`, are
    /// failures, and so is a call that takes for ever.
    pub async fn call<T>(
        &self,
        what: &str,
        subject: &str,
        allowed: &[ErrorKind],
        call: impl Future<Output = volmux_core::Result<T>>,
    ) -> Step<Ended<T>> {
        self.note(what, &[number(subject)], || format!("{subject} ..."));
        let Ok(result) = tokio::time::timeout(PATIENCE, call).await else {
            return Err(Failure(format!("{what} {subject} hangs")));
        };
        let kind = result.as_ref().err().map(Error::kind);
        self.note(
            what,
            &[number(subject), kind.map_or(0, |k| k.code() as u64)],
            || {
                let error = result.as_ref().err().map(|error| format!("{error:?}"));
                format!("{subject} -> {}", error.as_deref().unwrap_or("ok"))
            },
        );
        let error = match result {
            Ok(value) => return Ok(Ended::Done(value)),
            Err(error) => error,
        };
        let wrong = |why: &str| Err(Failure(format!("{what} {subject}: {why}: {error:?}")));
        match error.kind() {
            kind if allowed.contains(&kind) => Ok(Ended::Refused(kind)),
            ErrorKind::Unavailable | ErrorKind::TimedOut if self.faulty.get() => {
                Ok(Ended::Doubtful)
            }
            ErrorKind::Unavailable | ErrorKind::TimedOut => wrong("the store has no faults"),
            _ => wrong("an error of a kind that must not be here"),
        }
    }

    /// Keeps a volume as it is, or for oneself, until the result is dropped.
    pub fn lock(self: &Rc<Self>, vol: Key, change: bool) -> Lock {
        let mut model = self.model.borrow_mut();
        let held = model.vol(vol);
        if change {
            held.changing = true;
        } else {
            held.used += 1;
        }
        Lock {
            sim: self.clone(),
            vol,
            change,
        }
    }
}

/// See [`Sim::lock`].
#[derive(Debug)]
pub struct Lock {
    sim: Rc<Sim>,
    vol: Key,
    change: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut model = self.sim.model.borrow_mut();
        let now = model.moment();
        let Some(vol) = model.vols.get_mut(&self.vol) else {
            return;
        };
        if self.change {
            vol.changing = false;
        } else {
            vol.used = vol.used.saturating_sub(1);
        }
        // The doubt of a call that was not awaited to its end begins when it was given up.
        if let (true, Some((_, since))) = (self.change, &mut vol.doubt) {
            *since = (*since).min(now);
        }
    }
}

/// A doubt as long as the call is under way.
pub fn under_way(doubt: Doubt) -> Option<(Doubt, Moment)> {
    Some((doubt, Moment::MAX))
}

/// A name that the simulation made.
pub fn volume_name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("the simulation makes right names")
}

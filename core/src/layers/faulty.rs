//! Fault injection.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex};

use super::{Call, Hook, Layer, lock};
use crate::{Error, ErrorKind, Pool, Result};

/// A pool that fails on purpose, for tests: by a [`FaultPlan`], calls fail or never answer, before
/// or after they took effect.
///
/// Calls are counted from 1 in the order in which they begin, over the pool and the volumes opened
/// through it. The same plan and the same sequence of calls give the same faults. What answers
/// without waiting (capabilities, policy, name, size, access) is neither counted nor disturbed;
/// of a stream only the start is.
pub type Faulty = Layer<Faults>;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It fails with this kind.
    Fail(ErrorKind),
    /// It never answers: whoever waits for it has to give up.
    Cut,
}

/// Before the call takes effect, or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// It has no effect.
    Before,
    /// It has its effect and its answer is lost.
    After,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which call, counted from 1 (among those of `op`, where that is given).
    pub call: u64,
    /// Only calls of this trait method; `None` for all.
    pub op: Option<&'static str>,
    /// Before the effect or after.
    pub when: When,
    /// What happens.
    pub action: Action,
}

impl Fault {
    /// The `call`th call fails with `Unavailable`.
    pub const fn fail(call: u64, when: When) -> Self {
        Fault {
            call,
            op: None,
            when,
            action: Action::Fail(ErrorKind::Unavailable),
        }
    }

    /// The `call`th call never answers.
    pub const fn cut(call: u64, when: When) -> Self {
        Fault {
            action: Action::Cut,
            ..Fault::fail(call, when)
        }
    }

    /// With this kind of error.
    #[must_use]
    pub const fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.action = Action::Fail(kind);
        self
    }

    /// Among the calls of trait method `op` only.
    #[must_use]
    pub const fn of(mut self, op: &'static str) -> Self {
        self.op = Some(op);
        self
    }
}

/// Faults by chance, half of them before the effect and half after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomFaults {
    /// Decides everything.
    pub seed: u64,
    /// Share of the calls that fail with `Unavailable`, from 0 to 1.
    pub fail: f64,
    /// Share of the calls that never answer, from 0 to 1.
    pub cut: f64,
}

/// Which calls go wrong, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPlan {
    faults: Vec<Fault>,
    random: Option<RandomFaults>,
}

impl FaultPlan {
    /// Nothing goes wrong; calls are only counted.
    pub fn none() -> Self {
        FaultPlan::default()
    }

    /// Exactly these.
    pub fn explicit(faults: impl IntoIterator<Item = Fault>) -> Self {
        FaultPlan {
            faults: faults.into_iter().collect(),
            random: None,
        }
    }

    /// By chance, decided by a seed.
    pub fn random(random: RandomFaults) -> Self {
        FaultPlan {
            faults: Vec::new(),
            random: Some(random),
        }
    }

    /// The fault of the `all`th call, which is the `same`th of `op`.
    pub(super) fn fault(&self, op: &'static str, all: u64, same: u64) -> Option<(When, Action)> {
        let due = |fault: &&Fault| match fault.op {
            Some(only) => only == op && fault.call == same,
            None => fault.call == all,
        };
        let explicit = self.faults.iter().find(due);
        explicit
            .map(|fault| (fault.when, fault.action))
            .or_else(|| self.random?.fault(all))
    }
}

impl RandomFaults {
    fn fault(&self, call: u64) -> Option<(When, Action)> {
        let drawn = split_mix(self.seed, call);
        // The upper 53 bits make a number from 0 up to 1; the lowest bit is still free.
        let chance = (drawn >> 11) as f64 / (1u64 << 53) as f64;
        let when = if drawn & 1 == 0 {
            When::Before
        } else {
            When::After
        };
        if chance < self.fail {
            Some((when, Action::Fail(ErrorKind::Unavailable)))
        } else if chance < self.fail + self.cut {
            Some((when, Action::Cut))
        } else {
            None
        }
    }
}

/// The `n`th number of the SplitMix64 sequence of `seed` (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014).
pub(super) fn split_mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hook of [`Faulty`].
#[derive(Debug)]
pub struct Faults {
    plan: FaultPlan,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    all: u64,
    by_op: BTreeMap<&'static str, u64>,
}

impl Layer<Faults> {
    /// Lets the calls of `pool` go wrong by `plan`.
    pub fn new(pool: Arc<dyn Pool>, plan: FaultPlan) -> Arc<Self> {
        let calls = Mutex::default();
        Layer::around(pool, Faults { plan, calls })
    }

    /// Number of calls so far.
    pub fn calls(&self) -> u64 {
        lock(&self.hook.calls).all
    }

    /// Number of calls of trait method `op` so far.
    pub fn calls_of(&self, op: &str) -> u64 {
        lock(&self.hook.calls).by_op.get(op).copied().unwrap_or(0)
    }
}

impl Faults {
    fn count(&self, op: &'static str) -> (u64, u64) {
        let mut calls = lock(&self.calls);
        calls.all += 1;
        let same = calls.by_op.entry(op).or_default();
        *same += 1;
        let same = *same;
        (calls.all, same)
    }
}

impl Hook for Faults {
    const EACH_ITEM: bool = false;

    async fn around<T: Send>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let (all, same) = self.count(call.op);
        let Some((when, action)) = self.plan.fault(call.op, all, same) else {
            return work.await;
        };
        if when == When::After {
            // Its answer is what gets lost.
            drop(work.await);
        }
        match action {
            Action::Cut => pending().await,
            Action::Fail(kind) => Err(call
                .describe(Error::new(kind, call.op))
                .with("injected_call", all)
                .reason("this fault was injected on purpose")),
        }
    }
}

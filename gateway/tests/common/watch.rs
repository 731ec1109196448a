//! A pool whose calls are written down, and can be held back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use volmux_core::layers::{Call, Hook, Layer};
use volmux_core::{ByteRange, Pool, Result};

/// A pool that is watched.
pub type Watched = Layer<Watch>;

/// A call that has begun or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Began(&'static str, Option<ByteRange>),
    Ended(&'static str, Option<ByteRange>),
}

/// The hook.
#[derive(Debug)]
pub struct Watch {
    steps: Mutex<Vec<Step>>,
    /// Calls of these methods wait.
    held: watch::Sender<BTreeSet<&'static str>>,
}

/// Puts a watch on `pool`.
pub fn watched(pool: Arc<dyn Pool>) -> Arc<Watched> {
    let steps = Mutex::default();
    let held = watch::Sender::default();
    Layer::around(pool, Watch { steps, held })
}

impl Watch {
    /// Everything so far.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().expect("no test panics in here").clone()
    }

    /// Number of calls of `op` that began.
    pub fn began(&self, op: &str) -> usize {
        let is = |step: &Step| matches!(step, Step::Began(other, _) if *other == op);
        self.steps().into_iter().filter(is).count()
    }

    /// Number of calls that began with such a range.
    pub fn began_where(&self, holds: impl Fn(Option<ByteRange>) -> bool) -> usize {
        let is = |step: &Step| matches!(step, Step::Began(_, range) if holds(*range));
        self.steps().iter().filter(|step| is(step)).count()
    }

    /// Number of calls of `op` that ended.
    pub fn ended(&self, op: &str) -> usize {
        let is = |step: &Step| matches!(step, Step::Ended(other, _) if *other == op);
        self.steps().into_iter().filter(is).count()
    }

    /// From now on calls of `op` wait before they do anything.
    pub fn hold(&self, op: &'static str) {
        self.held.send_modify(|held| {
            held.insert(op);
        });
    }

    /// They wait no longer.
    pub fn release(&self, op: &'static str) {
        self.held.send_modify(|held| {
            held.remove(op);
        });
    }

    fn push(&self, step: Step) {
        self.steps
            .lock()
            .expect("no test panics in here")
            .push(step);
    }
}

impl Hook for Watch {
    const EACH_ITEM: bool = false;

    async fn around<T: Send>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.push(Step::Began(call.op, call.range));
        let mut held = self.held.subscribe();
        // The sender lives as long as this does.
        let _ = held.wait_for(|held| !held.contains(call.op)).await;
        let result = work.await;
        self.push(Step::Ended(call.op, call.range));
        result
    }
}

//! Time limits.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Call, Hook, Layer};
use crate::{Error, ErrorKind, Pool, Result};

/// A pool whose calls end with `TimedOut` when they take too long. Needs a tokio runtime with time.
///
/// Work that can tell its progress (snapshot, clone, copy and revert, which some pools emulate by
/// moving data) has no limit on its whole duration, only on the time without progress. A listing or
/// an extent stream has a limit for its start and one for each item. A call that has run out of
/// time is dropped: it may still take effect, and calling again converges.
pub type Deadline = Layer<Limits>;

/// How long calls may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Each call of the pool, and each item of its streams.
    pub control: Duration,
    /// Each call of an open volume.
    pub data: Duration,
    /// Without progress, for snapshot, clone, copy and revert.
    pub stall: Duration,
}

impl Default for Limits {
    /// A minute each: longer than a storage failover takes.
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Limits {
            control: minute,
            data: minute,
            stall: minute,
        }
    }
}

impl Layer<Limits> {
    /// Puts `limits` on the calls of `pool`.
    pub fn new(pool: Arc<dyn Pool>, limits: Limits) -> Arc<Self> {
        Layer::around(pool, limits)
    }
}

impl Limits {
    fn of(&self, call: &Call) -> Duration {
        match (call.progress.is_some(), call.data) {
            (true, _) => self.stall,
            (false, true) => self.data,
            (false, false) => self.control,
        }
    }
}

impl Hook for Limits {
    const EACH_ITEM: bool = true;

    async fn around<T: Send>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let limit = self.of(call);
        let mut work = pin!(work);
        let mut since = Instant::now();
        loop {
            // A limit past the end of time is none.
            let Some(end) = since.checked_add(limit) else {
                return work.await;
            };
            tokio::select! {
                // Work that is done at the last moment is done.
                biased;
                result = &mut work => return result,
                () = sleep_until(end) => {}
            }
            match &call.progress {
                Some(watch) if watch.last() > since => since = watch.last(),
                _ => break,
            }
        }
        if let Some(watch) = &call.progress {
            watch.cancel();
        }
        let reason = if call.progress.is_some() {
            "the operation made no progress for as long as the limit allows"
        } else {
            "the operation took longer than the limit allows"
        };
        Err(call
            .describe(Error::new(ErrorKind::TimedOut, call.op))
            .with("limit", format!("{limit:?}"))
            .reason(reason)
            .help("see whether the store answers, then call again"))
    }
}

//! Progress and cancellation of long work.

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{Error, ErrorKind, Result};

/// How far a long operation is, in bytes of data to move (holes don't count).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Watches and stops long work. Clones share the same cancellation.
///
/// A cancelled operation returns `TimedOut`, removes what it had made, and leaves everything else
/// as it was. Dropping the operation's future stops it too, but what it had made may stay until an
/// audit.
#[derive(Clone, Default)]
pub struct Control {
    progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    cancel: CancellationToken,
}

impl Control {
    /// Nobody watches, nobody cancels yet.
    pub fn new() -> Self {
        Control::default()
    }

    /// Calls `watch` as work goes on. It is called from the thread that works, so it must be quick.
    #[must_use]
    pub fn with_progress(mut self, watch: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(watch));
        self
    }

    /// Cancels with `token`.
    #[must_use]
    pub fn with_cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// A token that this cancellation cancels, and that can be cancelled by itself.
    pub(crate) fn child_cancellation(&self) -> CancellationToken {
        self.cancel.child_token()
    }

    /// Asks the operation to stop.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Waits until it was asked to stop.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// For those who work: tells how far it is.
    pub fn report(&self, done: u64, total: u64) {
        if let Some(watch) = &self.progress {
            watch(Progress { done, total });
        }
    }

    /// For those who work: call between steps, and stop on the error.
    ///
    /// # Errors
    /// `TimedOut` once [`cancel`](Self::cancel) was called.
    pub fn check(&self, op: &'static str) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(ErrorKind::TimedOut, op)
                .reason("cancelled by the caller")
                .help("call again to start over"));
        }
        Ok(())
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

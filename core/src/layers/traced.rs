//! Spans and events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{Instrument, Span};

use super::{Call, Hook, Layer};
use crate::{Pool, Result};

/// A pool that tells `tracing` of each call: a span `volmux` with operation, pool, volume, offset
/// and length, and in it an event with the duration when the call is done, failed (level warn) or
/// was dropped. Calls of the pool have level debug, those of open volumes level trace. Data is
/// never shown.
pub type Traced = Layer<Tracing>;

/// The hook of [`Traced`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracing;

impl Layer<Tracing> {
    /// Tells of the calls of `pool`.
    pub fn new(pool: Arc<dyn Pool>) -> Arc<Self> {
        Layer::around(pool, Tracing)
    }
}

fn span(call: &Call) -> Span {
    macro_rules! make {
        ($span:ident) => {
            tracing::$span!(
                "volmux",
                op = call.op,
                pool = %call.pool,
                volume = call.volume.as_ref().map(tracing::field::display),
                offset = call.range.map(|r| r.offset),
                length = call.range.map(|r| r.length),
            )
        };
    }
    if call.data {
        make!(trace_span)
    } else {
        make!(debug_span)
    }
}

/// Tells of the end, whichever it is.
struct Ending {
    data: bool,
    start: Instant,
    done: bool,
}

impl Ending {
    fn duration(&self) -> Duration {
        self.start.elapsed()
    }

    fn tell<T>(mut self, result: &Result<T>) {
        self.done = true;
        let duration = self.duration();
        match result {
            Ok(_) if self.data => tracing::trace!(?duration, "done"),
            Ok(_) => tracing::debug!(?duration, "done"),
            Err(error) => tracing::warn!(?duration, %error, kind = error.kind().name(), "failed"),
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.done {
            tracing::debug!(duration = ?self.duration(), "dropped before it was done");
        }
    }
}

impl Hook for Tracing {
    const EACH_ITEM: bool = false;

    async fn around<T: Send>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let ending = Ending {
            data: call.data,
            start: Instant::now(),
            done: false,
        };
        let told = async {
            let result = work.await;
            ending.tell(&result);
            result
        };
        told.instrument(span(call)).await
    }
}

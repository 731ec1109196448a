//! Wrappers around any pool, and around the volumes that are opened through it.
//!
//! [`Traced`] tells what is called, [`Deadline`] ends what takes too long, [`Faulty`] injects
//! faults. All are one mechanism: a [`Layer`] passes every call through the one method of a
//! [`Hook`]. Wrappers can be stacked.
//!
//! ```
//! # use std::sync::Arc;
//! # use volmux_core::layers::{Deadline, Limits, Traced};
//! # use volmux_core::{Pool, memory::MemoryPool};
//! let pool: Arc<dyn Pool> = MemoryPool::unlimited();
//! let pool = Traced::new(Deadline::new(pool, Limits::default()));
//! assert_eq!(pool.to_string(), "memory:");
//! ```

mod deadline;
mod device;
mod faulty;
mod pool;
#[cfg(test)]
mod tests;
mod traced;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use deadline::{Deadline, Limits};
pub use faulty::{Action, Fault, FaultPlan, Faults, Faulty, RandomFaults, When};
pub use traced::{Traced, Tracing};

use crate::{ByteRange, Control, Error, Pool, Result, VolumeName};

/// A call on its way through a layer.
#[derive(Clone, Debug)]
pub struct Call {
    /// The trait method.
    pub op: &'static str,
    /// The pool, as it displays itself.
    pub pool: Arc<str>,
    /// The volume that it is about.
    pub volume: Option<VolumeName>,
    /// The bytes that it is about.
    pub range: Option<ByteRange>,
    /// Whether it belongs to an open volume, and not to the pool.
    pub data: bool,
    /// Set for work that may take as long as it likes while it makes progress.
    pub progress: Option<Arc<Watch>>,
}

impl Call {
    fn new(op: &'static str, pool: &Arc<str>) -> Self {
        Call {
            op,
            pool: pool.clone(),
            volume: None,
            range: None,
            data: false,
            progress: None,
        }
    }

    fn on(mut self, volume: &VolumeName) -> Self {
        self.volume = Some(volume.clone());
        self
    }

    /// Puts a watch on `control`.
    fn watching(mut self, control: &mut Control) -> Self {
        let cancel = control.child_cancellation();
        let watch = Arc::new(Watch {
            last: Mutex::new(Instant::now()),
            cancel: cancel.clone(),
        });
        let (told, outer) = (watch.clone(), control.clone());
        *control = Control::new()
            .with_cancel(cancel)
            .with_progress(move |progress| {
                told.touch();
                outer.report(progress.done, progress.total);
            });
        self.progress = Some(watch);
        self
    }

    /// Names the objects of this call in `error`.
    fn describe(&self, error: Error) -> Error {
        let error = error.with("pool", &self.pool);
        match &self.volume {
            Some(volume) => error.with("volume", volume),
            None => error,
        }
    }
}

/// When long work last made progress.
#[derive(Debug)]
pub struct Watch {
    last: Mutex<Instant>,
    cancel: CancellationToken,
}

impl Watch {
    /// The last progress, or the start.
    pub fn last(&self) -> Instant {
        *lock(&self.last)
    }

    /// Asks the work to stop, without cancelling the caller's [`Control`].
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    fn touch(&self) {
        *lock(&self.last) = Instant::now();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a [`Layer`] does around each call.
pub trait Hook: fmt::Debug + Send + Sync + 'static {
    /// Whether each item of a stream passes through [`around`](Self::around) as well; otherwise
    /// only the start does.
    const EACH_ITEM: bool;

    /// Does `work`, which is what `call` says, or something else in its place. `work` does nothing
    /// before it is awaited.
    fn around<T: Send>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send;
}

/// A pool whose every call, and every call of the volumes opened through it, passes through a hook.
#[derive(Debug)]
pub struct Layer<H> {
    inner: Arc<dyn Pool>,
    hook: Arc<H>,
    label: Arc<str>,
}

impl<H: Hook> Layer<H> {
    /// Puts `hook` around `pool`.
    pub fn around(pool: Arc<dyn Pool>, hook: H) -> Arc<Self> {
        Arc::new(Layer {
            label: pool.to_string().into(),
            inner: pool,
            hook: Arc::new(hook),
        })
    }

    /// The hook.
    pub fn hook(&self) -> &H {
        &self.hook
    }
}

impl<H> fmt::Display for Layer<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

/// `stream` with each item passed through the hook, if it wants that. An error that the hook puts
/// in the place of an item ends the stream.
fn each_item<H: Hook, T: Send + 'static>(
    hook: Arc<H>,
    call: Call,
    stream: BoxStream<'static, Result<T>>,
) -> BoxStream<'static, Result<T>> {
    if !H::EACH_ITEM {
        return stream;
    }
    stream::unfold(Some((hook, call, stream)), |state| async move {
        let (hook, call, mut stream) = state?;
        let item = hook.around(&call, stream.next().map(Ok)).await;
        match item {
            Ok(item) => item.map(|item| (item, Some((hook, call, stream)))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

//! One piece of work, which Python waits for or awaits.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::FutureExt;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use volmux::blocking::Threads;
use volmux::{Error, ErrorKind, Result};

use crate::control::Watch;
use crate::courier::{self, Parcel};
use crate::error::raise;
use crate::values::ToPython;

/// How often a call that waits looks for signals.
const TURN: Duration = Duration::from_millis(50);
/// How long work that was cancelled may take to remove what it had made.
const GRACE: Duration = Duration::from_secs(10);

/// Makes the Python object of what the work came to.
pub type Answer = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

type Work = Pin<Box<dyn Future<Output = Result<Answer>> + Send>>;

/// Work that has not begun.
pub struct Call {
    op: &'static str,
    threads: Threads,
    watch: Option<Watch>,
    work: Work,
}

impl Call {
    pub fn new<T: ToPython + Send + 'static>(
        op: &'static str,
        threads: &Threads,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        let work = async {
            let value = work.await?;
            let answer: Answer = Box::new(|py| value.to_python(py));
            Ok(answer)
        };
        Call {
            op,
            threads: threads.clone(),
            watch: None,
            work: Box::pin(no_panic(op, work)),
        }
    }

    /// Long work, which `watch` can cancel in order.
    pub fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Does the work, with the interpreter released.
    ///
    /// A signal whose handler raises (Ctrl-C) ends it: in order if it has a control, and at once if
    /// it has none, if it takes too long, or at the second signal.
    pub fn wait(mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if self.watch.is_some() {
            self = self.apart().map_err(|error| raise(py, &error))?;
        }
        let (op, threads, work) = (self.op, &self.threads, &mut self.work);
        let mut interrupt: Option<(PyErr, Instant)> = None;
        loop {
            let turn = || threads.block_on(op, async { timeout(TURN, work.as_mut()).await });
            match py.detach(turn) {
                Err(error) => return Err(raise(py, &error)),
                Ok(Ok(result)) => {
                    courier::tell_log(py);
                    let raised = self.watch.as_ref().and_then(Watch::raised);
                    return match interrupt.map(|(error, _)| error).or(raised) {
                        Some(error) => Err(error),
                        None => finish(py, result),
                    };
                }
                Ok(Err(_)) => {}
            }
            match (py.check_signals(), &self.watch, interrupt.take()) {
                (Ok(()), _, None) => {}
                (Ok(()), _, Some((error, until))) if Instant::now() < until => {
                    interrupt = Some((error, until));
                }
                (Err(error), Some(watch), None) => {
                    watch.control.cancel();
                    interrupt = Some((error, Instant::now() + GRACE));
                }
                (Err(error), ..) | (Ok(()), _, Some((error, _))) => {
                    self.abandon(py);
                    return Err(error);
                }
            }
        }
    }

    /// Moves the work to another thread: long work may go on for long without a pause in which somebody
    /// could look for signals.
    fn apart(self) -> Result<Self> {
        let op = self.op;
        let task = AbortOnDropHandle::new(self.threads.spawn(op, self.work)?);
        let ended = |error| Err(Error::new(ErrorKind::Internal, op).with_source(error));
        Ok(Call {
            work: Box::pin(async move { task.await.unwrap_or_else(ended) }),
            ..self
        })
    }

    /// Drops the work where it may start other work.
    fn abandon(self, py: Python<'_>) {
        let Call {
            op, threads, work, ..
        } = self;
        // It fails only where there was nothing to begin with.
        let _ = py.detach(move || threads.block_on(op, async move { drop(work) }));
    }

    /// Begins the work, and returns an `asyncio.Future` of the running event loop.
    ///
    /// Cancelling the future cancels the work; the future is cancelled once the work has ended.
    pub fn begin(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        static PENDING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let event_loop = RUNNING.import(py, "asyncio", "get_running_loop")?.call0()?;
        let stop = CancellationToken::new();
        let pending = PENDING
            .import(py, "volmux._aio", "Pending")?
            .call1((&event_loop, self.stop(&stop)))?;
        let finish = pending.getattr("_finish")?;
        let place = (event_loop.unbind(), finish.unbind());
        let (op, threads) = (self.op, self.threads.clone());
        let work = async move {
            let watch = self.watch.clone();
            let result = self.until(stop).await;
            let raised = watch.as_ref().and_then(Watch::raised);
            let (event_loop, finish) = place;
            courier::send(Parcel {
                event_loop,
                finish,
                answer: Box::new(move |py| match (raised, result) {
                    (Some(error), _) => Err(error),
                    (None, Some(result)) => self::finish(py, result),
                    (None, None) => Ok(py.None()),
                }),
            });
        };
        // Its handle is not needed: the future is how the work is watched and stopped.
        let begun = threads.spawn(op, work).map(drop);
        begun.map_err(|error| raise(py, &error))?;
        Ok(pending.unbind())
    }

    fn stop(&self, work: &CancellationToken) -> Stop {
        Stop {
            control: self.watch.as_ref().map(|watch| watch.control.clone()),
            work: work.clone(),
        }
    }

    /// The work's result; `None` if it was stopped before it came to an end.
    async fn until(mut self, stop: CancellationToken) -> Option<Result<Answer>> {
        tokio::select! {
            biased;
            result = &mut self.work => return Some(result),
            () = stop.cancelled() => {}
        }
        self.watch?;
        timeout(GRACE, self.work).await.ok()
    }
}

fn finish(py: Python<'_>, result: Result<Answer>) -> PyResult<Py<PyAny>> {
    match result {
        Ok(answer) => answer(py),
        Err(error) => Err(raise(py, &error)),
    }
}

/// A future of the running event loop that is done already.
pub fn ready(py: Python<'_>, value: Py<PyAny>) -> PyResult<Py<PyAny>> {
    static READY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let ready = READY.import(py, "volmux._aio", "ready")?;
    ready.call1((value,)).map(Bound::unbind)
}

/// A panic is a fault of volmux, and must not leave somebody waiting for ever.
async fn no_panic<T>(op: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        Err(Error::new(ErrorKind::Internal, op)
            .reason(text.unwrap_or("it panicked"))
            .help("this is a fault in volmux: please report it"))
    })
}

/// Stops the work of a future. For `volmux._aio` alone.
#[pyclass(frozen)]
struct Stop {
    /// Looked at by the work itself, which may have no pause in which it could be stopped.
    control: Option<volmux::Control>,
    work: CancellationToken,
}

#[pymethods]
impl Stop {
    fn __call__(&self, py: Python<'_>) {
        py.detach(|| {
            self.control.iter().for_each(volmux::Control::cancel);
            self.work.cancel();
        });
    }
}

/// Methods that wait, and for each one that is awaited, from one body; and then others. A class has
/// one block of methods, so all are here.
macro_rules! both_ways {
    (
        impl $class:ident {
            $(
                $(#[doc = $doc:literal])+
                #[args($($args:tt)*)]
                fn $name:ident | $awaited:ident(
                    &$this:ident, $py:ident: Python $(, $arg:ident: $kind:ty)* $(,)?
                ) $body:block
            )*
        }
        $($rest:tt)*
    ) => {
        #[pymethods]
        impl $class {
            $(
                $(#[doc = $doc])+
                #[pyo3(signature = ($($args)*))]
                fn $name(&$this, $py: Python<'_> $(, $arg: $kind)*) -> PyResult<Py<PyAny>> {
                    let begun: Result<$crate::call::Call, $crate::error::Failure> = (|| $body)();
                    begun?.wait($py)
                }

                #[doc = concat!("As `", stringify!($name), "`, to be awaited.")]
                #[pyo3(signature = ($($args)*))]
                fn $awaited(&$this, $py: Python<'_> $(, $arg: $kind)*) -> PyResult<Py<PyAny>> {
                    let begun: Result<$crate::call::Call, $crate::error::Failure> = (|| $body)();
                    begun?.begin($py)
                }
            )*
            $($rest)*
        }
    };
}

pub(crate) use both_ways;

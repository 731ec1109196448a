//! Progress and cancellation of long work.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::courier;
use crate::values;

/// Watches and stops long work: pass it as `control=`.
///
/// `progress` is called with a `Progress` as work goes on, in the thread that works, which is never
/// the caller's: use `loop.call_soon_threadsafe` for what belongs to an event loop. It must be quick,
/// and must not call the pool. If it raises, the work is cancelled, what it had made is removed, and
/// the call raises that exception.
///
/// One control may be passed to several calls; cancelling it cancels them all, and those that come.
#[pyclass(frozen, module = "volmux")]
#[derive(Debug)]
pub struct Control {
    cancel: CancellationToken,
    progress: Option<Py<PyAny>>,
}

#[pymethods]
impl Control {
    #[new]
    #[pyo3(signature = (progress=None))]
    fn new(py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Self> {
        if progress.as_ref().is_some_and(|p| !p.bind(py).is_callable()) {
            return Err(PyTypeError::new_err("progress must be callable"));
        }
        Ok(Control {
            cancel: CancellationToken::new(),
            progress,
        })
    }

    /// Asks the work to stop, from any thread. It raises `TimedOut`, once what it had made is removed.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.cancel.cancel());
    }

    /// Whether it was asked to stop.
    #[getter]
    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn __repr__(&self) -> String {
        let cancelled = if self.cancelled() { "True" } else { "False" };
        format!("<volmux.Control cancelled={cancelled}>")
    }
}

/// The control of one call.
#[derive(Clone, Default)]
pub struct Watch {
    pub control: volmux::Control,
    /// What the callback raised.
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Watch {
    /// That of a call that was given `control`, or none: it can be cancelled in any case.
    pub fn new(py: Python<'_>, control: Option<&Bound<'_, Control>>) -> Self {
        let mut watch = Watch::default();
        let Some(given) = control.map(Bound::get) else {
            return watch;
        };
        // Its own, for who interrupts a call does not cancel the others.
        let cancel = given.cancel.child_token();
        watch.control = watch.control.with_cancel(cancel.clone());
        if let Some(progress) = &given.progress {
            let (callback, raised) = (progress.clone_ref(py), watch.raised.clone());
            watch.control = watch.control.with_progress(move |progress| {
                if cancel.is_cancelled() {
                    return;
                }
                let told = courier::attach(|py| {
                    let progress = values::progress(py, progress)?;
                    callback.call1(py, (progress,)).map(drop)
                });
                if let Some(Ok(())) = told {
                    return;
                }
                let raise = told.and_then(Result::err);
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = raise;
                cancel.cancel();
            });
        }
        watch
    }

    /// What the callback raised, if it did.
    pub fn raised(&self) -> Option<PyErr> {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        raised.take()
    }
}

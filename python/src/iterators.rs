//! Streams of volumes and extents, for `for` and for `async for`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use volmux::blocking::Threads;
use volmux::{ByteRange, ExtentStream, Grade, Result, Volume};

use crate::call::{self, Call};
use crate::error::{Failure, raise, wrong};
use crate::handle::dispose;
use crate::values::{self, ToPython};

/// Items that are fetched at once, if they are there without waiting.
const AHEAD: usize = 256;

enum Source<T> {
    Idle(BoxStream<'static, Result<T>>),
    /// A call has it, or had it when it was interrupted.
    Taken,
    Ended,
}

struct State<T> {
    ready: VecDeque<Result<T>>,
    source: Source<T>,
}

/// What an iterator has fetched, and where the rest comes from.
struct Items<T: Send + 'static> {
    op: &'static str,
    state: Mutex<State<T>>,
    threads: Threads,
}

impl<T: Send + 'static> Items<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Drop for Items<T> {
    fn drop(&mut self) {
        let mut state = self.lock();
        let source = std::mem::replace(&mut state.source, Source::Ended);
        drop(state);
        if let Source::Idle(stream) = source {
            dispose(&self.threads, stream);
        }
    }
}

/// A step of an iterator.
enum Step<T> {
    Item(Result<T>),
    End,
    /// Nothing is ready: this fetches more.
    Fetch(Call),
}

impl<T: ToPython + Send + 'static> Items<T> {
    fn new(
        op: &'static str,
        stream: BoxStream<'static, Result<T>>,
        threads: &Threads,
    ) -> Arc<Self> {
        let state = State {
            ready: VecDeque::new(),
            source: Source::Idle(stream),
        };
        Arc::new(Items {
            op,
            state: Mutex::new(state),
            threads: threads.clone(),
        })
    }

    /// The next item, or the call that returns it.
    fn step(self: &Arc<Self>) -> Result<Step<T>, Failure> {
        let mut state = self.lock();
        if let Some(item) = state.ready.pop_front() {
            return Ok(Step::Item(item));
        }
        match std::mem::replace(&mut state.source, Source::Taken) {
            Source::Idle(stream) => Ok(Step::Fetch(self.fetch(stream))),
            Source::Taken => {
                let reason = "another call of this iterator is not done, or was interrupted";
                Err(wrong(self.op, reason).help("begin again").into())
            }
            Source::Ended => {
                state.source = Source::Ended;
                Ok(Step::End)
            }
        }
    }

    fn fetch(self: &Arc<Self>, mut stream: BoxStream<'static, Result<T>>) -> Call {
        let items = self.clone();
        Call::new(self.op, &self.threads, async move {
            let mut ready = VecDeque::new();
            let mut next = stream.next().await;
            let mut ended = false;
            while let Some(item) = next {
                ready.push_back(item);
                if ready.len() == AHEAD {
                    break;
                }
                match stream.next().now_or_never() {
                    Some(more) => next = more,
                    None => break,
                }
                ended = next.is_none();
            }
            ended |= ready.is_empty();
            let mut state = items.lock();
            state.source = if ended {
                Source::Ended
            } else {
                Source::Idle(stream)
            };
            let item = ready.pop_front().transpose();
            state.ready = ready;
            drop(state);
            Ok(Fetched(item?))
        })
    }

    fn next(self: &Arc<Self>, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.step()? {
            Step::Item(Ok(item)) => item.to_python(py).map(Some),
            Step::Item(Err(error)) => Err(raise(py, &error)),
            Step::End => Ok(None),
            Step::Fetch(call) => match call.wait(py) {
                Ok(item) => Ok(Some(item)),
                Err(end) if end.is_instance_of::<PyStopAsyncIteration>(py) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    fn next_async(self: &Arc<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.step()? {
            Step::Item(Ok(item)) => call::ready(py, item.to_python(py)?),
            Step::Item(Err(error)) => Err(raise(py, &error)),
            Step::End => Err(PyStopAsyncIteration::new_err(())),
            Step::Fetch(call) => call.begin(py),
        }
    }
}

/// The first of what was fetched, or the end.
struct Fetched<T>(Option<T>);

impl<T: ToPython> ToPython for Fetched<T> {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.0 {
            Some(item) => item.to_python(py),
            None => Err(PyStopAsyncIteration::new_err(())),
        }
    }
}

/// The volumes of a pool, for `for` and for `async for`; see `Pool.list_volumes`.
#[pyclass(frozen, module = "volmux")]
pub(crate) struct VolumeIterator(Arc<Items<Volume>>);

impl VolumeIterator {
    pub fn new(stream: BoxStream<'static, Result<Volume>>, threads: &Threads) -> Self {
        VolumeIterator(Items::new("list_volumes", stream, threads))
    }
}

#[pymethods]
impl VolumeIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.0.next(py)
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.0.next_async(py)
    }
}

/// Extents (`ByteRange`) in ascending order, never empty, never overlapping, for `for` and for
/// `async for`; see `Pool.extents`. They begin and end on multiples of `granularity`, but where they
/// are cut by what was asked for, or by the volume's end.
#[pyclass(frozen, module = "volmux")]
pub(crate) struct ExtentIterator {
    items: Arc<Items<ByteRange>>,
    grade: Grade,
    granularity: u64,
}

impl ExtentIterator {
    pub fn new(stream: ExtentStream, threads: &Threads) -> Self {
        ExtentIterator {
            grade: stream.grade(),
            granularity: stream.granularity(),
            items: Items::new("extents", stream.boxed(), threads),
        }
    }
}

impl ToPython for ExtentIterator {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(Bound::new(py, self)?.into_any().unbind())
    }
}

#[pymethods]
impl ExtentIterator {
    /// How much they can be relied on. No extent is ever left out.
    #[getter]
    fn grade(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        values::grade(py, self.grade)
    }

    /// The unit, in bytes, in which the pool tells blocks apart.
    #[getter]
    fn granularity(&self) -> u64 {
        self.granularity
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.items.next(py)
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.items.next_async(py)
    }
}

//! Snapshots of several volumes of one moment.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use volmux::blocking::{Freezer, FreezerThreads, Threads};
use volmux::group::{self, GroupOptions, Member};
use volmux::{Error, ErrorKind};

use crate::args::Name;
use crate::call::Call;
use crate::control::{Control, Watch};
use crate::courier;
use crate::error::{Failure, wrong};
use crate::pool::Pool;

const OP: &str = "snapshot_group";

/// What is called to freeze and to thaw.
struct Functions {
    freeze: Py<PyAny>,
    thaw: Py<PyAny>,
}

fn call(function: &Py<PyAny>, name: &str) -> volmux::Result<()> {
    let failed = |why: &str| Error::new(ErrorKind::Unavailable, OP).reason(format!("{name} {why}"));
    match courier::attach(|py| function.call0(py).map(drop)) {
        Some(Ok(())) => Ok(()),
        Some(Err(raised)) => Err(failed(&format!("raised {raised}")).with_source(raised)),
        None => Err(failed("can't be called: the interpreter ends")),
    }
}

impl Freezer for Functions {
    fn freeze(&self) -> volmux::Result<()> {
        call(&self.freeze, "freeze")
    }

    fn thaw(&self) -> volmux::Result<()> {
        call(&self.thaw, "thaw")
    }
}

/// What both functions are given.
struct Wanted<'a, 'py> {
    members: &'a Bound<'py, PyAny>,
    freeze: Bound<'py, PyAny>,
    thaw: Bound<'py, PyAny>,
    deadline: f64,
    control: Option<&'a Bound<'py, Control>>,
}

impl Wanted<'_, '_> {
    fn begun(self) -> Result<Call, Failure> {
        let py = self.members.py();
        for (name, function) in [("freeze", &self.freeze), ("thaw", &self.thaw)] {
            if !function.is_callable() {
                return Err(PyTypeError::new_err(format!("{name} must be callable")).into());
            }
        }
        let mut members = Vec::new();
        let mut threads = None;
        for member in self.members.try_iter()? {
            let (pool, volume, snapshot): (Bound<'_, Pool>, Name, Name) = member?.extract()?;
            let (pool, own) = pool.get().opened(OP)?;
            threads = Some(own);
            members.push(Member {
                pool,
                volume: volume.0,
                snapshot: snapshot.0,
            });
        }
        let deadline = Duration::try_from_secs_f64(self.deadline);
        let deadline = deadline.ok().filter(|deadline| !deadline.is_zero());
        let watch = Watch::new(py, self.control);
        let options = GroupOptions {
            deadline: deadline.ok_or_else(|| {
                wrong(OP, "the deadline must be a number of seconds, more than 0")
                    .with("deadline", self.deadline)
            })?,
            control: watch.control.clone(),
        };
        let freezer = Arc::new(FreezerThreads::new(Functions {
            freeze: self.freeze.unbind(),
            thaw: self.thaw.unbind(),
        }));
        let threads = threads.map_or_else(Threads::shared, Ok)?;
        let work = async move {
            let done = group::snapshot_group(members, freezer.clone(), options).await;
            freezer.ended().await;
            done
        };
        Ok(Call::new(OP, &threads, work).watched(watch))
    }
}

/// Calls `freeze`, takes a snapshot of each member, all at once, and calls `thaw`: so the snapshots are of
/// one moment. A member is a tuple of a pool, a volume's name and the name of the snapshot to be made. The
/// snapshots are returned in the same order.
///
/// `freeze` makes what writes the volumes stand still (a guest's file systems by its agent, a data base), and
/// `thaw` lets it go on. Each is called without arguments, in a thread of its own, and fails by raising. Writing
/// stands still for `deadline` seconds at most from when `freeze` is called; then `thaw` is called, whatever
/// the pools do. It is called after every `freeze`, also one that raised or still runs, again if it raises, and
/// once more after a `freeze` that returns late. What can be found wrong before is found before `freeze` is
/// called. The snapshots' names must be this call's alone.
///
/// If anything fails, no snapshot is left that was made here; `Error.get("left_behind")` names those that could
/// not be removed. Raises `InvalidInput` for no member or a snapshot that is named twice, `AlreadyExists` if one
/// is there, `TimedOut` at the deadline and if `control` is cancelled, `Unavailable` with the exception as
/// `__cause__` if `freeze` or `thaw` raised, and what `Pool.snapshot_volume` raises.
#[pyfunction]
#[pyo3(signature = (members, *, freeze, thaw, deadline = 10.0, control = None))]
pub fn snapshot_group(
    py: Python<'_>,
    members: &Bound<'_, PyAny>,
    freeze: Bound<'_, PyAny>,
    thaw: Bound<'_, PyAny>,
    deadline: f64,
    control: Option<&Bound<'_, Control>>,
) -> PyResult<Py<PyAny>> {
    let wanted = Wanted {
        members,
        freeze,
        thaw,
        deadline,
        control,
    };
    wanted.begun()?.wait(py)
}

/// As `snapshot_group`, to be awaited. `freeze` and `thaw` may be coroutine functions, which run in the event loop.
#[pyfunction]
#[pyo3(signature = (members, *, freeze, thaw, deadline = 10.0, control = None))]
pub fn snapshot_group_async(
    py: Python<'_>,
    members: &Bound<'_, PyAny>,
    freeze: Bound<'_, PyAny>,
    thaw: Bound<'_, PyAny>,
    deadline: f64,
    control: Option<&Bound<'_, Control>>,
) -> PyResult<Py<PyAny>> {
    static FROM_THREADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let from_threads = FROM_THREADS.import(py, "volmux._aio", "from_threads")?;
    let wanted = Wanted {
        members,
        freeze: from_threads.call1((freeze,))?,
        thaw: from_threads.call1((thaw,))?,
        deadline,
        control,
    };
    wanted.begun()?.begin(py)
}

//! What comes from threads of volmux to Python: results for event loops, and the log.
//!
//! Threads of volmux never wait for the interpreter to deliver something: they hold locks, and whoever
//! has the interpreter may wait for those. They leave it in a queue, and one thread carries it on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::call::Answer;

/// Records that wait; what comes when there are so many is counted and dropped.
const RECORDS: usize = 10_000;
/// How long the interpreter's end waits for deliveries and callbacks that are under way.
const LAST: Duration = Duration::from_secs(1);

/// A result for an event loop.
pub struct Parcel {
    pub event_loop: Py<PyAny>,
    /// What the loop shall call with a value and an exception.
    pub finish: Py<PyAny>,
    pub answer: Answer,
}

/// An event for `logging`.
pub struct Record {
    pub level: u8,
    pub logger: String,
    pub file: Option<&'static str>,
    pub line: u32,
    pub message: String,
}

#[derive(Default)]
struct Courier {
    queue: Mutex<Queue>,
    more: Condvar,
    /// Whether there are records, so that who has none to tell takes no lock.
    records: AtomicBool,
}

#[derive(Default)]
struct Queue {
    parcels: Vec<Parcel>,
    records: VecDeque<Record>,
    lost: usize,
    started: bool,
}

/// That of this process.
static CURRENT: AtomicPtr<Courier> = AtomicPtr::new(std::ptr::null_mut());
/// Whether the interpreter is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Calls of `attach` that are under way.
static ATTACHING: AtomicUsize = AtomicUsize::new(0);

fn current() -> &'static Courier {
    let there = CURRENT.load(Ordering::Acquire);
    // SAFETY: what is stored comes from `Box::leak`, so it is valid for ever.
    if let Some(courier) = unsafe { there.as_ref() } {
        return courier;
    }
    let new: &'static mut Courier = Box::leak(Box::default());
    let swapped = CURRENT.compare_exchange(there, new, Ordering::AcqRel, Ordering::Acquire);
    let winner = swapped.map_or_else(
        |other| other.cast_const(),
        |_| CURRENT.load(Ordering::Acquire),
    );
    // SAFETY: as above, and one of the two is there.
    unsafe { &*winner }
}

/// For a child that was forked: it has neither the parent's thread nor its results.
pub fn after_fork() {
    ATTACHING.store(0, Ordering::SeqCst);
    // The old one is left as it is: its locks may be those of threads that are not there.
    CURRENT.store(Box::leak(Box::default()), Ordering::Release);
}

/// Calls `work` with the interpreter, if there will be one. Only for threads that hold no lock.
///
/// A thread that asks for the interpreter while that ends would bring the process down.
pub fn attach<R>(work: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    ATTACHING.fetch_add(1, Ordering::SeqCst);
    let done = match ENDING.load(Ordering::SeqCst) {
        true => None,
        false => Python::try_attach(work),
    };
    ATTACHING.fetch_sub(1, Ordering::SeqCst);
    done
}

/// Delivers a result, soon.
pub fn send(parcel: Parcel) {
    current().put(|queue| queue.parcels.push(parcel));
}

/// Tells the log of an event, soon.
pub fn log(record: Record) {
    let courier = current();
    courier.put(|queue| {
        if queue.records.len() < RECORDS {
            queue.records.push_back(record);
        } else {
            queue.lost += 1;
        }
        courier.records.store(true, Ordering::Release);
    });
}

/// Tells the log now of what there is, so that a call's records are there before it returns.
pub fn tell_log(py: Python<'_>) {
    let courier = current();
    if !courier.records.load(Ordering::Acquire) {
        return;
    }
    let (records, lost) = {
        let mut queue = courier.lock();
        courier.records.store(false, Ordering::Release);
        let lost = std::mem::take(&mut queue.lost);
        (std::mem::take(&mut queue.records), lost)
    };
    static EMIT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let Ok(emit) = EMIT.import(py, "volmux._log", "emit") else {
        return;
    };
    for record in records {
        let Record {
            level,
            logger,
            file,
            line,
            message,
        } = record;
        let told = emit.call1((level, logger, file, line, message, lost));
        if let Err(error) = told {
            error.write_unraisable(py, Some(emit));
        }
    }
}

/// The interpreter is about to end: nothing is delivered any more.
pub fn end(py: Python<'_>) {
    tell_log(py);
    ENDING.store(true, Ordering::SeqCst);
    py.detach(|| {
        let until = Instant::now() + LAST;
        while ATTACHING.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    });
}

impl Courier {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&'static self, add: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        add(&mut queue);
        if !queue.started {
            let thread = thread::Builder::new().name("volmux-courier".into());
            // Without a thread it is tried again with what comes next.
            queue.started = thread.spawn(|| self.run()).is_ok();
        }
        drop(queue);
        self.more.notify_one();
    }

    fn run(&'static self) {
        loop {
            let parcels = self.next();
            attach(|py| {
                tell_log(py);
                deliver(py, parcels);
            });
        }
    }

    fn next(&self) -> Vec<Parcel> {
        let nothing = |queue: &mut Queue| queue.parcels.is_empty() && queue.records.is_empty();
        let waited = self.more.wait_while(self.lock(), nothing);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut queue.parcels)
    }
}

fn deliver(py: Python<'_>, parcels: Vec<Parcel>) {
    for parcel in parcels {
        let (value, error) = match (parcel.answer)(py) {
            Ok(value) => (value, py.None()),
            Err(error) => (py.None(), error.into_value(py).into_any()),
        };
        let event_loop = parcel.event_loop.bind(py);
        let call = ("call_soon_threadsafe", (parcel.finish, value, error));
        // A loop that is closed by now waits for nothing.
        let _ = event_loop.call_method1(call.0, call.1);
    }
}

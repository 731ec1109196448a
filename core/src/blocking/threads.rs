//! The threads that calls run on, and what a fork leaves of them.

use std::process;
use std::sync::{Arc, Mutex, Weak};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

use crate::{Error, ErrorKind, Result};

/// The threads that a pool's calls run on. Pools that share one share its threads.
#[derive(Clone, Debug)]
pub struct Threads(Arc<Owned>);

/// A runtime that can be dropped anywhere.
#[derive(Debug)]
struct Owned {
    runtime: Option<Runtime>,
    /// The process that has the threads.
    process: u32,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        match self.process == process::id() {
            // Dropping would wait for work that runs, which panics within another runtime.
            true => runtime.shutdown_background(),
            // It would wait for threads that are not there.
            false => std::mem::forget(runtime),
        }
    }
}

/// Those of [`Threads::shared`].
static SHARED: Mutex<Weak<Owned>> = Mutex::new(Weak::new());

impl Threads {
    /// Starts as many threads as there are processors.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no threads.
    pub fn new() -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("volmux")
            .build()
            .map_err(|error| Error::from_io("start_threads", error))?;
        Ok(Threads(Arc::new(Owned {
            runtime: Some(runtime),
            process: process::id(),
        })))
    }

    /// Those that everybody in this process who calls this shares. They are started when there are
    /// none, and end with the last who has them.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shared() -> Result<Self> {
        // A child of a fork must not wait for a lock that a thread of the parent had.
        let Ok(mut shared) = SHARED.try_lock() else {
            return Threads::new();
        };
        if let Some(owned) = shared.upgrade() {
            let threads = Threads(owned);
            if !threads.are_elsewhere() {
                return Ok(threads);
            }
        }
        let threads = Threads::new()?;
        *shared = Arc::downgrade(&threads.0);
        Ok(threads)
    }

    /// Whether this is a child of the process that has them.
    pub fn are_elsewhere(&self) -> bool {
        self.0.process != process::id()
    }

    /// Does `work`, and returns when it is done.
    ///
    /// # Errors
    /// `InvalidInput` within an async runtime, and in a child of the process that has the threads.
    pub fn block_on<T>(&self, op: &'static str, work: impl Future<Output = T>) -> Result<T> {
        if Handle::try_current().is_ok() {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .reason("a blocking call was made from within an async runtime")
                .help("use the async Pool there, or call from a thread of your own"));
        }
        Ok(self.runtime(op)?.block_on(work))
    }

    /// Begins `work`, which goes on by itself. Dropping what is returned does not stop it.
    ///
    /// # Errors
    /// `InvalidInput` in a child of the process that has the threads.
    pub fn spawn<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        Ok(self.runtime(op)?.spawn(work))
    }

    fn runtime(&self, op: &'static str) -> Result<&Runtime> {
        if self.are_elsewhere() {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .with("opened_by", self.0.process)
                .with("process", process::id())
                .reason("this was opened before the process forked")
                .help("open the pool in the process that uses it"));
        }
        let runtime = self.0.runtime.as_ref();
        Ok(runtime.expect("it stays until it is dropped"))
    }
}

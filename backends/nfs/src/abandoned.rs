//! Order between requests that were given up and those that come after them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt};

/// Requests whose futures were dropped while they ran. A thread in a system call can't be called
/// back, so whoever comes next waits for them: otherwise an old write could land on a newer one.
#[derive(Default)]
pub struct Abandoned {
    count: AtomicUsize,
    incoming: Mutex<Vec<BoxFuture<'static, ()>>>,
    draining: tokio::sync::Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl Abandoned {
    fn add(&self, task: BoxFuture<'static, ()>) {
        self.incoming
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(task);
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits until none is left of those that were abandoned before this call.
    pub async fn settle(&self) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        // Kept in the lock, so that this future can be dropped too without losing any.
        let mut draining = self.draining.lock().await;
        draining.append(&mut self.incoming.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(task) = draining.last_mut() {
            task.await;
            draining.pop();
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// A running request, which is handed to [`Abandoned`] if its future is dropped.
pub struct Running<'a, T: Send + 'static> {
    /// Taken out once it is done.
    pub task: Option<tokio::task::JoinHandle<io::Result<T>>>,
    /// Where it goes otherwise.
    pub abandoned: &'a Abandoned,
}

impl<T: Send + 'static> Drop for Running<'_, T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            // One that has not started yet never will.
            task.abort();
            self.abandoned.add(task.map(drop).boxed());
        }
    }
}

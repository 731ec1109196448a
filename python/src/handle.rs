//! What a Python object holds open.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::ffi;
use pyo3::prelude::*;
use volmux::blocking::Threads;

use crate::error::{Failure, wrong};

/// Something open, until it is closed. In a child of the process that opened it, it is neither used
/// nor dropped: that is the parent's business.
pub struct Handle<T: Send + 'static> {
    inner: Mutex<Option<T>>,
    threads: Threads,
}

impl<T: Send + 'static> Handle<T> {
    pub fn new(inner: T, threads: &Threads) -> Self {
        Handle {
            inner: Mutex::new(Some(inner)),
            threads: threads.clone(),
        }
    }

    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    pub fn is_closed(&self) -> bool {
        self.lock().is_none()
    }

    /// What is open.
    pub fn get(&self, op: &'static str) -> Result<T, Failure>
    where
        T: Clone,
    {
        self.lock().clone().ok_or_else(|| closed(op))
    }

    /// What `look` finds out about it. It is called without the interpreter and without the lock, for
    /// it may wait for a thread that waits for either.
    pub fn with<R: Send>(
        &self,
        py: Python<'_>,
        op: &'static str,
        look: impl Send + FnOnce(&T) -> R,
    ) -> Result<R, Failure>
    where
        T: Clone,
    {
        let inner = self.get(op)?;
        Ok(py.detach(move || look(&inner)))
    }

    /// As `with`, for what can't be cloned. `look` waits for nobody who may want this.
    pub fn with_locked<R: Send>(
        &self,
        py: Python<'_>,
        op: &'static str,
        look: impl Send + FnOnce(&T) -> R,
    ) -> Result<R, Failure> {
        py.detach(|| self.lock().as_ref().map(look))
            .ok_or_else(|| closed(op))
    }

    /// Takes it out, so that it is closed from now on.
    pub fn close(&self) -> Option<T> {
        let inner = self.lock().take()?;
        if self.threads.are_elsewhere() {
            std::mem::forget(inner);
            return None;
        }
        Some(inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed(op: &'static str) -> Failure {
    wrong(op, "this was closed before")
        .help("open it again")
        .into()
}

/// Drops `inner` without the interpreter, which others may need meanwhile.
pub fn dispose<T: Send>(threads: &Threads, inner: T) {
    if threads.are_elsewhere() {
        std::mem::forget(inner);
        return;
    }
    let mut inner = Some(inner);
    // SAFETY: it looks at what this thread has, and may be called without the interpreter.
    let of_python = unsafe { !ffi::PyGILState_GetThisThreadState().is_null() };
    if of_python {
        Python::try_attach(|py| py.detach(|| drop(inner.take())));
    }
}

impl<T: Send + 'static> Drop for Handle<T> {
    fn drop(&mut self) {
        if let Some(inner) = self.close() {
            dispose(&self.threads, inner);
        }
    }
}

//! What a broken pool remembers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use volmux::{Attachment, BlockDevice, Error, ErrorKind, VolumeName};

use crate::device::Late;
use crate::flaw::Flaw;

#[derive(Debug)]
struct Open {
    name: VolumeName,
    device: Weak<dyn BlockDevice>,
    writing: bool,
}

/// Shared by all handles on one pool.
#[derive(Debug)]
pub struct State {
    pub flaw: Flaw,
    open: Mutex<Vec<Open>>,
    kept: Mutex<Vec<Arc<dyn BlockDevice>>>,
    wedged: Mutex<HashSet<String>>,
    pub late: Mutex<Vec<Late>>,
    pub reverted: Mutex<HashSet<(VolumeName, VolumeName)>>,
    pub attached: Mutex<HashMap<(VolumeName, String), Attachment>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("not poisoned")
}

impl State {
    pub fn new(flaw: Flaw) -> Arc<State> {
        Arc::new(State {
            flaw,
            open: Mutex::default(),
            kept: Mutex::default(),
            wedged: Mutex::default(),
            late: Mutex::default(),
            reverted: Mutex::default(),
            attached: Mutex::default(),
        })
    }

    /// Remembers an open volume of the pool that is broken.
    pub fn opened(&self, name: &VolumeName, device: &Arc<dyn BlockDevice>, writing: bool) {
        if self.flaw == Flaw::HandlesLeak {
            lock(&self.kept).push(device.clone());
        }
        lock(&self.open).push(Open {
            name: name.clone(),
            device: Arc::downgrade(device),
            writing,
        });
    }

    pub fn writer(&self, name: &VolumeName) -> Option<Arc<dyn BlockDevice>> {
        let open = lock(&self.open);
        let mut writers = open.iter().rev().filter(|o| o.writing && o.name == *name);
        writers.find_map(|o| o.device.upgrade())
    }

    pub fn in_use(&self, name: &VolumeName) -> bool {
        let open = lock(&self.open);
        let mut matching = open.iter().filter(|o| o.name == *name);
        matching.any(|o| o.device.strong_count() > 0)
    }

    /// With the flaw `DropWedges`: marks `what` until the guard is told that all went well.
    pub async fn wedge(&self, op: &'static str, what: &str) -> Result<Option<Wedge<'_>>, Error> {
        if self.flaw != Flaw::DropWedges {
            return Ok(None);
        }
        if !lock(&self.wedged).insert(format!("{op} {what}")) {
            return Err(Error::new(ErrorKind::Internal, op).reason("locked for ever"));
        }
        let wedge = Wedge {
            state: self,
            key: format!("{op} {what}"),
        };
        tokio::task::yield_now().await;
        Ok(Some(wedge))
    }

    /// Breaks errors.
    pub fn error(&self, error: Error) -> Error {
        match (self.flaw, error.kind()) {
            (Flaw::ErrorsLoseNames, kind) => Error::new(kind, error.op()),
            (Flaw::UnsupportedIsInternal, ErrorKind::Unsupported)
            | (Flaw::CancelIsInternal, ErrorKind::TimedOut) => error.with_kind(ErrorKind::Internal),
            (Flaw::MissingIsUnavailable, ErrorKind::NotFound) => {
                error.with_kind(ErrorKind::Unavailable)
            }
            _ => error,
        }
    }
}

pub struct Wedge<'a> {
    state: &'a State,
    key: String,
}

impl Wedge<'_> {
    pub fn free(wedge: Option<Self>) {
        if let Some(wedge) = wedge {
            lock(&wedge.state.wedged).remove(&wedge.key);
        }
    }
}

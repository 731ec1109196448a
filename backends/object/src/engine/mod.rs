//! The engine: one open volume's content, read and written.
//!
//! Data flows one way: a write goes into the object that is being filled ([`building`]), which is
//! sealed when it is full or a flush asks for it, uploaded ([`upload`]), and committed by a manifest
//! ([`commit`]). Once in a while the changes since the last checkpoint become pages of the map
//! ([`checkpoint`]). Reads ask these places in the opposite order ([`read`]).

mod ahead;
mod buffers;
mod building;
mod checkpoint;
mod commit;
mod frames;
mod load;
mod read;
mod ready;
mod relocate;
mod slots;
mod state;
mod upload;
mod view;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore};
use volmux_core::{Error, ErrorKind, Result};

use self::ahead::Ahead;
use self::commit::{Committed, Progress};
use self::state::{State, Writer};
use crate::journal::Journal;
use crate::keys::LogId;
use crate::owner::Living;
use crate::seal::Damage;
use crate::shared::Shared;
use crate::tip::Tip;
use crate::watched::Watched;

pub(crate) use self::ahead::MOST as MOST_AHEAD;
pub(crate) use self::buffers::Buffers;
pub(crate) use self::building::{Building, Sealed};
pub(crate) use self::checkpoint::{IN_FLIGHT, page_name};
pub(crate) use self::load::Following;

/// One open volume. All handles of one pool object that have it open share it.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    me: Weak<Engine>,
    state: Mutex<State>,
    ahead: Ahead,
    /// Whose commits a reader follows; a writer once it has ended.
    following: AsyncMutex<Option<Following>>,
    /// What a reader reads that follows nobody.
    fixed: Option<Tip>,
    /// Only while the volume is open for writing.
    role: Option<Role>,
}

/// What a writer has besides the content.
#[derive(Debug)]
struct Role {
    log: LogId,
    living: Living,
    /// Uploads that may go on at once.
    uploads: Semaphore,
    /// Told whenever an upload ends, or fails for the time being.
    stored: Notify,
    /// Told whenever there is something to commit, or to end.
    wanted: Notify,
    requests: Mutex<Requests>,
    progress: Watched<Progress>,
    committed: Mutex<Committed>,
    /// Held while a checkpoint is made.
    checkpointing: AsyncMutex<()>,
    journal: Option<Journal>,
    /// What is written is in the journal already.
    replaying: AtomicBool,
    /// See `Manifest::pin`.
    pin: Option<Tip>,
    /// What keeps others from collecting what is in use and not committed. Dropped after `living`:
    /// whoever sees that this is gone sees that the writer is.
    kept: Mutex<Vec<Arc<Living>>>,
}

/// What is wanted of the committing task.
#[derive(Debug, Default)]
struct Requests {
    /// Commit everything up to this change.
    change: u64,
    /// Commit what there is and end.
    close: bool,
    /// Another writer has taken over: nothing may be written any more.
    fenced: bool,
    /// The end has come: what is not in the store yet is given up.
    given_up: bool,
    /// Why the last upload failed, until one succeeds.
    trouble: Option<Trouble>,
}

/// A failure that goes to everybody who waits.
#[derive(Clone, Debug)]
pub(crate) struct Trouble(Arc<Error>);

impl Trouble {
    pub(crate) fn new(error: Error) -> Self {
        Trouble(Arc::new(error))
    }

    /// The error, in the words of one who waited for it.
    pub(crate) fn error(&self, op: &'static str) -> Error {
        let mut error = Error::new(self.0.kind(), op);
        for (key, value) in self.0.context() {
            error = error.with(key, value);
        }
        error
    }
}

impl Engine {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, short of a fault in the allocator.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was made for writing.
    pub(crate) fn is_writer(&self) -> bool {
        self.role.is_some()
    }

    /// Bytes that were written and are not in the store yet.
    pub(crate) fn pending(&self) -> usize {
        self.lock().writer.as_ref().map_or(0, Writer::held)
    }

    /// Whether it was asked to end, or can't go on.
    pub(crate) fn is_ending(&self) -> bool {
        self.role.as_ref().is_some_and(|role| {
            let requests = role.requests();
            requests.close || requests.fenced
        })
    }

    /// Whether it was for writing, and has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let role = self.role.as_ref();
        role.is_some_and(|role| role.progress.now().ended)
    }

    /// Whether it reads this, and nothing newer.
    pub(crate) fn is_fixed_to(&self, tip: &Tip) -> bool {
        self.fixed.as_ref() == Some(tip)
    }

    /// The writing side's tools.
    fn role(&self, op: &'static str) -> Result<&Role> {
        self.role.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, op)
                .reason("the volume is open for reading only")
                .help("open it for writing")
        })
    }

    /// The error for an object that is not what it should be.
    pub(crate) fn damaged(&self, op: &'static str, name: &str, damage: Damage) -> Error {
        self.shared.damaged(op, name, damage)
    }
}

impl Role {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn committed(&self) -> MutexGuard<'_, Committed> {
        self.committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Taken with the state locked, or by itself.
    fn kept(&self) -> MutexGuard<'_, Vec<Arc<Living>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where changes have to be noted.
    fn journal(&self) -> Option<&Journal> {
        let journal = self.journal.as_ref();
        journal.filter(|_| !self.replaying.load(Ordering::Acquire))
    }

    fn check(&self, op: &'static str) -> Result<()> {
        if self.requests().fenced {
            return Err(fenced(op));
        }
        Ok(())
    }
}

fn fenced(op: &'static str) -> Error {
    Error::new(ErrorKind::Fenced, op)
        .reason("another writer took the volume over")
        .help("find out who did, and open the volume again only once that is meant to be")
}

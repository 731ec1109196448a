//! What a journal's callers and its thread have in common.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::Notify;
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result};

use super::files::{Dir, cannot};
use super::format::{Header, Op, RECORDS, Records};
use super::writer::{Item, Work, WriteError};
use crate::ids::Ids;
use crate::keys::LogId;
use crate::seal::Seal;

/// Records in memory from which on the thread writes them although nobody waits for a sync.
const WAKE: u64 = 256 << 10;

/// What the thread has in common with those who append.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: Uuid,
    pub(super) log: LogId,
    pub(super) seal: Seal,
    pub(super) size: u64,
    pub(super) most: usize,
    pub(super) path: PathBuf,
    pub(super) state: Mutex<State>,
    /// There is work for the thread.
    pub(super) work: Condvar,
    /// Something was synced, trimmed, written or failed.
    pub(super) changed: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    // Taken when it ends, which ends the lock.
    pub(super) dir: Option<Arc<Dir>>,
    pub(super) queue: Vec<Item>,
    /// Bytes of records in `queue`.
    pub(super) queued: u64,
    /// Bytes of records in memory, those that are being written included.
    pub(super) held: u64,
    pub(super) idle: bool,
    pub(super) appended: u64,
    pub(super) synced: u64,
    pub(super) wanted: u64,
    /// Files with records that are needed, oldest first.
    pub(super) live: VecDeque<Live>,
    /// Bytes used of the last of `live`; none where the next record needs a new segment.
    pub(super) used: Option<u64>,
    pub(super) spares: VecDeque<(u32, Arc<File>)>,
    pub(super) generation: u64,
    /// Files there are, and may be.
    pub(super) files: usize,
    pub(super) most_files: usize,
    pub(super) next: u32,
    pub(super) preparing: bool,
    pub(super) failed: Option<(ErrorKind, String)>,
    pub(super) ending: bool,
    pub(super) clean: bool,
    pub(super) ended: bool,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) number: u32,
    pub(super) file: Arc<File>,
    pub(super) first: u64,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, looking whenever something has changed.
    pub(super) async fn until<T>(&self, look: impl Fn() -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    pub(super) fn error(&self, kind: ErrorKind, reason: &str) -> Error {
        Error::new(kind, "flush")
            .with("path", self.path.display())
            .reason(reason)
    }

    pub(super) fn record(&self, data: usize) -> u64 {
        Records::size(data, self.seal.key().is_some()) as u64
    }

    /// Whether there are files for so much data.
    pub(super) fn fits(&self, state: &State, bytes: usize) -> bool {
        let records = bytes.div_ceil(self.most).max(1) as u64;
        let longest = self.record(bytes.min(self.most));
        let left = state.used.map_or(0, |used| self.size - used);
        // At the end of each segment there may be room for less than a record.
        let each = (self.size - RECORDS) / longest;
        left / longest + each * state.spares.len() as u64 >= records
    }

    pub(super) fn append(self: &Arc<Self>, op: Op) -> Result<u64> {
        let mut state = self.state();
        let bytes = match &op {
            Op::Write { data, .. } => data.len(),
            Op::Zero { .. } => 0,
        };
        if state.failed.is_none() && !self.fits(&state, bytes) {
            return Err(self
                .error(ErrorKind::NoSpace, "the journal is full")
                .help("wait until more of it is in the store, or set a larger journal_size"));
        }
        match op {
            Op::Write {
                mut offset,
                mut data,
            } => {
                while data.len() > self.most {
                    let data = data.split_to(self.most);
                    let length = data.len() as u64;
                    self.push(&mut state, Op::Write { offset, data }, self.most)?;
                    offset += length;
                }
                let length = data.len();
                self.push(&mut state, Op::Write { offset, data }, length)?;
            }
            Op::Zero { .. } => self.push(&mut state, op, 0)?,
        }
        let (end, wake) = (state.appended, state.idle && state.queued >= WAKE);
        drop(state);
        if wake {
            self.work.notify_one();
        }
        Ok(end)
    }

    pub(super) fn push(self: &Arc<Self>, state: &mut State, op: Op, data: usize) -> Result<()> {
        let size = self.record(data);
        let position = state.appended;
        if state.failed.is_some() {
            state.appended += size;
            return Ok(());
        }
        let used = match state.used.filter(|used| used + size <= self.size) {
            Some(used) => used,
            None => {
                self.begin(state)?;
                RECORDS
            }
        };
        state.used = Some(used + size);
        state.appended += size;
        state.queued += size;
        state.held += size;
        state.queue.push(Item::Record { position, op });
        Ok(())
    }

    /// Goes on in another file.
    pub(super) fn begin(self: &Arc<Self>, state: &mut State) -> Result<()> {
        let full = || self.error(ErrorKind::NoSpace, "the journal is full");
        let (number, file) = state.spares.pop_front().ok_or_else(full)?;
        state.generation += 1;
        let header = Header {
            pool: self.seal.pool(),
            log: self.log,
            journal: self.id,
            salt: Ids::random().uuid(),
            generation: state.generation,
            first: state.appended,
            synced: state.synced,
        };
        let records = Records::new(&self.seal, &header).map_err(|damage| {
            self.error(ErrorKind::Internal, "the journal's key can't be made")
                .with_source(damage)
        })?;
        let first = header.first;
        state.live.push_back(Live {
            number,
            file: Arc::clone(&file),
            first,
        });
        state.queue.push(Item::Segment {
            file,
            header,
            records,
        });
        if state.spares.is_empty() && state.files < state.most_files && !state.preparing {
            self.prepare(state);
        }
        Ok(())
    }

    /// Has a new segment on the disk before anything else: what was ignored when the journal was
    /// opened lies behind its beginning, and can't count any more.
    pub(super) fn begin_at_once(self: &Arc<Self>) -> Result<()> {
        let mut state = self.state();
        self.begin(&mut state)?;
        state.used = Some(RECORDS);
        for item in &state.queue {
            if let Item::Segment { file, header, .. } = item {
                let begun = file.write_all_at(&header.encode(), 0);
                begun
                    .and_then(|()| file.sync_data())
                    .map_err(|e| cannot(&self.path, e))?;
            }
        }
        Ok(())
    }

    /// Makes another file, on a thread, since that takes a while.
    pub(super) fn prepare(self: &Arc<Self>, state: &mut State) {
        let Some(dir) = state.dir.clone().filter(|_| !state.ending) else {
            return;
        };
        let number = state.next;
        state.next = number.saturating_add(1);
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("volmux-journal".to_owned());
        let spawned = thread.spawn(move || {
            let made = dir.make(number, shared.size);
            drop(dir);
            shared.prepared(number, made);
        });
        state.preparing = spawned.is_ok();
    }

    pub(super) fn prepared(&self, number: u32, made: std::io::Result<File>) {
        let mut state = self.state();
        state.preparing = false;
        match made {
            Ok(file) => {
                state.files += 1;
                state.spares.push_back((number, Arc::new(file)));
            }
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, files = state.files, "the journal stays smaller \
                    than it may be: no further file can be made");
                state.most_files = state.files;
            }
        }
        drop(state);
        self.work.notify_all();
        self.changed.notify_waiters();
    }

    /// For the thread: waits for work.
    pub(super) fn next_work(&self) -> Work {
        let mut state = self.state();
        let nothing = |state: &State| {
            state.failed.is_some() || (state.queued < WAKE && state.wanted <= state.synced)
        };
        while !state.ending && nothing(&state) {
            state.idle = true;
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        Work {
            items: std::mem::take(&mut state.queue),
            bytes: std::mem::take(&mut state.queued),
            end: state.appended,
            synced: state.synced,
            sync: state.wanted > state.synced || (state.ending && !state.clean),
            last: state.ending,
        }
    }

    /// For the thread: says what became of its work.
    pub(super) fn done(&self, bytes: u64, synced: Option<u64>, error: Option<WriteError>) {
        let mut state = self.state();
        state.held -= bytes;
        match (error, synced) {
            (None, Some(synced)) => state.synced = state.synced.max(synced),
            (None, None) => {}
            (Some(error), _) => {
                let kind = match &error {
                    WriteError::Io(error) => ErrorKind::of_io(error),
                    WriteError::Damage(_) => ErrorKind::Internal,
                };
                let path = self.path.display();
                tracing::error!(%path, %error, "the journal can't be written any more: the \
                    volume goes on without it");
                // What a failed sync has left out is never known: there is no second try.
                state.failed = Some((kind, format!("the journal can't be written: {error}")));
                state.queue.clear();
                state.queued = 0;
                state.held = 0;
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// For the thread: says that it ends.
    pub(super) fn ended(&self) {
        let mut state = self.state();
        while state.preparing {
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.ending = true;
        let clean = state.clean;
        let dir = state.dir.take();
        drop(state);
        if let Some(dir) = dir
            && clean
            && let Err(error) = dir.remove_all()
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the files of a journal that is done were not removed");
        }
        self.state().ended = true;
        self.changed.notify_waiters();
    }
}

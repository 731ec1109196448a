//! A local log of one open volume's writes, so that a flush need not wait for the store.
//!
//! Records are handed to a thread, which writes them to the current segment: a file that is full
//! of zeros or of old records and is only ever overwritten, so that a sync has no metadata to
//! write. Once what a segment holds is committed in the store, its file is used again.
//! docs/decisions/0011-object-journal.md says why.

mod files;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod measure;
mod recover;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use tokio::sync::Notify;
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result};

use files::{Dir, OPEN, cannot};
use format::{MOST, RECORDS};
use shared::{Live, Shared, State};

pub(crate) use format::{Op, TOO_LARGE};
pub(crate) use recover::Replay;

use crate::ids::Ids;
use crate::keys::LogId;
use crate::seal::Seal;

/// Size of a segment; smaller where the limit is.
const SEGMENT: u64 = 16 << 20;
/// Smallest limit.
const SMALLEST: u64 = 8 << 20;
/// Records in memory from which on there is no room for more.
const QUEUE: u64 = 8 << 20;

/// Where journals are, and how large they become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JournalConfig {
    /// A directory that exists, on a local file system.
    dir: PathBuf,
    /// Bytes of disk that one volume's journal takes at most.
    limit: u64,
    /// Size of a file.
    segment: u64,
}

impl JournalConfig {
    /// Journals in `dir` of at most `limit` bytes each, at least 8 MiB.
    pub(crate) fn new(dir: PathBuf, limit: u64) -> Result<Self> {
        if limit < SMALLEST {
            return Err(Error::new(ErrorKind::InvalidConfig, "open_pool")
                .reason("the journal's size is below the smallest, 8 MiB"));
        }
        let segment = SEGMENT.min(limit / 4 / RECORDS * RECORDS);
        Ok(JournalConfig {
            dir,
            limit,
            segment,
        })
    }

    fn files(&self) -> usize {
        usize::try_from(self.limit / self.segment)
            .unwrap_or(usize::MAX)
            .max(2)
    }

    /// Most data in one record, of which some have to fit into a file.
    fn most(&self) -> usize {
        MOST.min((self.segment / 4) as usize)
    }
}

/// The journal of a volume that is open for writing.
#[derive(Debug)]
pub(crate) struct Journal(Arc<Shared>);

impl Journal {
    /// Opens the journal of `log` on this host, and gives what it holds beyond `mark`: the
    /// journal that the log's last manifest names, and the position up to which it is committed.
    /// A journal with another id is no longer a part of the volume; it is thrown away and a new
    /// one begun. Blocks.
    ///
    /// # Errors
    /// `Busy` if a process has it open; `InvalidConfig` for a directory that won't do; `NoSpace`
    /// if the disk is full; `Corrupt` if what was synced can't be read.
    pub(crate) fn open(
        config: &JournalConfig,
        log: LogId,
        seal: &Seal,
        mark: Option<(Uuid, u64)>,
    ) -> Result<(Journal, Replay)> {
        let dir = Dir::lock(&config.dir, seal.pool(), log)?;
        let new = Ids::random().uuid();
        let mut found = recover::recover(&dir, config.segment, log, seal, mark, new)?;
        if found.spares.is_empty() {
            let made = dir.make(found.next, config.segment);
            let file = made.map_err(|e| cannot(dir.path(), e))?;
            found.spares.push((found.next, file));
            found.next += 1;
        }
        let replay = Replay::new(&found);
        let live = found.segments.iter().map(|segment| Live {
            number: segment.number,
            file: Arc::clone(&segment.file),
            first: segment.header.first,
        });
        let live: VecDeque<Live> = live.collect();
        let spares = found
            .spares
            .into_iter()
            .map(|(number, file)| (number, Arc::new(file)));
        let spares: VecDeque<(u32, Arc<File>)> = spares.collect();
        let shared = Arc::new(Shared {
            id: found.journal,
            log,
            seal: seal.clone(),
            size: config.segment,
            most: config.most(),
            path: dir.path().to_owned(),
            state: Mutex::new(State {
                dir: Some(Arc::new(dir)),
                queue: Vec::new(),
                queued: 0,
                held: 0,
                idle: false,
                appended: found.end,
                synced: found.end,
                wanted: found.end,
                files: live.len() + spares.len(),
                live,
                used: None,
                spares,
                generation: found.generation,
                most_files: config.files(),
                next: found.next,
                preparing: false,
                failed: None,
                ending: false,
                clean: false,
                ended: false,
            }),
            work: Condvar::new(),
            changed: Notify::new(),
        });
        shared.begin_at_once()?;
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name("volmux-journal".to_owned())
            .spawn(move || writer::run(&writer))
            .map_err(|error| Error::from_io(OPEN, error))?;
        Ok((Journal(shared), replay))
    }

    /// Which journal this is: for the mark in the manifest.
    pub(crate) fn id(&self) -> Uuid {
        self.0.id
    }

    /// Position after the last record.
    pub(crate) fn position(&self) -> u64 {
        self.0.state().appended
    }

    /// Whether a change with `bytes` of data can be appended now.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let state = self.0.state();
        state.failed.is_some() || (state.held < QUEUE && self.0.fits(&state, bytes))
    }

    /// Waits until there is room for a change with `bytes` of data. That may take until more is
    /// committed and trimmed: see to it.
    pub(crate) async fn room(&self, bytes: usize) {
        self.0.until(|| self.has_room(bytes).then_some(())).await;
    }

    /// Appends a change, and gives the position after it. It is written soon, and is sure to be
    /// there after a crash once it is synced. A journal that has failed takes everything and
    /// keeps nothing: see [`sync`](Self::sync).
    ///
    /// # Errors
    /// `NoSpace`, and nothing is appended, where there is no [`room`](Self::room).
    pub(crate) fn append(&self, op: Op) -> Result<u64> {
        self.0.append(op)
    }

    /// Waits until everything that was appended before the call survives a power cut.
    ///
    /// # Errors
    /// If that can't be had from the disk any more. The journal is of no use from then on, and
    /// each call fails: the volume goes on without it, and a flush has to commit to the store.
    pub(crate) async fn sync(&self) -> Result<()> {
        let (target, wake) = {
            let mut state = self.0.state();
            state.wanted = state.wanted.max(state.appended);
            (state.appended, state.idle && state.synced < state.wanted)
        };
        if wake {
            self.0.work.notify_one();
        }
        let shared = &self.0;
        let synced = shared.until(|| {
            let state = shared.state();
            match &state.failed {
                Some((kind, reason)) => Some(Err(shared.error(*kind, reason))),
                None if state.synced >= target => Some(Ok(())),
                None if state.ended => Some(Err(
                    shared.error(ErrorKind::Internal, "the journal was closed")
                )),
                None => None,
            }
        });
        synced.await
    }

    /// Lets the journal forget everything before position `upto`, which is committed.
    pub(crate) fn trim(&self, upto: u64) {
        let mut state = self.0.state();
        loop {
            let next = state.live.get(1).map_or(state.appended, |next| next.first);
            let last = state.live.len() == 1;
            // The last one is still written to, unless it has no room and nothing else has.
            let needed = last && state.used.is_some() && !state.spares.is_empty();
            if next > upto || needed {
                break;
            }
            let Some(oldest) = state.live.pop_front() else {
                break;
            };
            if last {
                state.used = None;
            }
            state.spares.push_back((oldest.number, oldest.file));
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Writes what is there and closes the journal. `clean`: everything is committed, and the
    /// journal's files are removed.
    pub(crate) async fn end(&self, clean: bool) {
        {
            let mut state = self.0.state();
            state.clean |= clean && !state.ending;
            state.ending = true;
        }
        self.0.work.notify_all();
        self.0.until(|| self.0.state().ended.then_some(())).await;
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.0.state().ending = true;
        self.0.work.notify_all();
    }
}

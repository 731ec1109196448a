//! A local log of one open volume's writes, so that a flush need not wait for the store.
//!
//! Records are handed to a thread, which writes them to the current segment: a file that is full
//! of zeros or of old records and is only ever overwritten, so that a sync has no metadata to
//! write. Once what a segment holds is committed in the store, its file is used again.
//! docs/decisions/0012-object-journal.md says why.

mod files;
mod format;
mod recover;
#[cfg(test)]
mod tests;
mod writer;

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

use files::{Dir, OPEN, cannot};
use format::{Header, MOST, RECORDS, Records};
use writer::{Item, Work, WriteError};

pub(crate) use format::Op;
pub(crate) use recover::Replay;

use crate::ids::Ids;
use crate::keys::LogId;
use crate::seal::Seal;

/// Size of a segment; smaller where the limit is.
const SEGMENT: u64 = 16 << 20;
/// Smallest limit.
const SMALLEST: u64 = 8 << 20;
/// Records in memory from which on the thread writes them although nobody waits for a sync.
const WAKE: u64 = 256 << 10;
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

/// What the thread has in common with those who append.
#[derive(Debug)]
struct Shared {
    id: Uuid,
    log: LogId,
    seal: Seal,
    size: u64,
    most: usize,
    path: PathBuf,
    state: Mutex<State>,
    /// There is work for the thread.
    work: Condvar,
    /// Something was synced, trimmed, written or failed.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    // Taken when it ends, which ends the lock.
    dir: Option<Arc<Dir>>,
    queue: Vec<Item>,
    /// Bytes of records in `queue`.
    queued: u64,
    /// Bytes of records in memory, those that are being written included.
    held: u64,
    idle: bool,
    appended: u64,
    synced: u64,
    wanted: u64,
    /// Files with records that are needed, oldest first.
    live: VecDeque<Live>,
    /// Bytes used of the last of `live`; none where the next record needs a new segment.
    used: Option<u64>,
    spares: VecDeque<(u32, Arc<File>)>,
    generation: u64,
    /// Files there are, and may be.
    files: usize,
    most_files: usize,
    next: u32,
    preparing: bool,
    failed: Option<(ErrorKind, String)>,
    ending: bool,
    clean: bool,
    ended: bool,
}

#[derive(Debug)]
struct Live {
    number: u32,
    file: Arc<File>,
    first: u64,
}

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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, looking whenever something has changed.
    async fn until<T>(&self, look: impl Fn() -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    fn error(&self, kind: ErrorKind, reason: &str) -> Error {
        Error::new(kind, "flush")
            .with("path", self.path.display())
            .reason(reason)
    }

    fn record(&self, data: usize) -> u64 {
        Records::size(data, self.seal.key().is_some()) as u64
    }

    /// Whether there are files for so much data.
    fn fits(&self, state: &State, bytes: usize) -> bool {
        let records = bytes.div_ceil(self.most).max(1) as u64;
        let longest = self.record(bytes.min(self.most));
        let left = state.used.map_or(0, |used| self.size - used);
        // At the end of each segment there may be room for less than a record.
        let each = (self.size - RECORDS) / longest;
        left / longest + each * state.spares.len() as u64 >= records
    }

    fn append(self: &Arc<Self>, op: Op) -> Result<u64> {
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

    fn push(self: &Arc<Self>, state: &mut State, op: Op, data: usize) -> Result<()> {
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
    fn begin(self: &Arc<Self>, state: &mut State) -> Result<()> {
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
    fn begin_at_once(self: &Arc<Self>) -> Result<()> {
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
    fn prepare(self: &Arc<Self>, state: &mut State) {
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

    fn prepared(&self, number: u32, made: std::io::Result<File>) {
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
    fn next_work(&self) -> Work {
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
    fn done(&self, bytes: u64, synced: Option<u64>, error: Option<WriteError>) {
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
    fn ended(&self) {
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

//! A cache of stored blocks on a local disk, which may outlive the process.
//!
//! It is one file and has no index, neither in memory nor beside the blocks: a block's name says
//! in which set it may be, and what is there says which block it is. Blocks are kept as the store
//! has them, so that an encrypted pool's stay encrypted, and verified as if they came from there:
//! whatever this file holds, nothing wrong is ever read from it. Nothing is synced either.
//!
//! A set has four ways of 64 consecutive blocks. First in the file come the entries, 64 bytes for
//! each block: which one it is, when it was put, its checksum or tag as stored, a checksum of the
//! entry. Then come the contents, one way after the other, so that blocks which lie together in
//! their object mostly lie together here.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use volmux_core::{Error, Result};

use crate::keys::ObjectKey;
use crate::local_dir;
use crate::seal::{CONTENT, Seal, crc_of};

/// Consecutive blocks that have one set.
const UNIT: u32 = 64;
const WAYS: usize = 4;
const ENTRY: usize = 64;
/// Entries of one block in all ways.
const ROW: usize = WAYS * ENTRY;
/// Bytes of a set's entries, and of its contents.
const ENTRIES: u64 = UNIT as u64 * ROW as u64;
const CONTENTS: u64 = (UNIT as usize * WAYS * CONTENT) as u64;
/// Most bytes that wait to be written. What comes while the disk is behind is not kept.
const QUEUE: usize = 8 << 20;
/// How long a disk that did not work is left alone.
const PAUSE: Duration = Duration::from_secs(60);
/// A disk that takes longer than this is not worth asking.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where things are in an entry. Up to `STAMP` it is the block's name.
const STAMP: usize = 36;
const TAIL: usize = 40;
const CRC: usize = 60;

/// The disk cache of a pool.
#[derive(Debug)]
pub(crate) struct DiskCache {
    shared: Arc<Shared>,
    writer: SyncSender<Change>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    path: String,
    seal: Seal,
    sets: u64,
    /// Bytes that wait to be written.
    queued: AtomicUsize,
    complained: AtomicBool,
    /// Until when the disk is left alone.
    paused: RwLock<Option<Instant>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug)]
enum Change {
    /// Slots of consecutive blocks.
    Put(ObjectKey, u32, Bytes),
    /// A block that is not what it should be.
    Forget(ObjectKey, u32),
}

impl DiskCache {
    /// The cache of the pool of `seal`, of at most `limit` bytes, below `dir`. What an earlier
    /// one left there is used. Blocks.
    ///
    /// # Errors
    /// If there can't be one. The pool works without.
    pub(crate) fn open(dir: &Path, limit: u64, seal: &Seal) -> Result<Self> {
        let file = local_dir::open_cache(dir, seal.pool())?;
        let sets = (limit / (ENTRIES + CONTENTS)).max(1);
        let failed = |error| {
            Error::from_io("open_pool", error)
                .with("path", dir.display())
                .reason("the disk cache can't be made")
        };
        file.set_len(sets * (ENTRIES + CONTENTS)).map_err(failed)?;
        Self::start(file, dir.display().to_string(), sets, seal).map_err(failed)
    }

    fn start(file: File, path: String, sets: u64, seal: &Seal) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            file,
            path,
            seal: seal.clone(),
            sets,
            queued: AtomicUsize::new(0),
            complained: AtomicBool::new(false),
            paused: RwLock::new(None),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        });
        // Each change counts its bytes; this only bounds how many there are.
        let (writer, changes) = sync_channel(4096);
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("volmux-cache".to_owned())
            .spawn(move || theirs.write(&changes))?;
        Ok(DiskCache { shared, writer })
    }

    /// The slots of some blocks as they came from the store, verified, one after the other; none
    /// unless all of them are there.
    pub(crate) async fn get(&self, object: &ObjectKey, blocks: Range<u32>) -> Option<Bytes> {
        let shared = &self.shared;
        if blocks.is_empty() || shared.is_paused() {
            return None;
        }
        let (theirs, object) = (Arc::clone(shared), *object);
        let work = tokio::task::spawn_blocking(move || theirs.read(&object, blocks));
        let found = match tokio::time::timeout(PATIENCE, work).await {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => {
                shared.pause("it can't be read", &error);
                None
            }
            Ok(Err(_)) => None,
            Err(_) => {
                shared.pause("it takes too long", &io::ErrorKind::TimedOut.into());
                None
            }
        };
        match found {
            Some(Found::Slots(slots)) => {
                shared.hits.fetch_add(1, Ordering::Relaxed);
                Some(slots)
            }
            Some(Found::Damaged(index)) => {
                let _full = self.writer.try_send(Change::Forget(object, index));
                None
            }
            None => {
                shared.misses.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Keeps slots that came from the store, of the blocks from number `first` on. They are
    /// written some time later, or not at all where the disk is behind.
    pub(crate) fn put(&self, object: &ObjectKey, first: u32, slots: Bytes) {
        let shared = &self.shared;
        let bytes = slots.len();
        if shared.queued.load(Ordering::Relaxed) + bytes > QUEUE || shared.is_paused() {
            return;
        }
        shared.queued.fetch_add(bytes, Ordering::Relaxed);
        if self
            .writer
            .try_send(Change::Put(*object, first, slots))
            .is_err()
        {
            shared.queued.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Reads that it could serve, and reads that it could not.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.shared.hits), count(&self.shared.misses))
    }
}

enum Found {
    Slots(Bytes),
    Damaged(u32),
}

impl Shared {
    fn is_paused(&self) -> bool {
        let paused = self.paused.read().unwrap_or_else(PoisonError::into_inner);
        paused.is_some_and(|until| Instant::now() < until)
    }

    fn pause(&self, what: &str, error: &io::Error) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            let path = &self.path;
            tracing::warn!(%path, %error, "the disk cache is of no use now: {what}");
        }
        let mut paused = self.paused.write().unwrap_or_else(PoisonError::into_inner);
        *paused = Some(Instant::now() + PAUSE);
    }

    fn read(&self, object: &ObjectKey, blocks: Range<u32>) -> io::Result<Option<Found>> {
        let stride = self.seal.stride();
        let mut slots = BytesMut::with_capacity(blocks.len() * stride);
        let mut content = [0; CONTENT];
        let seal = self.seal.blocks(object);
        for part in parts(blocks) {
            let set = self.set(object, part.start);
            let rows = self.rows(set, &part)?;
            let mut ways = Vec::with_capacity(part.len());
            for (index, row) in part.clone().zip(rows.chunks_exact(ROW)) {
                let Some(way) = self.way(row, &name(object, index)) else {
                    return Ok(None);
                };
                ways.push((index, way, &row[way * ENTRY..][..ENTRY]));
            }
            for run in ways.chunk_by(|a, b| a.1 == b.1) {
                let (first, way, _) = run[0];
                let mut contents = vec![0; run.len() * CONTENT];
                self.file
                    .read_exact_at(&mut contents, self.place(set, way, first))?;
                for ((index, _, entry), bytes) in run.iter().zip(contents.chunks_exact(CONTENT)) {
                    let start = slots.len();
                    slots.extend_from_slice(bytes);
                    slots.extend_from_slice(&entry[TAIL..][..stride - CONTENT]);
                    if seal.open(*index, &slots[start..], &mut content).is_err() {
                        return Ok(Some(Found::Damaged(*index)));
                    }
                }
            }
        }
        Ok(Some(Found::Slots(slots.freeze())))
    }

    /// The entries of some blocks of one unit.
    fn rows(&self, set: u64, part: &Range<u32>) -> io::Result<Vec<u8>> {
        let mut rows = vec![0; part.len() * ROW];
        self.file
            .read_exact_at(&mut rows, row_place(set, part.start))?;
        Ok(rows)
    }

    /// The way that a block is in, by its entries.
    fn way(&self, row: &[u8], name: &[u8; STAMP]) -> Option<usize> {
        let mut entries = row.chunks_exact(ENTRY);
        entries.position(|entry| entry.starts_with(name) && entry[CRC..] == self.crc(entry))
    }

    fn crc(&self, entry: &[u8]) -> [u8; 4] {
        let pool = self.seal.pool();
        crc_of(&[b"volmux cache 1\0", pool.as_bytes(), &entry[..CRC]]).to_le_bytes()
    }

    /// Where the content of a block is.
    fn place(&self, set: u64, way: usize, index: u32) -> u64 {
        let block = way as u64 * u64::from(UNIT) + u64::from(index % UNIT);
        self.sets * ENTRIES + set * CONTENTS + block * CONTENT as u64
    }

    fn set(&self, object: &ObjectKey, index: u32) -> u64 {
        let name = name(object, index / UNIT);
        // Two checksums of 32 bits do for a hash: that they are easy to forge harms nobody.
        let hash = u64::from(crc_of(&[&name])) << 32 | u64::from(crc_of(&[b"set", &name]));
        ((u128::from(hash) * u128::from(self.sets)) >> 64) as u64
    }

    /// The thread that writes.
    fn write(&self, changes: &Receiver<Change>) {
        for change in changes {
            let (done, bytes) = match change {
                Change::Put(object, first, slots) => {
                    let bytes = slots.len();
                    let skip = self.is_paused();
                    (
                        if skip {
                            Ok(())
                        } else {
                            self.keep(&object, first, &slots)
                        },
                        bytes,
                    )
                }
                Change::Forget(object, index) => (self.forget(&object, index), 0),
            };
            if let Err(error) = done {
                self.pause("it can't be written", &error);
            }
            self.queued.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn keep(&self, object: &ObjectKey, first: u32, slots: &Bytes) -> io::Result<()> {
        let stride = self.seal.stride();
        let count = (slots.len() / stride) as u32;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let stamp = (now.as_secs() as u32).to_le_bytes();
        for part in parts(first..first.saturating_add(count)) {
            let set = self.set(object, part.start);
            let mut rows = self.rows(set, &part)?;
            let missing: Vec<u32> = part
                .clone()
                .zip(rows.chunks_exact(ROW))
                .filter(|(index, row)| self.way(row, &name(object, *index)).is_none())
                .map(|(index, _)| index)
                .collect();
            if missing.is_empty() {
                continue;
            }
            let way = oldest(&rows);
            for run in missing.chunk_by(|a, b| a + 1 == *b) {
                let mut contents = Vec::with_capacity(run.len() * CONTENT);
                for index in run {
                    let slot = &slots[(index - first) as usize * stride..][..stride];
                    contents.extend_from_slice(&slot[..CONTENT]);
                    let at = (index - part.start) as usize * ROW + way * ENTRY;
                    let entry = &mut rows[at..at + ENTRY];
                    entry.fill(0);
                    entry[..STAMP].copy_from_slice(&name(object, *index));
                    entry[STAMP..TAIL].copy_from_slice(&stamp);
                    entry[TAIL..][..stride - CONTENT].copy_from_slice(&slot[CONTENT..]);
                    let crc = self.crc(entry);
                    entry[CRC..].copy_from_slice(&crc);
                }
                self.file
                    .write_all_at(&contents, self.place(set, way, run[0]))?;
            }
            self.file.write_all_at(&rows, row_place(set, part.start))?;
        }
        Ok(())
    }

    fn forget(&self, object: &ObjectKey, index: u32) -> io::Result<()> {
        let part = index..index + 1;
        let set = self.set(object, index);
        let row = self.rows(set, &part)?;
        match self.way(&row, &name(object, index)) {
            None => Ok(()),
            Some(way) => {
                let at = row_place(set, index) + (way * ENTRY) as u64;
                self.file.write_all_at(&[0; ENTRY], at)
            }
        }
    }
}

/// Splits blocks where another set begins.
fn parts(blocks: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let mut next = blocks.start;
    std::iter::from_fn(move || {
        let start = next;
        next = blocks.end.min((start / UNIT + 1).saturating_mul(UNIT));
        (start < blocks.end && start < next).then_some(start..next)
    })
}

/// Where the entries of a block are.
fn row_place(set: u64, index: u32) -> u64 {
    set * ENTRIES + u64::from(index % UNIT) * ROW as u64
}

/// How an entry names a block.
fn name(object: &ObjectKey, index: u32) -> [u8; STAMP] {
    let mut name = [0; STAMP];
    name[..16].copy_from_slice(object.log.0.as_bytes());
    name[16..24].copy_from_slice(&object.epoch.to_le_bytes());
    name[24..32].copy_from_slice(&object.seq.to_le_bytes());
    name[32..].copy_from_slice(&index.to_le_bytes());
    name
}

/// The way whose youngest block among these is the oldest; empty ones come first.
fn oldest(rows: &[u8]) -> usize {
    let stamp = |entry: &[u8]| {
        let mut stamp = [0; 4];
        stamp.copy_from_slice(&entry[STAMP..TAIL]);
        u32::from_le_bytes(stamp)
    };
    let youngest = |way: usize| {
        let entries = rows.chunks_exact(ROW).map(|row| stamp(&row[way * ENTRY..]));
        entries.max().unwrap_or(0)
    };
    (0..WAYS).min_by_key(|way| youngest(*way)).unwrap_or(0)
}

#[cfg(test)]
mod tests;

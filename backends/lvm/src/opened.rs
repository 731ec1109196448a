//! An open disk, and what is done to it on threads that may block.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::FallocateFlags;
use volmux_core::{ByteRange, Error, ErrorKind, Result};

use crate::aligned::Aligned;
use crate::dm;
use crate::limits::{Limits, blkdiscard};
use crate::trouble;
use crate::turns::Turns;

/// What the disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A thin volume.
    Thin {
        /// Bytes of a chunk.
        chunk: u64,
        /// The volume group.
        group: String,
        /// The thin pool in it.
        pool: String,
    },
    /// A volume whose space is all its own.
    Thick,
}

/// What requests keep open.
#[derive(Debug)]
pub struct Open {
    pub file: File,
    pub path: PathBuf,
    pub kind: Kind,
    pub writable: bool,
    pub limits: Limits,
    pub turns: Turns,
    /// Set when a flush failed, to what it failed with. The kernel reports a lost write once and
    /// then forgets it (fsync(2)), so no later flush of this disk can be believed.
    pub flush_failed: OnceLock<ErrorKind>,
    /// After the file, and so given up after it.
    pub held: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// Tells work that takes long that nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl AsFd for Open {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Open {
    /// The blocks that `range` touches.
    pub fn blocks(&self, range: ByteRange) -> ByteRange {
        let block = self.limits.block;
        let end = range.end();
        let end = end.checked_next_multiple_of(block).unwrap_or(end);
        ByteRange::from_to(range.offset / block * block, end)
    }

    fn memory(&self, length: u64) -> io::Result<Aligned> {
        let memory = Aligned::new(length as usize, self.limits.memory);
        memory.map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))
    }

    pub fn write_unaligned(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let block = self.limits.block;
        let range = ByteRange::new(offset, data.len() as u64);
        let blocks = self.blocks(range);
        let mut memory = self.memory(blocks.length)?;
        let bytes = memory.slice();
        let last = blocks.length - block;
        for at in [0, last] {
            let part = &mut bytes[at as usize..(at + block) as usize];
            self.file.read_exact_at(part, blocks.offset + at)?;
        }
        let start = (offset - blocks.offset) as usize;
        bytes[start..start + data.len()].copy_from_slice(data);
        self.file.write_all_at(bytes, blocks.offset)
    }

    /// Gives back whole chunks. In those partly covered zeros are written, but only over what is
    /// not zero: a chunk that is not mapped stays so.
    pub fn zero_thin(&self, range: ByteRange, chunk: u64, stop: &Stop) -> io::Result<()> {
        let first = range.offset.next_multiple_of(chunk);
        let last = range.end() / chunk * chunk;
        if !self.limits.discards || first >= last {
            return self.clear(range, stop);
        }
        let chunks = ByteRange::from_to(first, last);
        for part in parts(chunks, (1 << 30) / chunk * chunk) {
            stop.check()?;
            match self.discard_chunks(part) {
                // Discards were turned off meanwhile.
                Err(error) if is_unsupported(&error) => self.clear(part, stop)?,
                done => done?,
            }
            // The kernel splits a discard for chunks of a power of two (bio_discard_limit), and
            // leaves out what is then only a part of a chunk.
            if !chunk.is_power_of_two() {
                self.clear(part, stop)?;
            }
        }
        self.clear(ByteRange::from_to(range.offset, first), stop)?;
        self.clear(ByteRange::from_to(last, range.end()), stop)
    }

    pub fn zero_thick(&self, range: ByteRange, stop: &Stop) -> io::Result<()> {
        let block = self.limits.block;
        let first = range.offset.next_multiple_of(block);
        let last = range.end() / block * block;
        if first >= last {
            return self.clear(range, stop);
        }
        for part in parts(ByteRange::from_to(first, last), 64 << 20) {
            stop.check()?;
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.file, flags, part.offset, part.length) {
                Err(rustix::io::Errno::OPNOTSUPP) => self.clear(part, stop)?,
                done => done?,
            }
        }
        self.clear(ByteRange::from_to(range.offset, first), stop)?;
        self.clear(ByteRange::from_to(last, range.end()), stop)
    }

    /// Reads `range` and writes zeros over the blocks that hold something else.
    fn clear(&self, range: ByteRange, stop: &Stop) -> io::Result<()> {
        const PART: u64 = 1 << 20;
        if range.is_empty() {
            return Ok(());
        }
        let blocks = self.blocks(range);
        let mut memory = self.memory(blocks.length.min(PART))?;
        for part in parts(blocks, PART) {
            stop.check()?;
            let bytes = &mut memory.slice()[..part.length as usize];
            self.file.read_exact_at(bytes, part.offset)?;
            let inner = part.intersect(&range);
            let start = (inner.offset - part.offset) as usize;
            let inner = start..start + inner.length as usize;
            for run in not_zero(bytes, inner.clone(), self.limits.block as usize) {
                let (from, to) = (run.start.max(inner.start), run.end.min(inner.end));
                bytes[from..to].fill(0);
                let at = part.offset + run.start as u64;
                self.file.write_all_at(&bytes[run], at)?;
            }
        }
        Ok(())
    }

    fn discard_chunks(&self, range: ByteRange) -> io::Result<()> {
        if self.limits.is_device {
            return blkdiscard(&self.file, range);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let done = rustix::fs::fallocate(&self.file, flags, range.offset, range.length);
        Ok(done?)
    }

    pub fn flush(&self, op: &'static str) -> Result<()> {
        let synced = self.file.sync_data();
        let failed = match (synced, self.pool_trouble(op)) {
            (Err(error), _) => Err(self.explain(op, error)),
            (Ok(()), Err(error)) => return Err(error),
            (Ok(()), Ok(Some(trouble))) => Err(trouble.error(op).with("path", self.path.display())),
            (Ok(()), Ok(None)) => Ok(()),
        };
        if let Err(error) = failed {
            let _first = self.flush_failed.set(error.kind());
            return Err(error.with("lost", "writes since the last good flush may be lost"));
        }
        // Another flush may have failed, and taken the kernel's only report, before or beside
        // this one.
        match self.flush_failed.get() {
            None => Ok(()),
            Some(kind) => Err(Error::new(*kind, op)
                .with("path", self.path.display())
                .reason("an earlier flush failed: writes since the last good flush may be lost")
                .help("see the kernel's log for the fault; open the volume again, check its data")),
        }
    }

    /// Why the pool does not keep what it is told, if so.
    fn pool_trouble(&self, op: &'static str) -> Result<Option<trouble::Trouble>> {
        let Kind::Thin { group, pool, .. } = &self.kind else {
            return Ok(None);
        };
        // A file has no pool.
        if !self.limits.is_device {
            return Ok(None);
        }
        let unknown = |reason: &str| {
            Error::new(ErrorKind::Unavailable, op)
                .with("pool", format!("{group}/{pool}"))
                .reason(reason)
                .help("see `dmsetup status` and the kernel's log")
        };
        match dm::pool_status(group, pool) {
            Ok(Some((_, status))) => Ok(trouble::of(group, pool, status)),
            Ok(None) => Err(unknown("device-mapper does not know the thin pool")),
            Err(error) => {
                Err(unknown("device-mapper does not tell how the pool is").with_source(error))
            }
        }
    }

    /// [`error`](Self::error), on a thread that may block: the pool is asked for the cause.
    pub async fn explained(
        self: &Arc<Self>,
        op: &'static str,
        range: ByteRange,
        error: io::Error,
    ) -> Error {
        let open = self.clone();
        let explained = tokio::task::spawn_blocking(move || open.error(op, range, error)).await;
        explained.unwrap_or_else(|error| Error::new(ErrorKind::Internal, op).with_source(error))
    }

    /// A failed request on `range`. The pool is asked for the cause: this may block.
    pub fn error(&self, op: &'static str, range: ByteRange, error: io::Error) -> Error {
        self.explain(op, error)
            .with("offset", range.offset)
            .with("length", range.length)
    }

    fn explain(&self, op: &'static str, error: io::Error) -> Error {
        let trouble = match error.raw_os_error() {
            Some(libc::EIO | libc::ENOSPC) => self.pool_trouble(op).ok().flatten(),
            _ => None,
        };
        let explained = match (trouble, &self.kind) {
            (Some(trouble), _) => trouble.error(op),
            (None, Kind::Thin { group, pool, .. })
                if error.kind() == io::ErrorKind::StorageFull =>
            {
                trouble::out_of_space(group, pool).error(op)
            }
            (None, _) => plain(op, &error),
        };
        explained
            .with("path", self.path.display())
            .with_source(error)
    }

    pub fn too_much(
        &self,
        op: &'static str,
        range: ByteRange,
        error: std::collections::TryReserveError,
    ) -> Error {
        Error::new(ErrorKind::InvalidInput, op)
            .with("path", self.path.display())
            .with("length", range.length)
            .reason("there is not so much memory for one request")
            .with_source(error)
    }
}

/// What an error of the disk means by itself.
fn plain(op: &'static str, error: &io::Error) -> Error {
    let (kind, reason) = match error.raw_os_error() {
        Some(libc::EIO) => (ErrorKind::Unavailable, "the disk below reported an error"),
        Some(libc::EREMOTEIO) => (ErrorKind::Unavailable, "the disk below refused the request"),
        Some(libc::ENODATA | libc::EILSEQ) => (ErrorKind::Corrupt, "the disk below lost data"),
        Some(libc::EBADE) => (
            ErrorKind::Fenced,
            "another host has reserved the disk below",
        ),
        Some(libc::ENXIO | libc::ENODEV) => (ErrorKind::Unavailable, "the disk is gone"),
        _ if is_unsupported(error) => (
            ErrorKind::Unsupported,
            "the disk can do this only by writing zeros out",
        ),
        _ => match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => (
                ErrorKind::Unavailable,
                "the disk is smaller than the volume",
            ),
            io::ErrorKind::StorageFull => (ErrorKind::NoSpace, "the disk below is full"),
            _ => (ErrorKind::of_io(error), "the kernel refused the request"),
        },
    };
    Error::new(kind, op).reason(reason)
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP) || error.kind() == io::ErrorKind::Unsupported
}

impl Stop {
    /// Asks it to stop.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

/// `range` in parts of at most `most` bytes.
fn parts(range: ByteRange, most: u64) -> impl Iterator<Item = ByteRange> {
    let mut at = range.offset;
    std::iter::from_fn(move || {
        let part = ByteRange::new(at, most.max(1)).intersect(&range);
        at = part.end();
        (!part.is_empty()).then_some(part)
    })
}

/// The runs of blocks that hold, within `inner`, anything but zeros.
fn not_zero(
    bytes: &[u8],
    inner: std::ops::Range<usize>,
    block: usize,
) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut at = inner.start / block * block;
    while at < inner.end {
        let next = at + block;
        if !is_zero(&bytes[at.max(inner.start)..next.min(inner.end)]) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = next,
                _ => runs.push(at..next),
            }
        }
        at = next;
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|part| part == &ZEROS[..part.len()])
}

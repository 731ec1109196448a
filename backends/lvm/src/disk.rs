//! A disk that is read and written past the page cache: the block device of a volume.

use std::any::Any;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fs::SeekFrom;
use volmux_core::{ByteRange, Error, ErrorKind, Result, ZeroOptions};

use crate::aligned::Aligned;
use crate::limits::Limits;
pub use crate::opened::Kind;
use crate::opened::{Open, Stop};
use crate::ring::{Engine, Owner};
use crate::turns::{Mine, Turns};

/// An open disk. Requests go on, and keep it open, even if this and their futures are dropped; no
/// later request of this object overtakes them.
#[derive(Debug)]
pub struct Disk {
    open: Arc<Open>,
    engine: Engine,
}

impl Disk {
    /// Opens the block device, or the file, at `path`. Takes a few system calls.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path, writable: bool, kind: Kind) -> Result<Disk> {
        const OP: &str = "open_volume";
        let wrong = |error| Error::from_io(OP, error).with("path", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .map_err(wrong)?;
        let limits = Limits::of(&file).map_err(wrong)?;
        if let Kind::Thin { chunk, .. } = &kind
            && (*chunk == 0 || !chunk.is_multiple_of(limits.block))
        {
            return Err(Error::new(ErrorKind::Internal, OP)
                .with("path", path.display())
                .with("chunk", chunk)
                .reason("a thin pool's chunks are whole blocks"));
        }
        Ok(Disk {
            open: Arc::new(Open {
                file,
                path: path.to_owned(),
                kind,
                writable,
                limits,
                turns: Turns::default(),
                flush_failed: OnceLock::new(),
                held: OnceLock::new(),
            }),
            engine: Engine::of_process(),
        })
    }

    /// Keeps `what` until the disk is closed, which is when this has been dropped and the last
    /// request is done: a lock that keeps the next user out. Only once. Its drop must not wait.
    pub fn hold(&self, what: impl Any + Send + Sync) {
        let held = self.open.held.set(Box::new(what));
        assert!(held.is_ok(), "a disk holds one thing");
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.open.file
    }

    /// The disk's size as it is now, in bytes.
    ///
    /// # Errors
    /// What lseek(2) says.
    pub fn device_size(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.open.file, SeekFrom::End(0))?)
    }

    /// Reads `length` bytes, which the caller knows to be within the disk.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        const OP: &str = "read_at";
        let range = ByteRange::new(offset, length as u64);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let blocks = self.open.blocks(range);
        let memory = Aligned::new(blocks.length as usize, self.open.limits.memory);
        let buffer = memory.map_err(|error| self.open.too_much(OP, range, error))?;
        self.open.turns.read(blocks).await;
        let owner: Owner = self.open.clone();
        let read = self.engine.read(owner, blocks.offset, buffer).await;
        let start = (offset - blocks.offset) as usize;
        match read {
            Ok(bytes) if bytes.len() - start.min(bytes.len()) >= length => {
                Ok(bytes.slice(start..start + length))
            }
            Ok(_) => {
                let error = io::ErrorKind::UnexpectedEof.into();
                Err(self.open.explained(OP, range, error).await)
            }
            Err(error) => Err(self.open.explained(OP, range, error).await),
        }
    }

    /// Writes all of `data`, which the caller knows to end within the disk.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        const OP: &str = "write_at";
        let range = ByteRange::new(offset, data.len() as u64);
        if range.is_empty() {
            return Ok(());
        }
        let turn = self.turn(OP, range).await?;
        if self.open.blocks(range) != range {
            let work = move |open: &Open, _: &Stop| open.write_unaligned(offset, &data);
            return self.run(OP, range, turn, work).await;
        }
        let memory = self.open.limits.memory;
        let data = if data.as_ptr().addr().is_multiple_of(memory) {
            data
        } else {
            let copy = Aligned::copy(&data, memory);
            copy.map_err(|error| self.open.too_much(OP, range, error))?
                .into_bytes()
        };
        let owner: Owner = self.open.clone();
        let written = self.engine.write(owner, offset, data, turn.share()).await;
        match written {
            Ok(()) => Ok(()),
            Err(error) => Err(self.open.explained(OP, range, error).await),
        }
    }

    /// Makes what was written durable. A thin pool is asked as well whether it keeps what it is
    /// told: it may have thrown changes away, and told nobody or somebody else.
    pub async fn flush(&self) -> Result<()> {
        const OP: &str = "flush";
        if !self.open.writable {
            return Ok(());
        }
        let open = self.open.clone();
        let flushed = tokio::task::spawn_blocking(move || open.flush(OP)).await;
        flushed.map_err(|error| Error::new(ErrorKind::Internal, OP).with_source(error))?
    }

    /// Makes `range` read as zeros. A thin volume gives back the chunks that lie wholly in it.
    pub async fn discard(&self, range: ByteRange) -> Result<()> {
        let options = ZeroOptions {
            may_discard: true,
            fast_only: false,
        };
        self.zero("discard", range, options).await
    }

    /// Makes `range` read as zeros. A thin volume gives back the chunks that lie wholly in it.
    pub async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.zero("write_zeroes", range, options).await
    }

    async fn zero(&self, op: &'static str, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let fast = match self.open.kind {
            Kind::Thin { .. } => self.open.limits.discards,
            Kind::Thick => self.open.limits.zeroes,
        };
        if options.fast_only && !fast {
            return Err(self
                .open
                .error(op, range, io::ErrorKind::Unsupported.into()));
        }
        if range.is_empty() {
            return Ok(());
        }
        let turn = self.turn(op, range).await?;
        let work = move |open: &Open, stop: &Stop| match open.kind {
            Kind::Thin { chunk, .. } => open.zero_thin(range, chunk, stop),
            Kind::Thick => open.zero_thick(range, stop),
        };
        self.run(op, range, turn, work).await
    }

    async fn turn(&self, op: &'static str, range: ByteRange) -> Result<Mine> {
        if !self.open.writable {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .with("path", self.open.path.display())
                .reason("the disk was opened read-only"));
        }
        Ok(self.open.turns.write(self.open.blocks(range)).await)
    }

    /// Runs `work` on a thread that may block, and holds `turn` until that is over.
    async fn run(
        &self,
        op: &'static str,
        range: ByteRange,
        turn: Mine,
        work: impl FnOnce(&Open, &Stop) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        struct OnDrop(Stop, tokio::task::AbortHandle);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.stop();
                // Work that has not begun never will.
                self.1.abort();
            }
        }
        let (open, goes_on, stop) = (self.open.clone(), turn.share(), Stop::default());
        let stopped = stop.clone();
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&open, &stopped);
            let result = result.map_err(|error| open.error(op, range, error));
            drop(goes_on);
            drop(open);
            result
        });
        let _on_drop = OnDrop(stop, task.abort_handle());
        let done = task.await;
        done.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?
    }
}

#[cfg(test)]
mod tests;

//! The data path: an open data file.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OwnedRwLockReadGuard;
use volmux_core::{
    Access, BlockDevice, Buffer, ByteRange, Error, ErrorKind, ExtentStream, OpenOptions,
    Provisioning, Result, VolumeName, ZeroOptions,
};

use crate::abandoned::{Abandoned, Running};
use crate::abilities::Abilities;
use crate::content::Content;
use crate::fence::fenced;
use crate::handle::{Data, Handle, Open};
use crate::inner::Inner;
use crate::record::VolumeRecord;
use crate::sys::Wait;
use crate::{extents, identity, sys};

/// Requests up to this length are tried at once, on the caller's thread, which takes about 40 µs at
/// most where the page cache has the data. A longer one would keep the caller from others too long.
const INLINE: usize = 256 << 10;

/// An open volume of a directory pool.
pub struct FileDevice {
    open: Handle,
    abandoned: Abandoned,
    /// After the file: the last who has it may unmount it.
    pool: Arc<Inner>,
}

impl FileDevice {
    /// A device on `data`, that of `record`, which holds the locks for `options`.
    pub fn new(
        pool: Arc<Inner>,
        name: VolumeName,
        data: Data,
        options: OpenOptions,
        record: &VolumeRecord,
    ) -> Self {
        let remote = pool.abilities.remote;
        FileDevice {
            open: Handle::new(&pool.open_volumes, name, data, options, record, remote),
            pool,
            abandoned: Abandoned::default(),
        }
    }

    fn check_fenced(&self, op: &'static str) -> Result<()> {
        if self.open.is_fenced() {
            return Err(fenced(op).with("volume", &self.open.name));
        }
        Ok(())
    }

    fn check(&self, range: ByteRange, op: &'static str) -> Result<()> {
        self.check_fenced(op)?;
        range
            .check_within(self.size(), op)
            .map_err(|e| e.with("volume", &self.open.name))
    }

    fn check_write(&self, range: ByteRange, op: &'static str) -> Result<()> {
        if self.open.access == Access::ReadOnly {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .with("volume", &self.open.name)
                .reason("the volume was opened read-only"));
        }
        self.check(range, op)
    }

    /// Runs `work` where it may block. If the caller drops the future meanwhile, the request is
    /// remembered, and later ones wait for it.
    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        range: ByteRange,
        gate: Option<OwnedRwLockReadGuard<()>>,
        work: impl FnOnce(&Open) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let open = Arc::clone(&self.open);
        let pool = self.pool.clone();
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&open);
            if result.is_err() && open.writes() {
                // Who took the volume over has removed the file from under it.
                let _acting = identity::act_as(pool.identity)?;
                let _known_by_the_handle = pool.check_epoch(op, &open);
            }
            drop((gate, open));
            result
        });
        let mut running = Running {
            task: Some(task),
            abandoned: &self.abandoned,
        };
        let task = running.task.as_mut().expect("taken only when dropped");
        let joined = task.await;
        running.task = None;
        if matches!(joined, Ok(Err(_))) {
            self.check_fenced(op)?;
        }
        let result = joined.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error));
        result.and_then(|r| r.map_err(|error| self.io_error(op, range, error)))
    }

    fn io_error(&self, op: &'static str, range: ByteRange, error: io::Error) -> Error {
        let (kind, reason) = match error.raw_os_error() {
            Some(libc::EIO) => (ErrorKind::Unavailable, "the disk below reported an error"),
            Some(libc::ENOSPC | libc::EDQUOT) => (ErrorKind::NoSpace, "the file system is full"),
            Some(libc::EOPNOTSUPP) => (
                ErrorKind::Unsupported,
                "the file system can do this only by writing zeros out",
            ),
            // imago says so in words of its own.
            _ if matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
            {
                (ErrorKind::NoSpace, "the file system is full")
            }
            _ if error.kind() == io::ErrorKind::InvalidData => {
                (ErrorKind::Corrupt, "the data file's tables are damaged")
            }
            _ if error.kind() == io::ErrorKind::UnexpectedEof => (
                ErrorKind::Corrupt,
                "the data file is shorter than the volume",
            ),
            _ => (
                ErrorKind::of_io(&error),
                "the file system refused the request",
            ),
        };
        Error::new(kind, op)
            .with("volume", &self.open.name)
            .with("offset", range.offset)
            .with("length", range.length)
            .reason(reason)
            .with_source(error)
    }
}

#[async_trait]
impl BlockDevice for FileDevice {
    fn name(&self) -> &VolumeName {
        &self.open.name
    }

    fn size(&self) -> u64 {
        self.open.shared.size.load(Ordering::Acquire)
    }

    fn access(&self) -> Access {
        self.open.access
    }

    async fn refresh(&self) -> Result<u64> {
        const OP: &str = "refresh";
        self.check_fenced(OP)?;
        self.abandoned.settle().await;
        let before = self.size();
        let called = self.open.shared.called();
        let (name, size) = self
            .run(OP, ByteRange::new(0, before), None, {
                let pool = self.pool.clone();
                move |open| {
                    let _acting = identity::act_as(pool.identity)?;
                    Ok(pool.size_now(open, called, before))
                }
            })
            .await?
            .map_err(|error| match error.get("volume") {
                None => error.with("volume", &self.open.name),
                Some(_) => error,
            })?;
        self.open.shared.seen(name, size);
        Ok(self.size())
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        const OP: &str = "read_at";
        let range = ByteRange::new(offset, length as u64);
        self.check(range, OP)?;
        let mut buffer = Buffer::new(length).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, OP)
                .with("volume", &self.open.name)
                .with("length", length)
                .reason("this is too much for one read")
                .with_source(error)
        })?;
        self.abandoned.settle().await;
        let data = self.open.data();
        if let Data::Raw(_, file) = &data
            && length <= INLINE
            && self.open.reads.is_worth_trying()
        {
            // A task whose requests are all done at once gives way to others now and then.
            tokio::task::coop::consume_budget().await;
            let wait = Wait::MustNot;
            let read = sys::read(file, buffer.room(), length, offset, wait);
            if self.open.reads.done(&read) == length {
                return Ok(buffer.into_bytes());
            }
        }
        self.run(OP, range, None, move |_| {
            match data {
                Data::Raw(_, file) => read_rest(&file, &mut buffer, range.end())?,
                Data::Chain(image) => {
                    let room = buffer.room();
                    let start = room.len();
                    room.resize(start + length, 0);
                    image.read(&mut room[start..], offset)?;
                }
            }
            Ok(buffer.into_bytes())
        })
        .await
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        const OP: &str = "write_at";
        let range = ByteRange::new(offset, data.len() as u64);
        self.check_write(range, OP)?;
        self.abandoned.settle().await;
        let gate = self.open.shared.gate().await;
        let mut done = 0;
        let to = self.open.data();
        if let Data::Raw(_, file) = &to
            && data.len() <= INLINE
            && self.open.writes.is_worth_trying()
        {
            tokio::task::coop::consume_budget().await;
            let written = sys::write_now(file, &data, offset);
            done = self.open.writes.done(&written);
            if done == data.len() {
                return Ok(());
            }
        }
        self.run(OP, range, Some(gate), move |_| match to {
            Data::Raw(_, file) => file.write_all_at(&data[done..], offset + done as u64),
            Data::Chain(image) => image.write(&data, offset),
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        const OP: &str = "flush";
        self.check_fenced(OP)?;
        self.abandoned.settle().await;
        let failed_before = || {
            Error::new(ErrorKind::Unavailable, OP)
                .with("volume", &self.open.name)
                .reason("an earlier flush of this handle failed: writes since the last good flush may be lost")
                .help("see the kernel's log for the disk's fault; open the volume again and check its data")
        };
        if self.open.flush_failed.load(Ordering::Acquire) {
            return Err(failed_before());
        }
        let whole = ByteRange::new(0, self.size());
        let pool = self.pool.clone();
        self.run(OP, whole, None, move |open| {
            let result = match open.data() {
                Data::Raw(_, file) => file.sync_data(),
                Data::Chain(image) if open.writes() => image.flush(),
                Data::Chain(_) => Ok(()),
            };
            if result.is_err() {
                open.flush_failed.store(true, Ordering::Release);
            }
            result?;
            if !open.writes() {
                return Ok(Ok(()));
            }
            let _acting = identity::act_as(pool.identity)?;
            Ok(pool.check_epoch(OP, open))
        })
        .await?
        .map_err(|error| match error.get("volume") {
            None => error.with("volume", &self.open.name),
            Some(_) => error,
        })?;
        // Another flush may have failed, and taken the kernel's only report, beside this one.
        if self.open.flush_failed.load(Ordering::Acquire) {
            Err(failed_before())
        } else {
            Ok(())
        }
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        const OP: &str = "discard";
        if !self.pool.abilities.punch {
            return Err(Error::new(ErrorKind::Unsupported, OP)
                .with("volume", &self.open.name)
                .reason("the file system does not give back parts of files")
                .help("write zeros instead; over NFS, giving back takes version 4.2"));
        }
        let options = ZeroOptions {
            may_discard: true,
            fast_only: false,
        };
        self.zero(OP, range, options).await
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.zero("write_zeroes", range, options).await
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        const OP: &str = "extents";
        self.check(range, OP)?;
        self.abandoned.settle().await;
        let content = identity::act_as(self.pool.identity)
            .and_then(|_acting| Content::of(&self.open.data(), self.size()));
        let content = content.map_err(|error| self.io_error(OP, range, error))?;
        Ok(extents::allocated(content, range, self.open.name.clone()))
    }
}

impl FileDevice {
    async fn zero(&self, op: &'static str, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.check_write(range, op)?;
        self.abandoned.settle().await;
        if range.is_empty() {
            return Ok(());
        }
        let gate = self.open.shared.gate().await;
        let Abilities { remote, punch, .. } = self.pool.abilities;
        self.run(op, range, Some(gate), move |open| {
            let keep = !options.may_discard || open.provisioning == Provisioning::Thick;
            let file = match open.data() {
                Data::Raw(_, file) => file,
                Data::Chain(image) => return image.zero(range, !keep && punch),
            };
            // NFS has no such thing, but both halves of it. Somebody might take the space of a thick
            // volume in between.
            let by_halves =
                remote && (options.fast_only || open.provisioning == Provisioning::Thin);
            let result = if keep && by_halves {
                sys::punch_hole(&file, range).and_then(|()| sys::reserve(&file, range))
            } else if keep {
                sys::zero_range(&file, range)
            } else {
                sys::punch_hole(&file, range)
            };
            match result {
                Err(error)
                    if error.raw_os_error() == Some(libc::EOPNOTSUPP) && !options.fast_only =>
                {
                    write_zeros(&file, range)
                }
                result => result,
            }
        })
        .await
    }
}

/// Reads what `buffer` still lacks of the bytes before `end`.
fn read_rest(file: &File, buffer: &mut Buffer, end: u64) -> io::Result<()> {
    while buffer.missing() > 0 {
        let missing = buffer.missing();
        let offset = end - missing as u64;
        match sys::read(file, buffer.room(), missing, offset, Wait::May) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The way that every file system has.
fn write_zeros(file: &File, range: ByteRange) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let zeros = vec![0; range.length.min(CHUNK) as usize];
    let mut at = range.offset;
    while at < range.end() {
        let length = (range.end() - at).min(CHUNK) as usize;
        file.write_all_at(&zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

impl fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDevice")
            .field("name", &self.open.name)
            .field("access", &self.open.access)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use volmux_core::{ByteSize, CreateOptions, Pool};

    use super::*;
    use crate::{DirConfig, DirPool};

    #[tokio::test]
    async fn a_copy_holds_back_writes_that_would_not_have_to_wait() {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = DirPool::opened(DirConfig::new(dir.path()), None, None).await;
        let pool = pool.expect("open");
        let name = VolumeName::new("a").expect("a good name");
        let options = CreateOptions::thin(ByteSize::kib(64));
        let id = pool.create_volume(&name, options).await.expect("create").id;
        let device = pool.open_volume(&name, OpenOptions::read_write()).await;
        let device = device.expect("open");
        let gate = pool.0.open_volumes.with(id, |shared| shared.gate.clone());
        let copying = gate.expect("it is open").write_owned().await;
        let mut context = Context::from_waker(Waker::noop());
        let mut write = pin!(device.write_at(0, vec![1; 4096].into()));
        let mut zero = pin!(device.discard(ByteRange::new(8192, 4096)));
        for _ in 0..3 {
            assert!(write.as_mut().poll(&mut context).is_pending());
            assert!(zero.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(device.read_at(0, 4096).await.expect("read"), vec![0; 4096]);
        drop(copying);
        write.await.expect("write");
        zero.await.expect("discard");
        assert_eq!(device.read_at(0, 4096).await.expect("read"), vec![1; 4096]);
    }
}

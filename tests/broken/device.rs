//! An open volume of a broken pool.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use volmux::{
    Access, BlockDevice, ByteRange, Error, ErrorKind, ExtentStream, Pool, Result, VolumeName,
    ZeroOptions,
};

use crate::flaw::Flaw;
use crate::pool::broken_extents;
use crate::state::{State, lock};

#[derive(Debug)]
pub struct BrokenDevice {
    pub inner: Arc<dyn BlockDevice>,
    pub state: Arc<State>,
    /// What the writes go to as well.
    pub parent: Option<Arc<dyn BlockDevice>>,
    /// Gone when the pool handle is.
    pub pool: Weak<()>,
    pub size: u64,
    /// The pool without its flaw.
    pub volumes: Arc<dyn Pool>,
    pub in_flight: AtomicU32,
}

impl BrokenDevice {
    fn flaw(&self) -> Flaw {
        self.state.flaw
    }

    fn done<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.state.error(error))
    }

    fn start(&self, op: &'static str, length: u64) -> Result<()> {
        if self.flaw() == Flaw::EmptyRequestsFail && length == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, op));
        }
        if self.flaw() == Flaw::HandlesDieWithThePool && self.pool.strong_count() == 0 {
            return Err(Error::new(ErrorKind::Unavailable, op));
        }
        Ok(())
    }

    fn cut(&self, range: ByteRange) -> ByteRange {
        if self.flaw() == Flaw::RangesAreCut {
            range.intersect(&ByteRange::new(0, self.inner.size()))
        } else {
            range
        }
    }

    /// Whether a writing request through a reader's handle is to be let pass.
    fn pretends(&self) -> bool {
        self.flaw() == Flaw::ReadersCanWrite && self.inner.access() == Access::ReadOnly
    }

    /// With the flaw `DroppedWritesComeLate`: leaves time to be dropped, and if it is, the request
    /// takes effect after the next write.
    async fn late(&self, what: Late) {
        if self.flaw() == Flaw::DroppedWritesComeLate {
            let mut late = LateEffect {
                device: self,
                what: Some(what),
            };
            tokio::task::yield_now().await;
            late.what = None;
        }
    }

    async fn do_what_is_late(&self) {
        let late = std::mem::take(&mut *lock(&self.state.late));
        for what in late {
            let _ = match what {
                Late::Write(offset, data) => self.inner.write_at(offset, data).await,
                Late::Discard(range) => self.inner.discard(range).await,
            };
        }
    }
}

/// What a dropped request still wants to do.
#[derive(Debug)]
pub enum Late {
    Write(u64, Bytes),
    Discard(ByteRange),
}

/// Remembers its request when it is dropped before it was told that the request is done.
struct LateEffect<'a> {
    device: &'a BrokenDevice,
    what: Option<Late>,
}

impl Drop for LateEffect<'_> {
    fn drop(&mut self) {
        if let Some(what) = self.what.take() {
            lock(&self.device.state.late).push(what);
        }
    }
}

#[async_trait]
impl BlockDevice for BrokenDevice {
    fn name(&self) -> &VolumeName {
        self.inner.name()
    }

    fn size(&self) -> u64 {
        if self.flaw() == Flaw::DeviceSizeIsFixed {
            self.size
        } else {
            self.inner.size()
        }
    }

    fn access(&self) -> Access {
        self.inner.access()
    }

    async fn refresh(&self) -> Result<u64> {
        self.start("refresh", 1)?;
        match self.flaw() {
            Flaw::DeviceSizeIsFixed => Ok(self.size),
            Flaw::RefreshGoesByName => {
                let volume = self.volumes.volume(self.name()).await?;
                Ok(volume.virtual_size.bytes())
            }
            _ => self.done(self.inner.refresh().await),
        }
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.start("read_at", length as u64)?;
        let range = self.cut(ByteRange::new(offset, length as u64));
        let read = self.inner.read_at(range.offset, range.length as usize);
        self.done(read.await)
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        self.start("write_at", data.len() as u64)?;
        if self.pretends() {
            return Ok(());
        }
        if self.flaw() == Flaw::OneRequestAtATime {
            let others = self.in_flight.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if others > 0 {
                return Err(Error::new(ErrorKind::Busy, "write_at"));
            }
        }
        if self.flaw() == Flaw::WritesGoOnAfterwards {
            let inner = self.inner.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = inner.write_at(offset, data).await;
            });
            return Ok(());
        }
        self.late(Late::Write(offset, data.clone())).await;
        let offset = if self.flaw() == Flaw::WritesAreRounded {
            offset / 512 * 512
        } else {
            offset
        };
        let range = self.cut(ByteRange::new(offset, data.len() as u64));
        let data = data.slice(..range.length as usize);
        if let Some(parent) = &self.parent {
            let _ = parent.write_at(range.offset, data.clone()).await;
        }
        let written = self.inner.write_at(range.offset, data).await;
        self.do_what_is_late().await;
        self.done(written)
    }

    async fn flush(&self) -> Result<()> {
        if self.flaw() == Flaw::FlushFails {
            return Err(Error::new(ErrorKind::Unavailable, "flush"));
        }
        self.done(self.inner.flush().await)
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        self.start("discard", range.length)?;
        let within = range.check_within(self.inner.size(), "discard").is_ok();
        let writing = self.inner.access() == Access::ReadWrite;
        match self.flaw() {
            Flaw::DiscardDoesNothing if within && writing => return Ok(()),
            Flaw::DiscardOnlyZeroes => {
                let options = ZeroOptions::default();
                return self.inner.write_zeroes(range, options).await;
            }
            _ if self.pretends() => return Ok(()),
            _ => {}
        }
        self.late(Late::Discard(range)).await;
        self.done(self.inner.discard(self.cut(range)).await)
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.start("write_zeroes", range.length)?;
        let within = range
            .check_within(self.inner.size(), "write_zeroes")
            .is_ok();
        let ignored = self.flaw() == Flaw::ZeroDoesNothing && within;
        if ignored || self.pretends() {
            return Ok(());
        }
        if self.flaw() == Flaw::FastZeroesFail && options.fast_only {
            return Err(Error::new(ErrorKind::Unsupported, "write_zeroes"));
        }
        self.done(self.inner.write_zeroes(self.cut(range), options).await)
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        self.start("extents", range.length)?;
        let stream = self.done(self.inner.extents(self.cut(range)).await)?;
        Ok(broken_extents(self.flaw(), stream, range))
    }
}

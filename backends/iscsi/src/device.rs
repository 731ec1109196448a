//! The data path: an open volume on a logical unit.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use volmux_core::{
    Access, BlockDevice, ByteRange, Error, ErrorKind, ExtentStream, Result, VolumeName, ZeroOptions,
};

use crate::detached::ToItsEnd;
use crate::ranges::{Doing, Ranges};
use crate::session::Attached;
use crate::unflushed::Done;

/// Within which what goes on in a volume that is closed has to end.
const CLOSE_TIME: Duration = Duration::from_secs(30);
/// A piece of zeros that are written out.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// An open volume of an iSCSI pool.
///
/// Requests are bound to the session that was verified last: to be this volume's logical unit, and
/// this holder's. When it breaks all of them wait until another one is verified, and what the target
/// had confirmed and not made durable was sent to it again.
pub struct IscsiDevice {
    attached: Arc<Attached>,
    ranges: Arc<Ranges>,
    size: Arc<AtomicU64>,
    access: Access,
    /// Never gives space back.
    thick: bool,
    runtime: Option<Handle>,
    /// Sees to it that there is a session.
    watch: Option<AbortHandle>,
}

impl IscsiDevice {
    /// A volume on a unit that was verified. `size` is shared with whoever resizes it.
    pub fn new(attached: Attached, access: Access, thick: bool, size: Arc<AtomicU64>) -> Self {
        let attached = Arc::new(attached);
        let runtime = Handle::try_current().ok();
        let watch = Attached::watch(Arc::downgrade(&attached));
        IscsiDevice {
            attached,
            ranges: Arc::default(),
            size,
            access,
            thick,
            watch: runtime
                .as_ref()
                .map(|runtime| runtime.spawn(watch).abort_handle()),
            runtime,
        }
    }

    fn check(&self, range: ByteRange, op: &'static str) -> Result<()> {
        range
            .check_within(self.size(), op)
            .map_err(|error| self.named(error))
    }

    fn check_write(&self, range: ByteRange, op: &'static str) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Err(self.named(
                Error::new(ErrorKind::InvalidInput, op).reason("the volume was opened read-only"),
            ));
        }
        self.check(range, op)
    }

    fn named(&self, error: Error) -> Error {
        match error.get("volume") {
            None => error.with("volume", self.name()),
            Some(_) => error,
        }
    }

    /// `range`, widened to whole blocks.
    fn blocks(&self, range: ByteRange) -> ByteRange {
        let block = self.attached.block_size();
        let start = range.offset / block * block;
        ByteRange::from_to(start, range.end().next_multiple_of(block))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.attached.timeout
    }

    /// Changes a range by `work`, which goes on if this is dropped.
    async fn change<T: Send + 'static>(
        &self,
        range: ByteRange,
        doing: Doing,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let place = self.ranges.enter(range, doing).await;
        ToItsEnd::new(place, work)
            .await
            .map_err(|error| self.named(error))
    }

    /// Makes `range` zeros, giving back its space where `unmap` says so.
    async fn zero(&self, op: &'static str, range: ByteRange, unmap: bool) -> Result<()> {
        let inner = self.attached.whole_blocks(range);
        let (attached, until) = (self.attached.clone(), self.deadline());
        let whole = self.blocks(range);
        let doing = match whole == range {
            true => Doing::Whole,
            false => Doing::Part,
        };
        self.change(whole, doing, async move {
            let Some(inner) = inner else {
                return splice(&attached, op, range.offset, zeros(range.length), until).await;
            };
            let head = ByteRange::from_to(range.offset, inner.offset);
            let tail = ByteRange::from_to(inner.end(), range.end());
            for edge in [head, tail] {
                let nothing =
                    edge.is_empty() || (unmap && is_zero(&attached, op, edge, until).await?);
                if !nothing {
                    splice(&attached, op, edge.offset, zeros(edge.length), until).await?;
                }
            }
            attached.change(op, Done::Zeroed(inner, unmap), until).await
        })
        .await
    }
}

/// Whether a part of a block holds zeros already, so that none need be written, which takes space.
async fn is_zero(
    attached: &Arc<Attached>,
    op: &'static str,
    part: ByteRange,
    until: Instant,
) -> Result<bool> {
    let block = attached.block_size();
    let start = part.offset / block * block;
    let data = attached.read(op, start, block, until).await?;
    let at = (part.offset - start) as usize;
    let held = data.get(at..at + part.length as usize).unwrap_or_default();
    Ok(held.iter().all(|&byte| byte == 0))
}

/// Zeros for a part of a block.
fn zeros(length: u64) -> Bytes {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Bytes::from_static(&ZEROS[..length.min(ZEROS.len())])
}

/// Writes `data` to where blocks don't begin or end: the blocks that it lies in are read, and written
/// as a whole.
async fn splice(
    attached: &Arc<Attached>,
    op: &'static str,
    offset: u64,
    data: Bytes,
    until: Instant,
) -> Result<()> {
    let block = attached.block_size();
    let start = offset / block * block;
    let end = (offset + data.len() as u64).next_multiple_of(block);
    let length = usize::try_from(end - start).unwrap_or(usize::MAX);
    let mut blocks = BytesMut::with_capacity(length);
    if end - start <= 2 * block {
        blocks.extend_from_slice(&attached.read(op, start, end - start, until).await?);
    } else {
        // Only the first and the last are not wholly replaced.
        blocks.extend_from_slice(&attached.read(op, start, block, until).await?);
        blocks.resize(length - block as usize, 0);
        blocks.extend_from_slice(&attached.read(op, end - block, block, until).await?);
    }
    let at = (offset - start) as usize;
    blocks[at..at + data.len()].copy_from_slice(&data);
    attached
        .change(op, Done::Written(start, blocks.freeze()), until)
        .await
}

#[async_trait]
impl BlockDevice for IscsiDevice {
    fn name(&self) -> &VolumeName {
        self.attached.lease.name()
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn access(&self) -> Access {
        self.access
    }

    async fn refresh(&self) -> Result<u64> {
        let size = self.attached.capacity("refresh", self.deadline()).await;
        self.size
            .fetch_max(size.map_err(|error| self.named(error))?, Ordering::AcqRel);
        Ok(self.size())
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        const OP: &str = "read_at";
        let range = ByteRange::new(offset, length as u64);
        self.check(range, OP)?;
        let whole = self.blocks(range);
        self.ranges.settled(whole).await;
        if range.is_empty() {
            return self.attached.alive(OP).map(|()| Bytes::new());
        }
        let until = self.deadline();
        let read = self.attached.read(OP, whole.offset, whole.length, until);
        let data = read.await.map_err(|error| self.named(error))?;
        let at = (offset - whole.offset) as usize;
        Ok(data.slice(at..at + length))
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        const OP: &str = "write_at";
        let range = ByteRange::new(offset, data.len() as u64);
        self.check_write(range, OP)?;
        if range.is_empty() {
            return self.attached.alive(OP);
        }
        let (attached, until) = (self.attached.clone(), self.deadline());
        let whole = self.blocks(range);
        if whole == range {
            let done = Done::Written(offset, data);
            let work = async move { attached.change(OP, done, until).await };
            return self.change(whole, Doing::Whole, work).await;
        }
        let work = async move { splice(&attached, OP, offset, data, until).await };
        self.change(whole, Doing::Part, work).await
    }

    async fn flush(&self) -> Result<()> {
        const OP: &str = "flush";
        if self.access == Access::ReadOnly {
            return self.attached.alive(OP);
        }
        let flushed = self.attached.flush(OP, self.deadline()).await;
        flushed.map_err(|error| self.named(error))
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        const OP: &str = "discard";
        self.check_write(range, OP)?;
        if range.is_empty() {
            return self.attached.alive(OP);
        }
        self.zero(OP, range, !self.thick && self.attached.unmaps())
            .await
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        const OP: &str = "write_zeroes";
        self.check_write(range, OP)?;
        if range.is_empty() {
            return self.attached.alive(OP);
        }
        let unmap = !self.thick && self.attached.unmaps();
        if options.fast_only && !unmap {
            return Err(self.named(
                Error::new(ErrorKind::Unsupported, OP)
                    .reason("the target would have to write the zeros out"),
            ));
        }
        self.zero(OP, range, unmap).await
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        const OP: &str = "extents";
        self.check(range, OP)?;
        self.ranges.settled(range).await;
        if self.access == Access::ReadWrite {
            // What is still in the target's cache may have no place yet.
            self.flush().await.map_err(|error| error.with_op(OP))?;
        }
        let extents = self.attached.extents(OP, range, self.deadline()).await;
        extents.map_err(|error| self.named(error))
    }
}

impl Drop for IscsiDevice {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
        let runtime = Handle::try_current().ok().or(self.runtime.take());
        // Without a runtime it stays attached, which an audit, or who wants it next, ends.
        let Some(runtime) = runtime else {
            return;
        };
        let (attached, ranges) = (self.attached.clone(), self.ranges.clone());
        let closing = attached.lease.closing();
        runtime.spawn(async move {
            let everything = ByteRange::new(0, u64::MAX);
            // What takes longer than that has failed, and its session ends with it.
            let _ = timeout(CLOSE_TIME, ranges.settled(everything)).await;
            attached.close().await;
            drop(closing);
        });
    }
}

impl fmt::Debug for IscsiDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IscsiDevice")
            .field("name", self.name())
            .field("access", &self.access)
            .field("size", &self.size())
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

//! The data path: an open volume.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Access, ByteRange, ExtentStream, Result, VolumeName};

/// How zeros are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Space may be given back. Without it a thick volume stays reserved.
    pub may_discard: bool,
    /// Fail with `Unsupported`, with nothing changed, where the store would have to write zeros
    /// out.
    pub fast_only: bool,
}

/// An open volume.
///
/// Many requests may be in flight at once; requests that overlap and are in flight together have
/// no order. A request is done when its future completes; it is durable once a later
/// [`flush`](Self::flush) has completed. A request whose future was dropped may or may not have
/// taken effect, as a whole or in part, but no request that is started afterwards is overtaken by it.
/// Dropping the last reference closes the volume and does not flush.
///
/// # Errors
/// Each method: `InvalidInput` for a range past the end, or for a write to a volume opened
/// read-only; `Fenced` once another writer took over; `NoSpace`; `Unavailable`; `Corrupt`.
#[async_trait]
pub trait BlockDevice: Debug + Send + Sync + 'static {
    /// The volume's name when it was opened.
    fn name(&self) -> &VolumeName;

    /// The size as far as it is known here, in bytes: grows when the volume is resized through the
    /// same pool object, and by [`refresh`](Self::refresh). It does not fall, for a volume in use
    /// can't be shrunk.
    fn size(&self) -> u64;

    /// For reading only, or for writing too.
    fn access(&self) -> Access;

    /// Looks the size up in the store, so that a resize by another process or host is seen, and
    /// returns what [`size`](Self::size) gives from then on.
    ///
    /// It is this volume's size, whatever the volume is called by now. A resize that is not done
    /// yet, or was cut short, does not show.
    ///
    /// # Errors
    /// Besides those of every method: `NotFound` if the volume is gone from the store. The size
    /// is then what it was.
    async fn refresh(&self) -> Result<u64>;

    /// Reads `length` bytes from `offset`. What was never written, or was discarded, is zeros.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes>;

    /// Writes all of `data` at `offset`.
    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()>;

    /// Makes every write that completed before this call durable.
    async fn flush(&self) -> Result<()>;

    /// Gives back the space of `range`, which reads as zeros afterwards. Where the store works in
    /// blocks, those partly covered are zeroed, not freed. On a thick volume the space stays
    /// reserved.
    async fn discard(&self, range: ByteRange) -> Result<()>;

    /// Makes `range` read as zeros.
    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()>;

    /// The allocated extents within `range`.
    async fn extents(&self, range: ByteRange) -> Result<ExtentStream>;
}

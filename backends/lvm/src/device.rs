//! The data path: an open volume.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use volmux_core::{
    Access, BlockDevice, ByteRange, Error, ErrorKind, ExtentStream, Provisioning, Result, VolumeId,
    VolumeName, ZeroOptions,
};

use crate::disk::Disk;
use crate::extents;
use crate::pool::Inner;
use crate::view::Entry;

pub use crate::open::{open, open_entry};

/// What the open handles of one volume in one pool object share.
#[derive(Debug)]
pub struct Shared(AtomicU64);

/// The volumes that this pool object has open.
#[derive(Debug, Default)]
pub struct OpenVolumes(Mutex<HashMap<VolumeId, Weak<Shared>>>);

impl OpenVolumes {
    /// Lets the handles of `id` know of another size.
    pub fn resized(&self, id: VolumeId, size: u64) {
        let shared = self.lock().get(&id).and_then(Weak::upgrade);
        if let Some(shared) = shared {
            shared.grown(size);
        }
    }

    /// What a handle that is being opened shares with those that are open. It keeps the volume from
    /// being shrunk already.
    pub fn join(&self, id: VolumeId, size: u64) -> Arc<Shared> {
        let mut volumes = self.lock();
        if let Some(shared) = volumes.get(&id).and_then(Weak::upgrade) {
            shared.grown(size);
            return shared;
        }
        volumes.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Shared::new(size));
        volumes.insert(id, Arc::downgrade(&shared));
        shared
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Weak<Shared>>> {
        // The map is whole between any two statements, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Of a handle that nobody else looks for.
    pub fn new(size: u64) -> Self {
        Shared(AtomicU64::new(size))
    }

    fn size(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn grown(&self, size: u64) {
        self.0.fetch_max(size, Ordering::AcqRel);
    }
}

/// Which logical volume a handle is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// The one that is the volume of this identity, whatever it is called.
    Volume(VolumeId),
    /// The one of this name, which nobody else opens.
    Hidden(String),
}

/// An open volume of an LVM pool.
pub struct LvmDevice {
    pub inner: Arc<Inner>,
    pub of: Of,
    pub name: VolumeName,
    pub access: Access,
    pub provisioning: Provisioning,
    pub shared: Arc<Shared>,
    /// Holds the locks, until the last request is done with it.
    pub disk: Disk,
}

impl LvmDevice {
    /// The volume as it is now.
    ///
    /// # Errors
    /// `NotFound` if it is gone.
    async fn entry(&self, op: &'static str) -> Result<Option<Entry>> {
        let Of::Volume(id) = &self.of else {
            return Ok(None);
        };
        let view = self.inner.client.look(op).await?;
        match view.by_id(*id) {
            Some(entry) => Ok(Some(entry.clone())),
            None => Err(Error::new(ErrorKind::NotFound, op)
                .with("id", id)
                .reason("the volume is gone from the pool")),
        }
    }

    fn check(&self, range: ByteRange, op: &'static str) -> Result<()> {
        self.named(range.check_within(self.size(), op))
    }

    fn check_write(&self, range: ByteRange, op: &'static str) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .with("volume", &self.name)
                .reason("the volume was opened read-only"));
        }
        self.check(range, op)
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error.get("volume") {
            None => error.with("volume", &self.name),
            Some(_) => error,
        })
    }
}

#[async_trait]
impl BlockDevice for LvmDevice {
    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn size(&self) -> u64 {
        self.shared.size()
    }

    fn access(&self) -> Access {
        self.access
    }

    async fn refresh(&self) -> Result<u64> {
        const OP: &str = "refresh";
        let entry = self.named(self.entry(OP).await)?;
        let size = self.disk.device_size();
        let size = self.named(size.map_err(|error| Error::from_io(OP, error)))?;
        // A volume that is being shrunk has its new size before its device does.
        let most = entry.map_or(u64::MAX, |entry| entry.size().bytes());
        self.shared.grown(size.min(most));
        Ok(self.size())
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.check(ByteRange::new(offset, length as u64), "read_at")?;
        self.named(self.disk.read_at(offset, length).await)
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        let range = ByteRange::new(offset, data.len() as u64);
        self.check_write(range, "write_at")?;
        self.named(self.disk.write_at(offset, data).await)
    }

    async fn flush(&self) -> Result<()> {
        self.named(self.disk.flush().await)
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        const OP: &str = "discard";
        self.check_write(range, OP)?;
        if self.provisioning == Provisioning::Thick && !range.is_empty() {
            return Err(Error::new(ErrorKind::Unsupported, OP)
                .with("volume", &self.name)
                .reason("a thick volume keeps its space")
                .help("write zeros instead"));
        }
        self.named(self.disk.discard(range).await)
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.check_write(range, "write_zeroes")?;
        self.named(self.disk.write_zeroes(range, options).await)
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        const OP: &str = "extents";
        self.check(range, OP)?;
        self.named(extents::of_device(self, OP, range).await)
    }
}

impl fmt::Debug for LvmDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LvmDevice")
            .field("name", &self.name)
            .field("access", &self.access)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_a_volume_share_its_size() {
        let volumes = OpenVolumes::default();
        let (a, b) = (VolumeId::random(), VolumeId::random());
        let first = volumes.join(a, 10);
        let other = volumes.join(b, 10);
        let second = volumes.join(a, 20);
        assert_eq!((first.size(), second.size()), (20, 20));
        volumes.resized(a, 30);
        volumes.resized(a, 5);
        assert_eq!((first.size(), other.size()), (30, 10));
        drop((first, second));
        // Closed, it may have been shrunk.
        assert_eq!(volumes.join(a, 5).size(), 5);
        volumes.resized(VolumeId::random(), 1);
    }
}

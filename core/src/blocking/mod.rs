//! For programs without async: the same calls, which return when they are done.
//!
//! A [`Pool`] brings its own threads to run on. It must not be used from within an async runtime:
//! there a call would hold up everything else that runs on the thread, so it returns an error. The
//! threads of a runtime's `spawn_blocking` count as within it.
//!
//! A process that forks leaves its threads behind, so the child can't use what the parent has open:
//! there every call returns `InvalidInput`, and dropping a handle does nothing, neither to the
//! volume nor to the parent. The child may open pools of its own.
//!
//! ```
//! use volmux_core::memory::MemoryBackend;
//! use volmux_core::{ByteRange, ByteSize, CreateOptions, ExtentQuery, OpenOptions, Registry};
//! use volmux_core::{VolumeName, blocking};
//!
//! # fn main() -> volmux_core::Result<()> {
//! let registry = Registry::new().with(MemoryBackend);
//! let pool = blocking::Pool::open(&registry, "memory:")?;
//! let name = VolumeName::new("disk")?;
//! pool.create_volume(&name, CreateOptions::thin(ByteSize::gib(10)))?;
//!
//! let device = pool.open_volume(&name, OpenOptions::read_write())?;
//! device.write_at(4096, b"hello".to_vec())?;
//! device.flush()?;
//!
//! let snapshot = VolumeName::new("monday")?;
//! pool.snapshot_volume(&name, &snapshot, Default::default())?;
//! device.write_at(0, b"world".to_vec())?;
//! let changed: Vec<ByteRange> = pool
//!     .extents(&name, ExtentQuery::changed_since(snapshot))?
//!     .collect::<Result<_, _>>()?;
//! assert_eq!(changed, [ByteRange::new(0, 4096)]);
//! # Ok(())
//! # }
//! ```

mod group;
#[cfg(test)]
mod tests;
mod threads;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};

use crate::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, ByteRange,
    Capabilities, CloneOptions, Collected, Control, CopyOptions, CreateOptions, ExtentQuery,
    ExtentStream, FlattenOptions, Grade, Holder, OpenOptions, PoolExt, Registry, ResizeOptions,
    Result, RevertOptions, SnapshotOptions, ThinPolicy, Usage, Volume, VolumeName, ZeroOptions,
};

pub use group::{Freezer, FreezerThreads, Member, snapshot_group};
pub use threads::Threads;

/// A pool whose calls return when they are done. Clones are the same pool.
///
/// Each method does what the one of [`crate::Pool`] does, with the same errors; and all return
/// `InvalidInput` when called from within an async runtime.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<dyn crate::Pool>,
    threads: Threads,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.threads.are_elsewhere() {
            std::mem::forget(self.inner.clone());
        }
    }
}

impl Pool {
    /// Opens the pool at `url`, with threads of its own.
    ///
    /// # Errors
    /// As [`Registry::open`]; `Unavailable` if the operating system gives no threads.
    pub fn open(registry: &Registry, url: &str) -> Result<Self> {
        let threads = Threads::new()?;
        let inner = threads.block_on("open_pool", registry.open(url))??;
        Ok(Pool { inner, threads })
    }

    /// A pool that is open already.
    pub fn new(pool: Arc<dyn crate::Pool>, threads: &Threads) -> Self {
        Pool {
            inner: pool,
            threads: threads.clone(),
        }
    }

    /// The threads that its calls run on.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The async pool behind it.
    pub fn inner(&self) -> &Arc<dyn crate::Pool> {
        &self.inner
    }

    /// See [`crate::Pool::capabilities`].
    pub fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    /// See [`crate::Pool::policy`].
    pub fn policy(&self) -> ThinPolicy {
        self.inner.policy()
    }

    /// See [`crate::Pool::usage`].
    ///
    /// # Errors
    /// As there.
    pub fn usage(&self) -> Result<Usage> {
        self.threads.block_on("usage", self.inner.usage())?
    }

    /// See [`crate::Pool::create_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let work = self.inner.create_volume(name, options);
        self.threads.block_on("create_volume", work)?
    }

    /// See [`crate::Pool::volume`].
    ///
    /// # Errors
    /// As there.
    pub fn volume(&self, name: &VolumeName) -> Result<Volume> {
        self.threads.block_on("volume", self.inner.volume(name))?
    }

    /// See [`PoolExt::find_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn find_volume(&self, name: &VolumeName) -> Result<Option<Volume>> {
        self.threads
            .block_on("volume", self.inner.find_volume(name))?
    }

    /// See [`crate::Pool::list_volumes`].
    pub fn list_volumes(&self) -> Volumes {
        Volumes(Items {
            stream: Some(self.inner.list_volumes()),
            threads: self.threads.clone(),
        })
    }

    /// See [`crate::Pool::resize_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let work = self.inner.resize_volume(name, options);
        self.threads.block_on("resize_volume", work)?
    }

    /// See [`crate::Pool::rename_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let work = self.inner.rename_volume(name, to);
        self.threads.block_on("rename_volume", work)?
    }

    /// See [`crate::Pool::delete_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let work = self.inner.delete_volume(name);
        self.threads.block_on("delete_volume", work)?
    }

    /// See [`crate::Pool::snapshot_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        let work = self.inner.snapshot_volume(source, name, options);
        self.threads.block_on("snapshot_volume", work)?
    }

    /// See [`crate::Pool::clone_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        let work = self.inner.clone_volume(source, name, options);
        self.threads.block_on("clone_volume", work)?
    }

    /// See [`crate::Pool::copy_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        let work = self.inner.copy_volume(source, name, options);
        self.threads.block_on("copy_volume", work)?
    }

    /// See [`PoolExt::copy_volume_to`].
    ///
    /// # Errors
    /// As there.
    pub fn copy_volume_to(
        &self,
        source: &VolumeName,
        target: &Pool,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        let target = target.inner.as_ref();
        let work = self.inner.copy_volume_to(source, target, name, options);
        self.threads.block_on("copy_volume", work)?
    }

    /// See [`crate::Pool::revert_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        let work = self.inner.revert_volume(name, snapshot, options);
        self.threads.block_on("revert_volume", work)?
    }

    /// See [`crate::Pool::flatten_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        let work = self.inner.flatten_volume(name, options);
        self.threads.block_on("flatten_volume", work)?
    }

    /// See [`crate::Pool::adopt_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        let work = self.inner.adopt_volume(what, name);
        self.threads.block_on("adopt_volume", work)?
    }

    /// See [`crate::Pool::open_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn open_volume(&self, name: &VolumeName, options: OpenOptions) -> Result<Device> {
        let work = self.inner.open_volume(name, options);
        let inner = self.threads.block_on("open_volume", work)??;
        Ok(Device {
            inner,
            threads: self.threads.clone(),
        })
    }

    /// See [`crate::Pool::extents`].
    ///
    /// # Errors
    /// As there.
    pub fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<Extents> {
        let work = self.inner.extents(name, query);
        let stream = self.threads.block_on("extents", work)??;
        Ok(Extents::new(stream, &self.threads))
    }

    /// See [`crate::Pool::attach_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment> {
        let work = self.inner.attach_volume(name, options);
        self.threads.block_on("attach_volume", work)?
    }

    /// See [`crate::Pool::detach_volume`].
    ///
    /// # Errors
    /// As there.
    pub fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        let work = self.inner.detach_volume(name, holder);
        self.threads.block_on("detach_volume", work)?
    }

    /// See [`crate::Pool::audit`].
    ///
    /// # Errors
    /// As there.
    pub fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        self.threads.block_on("audit", self.inner.audit(options))?
    }

    /// See [`crate::Pool::scrub`].
    ///
    /// # Errors
    /// As there.
    pub fn scrub(&self, control: Control) -> Result<AuditReport> {
        self.threads.block_on("scrub", self.inner.scrub(control))?
    }

    /// See [`crate::Pool::collect_garbage`].
    ///
    /// # Errors
    /// As there.
    pub fn collect_garbage(&self) -> Result<Collected> {
        self.threads
            .block_on("collect_garbage", self.inner.collect_garbage())?
    }
}

/// An open volume whose calls return when they are done. Clones are the same handle; the volume is
/// closed when the last one is dropped. Any number of threads may call at once.
///
/// Each method does what the one of [`BlockDevice`] does, with the same errors; and all return
/// `InvalidInput` when called from within an async runtime.
#[derive(Clone, Debug)]
pub struct Device {
    inner: Arc<dyn BlockDevice>,
    threads: Threads,
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.threads.are_elsewhere() {
            std::mem::forget(self.inner.clone());
        }
    }
}

impl Device {
    /// The threads that its calls run on.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The async handle behind it.
    pub fn inner(&self) -> &Arc<dyn BlockDevice> {
        &self.inner
    }

    /// See [`BlockDevice::name`].
    pub fn name(&self) -> &VolumeName {
        self.inner.name()
    }

    /// See [`BlockDevice::size`].
    pub fn size(&self) -> u64 {
        self.inner.size()
    }

    /// See [`BlockDevice::access`].
    pub fn access(&self) -> Access {
        self.inner.access()
    }

    /// See [`BlockDevice::refresh`].
    ///
    /// # Errors
    /// As there.
    pub fn refresh(&self) -> Result<u64> {
        self.threads.block_on("refresh", self.inner.refresh())?
    }

    /// See [`BlockDevice::read_at`].
    ///
    /// # Errors
    /// As there.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let work = self.inner.read_at(offset, length);
        self.threads.block_on("read_at", work)?
    }

    /// See [`BlockDevice::write_at`].
    ///
    /// # Errors
    /// As there.
    pub fn write_at(&self, offset: u64, data: impl Into<Bytes>) -> Result<()> {
        let work = self.inner.write_at(offset, data.into());
        self.threads.block_on("write_at", work)?
    }

    /// See [`BlockDevice::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self) -> Result<()> {
        self.threads.block_on("flush", self.inner.flush())?
    }

    /// See [`BlockDevice::discard`].
    ///
    /// # Errors
    /// As there.
    pub fn discard(&self, range: ByteRange) -> Result<()> {
        self.threads
            .block_on("discard", self.inner.discard(range))?
    }

    /// See [`BlockDevice::write_zeroes`].
    ///
    /// # Errors
    /// As there.
    pub fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let work = self.inner.write_zeroes(range, options);
        self.threads.block_on("write_zeroes", work)?
    }

    /// See [`BlockDevice::extents`].
    ///
    /// # Errors
    /// As there.
    pub fn extents(&self, range: ByteRange) -> Result<Extents> {
        let stream = self
            .threads
            .block_on("extents", self.inner.extents(range))??;
        Ok(Extents::new(stream, &self.threads))
    }
}

/// A stream, one item at a time.
struct Items<T> {
    stream: Option<BoxStream<'static, Result<T>>>,
    threads: Threads,
}

impl<T> Drop for Items<T> {
    fn drop(&mut self) {
        if self.threads.are_elsewhere() {
            std::mem::forget(self.stream.take());
        }
    }
}

impl<T> Items<T> {
    fn next(&mut self, op: &'static str) -> Option<Result<T>> {
        let item = self.threads.block_on(op, self.stream.as_mut()?.next());
        if !matches!(item, Ok(Some(_))) {
            // Nothing comes after the end, nor after a call from the wrong place.
            let stream = self.stream.take();
            if self.threads.are_elsewhere() {
                std::mem::forget(stream);
            }
        }
        item.unwrap_or_else(|error| Some(Err(error)))
    }
}

/// The volumes of a pool, each looked up when it is asked for.
pub struct Volumes(Items<Volume>);

impl Iterator for Volumes {
    type Item = Result<Volume>;

    fn next(&mut self) -> Option<Result<Volume>> {
        self.0.next("list_volumes")
    }
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volumes").finish_non_exhaustive()
    }
}

/// Extents in ascending order; see [`ExtentStream`].
pub struct Extents {
    grade: Grade,
    granularity: u64,
    items: Items<ByteRange>,
}

impl Extents {
    fn new(stream: ExtentStream, threads: &Threads) -> Self {
        Extents {
            grade: stream.grade(),
            granularity: stream.granularity(),
            items: Items {
                stream: Some(stream.boxed()),
                threads: threads.clone(),
            },
        }
    }

    /// How much they can be relied on.
    pub fn grade(&self) -> Grade {
        self.grade
    }

    /// The unit, in bytes, in which the backend tells blocks apart.
    pub fn granularity(&self) -> u64 {
        self.granularity
    }
}

impl Iterator for Extents {
    type Item = Result<ByteRange>;

    fn next(&mut self) -> Option<Result<ByteRange>> {
        self.items.next("extents")
    }
}

impl fmt::Debug for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extents")
            .field("grade", &self.grade)
            .field("granularity", &self.granularity)
            .finish_non_exhaustive()
    }
}

//! The pool trait, which every backend implements, and its conveniences.

use std::fmt::{Debug, Display};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{BoxStream, TryStreamExt};

use crate::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, ByteSize,
    Capabilities, Collected, Control, ErrorKind, ExtentQuery, ExtentStream, Holder, Provisioning,
    Result, Sharing, ThinPolicy, Usage, Volume, VolumeName, transfer,
};

/// How to create a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// What the guest will see. A backend may round up, and returns what it made.
    pub size: ByteSize,
    /// Thin or thick.
    pub provisioning: Provisioning,
}

impl CreateOptions {
    /// A thin volume of `size`.
    pub const fn thin(size: ByteSize) -> Self {
        CreateOptions {
            size,
            provisioning: Provisioning::Thin,
        }
    }

    /// A thick volume of `size`.
    pub const fn thick(size: ByteSize) -> Self {
        CreateOptions {
            size,
            provisioning: Provisioning::Thick,
        }
    }
}

/// How to resize a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeOptions {
    /// The new virtual size. A backend may round up.
    pub size: ByteSize,
    /// Allow a smaller size, which throws away what lies past it.
    pub allow_shrink: bool,
}

impl ResizeOptions {
    /// Grow to `size`; a smaller size is refused.
    pub const fn grow(size: ByteSize) -> Self {
        ResizeOptions {
            size,
            allow_shrink: false,
        }
    }
}

/// How to snapshot. See [`Control`] for watching and stopping where the backend emulates.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    /// Progress and cancellation.
    pub control: Control,
}

/// How to clone.
#[derive(Clone, Debug, Default)]
pub struct CloneOptions {
    /// Progress and cancellation.
    pub control: Control,
}

/// How to copy.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// Progress and cancellation.
    pub control: Control,
}

/// How to revert.
#[derive(Clone, Debug, Default)]
pub struct RevertOptions {
    /// Progress and cancellation.
    pub control: Control,
}

/// How to flatten.
#[derive(Clone, Debug, Default)]
pub struct FlattenOptions {
    /// Progress and cancellation.
    pub control: Control,
}

/// How to open a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// For reading only, or for writing too.
    pub access: Access,
    /// Whether other writers are let in.
    pub sharing: Sharing,
    /// Take the volume away from a writer that holds it: its next request fails with `Fenced`.
    /// Needs capability `fencing`.
    pub take_over: bool,
}

impl OpenOptions {
    /// For reading only. Goes together with a writer.
    pub const fn read_only() -> Self {
        OpenOptions {
            access: Access::ReadOnly,
            sharing: Sharing::Exclusive,
            take_over: false,
        }
    }

    /// For writing, alone.
    pub const fn read_write() -> Self {
        OpenOptions {
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
            take_over: false,
        }
    }
}

/// One place that holds volumes. Made by a [`Backend`](crate::Backend), used as `Arc<dyn Pool>`.
///
/// # Contract, on every backend
/// - **Idempotent**: create, snapshot, clone and copy with the same arguments return the existing
///   volume, with others `AlreadyExists`. Deleting what does not exist succeeds. Attach and detach
///   can be repeated.
/// - **Independent**: deleting a volume never fails because of its snapshots or clones, and never
///   harms them.
/// - **Crash-safe**: after a crash at any moment a pool opens and shows the state before or after
///   each operation; [`audit`](Self::audit) finds and removes what is left over.
/// - **Safe to drop**: a dropped future leaves a state in which calling again converges.
/// - **All or nothing**: an error means that nothing changed.
/// - What [`capabilities`](Self::capabilities) says is not there returns `Unsupported`.
///
/// There are no default bodies: a default would hide a missing implementation.
#[async_trait]
pub trait Pool: Debug + Display + Send + Sync + 'static {
    /// What this pool can do. Does not change while it is open.
    fn capabilities(&self) -> Capabilities;

    /// The marks and limits that this pool applies.
    fn policy(&self) -> ThinPolicy;

    /// How full the pool is.
    async fn usage(&self) -> Result<Usage>;

    /// Makes a volume that reads as zeros.
    ///
    /// # Errors
    /// `InvalidInput` for size 0 or one too large; `AlreadyExists`; `NoSpace`; `Unsupported` for a
    /// provisioning that the pool can't do.
    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume>;

    /// Looks one volume up, with everything that is known of it.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`.
    async fn volume(&self, name: &VolumeName) -> Result<Volume>;

    /// Every volume, in no particular order. A volume that can't be read is an error in the
    /// stream, which goes on after it. Volumes made or deleted meanwhile may or may not appear.
    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>>;

    /// Changes the virtual size. Growing works while the volume is in use; the new part reads as
    /// zeros. The size that it has already is no change.
    ///
    /// # Errors
    /// `InvalidInput` for a smaller size without `allow_shrink`, and for a snapshot; `Busy` when
    /// shrinking a volume in use; `NotFound`; `NoSpace`; `Unsupported`.
    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume>;

    /// Gives a volume another name. Works while it is in use.
    ///
    /// A repeated call, when `name` is gone and `to` exists, cannot be told from a wrong one and
    /// returns `NotFound`.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists` if `to` is taken (by another volume).
    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume>;

    /// Deletes a volume; its snapshots and clones stay as they are.
    ///
    /// # Errors
    /// `Busy` while it is open or attached.
    async fn delete_volume(&self, name: &VolumeName) -> Result<()>;

    /// Makes `name`, a read-only image of `source` at this moment. It holds every write that was
    /// flushed before the call, and of the others any subset that a power cut could have left.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists`; `NoSpace`; `Unsupported`; `Busy` where the backend can't
    /// snapshot a volume that another process writes.
    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume>;

    /// Makes `name`, a writable volume that starts with `source`'s content at this moment and
    /// shares its blocks. `source` may be a volume or a snapshot.
    ///
    /// # Errors
    /// As [`snapshot_volume`](Self::snapshot_volume).
    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume>;

    /// Makes `name`, a full and independent duplicate of `source` that shares no block with it.
    /// Moves only the data, not the holes.
    ///
    /// # Errors
    /// As [`snapshot_volume`](Self::snapshot_volume), and `TimedOut` when cancelled.
    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume>;

    /// Puts a volume's content and size back to those of `snapshot`, one of its own snapshots. The
    /// volume keeps its name and id; snapshots and clones stay as they are.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if `snapshot` is not a snapshot of `name`, or `name` is itself a
    /// snapshot; `Busy` while `name` is open or attached; `NoSpace`; `Unsupported`.
    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume>;

    /// Makes a volume independent of the data files of others, with the same content, where reads
    /// may have to look through a chain of them ([`Volume::depth`]). A pool without such chains has
    /// nothing to do and returns the volume as it is.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for a snapshot; `Busy` while it is open or attached and data has
    /// to be moved; `NoSpace`.
    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume>;

    /// Takes over something that exists in the pool's place and is not yet a volume. `what` is in
    /// the backend's own terms: a path below the root of a directory pool, an LV of a volume group.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists`; `InvalidInput` if it can't be a raw volume; `Unsupported`.
    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume>;

    /// Opens a volume's data path. Exclusive for writing unless asked for shared.
    ///
    /// # Errors
    /// `NotFound`; `Busy` if another writer holds it; `InvalidInput` for writing to a snapshot;
    /// `Unsupported`; `Corrupt`.
    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>>;

    /// The allocated extents of a volume, or those that changed since a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for a range past the end; `Unsupported`.
    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream>;

    /// Makes a volume reachable for a host and says how. Lasts until
    /// [`detach_volume`](Self::detach_volume), beyond this process. The same holder may repeat it.
    ///
    /// # Errors
    /// `NotFound`; `Busy` if another writer holds it; `InvalidInput` for writing to a snapshot;
    /// `Unsupported`.
    async fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment>;

    /// Ends what [`attach_volume`](Self::attach_volume) began, with everything flushed. Succeeds
    /// when the holder has nothing attached, or the volume is gone.
    ///
    /// # Errors
    /// `Busy` while the host still uses it; `Unsupported`.
    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()>;

    /// Finds what interrupted work left behind and, if asked, removes it. Safe beside running work.
    async fn audit(&self, options: AuditOptions) -> Result<AuditReport>;

    /// Reads everything that is stored and verifies it, and tells of what is damaged. Changes
    /// nothing. Safe beside running work.
    ///
    /// # Errors
    /// `Unsupported` where the store keeps nothing to verify data by; `TimedOut` when cancelled.
    async fn scrub(&self, control: Control) -> Result<AuditReport>;

    /// Gives back now what nothing uses any more, and what the backend would otherwise give back
    /// in the background, or never. Safe beside running work, and after a crash of its own.
    ///
    /// # Errors
    /// `Busy` while another one runs; `PermissionDenied` for a pool that is read-only.
    async fn collect_garbage(&self) -> Result<Collected>;
}

/// Conveniences on every pool.
#[async_trait]
pub trait PoolExt: Pool {
    /// Looks one volume up; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`Pool::volume`], without `NotFound`.
    async fn find_volume(&self, name: &VolumeName) -> Result<Option<Volume>> {
        match self.volume(name).await {
            Ok(volume) => Ok(Some(volume)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every volume, sorted by name.
    ///
    /// # Errors
    /// The first volume that can't be read.
    async fn volumes(&self) -> Result<Vec<Volume>> {
        let mut volumes: Vec<Volume> = self.list_volumes().try_collect().await?;
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Copies a volume into another pool, of any backend, moving only its data. The target is
    /// created thin, or thick in a pool that has no thin volumes, and removed again if the copy
    /// fails.
    ///
    /// # Errors
    /// As [`Pool::copy_volume`]; `AlreadyExists` whenever `name` is taken in `target`.
    async fn copy_volume_to(
        &self,
        source: &VolumeName,
        target: &dyn Pool,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        transfer::copy_between_pools(self.as_pool(), source, target, name, &options.control).await
    }

    /// Itself, as an object.
    fn as_pool(&self) -> &dyn Pool;
}

impl<P: Pool> PoolExt for P {
    fn as_pool(&self) -> &dyn Pool {
        self
    }
}

impl PoolExt for dyn Pool {
    fn as_pool(&self) -> &dyn Pool {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Fault, FaultPlan, Faulty, When};
    use crate::memory::MemoryPool;

    fn name(name: &str) -> VolumeName {
        VolumeName::new(name).expect("the name is right")
    }

    #[tokio::test]
    async fn a_missing_volume_is_none_and_every_other_error_stays_one() {
        let plan = FaultPlan::explicit([Fault::fail(3, When::Before).of("volume")]);
        let pool = Faulty::new(MemoryPool::unlimited(), plan);
        let size = CreateOptions::thin(ByteSize::kib(4));
        let made = pool.create_volume(&name("a"), size).await.expect("create");
        let found = pool.find_volume(&name("a")).await.expect("find");
        assert_eq!(found.map(|volume| volume.id), Some(made.id));
        assert_eq!(pool.find_volume(&name("b")).await.expect("find"), None);
        let error = pool.find_volume(&name("b")).await.expect_err("injected");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn volumes_come_sorted_or_as_an_error() {
        let plan = FaultPlan::explicit([Fault::fail(2, When::After).of("list_volumes")]);
        let pool: Arc<dyn Pool> = Faulty::new(MemoryPool::unlimited(), plan);
        for volume in ["b", "B", "a", "_"] {
            let size = CreateOptions::thick(ByteSize::new(1));
            let made = pool.create_volume(&name(volume), size).await;
            assert_eq!(made.expect("create").virtual_size.bytes(), 512);
        }
        let volumes = pool.volumes().await.expect("volumes");
        let names: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["B", "_", "a", "b"]);
        let error = pool.volumes().await.expect_err("injected");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}

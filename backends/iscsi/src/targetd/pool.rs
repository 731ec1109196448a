//! The pool: the trait's methods. Each change runs as a task of its own: a call that is half done
//! when its caller goes away is worse than one that is done.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::oneshot;
use volmux_core::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, ByteRange,
    Capabilities, CloneOptions, Collected, Control, CopyOptions, CreateOptions, Error, ErrorKind,
    ExtentKind, ExtentQuery, ExtentStream, FlattenOptions, Holder, OpenOptions, Pool,
    ResizeOptions, Result, RevertOptions, Sharing, SnapshotOptions, Support, ThinPolicy, Usage,
    Volume, VolumeName,
};

use super::array::Array;
use super::config::TargetdConfig;
use super::names::{self, Store};
use super::{OpenArray, audit, copy, exports, lifecycle};

/// A pool of an array that targetd controls. See the [module](super) for what it can do.
#[derive(Clone)]
pub struct TargetdPool(Arc<Array>);

impl TargetdPool {
    /// Opens a pool, which must be there. Changes nothing. `opener` is what volumes are opened
    /// with.
    ///
    /// # Errors
    /// `InvalidConfig`; `NotFound` if targetd has no such pool, or a file does not exist;
    /// `Unauthenticated` for a wrong password or certificate; `Unavailable`; `TimedOut`.
    pub async fn open(config: TargetdConfig, opener: Arc<dyn OpenArray>) -> Result<Arc<Self>> {
        let array = Array::connect(config, opener).await?;
        Ok(Arc::new(TargetdPool::of(Arc::new(array))))
    }

    pub(super) fn of(array: Arc<Array>) -> TargetdPool {
        TargetdPool(array)
    }

    /// Runs `work` as a task of its own, in turn on `names`; names pool and volume in its errors.
    async fn run<T, F>(
        &self,
        op: &'static str,
        name: Option<&VolumeName>,
        work: impl FnOnce(Arc<Array>) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let turns = self.0.names.turn(name.as_slice()).await;
        let work = work(self.0.clone());
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(turns);
            result
        });
        let done = task.await;
        done.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, op).with_source(error)))
            .map_err(|error| self.0.name_in(error, name))
    }

    fn unsupported(&self, op: &'static str, name: &VolumeName, reason: &str) -> Error {
        let error = Error::new(ErrorKind::Unsupported, op).reason(reason);
        self.0.name_in(error, Some(name))
    }
}

/// Names that are volumes; the others are not, or are what copies need meanwhile.
fn volume_name(listed: &str) -> Option<VolumeName> {
    let hidden = names::is_hidden(listed);
    VolumeName::new(listed).ok().filter(|_| !hidden)
}

#[async_trait]
impl Pool for TargetdPool {
    fn capabilities(&self) -> Capabilities {
        let only = |store| match self.0.store == store {
            true => Support::Native,
            false => Support::None,
        };
        Capabilities {
            clone: match self.0.clones() {
                true => Support::Native,
                false => Support::None,
            },
            thin: only(Store::LvmThin),
            thick: only(Store::Zfs),
            attach: Support::Native,
            ..Capabilities::default()
        }
    }

    fn policy(&self) -> ThinPolicy {
        self.0.policy
    }

    async fn usage(&self) -> Result<Usage> {
        let usage = self.0.usage("usage").await;
        usage.map_err(|error| self.0.name_in(error, None))
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let made = name.clone();
        self.run("create_volume", Some(name), move |array| async move {
            lifecycle::create(&array, &made, options).await
        })
        .await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        const OP: &str = "volume";
        let found = match names::is_hidden(name.as_str()) {
            true => Err(Error::new(ErrorKind::NotFound, OP).reason("a copy needs it meanwhile")),
            false => self.0.volume(OP, name).await,
        };
        found.map_err(|error| self.0.name_in(error, Some(name)))
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        const OP: &str = "list_volumes";
        let array = self.0.clone();
        let listed = async move {
            let listed = async {
                let volumes = array.list(OP).await?;
                Ok((volumes, array.exports(OP).await?))
            };
            let (volumes, exports) = match listed.await {
                Ok(listed) => listed,
                Err(error) => return vec![Err(array.name_in(error, None))],
            };
            let described = volumes.iter().filter_map(|volume| {
                let name = volume_name(&volume.name)?;
                Some(Ok(array.describe(name, volume, &exports)))
            });
            described.collect()
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let resized = name.clone();
        self.run("resize_volume", Some(name), move |array| async move {
            lifecycle::resize(&array, &resized, options).await
        })
        .await
    }

    async fn rename_volume(&self, name: &VolumeName, _to: &VolumeName) -> Result<Volume> {
        let reason = "targetd can't rename volumes";
        Err(self.unsupported("rename_volume", name, reason))
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let deleted = name.clone();
        self.run("delete_volume", Some(name), move |array| async move {
            lifecycle::delete(&array, deleted.as_str()).await
        })
        .await
    }

    async fn snapshot_volume(
        &self,
        _source: &VolumeName,
        name: &VolumeName,
        _options: SnapshotOptions,
    ) -> Result<Volume> {
        let reason = "targetd knows no volumes that are read-only";
        Err(self.unsupported("snapshot_volume", name, reason))
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        let (source, made) = (source.clone(), name.clone());
        self.run("clone_volume", Some(name), move |array| async move {
            lifecycle::clone(&array, &source, &made, &options.control).await
        })
        .await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        let (source, made) = (source.clone(), name.clone());
        // Kept here, it is gone when this future is.
        let (_caller, gone) = oneshot::channel();
        self.run("copy_volume", Some(name), move |array| async move {
            copy::copy(&array, &source, &made, &options.control, gone).await
        })
        .await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        _snapshot: &VolumeName,
        _options: RevertOptions,
    ) -> Result<Volume> {
        let reason = "targetd knows no snapshots";
        Err(self.unsupported("revert_volume", name, reason))
    }

    async fn flatten_volume(&self, name: &VolumeName, _options: FlattenOptions) -> Result<Volume> {
        let found = self.0.volume("flatten_volume", name).await;
        found.map_err(|error| self.0.name_in(error, Some(name)))
    }

    async fn adopt_volume(&self, _what: &str, name: &VolumeName) -> Result<Volume> {
        let reason = "whatever is in the pool is a volume already";
        Err(self.unsupported("adopt_volume", name, reason))
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        const OP: &str = "open_volume";
        if options.take_over {
            let reason = "nobody can be told that the volume was taken away";
            return Err(self
                .unsupported(OP, name, reason)
                .help("detach the holders that Volume::attachments names"));
        }
        if options.access == Access::ReadWrite && options.sharing == Sharing::Shared {
            return Err(self.unsupported(OP, name, exports::NOT_SHARED));
        }
        let opened = self.0.open(name, options).await;
        opened.map_err(|error| self.0.name_in(error, Some(name)))
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        const OP: &str = "extents";
        if let ExtentKind::ChangedSince(_) = query.kind {
            return Err(self.unsupported(OP, name, "the array does not tell what changed"));
        }
        let found = async {
            let size = self.0.get(OP, name).await?.size;
            let range = query.range.unwrap_or(ByteRange::new(0, size));
            range.check_within(size, OP)?;
            let device = self.0.open(name, OpenOptions::read_only()).await?;
            Ok((device.extents(range).await?, device))
        };
        let (extents, device) = found
            .await
            .map_err(|error| self.0.name_in(error, Some(name)))?;
        let (grade, granularity) = (extents.grade(), extents.granularity());
        // The volume stays open for as long as somebody reads of it.
        let held = extents.map(move |extent| {
            let _open = &device;
            extent
        });
        Ok(ExtentStream::new(grade, granularity, held))
    }

    async fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment> {
        let attached = name.clone();
        self.run("attach_volume", Some(name), move |array| async move {
            exports::attach(&array, &attached, options).await
        })
        .await
    }

    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        let (detached, holder) = (name.clone(), holder.clone());
        self.run("detach_volume", Some(name), move |array| async move {
            exports::detach(&array, detached.as_str(), &holder).await
        })
        .await
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        self.run("audit", None, move |array| async move {
            audit::audit(&array, options.repair).await
        })
        .await
    }

    async fn scrub(&self, _control: Control) -> Result<AuditReport> {
        let error = Error::new(ErrorKind::Unsupported, "scrub")
            .reason("the array keeps nothing to verify data by, as far as targetd tells");
        Err(self.0.name_in(error, None))
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        self.run("collect_garbage", None, |array| async move {
            audit::collect(&array).await
        })
        .await
    }
}

impl fmt::Display for TargetdPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for TargetdPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TargetdPool").field(&self.0).finish()
    }
}

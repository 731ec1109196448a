//! An array whose store and target are on this host.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::BoxStream;
use tokio::sync::oneshot;
use volmux_core::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, Capabilities,
    CloneOptions, Collected, Control, CopyOptions, CreateOptions, Error, ErrorKind, ExtentQuery,
    ExtentStream, FlattenOptions, Holder, OpenOptions, Pool, ResizeOptions, Result, RevertOptions,
    SnapshotOptions, Support, ThinPolicy, Usage, Volume, VolumeName,
};

use super::lock::{self, Locks};
use super::stale::Released;
use super::{Array, audit, is_opener};
use crate::control::TargetControl;
use crate::credentials::Chap;
use crate::open::Opener;

/// A pool of volumes in a store, another pool on this host, that a target on this host shows as
/// logical units.
#[derive(Clone)]
pub struct LocalArray(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub store: Arc<dyn Pool>,
    pub control: Arc<dyn TargetControl>,
    pub locks: Locks,
    /// `host:port` at which others reach the target.
    pub portal: String,
    /// What the names of the targets begin with.
    pub prefix: String,
    pub chap: Chap,
    opener: Opener,
}

impl LocalArray {
    /// With a store, and the control interface of a target that reaches its files or devices.
    ///
    /// # Errors
    /// `InvalidConfig` for a store whose volumes nobody else on this host can reach; those of the
    /// control interface.
    pub async fn open(
        store: Arc<dyn Pool>,
        control: Arc<dyn TargetControl>,
        portal: String,
        prefix: String,
        opener: Opener,
        locks: Option<&Path>,
    ) -> Result<Self> {
        const OP: &str = "open_pool";
        if store.capabilities().attach == Support::None {
            return Err(Error::new(ErrorKind::InvalidConfig, OP)
                .with("store", &store)
                .reason("no other program on this host can reach the volumes of such a pool")
                .help("use a directory or an LVM pool as the store"));
        }
        control.check(OP).await?;
        let directory = locks.unwrap_or_else(|| Path::new(lock::DIRECTORY));
        Ok(LocalArray(Arc::new(Inner {
            store,
            control,
            locks: Locks::new(directory, &prefix),
            portal,
            prefix,
            chap: opener.chap().clone(),
            opener,
        })))
    }

    /// Does `work`, once more after those who are gone were let go if it finds the volume in use.
    async fn unless_stale<T>(
        &self,
        op: &'static str,
        name: &VolumeName,
        work: impl Fn() -> BoxFuture<'static, Result<T>> + Send + Sync,
    ) -> Result<T> {
        let mut nobody_was_there = false;
        // Each time somebody has gone; others may come.
        for _ in 0..10 {
            match work().await {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    match self.0.release_stale(op, name).await {
                        Ok(Released::Somebody) => {}
                        // He may have gone between the two looks.
                        Ok(Released::NobodyThere) if !nobody_was_there => nobody_was_there = true,
                        Ok(_) => return Err(error),
                        Err(cause) => {
                            tracing::debug!(%cause, "whether it is still used can't be told");
                            return Err(error);
                        }
                    }
                }
                done => return done,
            }
        }
        work().await
    }

    /// Does `work` to its end, also if the caller goes away: what it locks must not be let go half
    /// way through.
    pub(super) async fn to_its_end<T: Send + 'static>(
        op: &'static str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = tokio::spawn(work).await;
        done.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?
    }
}

#[async_trait]
impl Array for LocalArray {
    fn pool(&self) -> Arc<dyn Pool> {
        Arc::new(self.clone())
    }

    async fn attach_for(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: AttachOptions,
    ) -> Result<Attachment> {
        self.unless_stale(op, name, || {
            let (inner, name, options) = (self.0.clone(), name.clone(), options.clone());
            let (tell, told) = oneshot::channel();
            tokio::spawn(async move {
                let attached = inner.attach(op, &name, &options).await;
                let done = attached.is_ok();
                // Nobody else detaches what nobody waits for any more.
                if tell.send(attached).is_err() && done && is_opener(&options.holder, &inner.prefix)
                {
                    let detached = inner.detach(op, &name, &options.holder).await;
                    if let Err(error) = detached {
                        tracing::warn!(volume = %name, %error, "it stays attached until an audit");
                    }
                }
            });
            let told = async move {
                told.await
                    .map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?
            };
            told.boxed()
        })
        .await
    }

    async fn renew(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: &AttachOptions,
    ) -> Result<()> {
        let (inner, name, options) = (self.0.clone(), name.clone(), options.clone());
        let work = async move { inner.renew(op, &name, &options).await };
        Self::to_its_end(op, work).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Pool for LocalArray {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            attach: Support::Native,
            fencing: Support::Native,
            ..self.0.store.capabilities()
        }
    }

    fn policy(&self) -> ThinPolicy {
        self.0.store.policy()
    }

    async fn usage(&self) -> Result<Usage> {
        self.0.store.usage().await
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        self.0.store.create_volume(name, options).await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        self.0.store.volume(name).await
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        self.0.store.list_volumes()
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        const OP: &str = "resize_volume";
        let resized = self.unless_stale(OP, name, || {
            let (inner, name) = (self.0.clone(), name.clone());
            Self::to_its_end(OP, async move { inner.resize(OP, &name, options).await }).boxed()
        });
        let resized = resized.await?;
        self.0.opener.resized(resized.id, resized.virtual_size);
        Ok(resized)
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        self.0.store.rename_volume(name, to).await
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        self.unless_stale("delete_volume", name, || {
            let (store, name) = (self.0.store.clone(), name.clone());
            async move { store.delete_volume(&name).await }.boxed()
        })
        .await
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        self.0.store.snapshot_volume(source, name, options).await
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        self.0.store.clone_volume(source, name, options).await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        self.0.store.copy_volume(source, name, options).await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        self.unless_stale("revert_volume", name, || {
            let (store, name, snapshot) = (self.0.store.clone(), name.clone(), snapshot.clone());
            let options = options.clone();
            async move { store.revert_volume(&name, &snapshot, options).await }.boxed()
        })
        .await
    }

    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        self.unless_stale("flatten_volume", name, || {
            let (store, name, options) = (self.0.store.clone(), name.clone(), options.clone());
            async move { store.flatten_volume(&name, options).await }.boxed()
        })
        .await
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        self.0.store.adopt_volume(what, name).await
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        const OP: &str = "open_volume";
        if options.take_over && options.access == Access::ReadWrite {
            let (inner, name) = (self.0.clone(), name.clone());
            Self::to_its_end(OP, async move { inner.fence(OP, &name).await }).await?;
        }
        self.0
            .opener
            .open_in(Arc::new(self.clone()), name, options)
            .await
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        self.0.store.extents(name, query).await
    }

    async fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment> {
        self.attach_for("attach_volume", name, options).await
    }

    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        const OP: &str = "detach_volume";
        let (inner, name, holder) = (self.0.clone(), name.clone(), holder.clone());
        let work = async move { inner.detach(OP, &name, &holder).await };
        Self::to_its_end(OP, work).await
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        let mut report = self.0.store.audit(options).await?;
        report
            .findings
            .extend(audit::exports(&self.0, options).await?);
        Ok(report)
    }

    async fn scrub(&self, control: Control) -> Result<AuditReport> {
        self.0.store.scrub(control).await
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        self.0.store.collect_garbage().await
    }
}

impl fmt::Display for LocalArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(
            f,
            "iscsi://{}/{} ({})",
            inner.portal, inner.prefix, inner.store
        )
    }
}

impl fmt::Debug for LocalArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalArray")
            .field("portal", &self.0.portal)
            .field("prefix", &self.0.prefix)
            .field("store", &self.0.store)
            .field("control", &self.0.control)
            .finish_non_exhaustive()
    }
}

//! The pool: the trait's methods. Each change runs as a task of its own: a command that is half done
//! when its caller goes away is worse than one that is done.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use volmux_core::{
    AttachOptions, Attachment, AuditOptions, AuditReport, Backend, BlockDevice, Capabilities,
    CloneOptions, Collected, Control, CopyOptions, CreateOptions, Error, ErrorKind, ExtentQuery,
    ExtentStream, FlattenOptions, Holder, Names, OpenOptions, OriginKind, Pool, PoolUrl,
    Provisioning, ResizeOptions, Result, RevertOptions, SnapshotOptions, Support, ThinPolicy,
    Usage, Volume, VolumeName,
};

use crate::LvmConfig;
use crate::device::{self, OpenVolumes};
use crate::duplicate::{Duplicate, cancelled_when_dropped};
use crate::group::GroupClient;
use crate::view::{Entry, View};
use crate::{attach, audit, extents, lifecycle, revert};

/// An LVM pool: a thin pool, or a volume group.
#[derive(Clone)]
pub struct LvmPool(Arc<Inner>);

/// What the operations work on.
#[derive(Debug)]
pub struct Inner {
    pub client: Arc<GroupClient>,
    pub policy: ThinPolicy,
    pub open_volumes: OpenVolumes,
    names: Names,
}

/// Backend of `lvm:` URLs.
#[derive(Clone, Copy, Debug, Default)]
pub struct LvmBackend;

#[async_trait]
impl Backend for LvmBackend {
    fn schemes(&self) -> &'static [&'static str] {
        &["lvm"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        Ok(LvmPool::open(LvmConfig::from_url(url)?).await?)
    }
}

impl LvmPool {
    /// Opens a pool, which must be there. Changes nothing.
    ///
    /// # Errors
    /// `NotFound` if there is no such group or thin pool; `InvalidConfig` if it is no thin pool, one
    /// that does not zero chunks, the settings are wrong, or lvm2 is not installed;
    /// `PermissionDenied` for other users than root.
    pub async fn open(config: LvmConfig) -> Result<Arc<Self>> {
        const OP: &str = "open_pool";
        let policy = config.policy()?;
        config
            .check()
            .map_err(|reason| Error::new(ErrorKind::InvalidConfig, OP).reason(reason))?;
        let inner = Inner {
            client: Arc::new(GroupClient::new(config)),
            policy,
            open_volumes: OpenVolumes::default(),
            names: Names::default(),
        };
        let pool = LvmPool(Arc::new(inner));
        let looked = pool.0.client.look(OP).await;
        looked.map_err(|error| pool.name_in(error, None))?;
        Ok(Arc::new(pool))
    }

    /// How many processes were started for this pool.
    pub fn processes_started(&self) -> u64 {
        self.0.client.commands.started()
    }

    /// Runs `work` as a task of its own, in turn on `names`; names pool and volume in its errors.
    async fn run<T, F>(
        &self,
        op: &'static str,
        names: &[&VolumeName],
        work: impl FnOnce(Arc<Inner>) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let turns = self.0.names.turn(names).await;
        let work = work(self.0.clone());
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(turns);
            result
        });
        let done = task.await;
        done.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, op).with_source(error)))
            .map_err(|error| self.name_in(error, names.first().copied()))
    }

    fn name_in(&self, mut error: Error, name: Option<&VolumeName>) -> Error {
        if let Some(name) = name.filter(|_| error.get("volume").is_none()) {
            error = error.with("volume", name);
        }
        if error.get("pool").is_none() {
            error.with("pool", self)
        } else {
            error
        }
    }

    async fn link(
        &self,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
        control: &Control,
    ) -> Result<Volume> {
        let (source, made) = (source.clone(), name.clone());
        let work = Duplicate {
            op,
            kind,
            source,
            name: made,
        };
        let control = control.clone();
        self.run(op, &[name], |inner| work.link(inner, control))
            .await
    }
}

impl Inner {
    /// Whether volumes are thin.
    pub fn is_thin(&self) -> bool {
        self.client.config.pool.is_some()
    }

    /// The size of a thin pool's chunks.
    pub fn chunk_size(&self, view: &View) -> Option<u64> {
        view.pool.as_ref().and_then(|pool| pool.chunk_size)
    }

    /// Everything that is known of a volume.
    async fn describe(&self, op: &'static str, view: &View, entry: &Entry) -> Result<Volume> {
        let mut volume = entry.volume();
        if let Some((mapped, exclusive)) = self.allocated(op, view, entry).await? {
            volume.allocated = Some(mapped);
            volume.exclusive = Some(exclusive);
        }
        Ok(volume)
    }

    /// Refuses what only thin volumes have.
    pub fn check_thin(&self, op: &'static str, what: &str) -> Result<()> {
        if self.is_thin() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, op)
            .reason(format!("thick volumes have no {what}"))
            .help("make a thin pool (lvcreate --type thin-pool), and open lvm://group/pool"))
    }

    /// Refuses the provisioning that this pool does not have.
    pub fn check_provisioning(&self, op: &'static str, wanted: Provisioning) -> Result<()> {
        let (has, help) = if self.is_thin() {
            (
                Provisioning::Thin,
                "open lvm://group, without a thin pool, for thick ones",
            )
        } else {
            (
                Provisioning::Thick,
                "open lvm://group/pool, with a thin pool, for thin ones",
            )
        };
        if wanted == has {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, op)
            .reason(format!("volumes of this pool are {has}"))
            .help(help))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Pool for LvmPool {
    fn capabilities(&self) -> Capabilities {
        let (thin, thick) = if self.0.is_thin() {
            (Support::Native, Support::None)
        } else {
            (Support::None, Support::Native)
        };
        Capabilities {
            snapshot: thin,
            clone: thin,
            revert: thin,
            thin,
            thick,
            shrink: Support::Native,
            discard: thin,
            changed_extents: thin,
            attach: Support::Native,
            adopt: Support::Native,
            shared_writers: Support::Native,
            fencing: Support::None,
        }
    }

    fn policy(&self) -> ThinPolicy {
        self.0.policy
    }

    async fn usage(&self) -> Result<Usage> {
        const OP: &str = "usage";
        let usage = async {
            // A thick pool's free space changes with the group.
            let view = self.0.client.look(OP).await?;
            self.0.usage_of(OP, &view).await
        };
        usage.await.map_err(|error| self.name_in(error, None))
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let made = name.clone();
        self.run("create_volume", &[name], |inner| {
            lifecycle::create(inner, made, options)
        })
        .await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        const OP: &str = "volume";
        let found = async {
            let view = self.0.client.look(OP).await?;
            self.0.describe(OP, &view, view.get(OP, name)?).await
        };
        found.await.map_err(|error| self.name_in(error, Some(name)))
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        const OP: &str = "list_volumes";
        let pool = self.clone();
        let listed = async move {
            let view = match pool.0.client.look(OP).await {
                Ok(view) => view,
                Err(error) => return vec![Err(pool.name_in(error, None))],
            };
            let whole = view.volumes.values().map(|entry| Ok(entry.volume()));
            let damaged = view.damaged.iter().map(|(lv, reason)| {
                let error = Error::new(ErrorKind::Corrupt, OP).with("volume", &lv.name);
                Err(pool.name_in(error.reason(reason), None))
            });
            whole.chain(damaged).collect()
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let owned = name.clone();
        self.run("resize_volume", &[name], |inner| {
            lifecycle::resize(inner, owned, options)
        })
        .await
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let (from, target) = (name.clone(), to.clone());
        self.run("rename_volume", &[name, to], |inner| {
            lifecycle::rename(inner, from, target)
        })
        .await
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let owned = name.clone();
        self.run("delete_volume", &[name], |inner| {
            lifecycle::delete(inner, owned)
        })
        .await
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        let kind = OriginKind::Snapshot;
        self.link("snapshot_volume", kind, source, name, &options.control)
            .await
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        let kind = OriginKind::Clone;
        self.link("clone_volume", kind, source, name, &options.control)
            .await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        let (op, kind) = ("copy_volume", OriginKind::Copy);
        let (source, made) = (source.clone(), name.clone());
        let work = Duplicate {
            op,
            kind,
            source,
            name: made,
        };
        let (dropped, _guard) = cancelled_when_dropped();
        self.run(op, &[name], |inner| {
            work.copy(inner, options.control, dropped)
        })
        .await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        let (owned, from) = (name.clone(), snapshot.clone());
        self.run("revert_volume", &[name], |inner| {
            revert::revert(inner, owned, from, options.control)
        })
        .await
    }

    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        const OP: &str = "flatten_volume";
        let found = async {
            options.control.check(OP)?;
            let view = self.0.client.look(OP).await?;
            let entry = view.get(OP, name)?;
            lifecycle::check_not_snapshot(OP, entry, "flattened")?;
            // No volume's blocks are found through another one.
            self.0.describe(OP, &view, entry).await
        };
        found.await.map_err(|error| self.name_in(error, Some(name)))
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        let (what, owned) = (what.to_owned(), name.clone());
        self.run("adopt_volume", &[name], |inner| {
            lifecycle::adopt(inner, what, owned)
        })
        .await
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        let opened = device::open(&self.0, "open_volume", name, options).await;
        opened.map_err(|error| self.name_in(error, Some(name)))
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        let found = extents::extents(&self.0, name, query).await;
        found.map_err(|error| self.name_in(error, Some(name)))
    }

    async fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment> {
        let owned = name.clone();
        self.run("attach_volume", &[name], |inner| {
            attach::attach(inner, owned, options)
        })
        .await
    }

    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        let (owned, holder) = (name.clone(), holder.clone());
        self.run("detach_volume", &[name], |inner| {
            attach::detach(inner, owned, holder)
        })
        .await
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        self.run("audit", &[], |inner| audit::audit(inner, options))
            .await
    }

    async fn scrub(&self, _: Control) -> Result<AuditReport> {
        Err(Error::new(ErrorKind::Unsupported, "scrub")
            .with("pool", self)
            .reason("LVM keeps no checksums of this pool's data")
            .help("use a layer that does, such as lvcreate --raidintegrity, and lvchange --syncaction check"))
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        // What is not used is given back when it is deleted.
        Ok(Collected::default())
    }
}

impl fmt::Display for LvmPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.0.client.config;
        write!(f, "lvm://{}", config.group)?;
        config.pool.iter().try_for_each(|pool| write!(f, "/{pool}"))
    }
}

impl fmt::Debug for LvmPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LvmPool")
            .field("config", &self.0.client.config)
            .field("policy", &self.0.policy)
            .finish_non_exhaustive()
    }
}

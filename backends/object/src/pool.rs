//! The pool.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::ObjectStore;
use tokio::sync::{Mutex, OnceCell};
use volmux_core::{
    AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, ByteSize, Capabilities,
    CloneOptions, CopyOptions, CreateOptions, Error, ErrorKind, ExtentQuery, ExtentStream, Holder,
    OpenOptions, OriginKind, Pool, Pressure, ResizeOptions, Result, RevertOptions, SnapshotOptions,
    SpaceRequest, Support, ThinPolicy, Usage, Volume, VolumeId, VolumeName,
};

use crate::cache::Cache;
use crate::catalog::{Catalog, Entry};
use crate::config::ObjectConfig;
use crate::format;
use crate::ids::Ids;
use crate::map::ObjectTable;
use crate::owner::Living;
use crate::shared::{Settings, Shared};
use crate::store::Store;
use crate::uses::Uses;

/// A pool in an object store.
#[derive(Debug)]
pub struct ObjectPool {
    pub(crate) config: ObjectConfig,
    pub(crate) policy: ThinPolicy,
    pub(crate) store: Store,
    ids: Arc<Ids>,
    /// Set once the pool exists: a store without one becomes a pool with the first volume.
    ready: OnceCell<Arc<Ready>>,
    /// Whether the store was found fit for writing.
    probed: Mutex<bool>,
}

/// A pool that exists.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) shared: Arc<Shared>,
    pub(crate) catalog: Catalog,
    pub(crate) uses: Uses,
    /// The pool object itself, where it ends a log.
    pub(crate) living: Living,
    pub(crate) config: ObjectConfig,
    pub(crate) policy: ThinPolicy,
}

impl ObjectPool {
    /// Opens a pool.
    ///
    /// # Errors
    /// `InvalidConfig`; `NotFound` for a bucket, container or directory that is not there;
    /// `Unauthenticated`; `PermissionDenied`; `Unavailable`; `Corrupt`.
    pub async fn open(config: ObjectConfig) -> Result<Arc<Self>> {
        let store = config.object_store()?;
        Self::opened(store, config, Arc::new(Ids::random())).await
    }

    /// Opens a pool in a store of the caller's own, with all identifiers made from `seed`: for
    /// simulations. Two pools on one store must never have the same seed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn over(
        store: Arc<dyn ObjectStore>,
        config: ObjectConfig,
        seed: u64,
    ) -> Result<Arc<Self>> {
        Self::opened(store, config, Arc::new(Ids::seeded(seed))).await
    }

    async fn opened(
        store: Arc<dyn ObjectStore>,
        config: ObjectConfig,
        ids: Arc<Ids>,
    ) -> Result<Arc<Self>> {
        let policy = config.policy()?;
        let store = Store::new(
            store,
            config.prefix(),
            &config.to_string(),
            config.patience(),
            ids.clone(),
        );
        let pool = ObjectPool {
            config,
            policy,
            store,
            ids,
            ready: OnceCell::new(),
            probed: Mutex::new(false),
        };
        pool.look("open_pool").await?;
        Ok(Arc::new(pool))
    }

    /// The pool, if it exists by now.
    async fn look(&self, op: &'static str) -> Result<Option<&Arc<Ready>>> {
        if let Some(ready) = self.ready.get() {
            return Ok(Some(ready));
        }
        match format::read(op, &self.store, &self.config).await? {
            None => Ok(None),
            Some(format) => self.begin(op, format).await.map(Some),
        }
    }

    async fn begin(&self, op: &'static str, format: format::Format) -> Result<&Arc<Ready>> {
        self.ready
            .get_or_try_init(|| async {
                let seal = format.seal;
                let shared = Shared {
                    store: self.store.clone(),
                    seal: seal.clone(),
                    table: ObjectTable::new(),
                    cache: Cache::new(self.config.cache_bytes())?,
                    ids: self.ids.clone(),
                    settings: Settings::new(&self.config, &seal),
                };
                Ok(Arc::new(Ready {
                    shared: Arc::new(shared),
                    catalog: Catalog::open(op, self.store.clone(), seal).await?,
                    uses: Uses::default(),
                    living: Living::begin(self.ids.uuid()),
                    config: self.config.clone(),
                    policy: self.policy,
                }))
            })
            .await
    }

    /// The pool, for something that needs a volume to be there.
    async fn existing(&self, op: &'static str, name: &VolumeName) -> Result<&Arc<Ready>> {
        match self.look(op).await? {
            Some(ready) => Ok(ready),
            None => Err(self
                .error(ErrorKind::NotFound, op, name)
                .reason("the pool has no volume of that name")),
        }
    }

    /// The pool, for something that changes it; made where it does not exist yet.
    async fn changing(&self, op: &'static str, name: &VolumeName) -> Result<&Arc<Ready>> {
        self.check_writable(op, name)?;
        let mut probed = self.probed.lock().await;
        if !*probed {
            format::probe(op, &self.store, &self.ids).await?;
            *probed = true;
        }
        drop(probed);
        match self.look(op).await? {
            Some(ready) => Ok(ready),
            None => {
                let format = format::create(op, &self.store, &self.config, &self.ids).await?;
                self.begin(op, format).await
            }
        }
    }

    fn check_writable(&self, op: &'static str, name: &VolumeName) -> Result<()> {
        if self.config.read_only {
            return Err(self
                .error(ErrorKind::PermissionDenied, op, name)
                .reason("the pool was opened read-only")
                .help("open it without read_only"));
        }
        Ok(())
    }

    fn error(&self, kind: ErrorKind, op: &'static str, name: &VolumeName) -> Error {
        Error::new(kind, op).with("pool", self).with("volume", name)
    }
}

impl Ready {
    pub(crate) fn error(&self, kind: ErrorKind, op: &'static str, name: &VolumeName) -> Error {
        Error::new(kind, op).with("pool", self).with("volume", name)
    }

    /// A volume, as far as it is known here.
    pub(crate) fn entry(&self, op: &'static str, name: &VolumeName) -> Result<Arc<Entry>> {
        let found = self.catalog.read(|state| state.by_name(name).cloned());
        found.ok_or_else(|| {
            self.error(ErrorKind::NotFound, op, name)
                .reason("the pool has no volume of that name")
        })
    }

    pub(crate) fn entry_by_id(
        &self,
        op: &'static str,
        id: VolumeId,
        name: &VolumeName,
    ) -> Result<Arc<Entry>> {
        let found = self.catalog.read(|state| state.by_id(id).cloned());
        found.ok_or_else(|| {
            self.error(ErrorKind::NotFound, op, name)
                .reason("the volume is gone from the pool")
        })
    }

    /// How full the pool is.
    pub(crate) async fn usage(&self, op: &'static str) -> Result<Usage> {
        self.catalog.refresh(op).await?;
        let used = crate::space::used(op, &self.shared.store).await?;
        let provisioned = self.catalog.read(|state| state.provisioned());
        Ok(crate::space::usage(&self.config, used, provisioned))
    }

    /// Fails where the pool may not grow by so much.
    pub(crate) async fn admit(
        &self,
        op: &'static str,
        name: &VolumeName,
        provisioned: u64,
    ) -> Result<()> {
        let request = SpaceRequest {
            provisioned: ByteSize::new(provisioned),
            reserved: ByteSize::ZERO,
        };
        // Without a capacity nothing can be full, and counting costs requests.
        let used = match self.config.has_capacity() {
            true => crate::space::used(op, &self.shared.store).await?,
            false => 0,
        };
        let sum = self.catalog.read(|state| state.provisioned());
        let usage = crate::space::usage(&self.config, used, sum);
        let pressure = self
            .policy
            .admit(&usage, &request, op)
            .map_err(|error| error.with("pool", self).with("volume", name))?;
        if pressure > Pressure::Normal {
            tracing::warn!(pool = %self, volume = %name, op, %pressure, "the pool is filling up");
        }
        Ok(())
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.shared.store, f)
    }
}

impl fmt::Display for ObjectPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.store.to_string())
    }
}

#[async_trait]
impl Pool for ObjectPool {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            snapshot: Support::Native,
            clone: Support::Native,
            revert: Support::Native,
            thin: Support::Native,
            // A store gives no promise that there will be room.
            thick: Support::None,
            shrink: Support::Native,
            discard: Support::Native,
            changed_extents: Support::Native,
            attach: Support::None,
            adopt: Support::None,
            // A log has one writer.
            shared_writers: Support::None,
            fencing: Support::Native,
        }
    }

    fn policy(&self) -> ThinPolicy {
        self.policy
    }

    async fn usage(&self) -> Result<Usage> {
        match self.look("usage").await? {
            Some(ready) => ready.usage("usage").await,
            None => Ok(crate::space::usage(&self.config, 0, 0)),
        }
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let op = "create_volume";
        let checked = self.check_create(op, name, options)?;
        self.changing(op, name).await?.create(op, name, checked).await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let op = "volume";
        let ready = self.existing(op, name).await?;
        ready.catalog.refresh(op).await?;
        Ok(ready.entry(op, name)?.describe())
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        // The list is short and in memory once the catalogue is up to date.
        let pool = self.handle();
        stream::once(async move {
            let op = "list_volumes";
            let Some(ready) = pool.look(op).await? else {
                return Ok(Vec::new());
            };
            ready.catalog.refresh(op).await?;
            Ok(ready.catalog.read(|state| state.iter().cloned().collect()))
        })
        .flat_map(|listed: Result<Vec<Arc<Entry>>>| match listed {
            Ok(entries) => stream::iter(entries).map(|entry| Ok(entry.describe())).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        })
        .boxed()
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let op = "resize_volume";
        let size = self.check_size(op, name, options.size)?;
        let ready = self.changing_existing(op, name).await?;
        ready.resize(op, name, size, options.allow_shrink).await
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let op = "rename_volume";
        self.changing_existing(op, name).await?.rename(op, name, to).await
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let op = "delete_volume";
        self.check_writable(op, name)?;
        if self.look(op).await?.is_none() {
            return Ok(());
        }
        self.changing(op, name).await?.delete(op, name).await
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        let op = "snapshot_volume";
        self.check_stop(&options.control, op, name)?;
        let ready = self.changing_existing(op, source).await?;
        ready.derive(op, OriginKind::Snapshot, source, name).await
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        let op = "clone_volume";
        self.check_stop(&options.control, op, name)?;
        let ready = self.changing_existing(op, source).await?;
        ready.derive(op, OriginKind::Clone, source, name).await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        let op = "copy_volume";
        self.check_stop(&options.control, op, name)?;
        let ready = self.changing_existing(op, source).await?;
        ready.copy(op, source, name, &options.control).await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        let op = "revert_volume";
        self.check_stop(&options.control, op, name)?;
        let ready = self.changing_existing(op, name).await?;
        ready.revert(op, name, snapshot).await
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        Err(self
            .error(ErrorKind::Unsupported, "adopt_volume", name)
            .with("what", what)
            .reason("an object pool holds nothing but its volumes")
            .help("copy the image into a new volume: `volmux import`"))
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        let op = "open_volume";
        self.check_open(op, name, options)?;
        let ready = match options.access {
            volmux_core::Access::ReadOnly => self.existing(op, name).await?,
            volmux_core::Access::ReadWrite => self.changing_existing(op, name).await?,
        };
        ready.open(op, name, options).await
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        let op = "extents";
        self.existing(op, name).await?.extents(op, name, query).await
    }

    async fn attach_volume(&self, name: &VolumeName, _: AttachOptions) -> Result<Attachment> {
        Err(self.not_reachable("attach_volume", name))
    }

    async fn detach_volume(&self, name: &VolumeName, _: &Holder) -> Result<()> {
        Err(self.not_reachable("detach_volume", name))
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        let op = "audit";
        match self.look(op).await? {
            Some(ready) => ready.audit(op, options).await,
            None => Ok(AuditReport::default()),
        }
    }
}

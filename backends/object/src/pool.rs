//! The pool.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::{Mutex, OnceCell, oneshot};
use tokio::task::spawn_blocking;
use volmux_core::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, ByteSize,
    Capabilities, CloneOptions, Collected, Control, CopyOptions, CreateOptions, Error, ErrorKind,
    ExtentQuery, ExtentStream, FlattenOptions, Holder, OpenOptions, OriginKind, Pool, Pressure,
    Provisioning, ResizeOptions, Result, RevertOptions, SnapshotOptions, SpaceRequest, Support,
    ThinPolicy, Usage, Volume, VolumeId, VolumeName,
};

use crate::cache::{Cache, DiskCache, Tables};
use crate::catalog::{Catalog, Entry};
use crate::config::ObjectConfig;
use crate::connect::{self, Connected};
use crate::engine::Buffers;
use crate::ids::Ids;
use crate::map::ObjectTable;
use crate::owner::Living;
use crate::seal::Seal;
use crate::shared::{Settings, Shared};
use crate::space::Space;
use crate::store::{Patience, Store};
use crate::uses::Uses;
use crate::{format, probe};

const SECTOR: u64 = 512;
const LARGEST: u64 = i64::MAX as u64 / SECTOR * SECTOR;

/// A pool in an object store.
#[derive(Debug)]
pub struct ObjectPool {
    me: Weak<ObjectPool>,
    pub(crate) config: ObjectConfig,
    pub(crate) policy: ThinPolicy,
    pub(crate) store: Store,
    space: Space,
    ids: Arc<Ids>,
    /// Set once the pool exists: a store without one becomes a pool with the first volume.
    ready: OnceCell<Arc<Ready>>,
    /// Races that a store has to stand before it is written to.
    races: usize,
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
    pub(crate) space: Space,
    /// Goes with it; that ends what runs in the background for it.
    _open: oneshot::Sender<()>,
}

impl ObjectPool {
    /// Opens a pool.
    ///
    /// # Errors
    /// `InvalidConfig`; `NotFound` for a bucket, container or directory that is not there;
    /// `Unauthenticated`; `PermissionDenied`; `Unavailable`; `Corrupt`.
    pub async fn open(config: ObjectConfig) -> Result<Arc<Self>> {
        let ids = Arc::new(Ids::random());
        let connected = connect::connect(&config, ids.clone()).await?;
        Self::opened(connected, config, ids, probe::RACES).await
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
        let ids = Arc::new(Ids::seeded(seed));
        let shown = config.location.to_string();
        let patience = Patience::of(&config);
        let connected = Connected {
            store: Store::new(store, Path::default(), &shown, patience, ids.clone()),
            local: None,
        };
        Self::opened(connected, config, ids, 1).await
    }

    async fn opened(
        connected: Connected,
        config: ObjectConfig,
        ids: Arc<Ids>,
        races: usize,
    ) -> Result<Arc<Self>> {
        let policy = config.policy()?;
        let pool = Arc::new_cyclic(|me| ObjectPool {
            me: me.clone(),
            space: Space::new(&config, connected.local),
            config,
            policy,
            store: connected.store,
            ids,
            ready: OnceCell::new(),
            races,
            probed: Mutex::new(false),
        });
        pool.look("open_pool").await?;
        Ok(pool)
    }

    /// The pool, if it exists by now.
    pub(crate) async fn look(&self, op: &'static str) -> Result<Option<&Arc<Ready>>> {
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
                tracing::debug!(pool = %self, id = %format.id, "the pool is there");
                let seal = format.seal;
                let settings = Settings::new(&self.config, format.compression, &seal);
                let shared = Shared {
                    disk: self.disk_cache(&seal).await,
                    store: self.store.clone(),
                    seal: seal.clone(),
                    table: ObjectTable::new(),
                    cache: Cache::new(settings.cache)?,
                    tables: Tables::new(settings.tables)?,
                    buffers: Buffers::new(settings.object_blocks * seal.stride(), settings.pending),
                    ids: self.ids.clone(),
                    settings,
                };
                let (open, ended) = oneshot::channel();
                let ready = Arc::new(Ready {
                    shared: Arc::new(shared),
                    catalog: Catalog::open(op, self.store.clone(), seal).await?,
                    uses: Uses::default(),
                    living: Living::begin(self.ids.uuid()),
                    config: self.config.clone(),
                    policy: self.policy,
                    space: self.space.clone(),
                    _open: open,
                });
                if let Some(interval) = self.config.gc_interval().filter(|_| !self.config.read_only)
                {
                    tokio::spawn(collecting(Arc::downgrade(&ready), interval, ended));
                }
                Ok(ready)
            })
            .await
    }

    /// The cache on disk, if there is to be one. Without it all is only slower.
    async fn disk_cache(&self, seal: &Seal) -> Option<DiskCache> {
        let dir = self.config.disk_cache.clone()?;
        let (limit, seal) = (self.config.disk_cache_bytes(), seal.clone());
        let opened = spawn_blocking(move || DiskCache::open(&dir, limit, &seal)).await;
        match opened {
            Ok(Ok(cache)) => Some(cache),
            Ok(Err(error)) => {
                tracing::warn!(pool = %self, %error, "there is no cache on disk");
                None
            }
            Err(error) => {
                tracing::warn!(pool = %self, %error, "there is no cache on disk");
                None
            }
        }
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
            probe::probe(&self.store, op, self.races).await?;
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

    /// The pool, for something that changes a volume that must be there.
    async fn changing_existing(&self, op: &'static str, name: &VolumeName) -> Result<&Arc<Ready>> {
        self.check_writable(op, name)?;
        self.existing(op, name).await?;
        self.changing(op, name).await
    }

    fn check_size(&self, op: &'static str, name: &VolumeName, size: ByteSize) -> Result<u64> {
        let wrong = |reason: &str| {
            Err(self
                .error(ErrorKind::InvalidInput, op, name)
                .with("size", size.bytes())
                .reason(reason))
        };
        match size.round_up(SECTOR) {
            Some(ByteSize::ZERO) => wrong("a volume has at least one byte"),
            Some(size) if size.bytes() <= LARGEST => Ok(size.bytes()),
            _ => wrong("the largest volume has 8 EiB less 512 bytes"),
        }
    }

    /// Fails once the caller has cancelled.
    fn check_stop(&self, control: &Control, op: &'static str, name: &VolumeName) -> Result<()> {
        let check = control.check(op);
        check.map_err(|error| error.with("pool", self).with("volume", name))
    }

    fn not_reachable(&self, op: &'static str, name: &VolumeName) -> Error {
        self.error(ErrorKind::Unsupported, op, name)
            .reason("no hypervisor attaches a volume in an object store by itself")
            .help("serve it over NBD: `volmux export`")
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

/// Collects garbage from time to time, as long as the pool is open.
async fn collecting(ready: Weak<Ready>, interval: Duration, mut ended: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            biased;
            _ = &mut ended => return,
            () = tokio::time::sleep(interval) => {}
        }
        let Some(ready) = ready.upgrade() else {
            return;
        };
        if let Err(error) = ready.collect("collect_garbage").await {
            tracing::warn!(pool = %ready, %error, "the garbage was not collected");
        }
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
        let provisioned = self.catalog.read(|state| state.provisioned());
        self.used(op, provisioned).await
    }

    /// How full the store is, with what this pool object is about to put.
    async fn used(&self, op: &'static str, provisioned: u128) -> Result<Usage> {
        // Before the store is asked: what is put meanwhile may count twice, but never not at all.
        let engines = self
            .uses
            .all()
            .into_iter()
            .filter_map(|(_, of)| of.engine());
        let pending: usize = engines.map(|engine| engine.pending()).sum();
        let usage = self
            .space
            .usage(op, &self.shared.store, provisioned)
            .await?;
        let pending = (pending as u64).min(usage.free.bytes());
        Ok(Usage {
            used: ByteSize::new(usage.used.bytes() + pending),
            free: ByteSize::new(usage.free.bytes() - pending),
            ..usage
        })
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
        let sum = self.catalog.read(|state| state.provisioned());
        let usage = match self.space.is_limited() {
            true => self.used(op, sum).await?,
            // Nothing can be full, and counting costs requests.
            false => Space::unlimited(sum),
        };
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
            None => self.space.usage("usage", &self.store, 0).await,
        }
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let op = "create_volume";
        let size = self.check_size(op, name, options.size)?;
        if options.provisioning == Provisioning::Thick {
            return Err(self
                .error(ErrorKind::Unsupported, op, name)
                .reason("a store gives no promise that there will be room")
                .help("create a thin volume"));
        }
        self.changing(op, name).await?.create(op, name, size).await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let op = "volume";
        let ready = self.existing(op, name).await?;
        ready.catalog.refresh(op).await?;
        Ok(ready.entry(op, name)?.describe())
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        // The list is short and in memory once the catalogue is up to date.
        let Some(pool) = self.me.upgrade() else {
            return stream::empty().boxed();
        };
        stream::once(async move {
            let op = "list_volumes";
            let Some(ready) = pool.look(op).await? else {
                return Ok(Vec::new());
            };
            ready.catalog.refresh(op).await?;
            Ok(ready.catalog.read(|state| state.iter().cloned().collect()))
        })
        .flat_map(|listed: Result<Vec<Arc<Entry>>>| match listed {
            Ok(entries) => stream::iter(entries)
                .map(|entry| Ok(entry.describe()))
                .boxed(),
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
        self.changing_existing(op, name)
            .await?
            .rename(op, name, to)
            .await
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

    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        let op = "flatten_volume";
        self.check_stop(&options.control, op, name)?;
        let ready = self.existing(op, name).await?;
        ready.catalog.refresh(op).await?;
        // Every volume has a map of its own, whatever it shares.
        let entry = ready.writable(op, name, "clone it and flatten the clone")?;
        Ok(entry.describe())
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
        let ready = match options.access {
            Access::ReadOnly => self.existing(op, name).await?,
            Access::ReadWrite => self.changing_existing(op, name).await?,
        };
        ready.open(op, name, options).await
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        let op = "extents";
        self.existing(op, name)
            .await?
            .extents(op, name, query)
            .await
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

    async fn scrub(&self, control: Control) -> Result<AuditReport> {
        let op = "scrub";
        match self.look(op).await? {
            Some(ready) => ready.scrub(op, &control).await,
            None => Ok(AuditReport::default()),
        }
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        let op = "collect_garbage";
        if self.config.read_only {
            return Err(Error::new(ErrorKind::PermissionDenied, op)
                .with("pool", self)
                .reason("the pool was opened read-only")
                .help("open it without read_only"));
        }
        match self.look(op).await? {
            Some(ready) => ready.collect(op).await,
            None => Ok(Collected::default()),
        }
    }
}

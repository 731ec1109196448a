//! The pool: the trait's methods, each of which runs its blocking part on a thread for that.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use volmux_core::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, Backend, BlockDevice,
    Capabilities, CloneOptions, Collected, Control, CopyOptions, CreateOptions, Error, ErrorKind,
    ExtentKind, ExtentQuery, ExtentStream, FlattenOptions, Holder, Names, OpenOptions, OriginKind,
    Pool, PoolUrl, ResizeOptions, Result, RevertOptions, SnapshotOptions, Support, ThinPolicy,
    Turns, Usage, Volume, VolumeName,
};

use crate::DirConfig;
use crate::abilities::Abilities;
use crate::device::FileDevice;
use crate::duplicate::Quiet;
use crate::extents;
use crate::handle::OpenVolumes;
use crate::identity::Identity;
use crate::inner::{Inner, act};
use crate::known::KnownRecords;
use crate::layout::{Layout, file_error};
use crate::mount::Mount;
use crate::queue::{Stop, run};
use crate::record::VolumeRecord;

/// A directory pool.
#[derive(Clone)]
pub struct DirPool(pub(crate) Arc<Inner>);

/// Backend of `dir:` URLs.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirBackend;

#[async_trait]
impl Backend for DirBackend {
    fn schemes(&self) -> &'static [&'static str] {
        &["dir"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        DirPool::open(DirConfig::from_url(url)?).await
    }
}

impl DirPool {
    /// Opens the pool in a directory. Changes nothing: a directory that is not a pool yet becomes
    /// one with its first volume. Needs a tokio runtime, as every use of the pool does.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory; `InvalidConfig` if it is not a directory, the
    /// settings are wrong, or the pool is of a newer format; `PermissionDenied`; `Corrupt`.
    pub async fn open(config: DirConfig) -> Result<Arc<dyn Pool>> {
        Ok(Arc::new(Self::opened(config, None, None).await?))
    }

    /// The pool in a directory, or in the export that is mounted there.
    /// Its files belong to `identity`, if that is not who runs this.
    pub(crate) async fn opened(
        config: DirConfig,
        mount: Option<Mount>,
        identity: Option<Identity>,
    ) -> Result<DirPool> {
        const OP: &str = "open_pool";
        let policy = config.policy()?;
        let DirConfig {
            path,
            init,
            read_only,
            ..
        } = config;
        run(OP, Control::new(), move |_| {
            let layout = Layout::open(&path, init, identity, OP)?;
            let _acting = act(OP, identity)?;
            let trial = layout.pool(OP)?.map_or(layout.root(), |pool| &pool.tmp);
            let abilities = Abilities::of(trial, !read_only)
                .map_err(|error| file_error(OP, layout.path(), error))?;
            let label = match &mount {
                Some(mount) => mount.to_string(),
                None => format!("dir://{}", layout.path().display()),
            };
            let inner = Inner {
                layout,
                policy,
                read_only,
                identity,
                abilities,
                open_volumes: OpenVolumes::default(),
                names: Names::default(),
                known_records: KnownRecords::default(),
                label,
                mount,
            };
            Ok(DirPool(Arc::new(inner)))
        })
        .await
    }

    /// Runs `work` once it is its turn on `names`; names pool and volume in its errors.
    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        names: &[&VolumeName],
        control: &Control,
        work: impl FnOnce(&Inner, &Stop) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turns = self.0.names.turn(names).await;
        self.run_in_turn(op, names.first().copied(), turns, control, work)
            .await
    }

    async fn run_in_turn<T: Send + 'static>(
        &self,
        op: &'static str,
        name: Option<&VolumeName>,
        turns: Turns,
        control: &Control,
        work: impl FnOnce(&Inner, &Stop) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        let result = run(op, control.clone(), move |stop| {
            let _acting = act(op, inner.identity)?;
            let result = work(&inner, &stop);
            drop(turns);
            result
        });
        result.await.map_err(|error| self.name_in(error, name))
    }

    /// Runs `work` that changes no record.
    async fn look<T: Send + 'static>(
        &self,
        op: &'static str,
        name: &VolumeName,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        let result = run(op, Control::new(), move |_| {
            let _acting = act(op, inner.identity)?;
            work(&inner)
        });
        result
            .await
            .map_err(|error| self.name_in(error, Some(name)))
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

    async fn duplicate(
        &self,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
        control: &Control,
    ) -> Result<Volume> {
        let chains = |record: &VolumeRecord| self.0.chains(record.data);
        let record = self.record(op, source).await?.filter(chains);
        // The turn first: to wait for it with the source's writers held back would stop a guest. And
        // a file that is frozen must not be opened meanwhile.
        let freezes = kind != OriginKind::Copy && record.is_some();
        let turns = match freezes {
            true => self.0.names.turn(&[source, name]).await,
            false => self.0.names.turn(&[name]).await,
        };
        let quiet = match record {
            Some(_) => self.quiet(op, source).await?,
            None => Quiet::default(),
        };
        let (source, made) = (source.clone(), name.clone());
        self.run_in_turn(op, Some(name), turns, control, move |inner, stop| {
            inner.duplicate(op, kind, &source, &made, &quiet, stop)
        })
        .await
    }

    async fn record(&self, op: &'static str, name: &VolumeName) -> Result<Option<VolumeRecord>> {
        let looked = name.clone();
        self.look(op, name, move |inner| inner.find(op, &looked))
            .await
    }

    /// Holds back the writes that go through this pool object while a copy is made of `name`, or a
    /// new file begun for it. A reflink needs none of that: the kernel makes it at one moment.
    async fn quiet(&self, op: &'static str, name: &VolumeName) -> Result<Quiet> {
        let Some(VolumeRecord { id, .. }) = self.record(op, name).await? else {
            return Ok(Quiet::default());
        };
        let volumes = &self.0.open_volumes;
        while let Some(gate) = volumes.with(id, |shared| shared.gate.clone()) {
            let held = gate.clone().write_owned().await;
            // Closed and opened again meanwhile, it has another gate.
            let writer = volumes.with(id, |shared| {
                Arc::ptr_eq(&shared.gate, &gate).then(|| shared.exclusive_writer())
            });
            if let Some(Some(writer)) = writer {
                return Ok(Quiet {
                    writer,
                    _gate: Some(held),
                });
            }
        }
        Ok(Quiet::default())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Pool for DirPool {
    fn capabilities(&self) -> Capabilities {
        let abilities = self.0.abilities;
        let if_able = |able, otherwise| if able { Support::Native } else { otherwise };
        // What reflinks share FIEMAP tells, and what chains share their tables.
        let told_apart = !abilities.clone || abilities.map;
        Capabilities {
            snapshot: Support::Native,
            clone: Support::Native,
            revert: Support::Native,
            thin: Support::Native,
            thick: if_able(abilities.reserve, Support::None),
            shrink: Support::Native,
            discard: if_able(abilities.punch, Support::None),
            changed_extents: if_able(told_apart, Support::Emulated),
            attach: Support::Native,
            adopt: Support::Native,
            shared_writers: Support::Native,
            fencing: if_able(abilities.clone, Support::Emulated),
        }
    }

    fn policy(&self) -> ThinPolicy {
        self.0.policy
    }

    async fn usage(&self) -> Result<Usage> {
        const OP: &str = "usage";
        self.run(OP, &[], &Control::new(), |inner, _| {
            let mut usage = inner.space(OP)?;
            if let Some(pool) = inner.layout.pool(OP)? {
                usage.provisioned = inner.provisioned(OP, pool)?;
            }
            Ok(usage)
        })
        .await
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let owned = name.clone();
        self.run(
            "create_volume",
            &[name],
            &Control::new(),
            move |inner, _| inner.create(&owned, options),
        )
        .await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let owned = name.clone();
        self.look("volume", name, move |inner| inner.volume(&owned))
            .await
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        let pool = self.clone();
        crate::list::volumes(self.0.clone())
            .map(move |item| item.map_err(|error| pool.name_in(error, None)))
            .boxed()
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let owned = name.clone();
        self.run(
            "resize_volume",
            &[name],
            &Control::new(),
            move |inner, _| inner.resize(&owned, options),
        )
        .await
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let (from, target) = (name.clone(), to.clone());
        self.run(
            "rename_volume",
            &[name, to],
            &Control::new(),
            move |inner, _| inner.rename(&from, &target),
        )
        .await
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let owned = name.clone();
        self.run(
            "delete_volume",
            &[name],
            &Control::new(),
            move |inner, _| inner.delete(&owned),
        )
        .await
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        let kind = OriginKind::Snapshot;
        self.duplicate("snapshot_volume", kind, source, name, &options.control)
            .await
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        self.duplicate(
            "clone_volume",
            OriginKind::Clone,
            source,
            name,
            &options.control,
        )
        .await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        self.duplicate(
            "copy_volume",
            OriginKind::Copy,
            source,
            name,
            &options.control,
        )
        .await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        let (owned, from) = (name.clone(), snapshot.clone());
        self.run(
            "revert_volume",
            &[name],
            &options.control,
            move |inner, stop| inner.revert(&owned, &from, stop),
        )
        .await
    }

    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        let owned = name.clone();
        self.run(
            "flatten_volume",
            &[name],
            &options.control,
            move |inner, stop| inner.flatten(&owned, stop),
        )
        .await
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        let (what, owned) = (what.to_owned(), name.clone());
        self.run("adopt_volume", &[name], &Control::new(), move |inner, _| {
            inner.adopt(&what, &owned)
        })
        .await
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        const OP: &str = "open_volume";
        let owned = name.clone();
        let pool = self.0.clone();
        self.run(OP, &[name], &Control::new(), move |inner, stop| {
            if options.take_over && options.access == Access::ReadWrite {
                inner.take_over(OP, &owned, stop)?;
            }
            let (record, data) = inner.open(OP, &owned, options)?;
            let device = FileDevice::new(pool, owned, data, options, &record);
            Ok(Arc::new(device) as Arc<dyn BlockDevice>)
        })
        .await
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        const OP: &str = "extents";
        let owned = name.clone();
        self.look(OP, name, move |inner| {
            let (_, volume) = inner.content(OP, &owned)?;
            let whole = volmux_core::ByteRange::new(0, volume.size);
            let range = query.range.unwrap_or(whole);
            range.check_within(volume.size, OP)?;
            Ok(match query.kind {
                ExtentKind::Allocated => extents::allocated(volume, range, owned),
                ExtentKind::ChangedSince(since) => {
                    let (_, since) = inner.content(OP, &since)?;
                    extents::changed(volume, since, range, owned)
                }
            })
        })
        .await
    }

    async fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment> {
        let owned = name.clone();
        self.run(
            "attach_volume",
            &[name],
            &Control::new(),
            move |inner, _| inner.attach(&owned, &options),
        )
        .await
    }

    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        let (owned, holder) = (name.clone(), holder.clone());
        self.run(
            "detach_volume",
            &[name],
            &Control::new(),
            move |inner, _| inner.detach(&owned, &holder),
        )
        .await
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        self.run("audit", &[], &Control::new(), move |inner, _| {
            inner.audit(options)
        })
        .await
    }

    async fn scrub(&self, _: Control) -> Result<AuditReport> {
        Err(Error::new(ErrorKind::Unsupported, "scrub")
            .with("pool", self)
            .reason("a directory pool keeps no checksums")
            .help("use what the file system has for it, such as `btrfs scrub`"))
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        const OP: &str = "collect_garbage";
        self.run(OP, &[], &Control::new(), |inner, stop| inner.collect(stop))
            .await
    }
}

impl fmt::Display for DirPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.label)
    }
}

impl fmt::Debug for DirPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirPool")
            .field("pool", &self.0.label)
            .field("policy", &self.0.policy)
            .field("read_only", &self.0.read_only)
            .field("abilities", &self.0.abilities)
            .finish()
    }
}

//! A pool that is broken on purpose, over one that is not. One implementation of one trait, hence a
//! long file.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::SystemTime;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use volmux::{
    Access, AttachOptions, AttachTarget, Attachment, AuditOptions, AuditReport, BlockDevice,
    ByteRange, ByteSize, Capabilities, CloneOptions, Collected, Control, CopyOptions,
    CreateOptions, Error, ErrorKind, ExtentKind, ExtentQuery, ExtentStream, Finding, FindingKind,
    FlattenOptions, Holder, OpenOptions, Pool, PoolExt, Provisioning, ResizeOptions, Result,
    RevertOptions, Sharing, SnapshotOptions, Support, ThinPolicy, Usage, Volume, VolumeId,
    VolumeName,
};
use volmux_conformance::pattern;

use crate::device::BrokenDevice;
use crate::flaw::Flaw;
use crate::state::{State, Wedge, lock};

/// A name that this pool keeps for itself.
pub const RESERVED: &str = "reserved";

#[derive(Debug)]
pub struct Broken {
    inner: Arc<dyn Pool>,
    state: Arc<State>,
    second: bool,
    alive: Arc<()>,
}

/// Breaks a stream of extents of `range`.
pub fn broken_extents(flaw: Flaw, stream: ExtentStream, range: ByteRange) -> ExtentStream {
    let (grade, unit) = (stream.grade(), stream.granularity());
    match flaw {
        Flaw::ExtentsAreTooMany => ExtentStream::new(
            grade,
            unit,
            stream::iter((!range.is_empty()).then_some(Ok(range))),
        ),
        Flaw::ExtentsMissTheFirst => ExtentStream::new(grade, unit, stream.skip(1)),
        _ => stream,
    }
}

fn junk() -> bytes::Bytes {
    pattern(0xBAD, 512)
}

impl Broken {
    pub fn new(inner: Arc<dyn Pool>, state: Arc<State>, second: bool) -> Self {
        Broken {
            inner,
            state,
            second,
            alive: Arc::new(()),
        }
    }

    fn flaw(&self) -> Flaw {
        self.state.flaw
    }

    /// The name that is really used.
    fn name(&self, name: &VolumeName) -> VolumeName {
        if self.flaw() == Flaw::FoldsCase {
            VolumeName::new(name.as_str().to_lowercase()).expect("still a good name")
        } else {
            name.clone()
        }
    }

    fn done(&self, result: Result<Volume>) -> Result<Volume> {
        let mut volume = result.map_err(|error| self.state.error(error))?;
        if self.flaw() == Flaw::IdsFollowNames {
            let sum: u32 = volume.name.as_str().bytes().map(u32::from).sum();
            let id = format!("00000000-0000-0000-0000-{sum:012}");
            volume.id = id.parse::<VolumeId>().expect("an id");
        }
        Ok(volume)
    }

    /// The pool keeps this name for itself.
    fn allow(&self, op: &'static str, name: &VolumeName) -> Result<()> {
        if name.as_str() == RESERVED && self.flaw() != Flaw::ReservedNamesWork {
            return Err(Error::new(ErrorKind::InvalidInput, op).with("volume", name));
        }
        Ok(())
    }

    async fn find(&self, name: &VolumeName) -> Option<Volume> {
        self.inner.find_volume(name).await.ok().flatten()
    }

    /// Writes junk at `offset`, through whoever has the volume open, and returns what was there.
    async fn spoil(
        &self,
        name: &VolumeName,
        offset: u64,
        data: bytes::Bytes,
    ) -> Option<bytes::Bytes> {
        let device = match self.state.writer(name) {
            Some(device) => device,
            None => {
                let opened = self.inner.open_volume(name, OpenOptions::read_write());
                opened.await.ok()?
            }
        };
        let before = device.read_at(offset, data.len()).await.ok()?;
        device.write_at(offset, data).await.ok()?;
        Some(before)
    }

    /// Snapshot, clone or copy, with what is wrong with these.
    async fn derive(
        &self,
        op: &'static str,
        (source, name): (&VolumeName, &VolumeName),
        make: impl AsyncFnOnce() -> Result<Volume>,
    ) -> Result<Volume> {
        self.allow(op, name)?;
        let wedge = self.state.wedge(op, name.as_str()).await?;
        match (self.flaw(), self.find(name).await) {
            (Flaw::DeriveIgnoresArguments, Some(found)) => return Ok(found),
            (Flaw::DeriveAlwaysNew, Some(_)) => self.inner.delete_volume(name).await?,
            _ => {}
        }
        let spoils = match self.flaw() {
            Flaw::SnapshotHoldsJunk => op == "snapshot_volume",
            Flaw::CloneHoldsJunk => op != "snapshot_volume",
            _ => false,
        };
        let good = if spoils {
            self.spoil(source, 0, junk()).await
        } else {
            None
        };
        let made = make().await;
        if let Some(good) = good {
            self.spoil(source, 0, good).await;
        }
        Wedge::free(wedge);
        self.done(made)
    }

    fn control(&self, control: Control) -> Control {
        if self.flaw() == Flaw::NoProgress {
            Control::new()
        } else {
            control
        }
    }

    fn device(
        &self,
        inner: Arc<dyn BlockDevice>,
        parent: Option<Arc<dyn BlockDevice>>,
    ) -> Arc<dyn BlockDevice> {
        Arc::new(BrokenDevice {
            size: inner.size(),
            volumes: self.inner.clone(),
            inner,
            state: self.state.clone(),
            parent,
            pool: Arc::downgrade(&self.alive),
            in_flight: AtomicU32::new(0),
        })
    }

    /// The parent's name, where there is one.
    async fn parent(&self, name: &VolumeName) -> Option<VolumeName> {
        self.find(name).await?.origin.map(|o| o.parent_name)
    }

    async fn total_of(&self, size: impl Fn(&Volume) -> Option<ByteSize>) -> ByteSize {
        let volumes = self.inner.volumes().await.unwrap_or_default();
        let sizes = volumes.iter().filter_map(size).map(ByteSize::bytes);
        ByteSize::new(sizes.fold(0, u64::saturating_add))
    }

    fn busy<T>(&self, op: &'static str, name: &VolumeName) -> Result<T> {
        Err(Error::new(ErrorKind::Busy, op).with("volume", name))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken ({:?}) {}", self.flaw(), self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Pool for Broken {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        if self.flaw() == Flaw::ClaimsMore {
            capabilities.attach = Support::Native;
        }
        capabilities
    }

    fn policy(&self) -> ThinPolicy {
        if self.flaw() == Flaw::ForgetsPolicy {
            ThinPolicy::default()
        } else {
            self.inner.policy()
        }
    }

    async fn usage(&self) -> Result<Usage> {
        let mut usage = self.inner.usage().await?;
        match self.flaw() {
            Flaw::UsageCountsShared => usage.used = self.total_of(|v| v.allocated).await,
            Flaw::UsageIgnoresData => usage.used = ByteSize::ZERO,
            Flaw::UsageCountsProvisioned => usage.used = usage.provisioned,
            Flaw::ProvisionedIsForgotten => usage.provisioned = ByteSize::ZERO,
            _ => {}
        }
        Ok(usage)
    }

    async fn create_volume(&self, name: &VolumeName, mut options: CreateOptions) -> Result<Volume> {
        let name = &self.name(name);
        let wrong = |kind| Err(Error::new(kind, "create_volume").with("volume", name));
        self.allow("create_volume", name)?;
        let wedge = self.state.wedge("create_volume", name.as_str()).await?;
        match (self.flaw(), self.find(name).await) {
            (Flaw::LongNamesFail, _) if name.as_str().len() > 100 => {
                return wrong(ErrorKind::InvalidInput);
            }
            (Flaw::CreateLimitsSize, _) if options.size > ByteSize::gib(1024) => {
                return wrong(ErrorKind::InvalidInput);
            }
            (Flaw::CreateIgnoresArguments, Some(found)) => return Ok(found),
            (Flaw::CreateAlwaysNew, Some(_)) => self.inner.delete_volume(name).await?,
            (Flaw::CreateAddsABlock, _) => {
                options.size = ByteSize::new(options.size.bytes() + 4096);
            }
            (Flaw::CreateTakesSizeZero, _) if options.size == ByteSize::ZERO => {
                options.size = ByteSize::mib(1);
            }
            (Flaw::ThickIsThin, _) => options.provisioning = Provisioning::Thin,
            _ => {}
        }
        let existed = self.find(name).await.is_some();
        let made = self.inner.create_volume(name, options).await;
        if self.flaw() == Flaw::CreateShowsJunk && !existed && made.is_ok() {
            let end = options.size.bytes().next_multiple_of(512);
            self.spoil(name, end - 512, junk()).await;
        }
        Wedge::free(wedge);
        self.done(made)
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let name = &self.name(name);
        let wedge = self.state.wedge("volume", name.as_str()).await?;
        let found = self.inner.volume(name).await;
        Wedge::free(wedge);
        if self.flaw() == Flaw::FindsPrefixes && found.is_err() {
            let mut volumes = self.inner.volumes().await?.into_iter();
            let begins = |v: &Volume| v.name.as_str().starts_with(name.as_str());
            if let Some(volume) = volumes.find(begins) {
                return Ok(volume);
            }
        }
        let mut volume = self.done(found)?;
        match self.flaw() {
            Flaw::CreatedIsNow => volume.created = SystemTime::now(),
            Flaw::NoOrigin => volume.origin = None,
            _ => {}
        }
        Ok(volume)
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        let volumes = self.inner.list_volumes();
        match self.flaw() {
            Flaw::ListsTwice => volumes.chain(self.inner.list_volumes()).boxed(),
            Flaw::OtherHandleIsStale if self.second => stream::empty().boxed(),
            _ => volumes,
        }
    }

    async fn resize_volume(&self, name: &VolumeName, mut options: ResizeOptions) -> Result<Volume> {
        let name = &self.name(name);
        let wrong = |kind| Err(Error::new(kind, "resize_volume").with("volume", name));
        let wedge = self.state.wedge("resize_volume", name.as_str()).await?;
        let before = self.find(name).await;
        let size = before.as_ref().map_or(ByteSize::ZERO, |v| v.virtual_size);
        match self.flaw() {
            Flaw::ResizeSameFails if options.size == size => return wrong(ErrorKind::InvalidInput),
            Flaw::ShrinkNeedsNoFlag => options.allow_shrink = true,
            Flaw::ResizeClamps => {
                let most = ByteSize::mib(1 << 20);
                options.size = options.size.clamp(ByteSize::mib(1), most);
            }
            _ => {}
        }
        let resized = self.inner.resize_volume(name, options).await;
        match (&resized, before) {
            (Err(error), Some(volume))
                if self.flaw() == Flaw::ShrinkIgnoresUse && error.kind() == ErrorKind::Busy =>
            {
                return Ok(volume);
            }
            (Ok(_), _) if self.flaw() == Flaw::ResizeLosesData => {
                self.spoil(name, 0, junk()).await;
            }
            (Ok(volume), _)
                if self.flaw() == Flaw::GrowthShowsJunk && volume.virtual_size > size =>
            {
                let end = volume.virtual_size.bytes();
                self.spoil(name, end - 512, junk()).await;
            }
            _ => {}
        }
        Wedge::free(wedge);
        self.done(resized)
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let (name, to) = (&self.name(name), &self.name(to));
        self.allow("rename_volume", to)?;
        let wedge = self.state.wedge("rename_volume", name.as_str()).await?;
        match self.flaw() {
            Flaw::RenameToItselfFails if name == to => {
                let error = Error::new(ErrorKind::AlreadyExists, "rename_volume");
                return Err(error.with("volume", name));
            }
            Flaw::RenameNeedsIdle if self.state.in_use(name) => {
                return self.busy("rename_volume", name);
            }
            Flaw::RenameReplaces if name != to => self.inner.delete_volume(to).await?,
            _ => {}
        }
        let renamed = self.inner.rename_volume(name, to).await;
        if self.flaw() == Flaw::RenameMissingSucceeds && renamed.is_err() {
            return self.inner.volume(to).await;
        }
        Wedge::free(wedge);
        self.done(renamed)
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let name = &self.name(name);
        let wedge = self.state.wedge("delete_volume", name.as_str()).await?;
        let found = self.find(name).await;
        match (self.flaw(), &found) {
            (Flaw::DeleteDoesNothing, _) => return Ok(()),
            (Flaw::DeleteMissingFails, None) => {
                let error = Error::new(ErrorKind::NotFound, "delete_volume");
                return Err(error.with("volume", name));
            }
            _ => {}
        }
        let deleted = self.inner.delete_volume(name).await;
        if self.flaw() == Flaw::DeleteTakesChildren
            && let Some(gone) = found
        {
            for volume in self.inner.volumes().await.unwrap_or_default() {
                if volume.origin.is_some_and(|o| o.parent_id == gone.id) {
                    let _ = self.inner.delete_volume(&volume.name).await;
                }
            }
        }
        Wedge::free(wedge);
        match deleted {
            Err(error)
                if self.flaw() == Flaw::DeleteIgnoresUse && error.kind() == ErrorKind::Busy =>
            {
                Ok(())
            }
            deleted => deleted.map_err(|error| self.state.error(error)),
        }
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        let (source, name) = (&self.name(source), &self.name(name));
        self.derive("snapshot_volume", (source, name), async || {
            self.inner.snapshot_volume(source, name, options).await
        })
        .await
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        let (source, name) = (&self.name(source), &self.name(name));
        self.derive("clone_volume", (source, name), async || {
            self.inner.clone_volume(source, name, options).await
        })
        .await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        mut options: CopyOptions,
    ) -> Result<Volume> {
        let (source, name) = (&self.name(source), &self.name(name));
        options.control = self.control(options.control);
        self.derive("copy_volume", (source, name), async || {
            self.inner.copy_volume(source, name, options).await
        })
        .await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        let wedge = self.state.wedge("revert_volume", name.as_str()).await?;
        let before = self.inner.volume(name).await;
        let first = lock(&self.state.reverted).insert((name.clone(), snapshot.clone()));
        match self.flaw() {
            Flaw::RevertDoesNothing => return before,
            Flaw::RevertOnce if !first => {
                let error = Error::new(ErrorKind::InvalidInput, "revert_volume");
                return Err(error.with("volume", name));
            }
            _ => {}
        }
        let reverted = self.inner.revert_volume(name, snapshot, options).await;
        let tolerated = match self.flaw() {
            Flaw::RevertTakesAnything => Some(ErrorKind::InvalidInput),
            Flaw::RevertIgnoresUse => Some(ErrorKind::Busy),
            _ => None,
        };
        if let Err(error) = &reverted
            && tolerated == Some(error.kind())
        {
            return before;
        }
        if let (Flaw::RevertDropsSnapshots, Ok(volume)) = (self.flaw(), &reverted) {
            for other in self.inner.volumes().await? {
                let own = other
                    .origin
                    .as_ref()
                    .is_some_and(|o| o.parent_id == volume.id);
                if own && other.is_snapshot() && other.name != *snapshot {
                    self.inner.delete_volume(&other.name).await?;
                }
            }
        }
        Wedge::free(wedge);
        self.done(reverted)
    }

    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        let wedge = self.state.wedge("flatten_volume", name.as_str()).await?;
        let flattened = self.inner.flatten_volume(name, options).await;
        match (self.flaw(), &flattened) {
            (Flaw::FlattenLosesData, Ok(_)) => {
                self.spoil(name, 0, junk()).await;
            }
            (Flaw::FlattenTakesSnapshots, Err(error))
                if error.kind() == ErrorKind::InvalidInput =>
            {
                return self.inner.volume(name).await;
            }
            _ => {}
        }
        Wedge::free(wedge);
        self.done(flattened)
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        let wedge = self.state.wedge("adopt_volume", name.as_str()).await?;
        if self.flaw() == Flaw::AdoptLeavesAVolume {
            let options = CreateOptions::thin(ByteSize::mib(1));
            let _ = self.inner.create_volume(name, options).await;
        }
        let adopted = self.inner.adopt_volume(what, name).await;
        if self.flaw() == Flaw::AdoptLosesData {
            self.spoil(name, 0, junk()).await;
        }
        Wedge::free(wedge);
        self.done(adopted)
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        mut options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        let mut name = self.name(name);
        let wedge = self.state.wedge("open_volume", name.as_str()).await?;
        let snapshot = self.find(&name).await.is_some_and(|v| v.is_snapshot());
        let writing = options.access == Access::ReadWrite;
        let parent = self.parent(&name).await;
        let mut second = None;
        match self.flaw() {
            Flaw::SnapshotIsLive if snapshot && !writing => {
                if let Some(parent) = &parent
                    && self.find(parent).await.is_some()
                {
                    name = parent.clone();
                }
            }
            Flaw::SnapshotIsWritable if snapshot => options.access = Access::ReadOnly,
            Flaw::WriterExcludesReaders if !writing && self.state.writer(&name).is_some() => {
                return self.busy("open_volume", &name);
            }
            Flaw::SharedIsExclusive => options.sharing = Sharing::Exclusive,
            Flaw::WritersUnlimited if writing => {
                if let Some(device) = self.state.writer(&name) {
                    return Ok(self.device(device, None));
                }
            }
            Flaw::WritesReachTheParent if writing => {
                if let Some(parent) = &parent {
                    let opened = self.inner.open_volume(parent, OpenOptions::read_write());
                    second = opened.await.ok();
                }
            }
            _ => {}
        }
        let opened = self.inner.open_volume(&name, options).await;
        Wedge::free(wedge);
        let opened = opened.map_err(|error| self.state.error(error))?;
        self.state.opened(&name, &opened, writing);
        Ok(self.device(opened, second))
    }

    async fn extents(&self, name: &VolumeName, mut query: ExtentQuery) -> Result<ExtentStream> {
        let missing = match &query.kind {
            ExtentKind::ChangedSince(other) => self.find(other).await.is_none(),
            ExtentKind::Allocated => false,
        };
        let allocated = match self.flaw() {
            Flaw::ChangedIsAllocated => true,
            Flaw::ChangedSinceMissing => missing,
            _ => false,
        };
        if allocated {
            query.kind = ExtentKind::Allocated;
        }
        let size = self.find(name).await.map_or(0, |v| v.virtual_size.bytes());
        let range = query.range.unwrap_or(ByteRange::new(0, size));
        let stream = self.inner.extents(name, query).await;
        let stream = stream.map_err(|error| self.state.error(error))?;
        Ok(broken_extents(self.flaw(), stream, range))
    }

    async fn attach_volume(
        &self,
        name: &VolumeName,
        mut options: AttachOptions,
    ) -> Result<Attachment> {
        let wedge = self.state.wedge("attach_volume", name.as_str()).await?;
        let key = (name.clone(), options.holder.to_string());
        let holder = options.holder.clone();
        let before = lock(&self.state.attached).get(&key).cloned();
        let snapshot = self.find(name).await.is_some_and(|v| v.is_snapshot());
        match (self.flaw(), before) {
            (Flaw::AttachOnlyOnce, Some(_)) => return self.busy("attach_volume", name),
            (Flaw::AttachIgnoresOptions, Some(before)) => return Ok(before),
            (Flaw::SharedIsExclusive, _) => options.sharing = Sharing::Exclusive,
            (Flaw::SnapshotAttachesForWriting, _) if snapshot => {
                options.access = Access::ReadOnly;
            }
            (Flaw::AttachIgnoresWriters, _) if self.state.in_use(name) => {
                let volume = self.inner.volume(name).await?;
                return Ok(Attachment {
                    volume: volume.name,
                    id: volume.id,
                    holder,
                    access: options.access,
                    target: AttachTarget::File {
                        path: PathBuf::from("/dev/null"),
                    },
                });
            }
            _ => {}
        }
        let attached = self.inner.attach_volume(name, options).await;
        Wedge::free(wedge);
        let mut attached = attached.map_err(|error| self.state.error(error))?;
        lock(&self.state.attached).insert(key, attached.clone());
        if self.flaw() == Flaw::AttachIsForgotten {
            self.inner.detach_volume(name, &holder).await?;
        }
        if self.flaw() == Flaw::AttachLeadsElsewhere {
            attached.target = AttachTarget::BlockDevice {
                path: PathBuf::from("/dev/null"),
            };
        }
        Ok(attached)
    }

    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        let missing = self.find(name).await.is_none();
        if self.flaw() == Flaw::DetachMissingFails && missing {
            let error = Error::new(ErrorKind::NotFound, "detach_volume");
            return Err(error.with("volume", name));
        }
        lock(&self.state.attached).remove(&(name.clone(), holder.to_string()));
        let detached = self.inner.detach_volume(name, holder).await;
        detached.map_err(|error| self.state.error(error))
    }

    async fn scrub(&self, control: Control) -> Result<AuditReport> {
        self.inner.scrub(control).await
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        self.inner.collect_garbage().await
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        let mut report = self.inner.audit(options).await?;
        if self.flaw() == Flaw::AuditFindsGhosts {
            report.findings.push(Finding {
                kind: FindingKind::Leftover,
                object: "ghost".into(),
                detail: "it is not there".into(),
                bytes: None,
                repaired: false,
            });
        }
        if self.flaw() == Flaw::AuditDeletes && options.repair {
            let mut tried = HashSet::new();
            for volume in self.inner.volumes().await? {
                let deleted = self.inner.delete_volume(&volume.name).await;
                if tried.insert(volume.name) && deleted.is_ok() {
                    break;
                }
            }
        }
        Ok(report)
    }
}

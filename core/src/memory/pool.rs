//! The pool.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};

use super::MemoryConfig;
use super::copy;
use super::device::{self, MemoryDevice};
use super::space::Space;
use super::tree::{BLOCK, Tree};
use super::volume::{Content, MemoryVolume};
use crate::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, ByteRange, ByteSize,
    Capabilities, CloneOptions, Collected, Control, CopyOptions, CreateOptions, Error, ErrorKind,
    ExtentKind, ExtentQuery, ExtentStream, FlattenOptions, Holder, OpenOptions, Origin, OriginKind,
    Pool, Pressure, Provisioning, ResizeOptions, Result, RevertOptions, SnapshotOptions,
    SpaceRequest, Support, ThinPolicy, Usage, Volume, VolumeName,
};

const SECTOR: u64 = 512;
const LARGEST: u64 = i64::MAX as u64 / SECTOR * SECTOR;

/// A pool in memory.
#[derive(Debug)]
pub struct MemoryPool {
    total: ByteSize,
    policy: ThinPolicy,
    space: Arc<Space>,
    volumes: Mutex<Volumes>,
}

#[derive(Debug, Default)]
struct Volumes {
    by_name: BTreeMap<VolumeName, Arc<MemoryVolume>>,
    /// Sum of the virtual sizes; may exceed 64 bits.
    provisioned: u128,
}

impl MemoryPool {
    /// A new, empty pool.
    ///
    /// # Errors
    /// `InvalidConfig` for a total below one block of 4096 bytes, or marks out of range.
    pub fn new(config: MemoryConfig) -> Result<Arc<Self>> {
        let policy = config.policy()?;
        let blocks = config.total.bytes() / BLOCK;
        if blocks == 0 {
            return Err(Error::new(ErrorKind::InvalidConfig, "open_pool")
                .with("total", config.total)
                .reason("a memory pool holds at least 4096 bytes"));
        }
        Ok(Arc::new(MemoryPool {
            total: config.total,
            policy,
            space: Space::new(blocks),
            volumes: Mutex::default(),
        }))
    }

    /// A new, empty pool with room for every size there is: 15 EiB, no limits.
    pub fn unlimited() -> Arc<Self> {
        let total = ByteSize::new(15 << 60);
        MemoryPool::new(MemoryConfig {
            refuse_percent: Some(100.0),
            ..MemoryConfig::with_total(total)
        })
        .expect("this configuration is right")
    }

    fn lock(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, kind: ErrorKind, op: &'static str, name: &VolumeName) -> Error {
        Error::new(kind, op).with("pool", self).with("volume", name)
    }

    fn full(&self, op: &'static str, name: &VolumeName) -> Error {
        self.error(ErrorKind::NoSpace, op, name)
            .reason("the pool is full")
            .help("delete volumes or discard what is not needed")
    }

    fn get(
        &self,
        volumes: &Volumes,
        op: &'static str,
        name: &VolumeName,
    ) -> Result<Arc<MemoryVolume>> {
        volumes.by_name.get(name).cloned().ok_or_else(|| {
            self.error(ErrorKind::NotFound, op, name)
                .reason("the pool has no volume of that name")
        })
    }

    pub(super) fn find(&self, op: &'static str, name: &VolumeName) -> Result<Arc<MemoryVolume>> {
        self.get(&self.lock(), op, name)
    }

    fn usage_of(&self, volumes: &Volumes) -> Usage {
        let used = self.space.used();
        let bytes = |blocks: u64| ByteSize::new(blocks.saturating_mul(BLOCK));
        Usage {
            total: self.total,
            used: bytes(used),
            free: bytes(self.space.total().saturating_sub(used)),
            provisioned: ByteSize::new(volumes.provisioned.try_into().unwrap_or(u64::MAX)),
            ..Usage::default()
        }
    }

    fn admit(
        &self,
        volumes: &Volumes,
        op: &'static str,
        name: &VolumeName,
        provisioned: u64,
        reserved: u64,
    ) -> Result<()> {
        let request = SpaceRequest {
            provisioned: ByteSize::new(provisioned),
            reserved: ByteSize::new(reserved),
        };
        let usage = self.usage_of(volumes);
        let pressure = self
            .policy
            .admit(&usage, &request, op)
            .map_err(|error| error.with("pool", self).with("volume", name))?;
        if pressure > Pressure::Normal {
            tracing::warn!(pool = %self, volume = %name, op, %pressure, "the pool is filling up");
        }
        Ok(())
    }

    /// Fails once the caller has cancelled.
    fn check_stop(&self, control: &Control, op: &'static str, name: &VolumeName) -> Result<()> {
        let check = control.check(op);
        check.map_err(|error| error.with("pool", self).with("volume", name))
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

    /// The volume `name` if an earlier call with the same arguments made it; `None` if there is
    /// none.
    fn made_before(
        &self,
        volumes: &Volumes,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
    ) -> Result<Option<Volume>> {
        if source == name {
            return Err(self
                .error(ErrorKind::InvalidInput, op, name)
                .reason("source and target have the same name"));
        }
        let Some(there) = volumes.by_name.get(name) else {
            return Ok(None);
        };
        let same = there.origin.as_ref().is_some_and(|origin| {
            let parent = match volumes.by_name.get(source) {
                Some(source) => source.id == origin.parent_id,
                None => *source == origin.parent_name,
            };
            origin.kind == kind && parent
        });
        if same {
            return Ok(Some(there.describe(name)));
        }
        Err(self
            .error(ErrorKind::AlreadyExists, op, name)
            .with("source", source)
            .reason(format!(
                "the name is taken by a volume that is not a {kind} of the source"
            ))
            .help("choose another name"))
    }

    fn insert(&self, volumes: &mut Volumes, name: &VolumeName, volume: MemoryVolume) -> Volume {
        let made = volume.describe(name);
        volumes.provisioned += u128::from(made.virtual_size.bytes());
        volumes.by_name.insert(name.clone(), Arc::new(volume));
        made
    }

    /// Snapshots and clones: both take the content's root.
    fn derive(
        &self,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
    ) -> Result<Volume> {
        let mut volumes = self.lock();
        if let Some(volume) = self.made_before(&volumes, op, kind, source, name)? {
            return Ok(volume);
        }
        let parent = self.get(&volumes, op, source)?;
        let content = parent.read();
        self.admit(&volumes, op, name, content.size, 0)?;
        let copied = Content::new(content.tree.clone(), content.size, Provisioning::Thin);
        drop(content);
        let volume = MemoryVolume::new(copied, Some(origin(kind, &parent, source)));
        Ok(self.insert(&mut volumes, name, volume))
    }
}

fn origin(kind: OriginKind, parent: &MemoryVolume, name: &VolumeName) -> Origin {
    Origin {
        kind,
        parent_id: parent.id,
        parent_name: name.clone(),
    }
}

/// Everything that is known of a volume.
fn all_of(found: &MemoryVolume, name: &VolumeName) -> Volume {
    let mut volume = found.describe(name);
    volume.exclusive = Some(found.exclusive());
    volume
}

impl fmt::Display for MemoryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("memory:")
    }
}

#[async_trait]
impl Pool for MemoryPool {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            snapshot: Support::Native,
            clone: Support::Native,
            revert: Support::Native,
            thin: Support::Native,
            thick: Support::Native,
            shrink: Support::Native,
            discard: Support::Native,
            changed_extents: Support::Native,
            attach: Support::None,
            adopt: Support::None,
            shared_writers: Support::Native,
            fencing: Support::Native,
        }
    }

    fn policy(&self) -> ThinPolicy {
        self.policy
    }

    async fn usage(&self) -> Result<Usage> {
        Ok(self.usage_of(&self.lock()))
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let op = "create_volume";
        let size = self.check_size(op, name, options.size)?;
        let mut volumes = self.lock();
        if let Some(there) = volumes.by_name.get(name) {
            let there = there.describe(name);
            let same = there.origin.is_none()
                && there.virtual_size.bytes() == size
                && there.provisioning == options.provisioning;
            return if same {
                Ok(there)
            } else {
                Err(self
                    .error(ErrorKind::AlreadyExists, op, name)
                    .reason("the name is taken by a volume made with other arguments")
                    .help("choose another name"))
            };
        }
        let blocks = match options.provisioning {
            Provisioning::Thin => 0,
            Provisioning::Thick => size.div_ceil(BLOCK),
        };
        self.admit(&volumes, op, name, size, blocks * BLOCK)?;
        let reservation = self
            .space
            .reserve(blocks)
            .ok_or_else(|| self.full(op, name))?;
        let tree = Tree::new(self.space.clone());
        let volume = MemoryVolume::new(Content::new(tree, size, options.provisioning), None);
        reservation.keep_rest();
        Ok(self.insert(&mut volumes, name, volume))
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let found = self.find("volume", name)?;
        Ok(all_of(&found, name))
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        let names: Vec<(VolumeName, Weak<MemoryVolume>)> = self
            .lock()
            .by_name
            .iter()
            .map(|(name, volume)| (name.clone(), Arc::downgrade(volume)))
            .collect();
        stream::iter(names)
            .filter_map(|(name, volume)| async move {
                volume.upgrade().map(|volume| Ok(volume.describe(&name)))
            })
            .boxed()
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let op = "resize_volume";
        let size = self.check_size(op, name, options.size)?;
        let wrong = |kind, reason: &str| self.error(kind, op, name).reason(reason);
        let mut volumes = self.lock();
        let volume = self.get(&volumes, op, name)?;
        if volume.is_snapshot() {
            return Err(wrong(ErrorKind::InvalidInput, "a snapshot is read-only")
                .help("clone it and resize the clone"));
        }
        let mut content = volume.write();
        let before = content.size;
        if size < before && !options.allow_shrink {
            return Err(wrong(
                ErrorKind::InvalidInput,
                "the new size is smaller than the volume, and shrinking was not allowed",
            )
            .help("set allow_shrink if what lies past the new size may be lost"));
        }
        if size < before && content.in_use() {
            return Err(wrong(ErrorKind::Busy, "the volume is open").help("close it first"));
        }
        if size > before {
            let reserved = match content.provisioning() {
                Provisioning::Thin => 0,
                Provisioning::Thick => size.div_ceil(BLOCK) - before.div_ceil(BLOCK),
            };
            self.admit(&volumes, op, name, size - before, reserved * BLOCK)?;
        }
        let replaced = content.resize(&self.space, size);
        drop(content);
        let replaced = replaced.ok_or_else(|| self.full(op, name))?;
        volumes.provisioned = volumes.provisioned + u128::from(size) - u128::from(before);
        let changed = volume.describe(name);
        // Nobody has to wait until what was replaced is freed.
        drop(volumes);
        drop(replaced);
        Ok(changed)
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let op = "rename_volume";
        let mut volumes = self.lock();
        let volume = self.get(&volumes, op, name)?;
        if name != to {
            if volumes.by_name.contains_key(to) {
                return Err(self
                    .error(ErrorKind::AlreadyExists, op, name)
                    .with("to", to)
                    .reason("the new name is taken")
                    .help("choose another name"));
            }
            volumes.by_name.remove(name);
            volumes.by_name.insert(to.clone(), volume.clone());
        }
        Ok(volume.describe(to))
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let mut volumes = self.lock();
        let Some(volume) = volumes.by_name.get(name).cloned() else {
            return Ok(());
        };
        let content = volume.read();
        if content.in_use() {
            return Err(self
                .error(ErrorKind::Busy, "delete_volume", name)
                .reason("the volume is open")
                .help("close it first"));
        }
        volumes.provisioned -= u128::from(content.size);
        drop(content);
        volumes.by_name.remove(name);
        // Freeing takes longer the more there is; nobody has to wait for it.
        drop(volumes);
        drop(volume);
        Ok(())
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        let op = "snapshot_volume";
        self.check_stop(&options.control, op, name)?;
        self.derive(op, OriginKind::Snapshot, source, name)
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        let op = "clone_volume";
        self.check_stop(&options.control, op, name)?;
        self.derive(op, OriginKind::Clone, source, name)
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        let op = "copy_volume";
        let kind = OriginKind::Copy;
        self.check_stop(&options.control, op, name)?;
        let (parent, from, size, provisioning, blocks) = {
            let volumes = self.lock();
            if let Some(volume) = self.made_before(&volumes, op, kind, source, name)? {
                return Ok(volume);
            }
            let parent = self.get(&volumes, op, source)?;
            let (from, size, provisioning, blocks) = {
                let content = parent.read();
                let blocks = content.tree.mapped() + content.unwritten();
                (
                    content.tree.clone(),
                    content.size,
                    content.provisioning(),
                    blocks,
                )
            };
            self.admit(&volumes, op, name, size, blocks * BLOCK)?;
            (parent, from, size, provisioning, blocks)
        };
        let copied = copy::duplicate(&self.space, &from, blocks, &options.control)
            .await
            .map_err(|error| error.with("pool", self).with("volume", name))?;
        let (tree, rest) = copied.ok_or_else(|| self.full(op, name))?;
        let mut volumes = self.lock();
        // Somebody else may have been quicker.
        if let Some(volume) = self.made_before(&volumes, op, kind, source, name)? {
            return Ok(volume);
        }
        rest.keep_rest();
        let content = Content::new(tree, size, provisioning);
        let volume = MemoryVolume::new(content, Some(origin(kind, &parent, source)));
        Ok(self.insert(&mut volumes, name, volume))
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        let op = "revert_volume";
        self.check_stop(&options.control, op, name)?;
        let wrong = |kind, reason: &str| {
            self.error(kind, op, name)
                .with("snapshot", snapshot)
                .reason(reason)
        };
        let mut volumes = self.lock();
        let volume = self.get(&volumes, op, name)?;
        let image = self.get(&volumes, op, snapshot)?;
        if volume.is_snapshot() {
            return Err(
                wrong(ErrorKind::InvalidInput, "a snapshot is read-only").help("clone it instead")
            );
        }
        let parent = image.origin.as_ref().map(|o| o.parent_id);
        if !image.is_snapshot() || parent != Some(volume.id) {
            let reason = "that is not a snapshot of this volume";
            return Err(wrong(ErrorKind::InvalidInput, reason));
        }
        let (tree, size) = {
            let content = image.read();
            (content.tree.clone(), content.size)
        };
        let mut content = volume.write();
        if content.in_use() {
            return Err(wrong(ErrorKind::Busy, "the volume is open").help("close it first"));
        }
        let before = content.size;
        self.admit(&volumes, op, name, size.saturating_sub(before), 0)?;
        let replaced = content.become_copy_of(&self.space, tree, size);
        drop(content);
        let replaced = replaced.ok_or_else(|| self.full(op, name))?;
        volumes.provisioned = volumes.provisioned + u128::from(size) - u128::from(before);
        let changed = volume.describe(name);
        // Nobody has to wait until what was replaced is freed.
        drop(volumes);
        drop(replaced);
        Ok(changed)
    }

    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        let op = "flatten_volume";
        self.check_stop(&options.control, op, name)?;
        let found = self.find(op, name)?;
        if found.is_snapshot() {
            return Err(self
                .error(ErrorKind::InvalidInput, op, name)
                .reason("a snapshot is read-only and can't be flattened")
                .help("clone it and flatten the clone"));
        }
        // Every volume's blocks are found in one tree.
        Ok(all_of(&found, name))
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        Err(self
            .error(ErrorKind::Unsupported, "adopt_volume", name)
            .with("what", what)
            .reason("a memory pool holds nothing but its volumes"))
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        let op = "open_volume";
        let volumes = self.lock();
        let volume = self.get(&volumes, op, name)?;
        if volume.is_snapshot() && options.access == Access::ReadWrite {
            return Err(self
                .error(ErrorKind::InvalidInput, op, name)
                .reason("a snapshot is read-only")
                .help("clone it and write to the clone"));
        }
        let epoch = {
            let mut content = volume.write();
            if !content.open(options) {
                return Err(self
                    .error(ErrorKind::Busy, op, name)
                    .reason("the volume is open for writing")
                    .help("close it there, open it shared on both sides, or take it over"));
            }
            content.epoch
        };
        Ok(Arc::new(MemoryDevice {
            name: name.clone(),
            volume,
            space: self.space.clone(),
            access: options.access,
            epoch,
        }))
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        let op = "extents";
        let (volume, other) = {
            let volumes = self.lock();
            let other = match &query.kind {
                ExtentKind::Allocated => None,
                ExtentKind::ChangedSince(other) => Some(self.get(&volumes, op, other)?),
            };
            (self.get(&volumes, op, name)?, other)
        };
        let other = other.map(|other| other.read().tree.clone());
        let content = volume.read();
        let range = query.range.unwrap_or(ByteRange::new(0, content.size));
        range
            .check_within(content.size, op)
            .map_err(|error| error.with("pool", self).with("volume", name))?;
        Ok(device::extents(
            content.tree.clone(),
            other,
            range,
            content.size,
        ))
    }

    async fn attach_volume(&self, name: &VolumeName, _: AttachOptions) -> Result<Attachment> {
        Err(self.not_reachable("attach_volume", name))
    }

    async fn detach_volume(&self, name: &VolumeName, _: &Holder) -> Result<()> {
        Err(self.not_reachable("detach_volume", name))
    }

    async fn audit(&self, _: AuditOptions) -> Result<AuditReport> {
        Ok(AuditReport {
            findings: Vec::new(),
            volumes: self.lock().by_name.len() as u64,
        })
    }

    async fn scrub(&self, _: Control) -> Result<AuditReport> {
        Err(Error::new(ErrorKind::Unsupported, "scrub")
            .with("pool", self)
            .reason("memory is not verified by anything that is kept here"))
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        // What is not used is free at once.
        Ok(Collected::default())
    }
}

impl MemoryPool {
    fn not_reachable(&self, op: &'static str, name: &VolumeName) -> Error {
        self.error(ErrorKind::Unsupported, op, name)
            .reason("a memory pool cannot be reached from outside its process")
            .help("open the volume, or serve it over the network")
    }
}

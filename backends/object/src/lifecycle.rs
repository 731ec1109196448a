//! What makes, changes and removes volumes: each ends in one record of the catalogue.

use std::sync::Arc;
use std::time::SystemTime;

use volmux_core::{
    ByteSize, Control, ErrorKind, Origin, OriginKind, Provisioning, Result, Volume, VolumeId,
    VolumeName, transfer,
};

use crate::catalog::{Change, Entry};
use crate::claim::Claimed;
use crate::device::ObjectDevice;
use crate::engine::Engine;
use crate::keys::LogId;
use crate::owner::Living;
use crate::pool::Ready;
use crate::tip::{BLOCK, TailItem, Tip};
use crate::uses::Use;

/// What deciding on a change of the catalogue came to.
enum Decided {
    /// It is as it should be already.
    Done(Arc<Entry>),
    /// This has to change.
    Change(Vec<Change>, Arc<Entry>),
}

impl Entry {
    /// What the pool says of it.
    pub(crate) fn describe(&self) -> Volume {
        let mut volume = Volume::new(self.name.clone(), self.id, ByteSize::new(self.size));
        volume.provisioning = self.provisioning;
        volume.origin.clone_from(&self.origin);
        volume.created = self.created;
        volume
    }

    fn is_snapshot(&self) -> bool {
        self.log.is_none()
    }
}

impl Ready {
    /// Makes an empty volume.
    pub(crate) async fn create(
        &self,
        op: &'static str,
        name: &VolumeName,
        size: u64,
    ) -> Result<Volume> {
        let new = Arc::new(Entry {
            id: self.new_id(),
            name: name.clone(),
            size,
            provisioning: Provisioning::Thin,
            origin: None,
            created: SystemTime::now(),
            log: Some(LogId(self.shared.ids.uuid())),
            base: Arc::new(Tip::EMPTY),
        });
        let decide = || {
            if let Some(there) = self.find(name) {
                if there.origin.is_none() && there.size == size {
                    return Ok(Decided::Done(there));
                }
                return Err(self
                    .error(ErrorKind::AlreadyExists, op, name)
                    .reason("the name is taken by a volume made with other arguments")
                    .help("choose another name"));
            }
            Ok(Decided::Change(
                vec![Change::Put(Entry::clone(&new))],
                new.clone(),
            ))
        };
        self.decided(op, name, size, decide).await
    }

    /// Renames a volume.
    pub(crate) async fn rename(
        &self,
        op: &'static str,
        name: &VolumeName,
        to: &VolumeName,
    ) -> Result<Volume> {
        let decide = || {
            let entry = self.entry(op, name)?;
            if name == to {
                return Ok(Decided::Done(entry));
            }
            if self.find(to).is_some() {
                return Err(self
                    .error(ErrorKind::AlreadyExists, op, name)
                    .with("to", to)
                    .reason("the new name is taken")
                    .help("choose another name"));
            }
            let renamed = Entry {
                name: to.clone(),
                ..Entry::clone(&entry)
            };
            Ok(Decided::Change(
                vec![Change::Put(renamed.clone())],
                Arc::new(renamed),
            ))
        };
        self.decided(op, name, 0, decide).await
    }

    /// Makes a snapshot or a clone.
    pub(crate) async fn derive(
        &self,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
    ) -> Result<Volume> {
        let (id, log) = (self.new_id(), LogId(self.shared.ids.uuid()));
        let mut fresh = false;
        loop {
            let head = self.catalog.head();
            let decided = self.derivable(op, kind, source, name);
            let parent = match decided {
                Ok(Parent::Volume(parent)) => parent,
                // What is known here may be old.
                _ if !fresh => {
                    self.catalog.refresh(op).await?;
                    fresh = true;
                    continue;
                }
                Ok(Parent::Made(volume)) => return Ok(volume),
                Err(error) => return Err(error),
            };
            self.admit(op, name, parent.size).await?;
            let entry = Entry {
                id,
                name: name.clone(),
                size: parent.size,
                provisioning: Provisioning::Thin,
                origin: Some(origin(kind, &parent)),
                created: SystemTime::now(),
                log: (kind == OriginKind::Clone).then_some(log),
                base: self.tip_of(op, &parent).await?,
            };
            let made = entry.describe();
            // Where the head has moved, what the tip names may be collected by now.
            if self
                .catalog
                .try_commit(op, head, vec![Change::Put(entry)])
                .await?
            {
                return Ok(made);
            }
            fresh = true;
        }
    }

    /// Changes the virtual size.
    pub(crate) async fn resize(
        &self,
        op: &'static str,
        name: &VolumeName,
        size: u64,
        allow_shrink: bool,
    ) -> Result<Volume> {
        loop {
            let head = self.catalog.refresh(op).await?;
            let entry = self.writable(op, name, "clone it and resize the clone")?;
            let wrong = |kind, reason: &str| self.error(kind, op, name).reason(reason);
            if size == entry.size {
                return Ok(entry.describe());
            }
            let resized = if size > entry.size {
                self.admit(op, name, size - entry.size).await?;
                Entry {
                    size,
                    ..Entry::clone(&entry)
                }
            } else {
                if !allow_shrink {
                    return Err(wrong(
                        ErrorKind::InvalidInput,
                        "the new size is smaller than the volume, and shrinking was not allowed",
                    )
                    .help("set allow_shrink if what lies past the new size may be lost"));
                }
                let of = self.uses.of(entry.id);
                let _turn = of.turn.lock().await;
                let tip = self.end_log(op, &entry, &of, true).await?;
                let shrunk = self.shrunk(op, &entry, tip, size).await?;
                if self
                    .catalog
                    .try_commit(op, head, vec![Change::Put(shrunk.clone())])
                    .await?
                {
                    return Ok(shrunk.describe());
                }
                continue;
            };
            if self
                .catalog
                .try_commit(op, head, vec![Change::Put(resized.clone())])
                .await?
            {
                self.uses.of(entry.id).set_size(size);
                return Ok(resized.describe());
            }
        }
    }

    /// Deletes a volume. Its log and blocks are collected later.
    pub(crate) async fn delete(&self, op: &'static str, name: &VolumeName) -> Result<()> {
        loop {
            let head = self.catalog.refresh(op).await?;
            let Some(entry) = self.find(name) else {
                return Ok(());
            };
            let of = self.uses.of(entry.id);
            let _turn = of.turn.lock().await;
            self.end_log(op, &entry, &of, false).await?;
            if self
                .catalog
                .try_commit(op, head, vec![Change::Remove(entry.id)])
                .await?
            {
                self.uses.forget(entry.id);
                return Ok(());
            }
        }
    }

    /// Puts a volume back to one of its snapshots.
    pub(crate) async fn revert(
        &self,
        op: &'static str,
        name: &VolumeName,
        snapshot: &VolumeName,
    ) -> Result<Volume> {
        loop {
            let head = self.catalog.refresh(op).await?;
            let entry = self.entry(op, name)?;
            let image = self.entry(op, snapshot)?;
            let wrong = |reason: &str| {
                self.error(ErrorKind::InvalidInput, op, name)
                    .with("snapshot", snapshot)
                    .reason(reason)
            };
            if entry.is_snapshot() {
                return Err(wrong("a snapshot is read-only").help("clone it instead"));
            }
            let parent = image.origin.as_ref().map(|origin| origin.parent_id);
            if !image.is_snapshot() || parent != Some(entry.id) {
                return Err(wrong("that is not a snapshot of this volume"));
            }
            let of = self.uses.of(entry.id);
            let _turn = of.turn.lock().await;
            let ended = self.end_log(op, &entry, &of, false).await;
            ended.map_err(|error| error.with("snapshot", snapshot))?;
            self.admit(op, name, image.size.saturating_sub(entry.size))
                .await?;
            let reverted = Entry {
                size: image.size,
                log: Some(LogId(self.shared.ids.uuid())),
                base: image.base.clone(),
                ..Entry::clone(&entry)
            };
            if self
                .catalog
                .try_commit(op, head, vec![Change::Put(reverted.clone())])
                .await?
            {
                return Ok(reverted.describe());
            }
        }
    }

    /// Makes a full duplicate.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        op: &'static str,
        source: &VolumeName,
        name: &VolumeName,
        control: &Control,
    ) -> Result<Volume> {
        let kind = OriginKind::Copy;
        self.catalog.refresh(op).await?;
        let parent = match self.derivable(op, kind, source, name)? {
            Parent::Made(volume) => return Ok(volume),
            Parent::Volume(parent) => parent,
        };
        self.admit(op, name, parent.size).await?;
        let new = Entry {
            id: self.new_id(),
            name: name.clone(),
            size: parent.size,
            provisioning: Provisioning::Thin,
            origin: Some(origin(kind, &parent)),
            created: SystemTime::now(),
            log: Some(LogId(self.shared.ids.uuid())),
            base: Arc::new(Tip::EMPTY),
        };
        // It ends with this call; what it wrote is collected if it is not a volume by then.
        let _target = self.copied(op, &parent, &new, control).await?;
        self.publish_copy(op, source, &new).await
    }

    async fn publish_copy(
        &self,
        op: &'static str,
        source: &VolumeName,
        new: &Entry,
    ) -> Result<Volume> {
        loop {
            let head = self.catalog.head();
            // Somebody else may have been quicker.
            if self.find(&new.name).is_some()
                && let Parent::Made(volume) =
                    self.derivable(op, OriginKind::Copy, source, &new.name)?
            {
                return Ok(volume);
            }
            if self
                .catalog
                .try_commit(op, head, vec![Change::Put(new.clone())])
                .await?
            {
                return Ok(new.describe());
            }
        }
    }

    /// Copies into a new log, which holds on to what it copies from as long as it does.
    async fn copied(
        self: &Arc<Self>,
        op: &'static str,
        parent: &Entry,
        new: &Entry,
        control: &Control,
    ) -> Result<ObjectDevice> {
        let Some(log) = new.log else {
            return Err(self.error(ErrorKind::Internal, op, &new.name));
        };
        let (tip, target) = loop {
            let head = self.catalog.refresh(op).await?;
            let tip = self.tip_of(op, parent).await?;
            let living = Living::begin(self.shared.ids.uuid());
            let manifest = self.claim_new(op, log, living.owner(), &tip).await?;
            let still = self.catalog.refresh(op).await? == head;
            if let Some(manifest) = manifest.filter(|_| still) {
                let claimed = Claimed {
                    manifest,
                    journal: None,
                };
                let target = Engine::writer(op, self.shared.clone(), claimed, living).await?;
                break (tip, target);
            }
        };
        let from = Engine::reader(op, self.shared.clone(), &tip, None).await?;
        let from = self.bare_device(parent, from);
        let to = self.bare_device(new, target);
        let copied = transfer::copy_device(&from, &to, control).await;
        copied.map_err(|error| match error.get("volume") {
            Some(_) => error,
            None => error.with("pool", self).with("volume", &new.name),
        })?;
        Ok(to)
    }

    /// Makes sure that a volume is not in use, and ends its log if it has one; returns what it
    /// holds, which may be `wanted`. To be called in its turn.
    pub(crate) async fn end_log(
        &self,
        op: &'static str,
        entry: &Entry,
        of: &Arc<Use>,
        wanted: bool,
    ) -> Result<Tip> {
        if of.is_used() {
            return Err(self
                .error(ErrorKind::Busy, op, &entry.name)
                .reason("the volume is open")
                .help("close it first"));
        }
        if let Some(engine) = of.engine() {
            engine.ended().await;
            of.set_engine(None);
        }
        self.check_unread(op, entry.id, &entry.name).await?;
        match entry.log {
            Some(log) => self.retire(op, entry, log, wanted).await,
            None => Ok(Tip::clone(&entry.base)),
        }
    }

    /// The volume with a new log that starts with `tip`, cut off at `size`.
    async fn shrunk(&self, op: &'static str, entry: &Entry, tip: Tip, size: u64) -> Result<Entry> {
        let log = LogId(self.shared.ids.uuid());
        let mut base = tip.clone();
        base.tail.push(TailItem::Cut(size.div_ceil(BLOCK)));
        if !size.is_multiple_of(BLOCK) {
            // What lies past the end of the last block must not come back when the volume grows.
            let engine = Engine::reader(op, self.shared.clone(), &tip, None).await?;
            if let Some(item) = engine.cut_block(op, log, size).await? {
                base.tail.push(item);
            }
        }
        Ok(Entry {
            size,
            log: Some(log),
            base: Arc::new(base),
            ..Entry::clone(entry)
        })
    }

    /// What a volume holds now: everything that was flushed, and here every write that is done.
    pub(crate) async fn tip_of(&self, op: &'static str, entry: &Entry) -> Result<Arc<Tip>> {
        if entry.is_snapshot() {
            return Ok(entry.base.clone());
        }
        if let Some(engine) = self.uses.of(entry.id).engine().filter(|e| e.is_writer()) {
            if engine.is_current(op).await? {
                match engine.commit(op).await {
                    Ok(()) => {
                        if let Some(committed) = engine.committed() {
                            return Ok(Arc::new(committed.tip));
                        }
                    }
                    // It is about the volume, and that another host writes by now.
                    Err(error) if error.kind() == ErrorKind::Fenced => {}
                    Err(error) => return Err(error),
                }
            }
            if engine.is_ending() {
                engine.ended().await;
            }
        }
        Ok(Arc::new(self.whole_tip(op, entry).await?.1))
    }

    /// Commits what `decide` says, on what is known here at first, and decides again whenever
    /// that turns out to be old. The change must be admitted to provision `grow` bytes more.
    async fn decided(
        &self,
        op: &'static str,
        name: &VolumeName,
        grow: u64,
        decide: impl Fn() -> Result<Decided>,
    ) -> Result<Volume> {
        let mut fresh = false;
        loop {
            let head = self.catalog.head();
            match decide() {
                Ok(Decided::Change(changes, entry)) => {
                    if grow > 0 {
                        self.admit(op, name, grow).await?;
                    }
                    if self.catalog.try_commit(op, head, changes).await? {
                        return Ok(entry.describe());
                    }
                }
                _ if !fresh => {
                    self.catalog.refresh(op).await?;
                }
                Ok(Decided::Done(entry)) => return Ok(entry.describe()),
                Err(error) => return Err(error),
            }
            fresh = true;
        }
    }

    fn derivable(
        &self,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
    ) -> Result<Parent> {
        if source == name {
            return Err(self
                .error(ErrorKind::InvalidInput, op, name)
                .reason("source and target have the same name"));
        }
        let parent = self.find(source);
        let Some(there) = self.find(name) else {
            return parent.map(Parent::Volume).ok_or_else(|| {
                self.error(ErrorKind::NotFound, op, source)
                    .reason("the pool has no volume of that name")
            });
        };
        let same = there.origin.as_ref().is_some_and(|origin| {
            let same_parent = match &parent {
                Some(parent) => parent.id == origin.parent_id,
                None => *source == origin.parent_name,
            };
            origin.kind == kind && same_parent
        });
        if same {
            return Ok(Parent::Made(there.describe()));
        }
        Err(self
            .error(ErrorKind::AlreadyExists, op, name)
            .with("source", source)
            .reason(format!(
                "the name is taken by a volume that is not a {kind} of the source"
            ))
            .help("choose another name"))
    }

    /// A volume that is not a snapshot.
    pub(crate) fn writable(
        &self,
        op: &'static str,
        name: &VolumeName,
        help: &'static str,
    ) -> Result<Arc<Entry>> {
        let entry = self.entry(op, name)?;
        if entry.is_snapshot() {
            return Err(self
                .error(ErrorKind::InvalidInput, op, name)
                .reason("a snapshot is read-only")
                .help(help));
        }
        Ok(entry)
    }

    fn find(&self, name: &VolumeName) -> Option<Arc<Entry>> {
        self.catalog.read(|state| state.by_name(name).cloned())
    }

    fn new_id(&self) -> VolumeId {
        VolumeId::from_u128(self.shared.ids.uuid().as_u128())
    }
}

enum Parent {
    /// What is asked for was made by an earlier call.
    Made(Volume),
    Volume(Arc<Entry>),
}

fn origin(kind: OriginKind, parent: &Entry) -> Origin {
    Origin {
        kind,
        parent_id: parent.id,
        parent_name: parent.name.clone(),
    }
}

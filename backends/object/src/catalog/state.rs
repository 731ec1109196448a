//! What all records up to one say together.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use volmux_core::{VolumeId, VolumeName};

use super::{Change, Entry};
use crate::keys::LogId;
use crate::tip::Tip;

/// Records between two checkpoints, at least.
const CHECKPOINT_EVERY: u64 = 64;
/// In a large pool a checkpoint is large too: one comes after every so many volumes' part of records.
const VOLUMES_A_RECORD: u64 = 128;

/// The volumes of a pool, as of one record.
#[derive(Debug, Default)]
pub(crate) struct State {
    head: u64,
    /// The newest record, up to the head, after which a checkpoint was due. A function of the
    /// records, so that all handles agree on who writes the next one.
    checkpoint: u64,
    by_id: BTreeMap<VolumeId, Arc<Entry>>,
    by_name: BTreeMap<VolumeName, Arc<Entry>>,
    by_log: BTreeMap<LogId, VolumeId>,
    provisioned: u128,
    /// Each distinct tip, and how many entries have it. Never iterated over.
    tips: HashMap<Arc<Tip>, usize>,
}

/// Why a record cannot follow what is there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Inconsistent {
    #[error("it gives the name {0} to a second volume")]
    Name(VolumeName),
    #[error("it gives the log {0} to a second volume")]
    Log(LogId),
    #[error("it removes the volume {0}, which is not there")]
    Unknown(VolumeId),
    #[error("it has the volume {0} twice")]
    Twice(VolumeId),
    #[error("it says that the volume {0} has {1} bytes")]
    Size(VolumeName, u64),
}

impl State {
    /// The state that a checkpoint holds.
    pub(super) fn from_checkpoint(number: u64, entries: Vec<Entry>) -> Result<Self, Inconsistent> {
        let mut state = State {
            head: number,
            checkpoint: number,
            ..State::default()
        };
        for entry in entries {
            let id = entry.id;
            if state.put(entry)?.is_some() {
                return Err(Inconsistent::Twice(id));
            }
        }
        Ok(state)
    }

    /// Number of the newest record that is in it; 0 before the first.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// The volume called `name`.
    pub(crate) fn by_name(&self, name: &VolumeName) -> Option<&Arc<Entry>> {
        self.by_name.get(name)
    }

    /// The volume with this identity.
    pub(crate) fn by_id(&self, id: VolumeId) -> Option<&Arc<Entry>> {
        self.by_id.get(&id)
    }

    /// The volume that this log is of; none for a dead log.
    pub(crate) fn by_log(&self, log: LogId) -> Option<&Arc<Entry>> {
        self.by_id.get(self.by_log.get(&log)?)
    }

    /// Every volume, in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_name.values()
    }

    /// Every volume whose name comes after `name`, in the order of their names.
    #[cfg(test)]
    pub(crate) fn after(&self, name: &VolumeName) -> impl Iterator<Item = &Arc<Entry>> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.by_name
            .range((Excluded(name.clone()), Unbounded))
            .map(|(_, entry)| entry)
    }

    /// Number of volumes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Sum of the virtual sizes of all volumes, snapshots included, in bytes.
    pub(crate) fn provisioned(&self) -> u128 {
        self.provisioned
    }

    /// Every volume in the order of their identities, which is how a checkpoint has them.
    pub(super) fn in_id_order(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.values()
    }

    /// Whether a checkpoint is due right after the head.
    pub(super) fn checkpoint_is_due(&self) -> bool {
        self.head != 0 && self.checkpoint == self.head
    }

    /// Takes in record `number`, which must be the next one: all of its changes, or none.
    pub(super) fn apply(&mut self, number: u64, changes: Vec<Change>) -> Result<(), Inconsistent> {
        self.changed(changes)?;
        self.head = number;
        let volumes = self.by_id.len() as u64;
        if number - self.checkpoint >= CHECKPOINT_EVERY.max(volumes / VOLUMES_A_RECORD) {
            self.checkpoint = number;
        }
        Ok(())
    }

    /// Whether [`apply`](Self::apply) would take these changes. Leaves everything as it is.
    pub(super) fn check(&mut self, changes: Vec<Change>) -> Result<(), Inconsistent> {
        let undo = self.changed(changes)?;
        self.undo(undo);
        Ok(())
    }

    /// Makes all changes, or none, and says what was there before.
    fn changed(&mut self, changes: Vec<Change>) -> Result<Undo, Inconsistent> {
        let mut undo = Undo::with_capacity(changes.len());
        for change in changes {
            let made = match change {
                Change::Put(entry) => {
                    let id = entry.id;
                    self.put(entry).map(|before| Some((id, before)))
                }
                Change::Remove(id) => match self.unlink(id) {
                    None => Err(Inconsistent::Unknown(id)),
                    before => Ok(Some((id, before))),
                },
                Change::Gc { .. } => Ok(None),
            };
            match made {
                Ok(step) => undo.extend(step),
                Err(wrong) => {
                    self.undo(undo);
                    return Err(wrong);
                }
            }
        }
        Ok(undo)
    }

    fn undo(&mut self, undo: Undo) {
        for (id, before) in undo.into_iter().rev() {
            self.unlink(id);
            if let Some(before) = before {
                self.link(before);
            }
        }
    }

    fn put(&mut self, mut entry: Entry) -> Result<Option<Arc<Entry>>, Inconsistent> {
        let id = entry.id;
        if entry.size > i64::MAX as u64 {
            return Err(Inconsistent::Size(entry.name, entry.size));
        }
        if self.by_name.get(&entry.name).is_some_and(|e| e.id != id) {
            return Err(Inconsistent::Name(entry.name));
        }
        if let Some(log) = entry.log
            && self.by_log.get(&log).is_some_and(|owner| *owner != id)
        {
            return Err(Inconsistent::Log(log));
        }
        let before = self.unlink(id);
        if let Some((same, _)) = self.tips.get_key_value(&entry.base) {
            entry.base = same.clone();
        }
        self.link(Arc::new(entry));
        Ok(before)
    }

    fn link(&mut self, entry: Arc<Entry>) {
        *self.tips.entry(entry.base.clone()).or_insert(0) += 1;
        self.provisioned += u128::from(entry.size);
        if let Some(log) = entry.log {
            self.by_log.insert(log, entry.id);
        }
        self.by_name.insert(entry.name.clone(), entry.clone());
        self.by_id.insert(entry.id, entry);
    }

    fn unlink(&mut self, id: VolumeId) -> Option<Arc<Entry>> {
        let entry = self.by_id.remove(&id)?;
        self.by_name.remove(&entry.name);
        if let Some(log) = entry.log {
            self.by_log.remove(&log);
        }
        self.provisioned -= u128::from(entry.size);
        if let Some(users) = self.tips.get_mut(&entry.base) {
            *users -= 1;
            if *users == 0 {
                self.tips.remove(&entry.base);
            }
        }
        Some(entry)
    }
}

/// What each changed volume was, in the order of the changes.
type Undo = Vec<(VolumeId, Option<Arc<Entry>>)>;

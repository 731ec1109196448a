//! What an open volume knows, behind one lock that is never held across an await.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use volmux_core::Result;

use super::building::{Building, Sealed};
use crate::keys::{LogId, ObjectKey};
use crate::map::{ObjectId, Overlay, Place};
use crate::seal::CONTENT;
use crate::shared::Shared;
use crate::tip::{Root, TailItem, Tip};

/// An open volume's content: the map's checkpoint, and what came since.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) root: Root,
    /// What came since the checkpoint, or since `frozen` was taken out of it.
    pub(crate) active: Overlay,
    /// What the checkpoint that is being made will contain.
    pub(crate) frozen: Option<Frozen>,
    /// In order, since the checkpoint.
    pub(crate) tail: VecDeque<Trailing>,
    /// The last item that the checkpoint contains.
    pub(crate) checkpointed: Trailing,
    /// Only while the volume is open for writing.
    pub(crate) writer: Option<Writer>,
}

/// Changes that a checkpoint is being made of.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) overlay: Arc<Overlay>,
    /// How many items of the tail these are.
    pub(crate) items: usize,
    /// Number of the last change in it.
    pub(crate) change: u64,
}

/// An item of the tail, and which changes are done for when it is in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trailing {
    pub(crate) item: TailItem,
    /// Number of the last change in it; 0 for what was there when the volume was opened.
    pub(crate) change: u64,
    /// Where the journal stood then.
    pub(crate) journal: u64,
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) log: LogId,
    pub(crate) epoch: u64,
    /// Number of the next object.
    pub(crate) next_seq: u64,
    /// Numbers of objects that were begun and are not in the store yet.
    pub(crate) unstored: BTreeSet<u64>,
    /// First object of the map's checkpoint that is being made: nothing refers to it yet.
    pub(crate) pages_from: Option<u64>,
    pub(crate) building: Option<Building>,
    pub(crate) pending: BTreeMap<ObjectId, Arc<Sealed>>,
    /// Bytes of `pending` in memory.
    pub(crate) pending_bytes: usize,
    /// Number of the last change.
    pub(crate) change: u64,
    /// Number of the last change that was sealed.
    pub(crate) sealed: u64,
    /// Position of the journal after the last change.
    pub(crate) journal: u64,
    /// Blocks that an object holds.
    pub(crate) capacity: usize,
}

impl Writer {
    /// At its beginning; objects hold `capacity` blocks.
    pub(crate) fn new(log: LogId, epoch: u64, capacity: usize) -> Self {
        Writer {
            log,
            epoch,
            next_seq: 0,
            unstored: BTreeSet::new(),
            pages_from: None,
            building: None,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            change: 0,
            sealed: 0,
            journal: 0,
            capacity,
        }
    }

    /// Objects below this number are all in the store.
    pub(crate) fn frontier(&self) -> u64 {
        self.unstored.first().copied().unwrap_or(self.next_seq)
    }

    /// What a manifest says of objects that it does not name, see `Manifest::in_flight`.
    pub(crate) fn in_flight(&self) -> u64 {
        let pages = self.pages_from.unwrap_or(u64::MAX);
        self.frontier().min(pages)
    }

    /// Begins an object.
    pub(crate) fn take_seq(&mut self) -> ObjectKey {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.unstored.insert(seq);
        ObjectKey {
            log: self.log,
            epoch: self.epoch,
            seq,
        }
    }

    /// The object that writes go to now.
    pub(crate) fn building(&mut self, shared: &Shared) -> Result<&mut Building> {
        let building = match self.building.take() {
            Some(building) => building,
            None => {
                let key = self.take_seq();
                let id = shared.table.reserve(&key)?;
                Building::new(id, key, &shared.seal, self.capacity)
            }
        };
        Ok(self.building.insert(building))
    }

    /// Bytes of memory in objects that are not in the store yet.
    pub(crate) fn held(&self) -> usize {
        self.pending_bytes + self.building.as_ref().map_or(0, Building::bytes)
    }

    /// The content of a block that is not in the store yet.
    pub(crate) fn block(&self, place: Place) -> Option<&[u8]> {
        match &self.building {
            Some(building) if building.id == place.object => building.block(place.index),
            _ => self.pending.get(&place.object)?.block(place.index),
        }
    }
}

impl State {
    /// What a volume holds, from its tip, before the tail is replayed.
    pub(crate) fn new(tip: &Tip) -> Self {
        let trailing = |item: &TailItem| Trailing {
            item: *item,
            change: 0,
            journal: 0,
        };
        State {
            root: tip.root,
            active: Overlay::default(),
            frozen: None,
            tail: tip.tail.iter().map(trailing).collect(),
            checkpointed: Trailing {
                item: TailItem::Cut(u64::MAX),
                change: 0,
                journal: 0,
            },
            writer: None,
        }
    }

    /// Closes the object that is being filled: from now on it is pending. None where it is empty.
    pub(crate) fn seal(
        &mut self,
        op: &'static str,
        shared: &Shared,
    ) -> Result<Option<Arc<Sealed>>> {
        let Some(writer) = &mut self.writer else {
            return Ok(None);
        };
        let Some(building) = writer.building.take_if(|building| !building.is_empty()) else {
            return Ok(None);
        };
        let sealed = Arc::new(Sealed::of(op, shared, building)?);
        writer.pending_bytes += sealed.slots.len();
        writer.pending.insert(sealed.id, sealed.clone());
        writer.sealed = writer.change;
        self.tail.push_back(Trailing {
            item: sealed.item(),
            change: writer.change,
            journal: writer.journal,
        });
        Ok(Some(sealed))
    }

    /// An object is in the store; its length there, if that is known, may have become another one.
    pub(crate) fn note_stored(&mut self, sealed: &Sealed, bytes: Option<u32>) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        writer.pending.remove(&sealed.id);
        writer.pending_bytes -= sealed.slots.len();
        writer.unstored.remove(&sealed.key.seq);
        let stored = bytes.unwrap_or(sealed.bytes);
        for trailing in self.tail.iter_mut().rev() {
            if let TailItem::Object { key, bytes } = &mut trailing.item
                && *key == sealed.key
            {
                *bytes = stored;
                break;
            }
        }
    }

    /// Has the new checkpoint committed by the next who asks for a commit: it counts as a change,
    /// unless there is another one that is not sealed yet and brings it along.
    pub(crate) fn note_checkpoint(&mut self) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        if writer.sealed < writer.change {
            return;
        }
        writer.change += 1;
        writer.sealed = writer.change;
        let last = self.tail.back_mut().unwrap_or(&mut self.checkpointed);
        last.change = writer.change;
    }

    /// Number of the last change that is in the store with everything before it.
    pub(crate) fn stored_change(&self) -> u64 {
        let Some(writer) = &self.writer else { return 0 };
        let frontier = writer.frontier();
        let unstored = |trailing: &&Trailing| match trailing.item {
            TailItem::Cut(_) => false,
            TailItem::Object { key, .. } => {
                key.log == writer.log && key.epoch == writer.epoch && key.seq >= frontier
            }
        };
        let stored = self
            .tail
            .iter()
            .rev()
            .skip_while(unstored)
            .map(|t| t.change)
            .next();
        stored.unwrap_or(self.checkpointed.change)
    }

    /// The part of the tail that is in the store without a gap: what can be committed.
    pub(crate) fn stored(&self) -> (Tip, Trailing) {
        let frontier = self.writer.as_ref().map(|w| (w.log, w.epoch, w.frontier()));
        let stored = self.tail.iter().take_while(|trailing| match trailing.item {
            TailItem::Cut(_) => true,
            TailItem::Object { key, .. } => frontier.is_none_or(|(log, epoch, seq)| {
                key.log != log || key.epoch != epoch || key.seq < seq
            }),
        });
        let stored: Vec<Trailing> = stored.copied().collect();
        let last = stored.last().copied().unwrap_or(self.checkpointed);
        let tip = Tip {
            root: self.root,
            tail: stored.into_iter().map(|trailing| trailing.item).collect(),
        };
        (tip, last)
    }

    /// Where a block lies, as far as that is known without the map's pages: `None` means that the
    /// checkpoint has to be asked.
    pub(crate) fn overlaid(&self, block: u64) -> Option<Option<Place>> {
        let frozen = || self.frozen.as_ref()?.overlay.get(block);
        self.active.get(block).or_else(frozen)
    }
}

/// Zeros of one block.
pub(crate) const ZEROS: Bytes = Bytes::from_static(&[0; CONTENT]);

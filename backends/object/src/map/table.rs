//! Numbers for objects, so that a map need not repeat their names.

use std::hash::{BuildHasher, RandomState};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::HashTable;
use volmux_core::{Error, ErrorKind, Result};

use crate::keys::{LogId, ObjectKey};

/// An object, by its number in the pool's [`ObjectTable`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct ObjectId(pub(super) u32);

impl ObjectId {
    /// The number, as a key for caches.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// What a reader must know of a data object to find a block in it: where positions are not framed,
/// block `index` begins at byte `(start + index) * stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectInfo {
    /// The object.
    pub(crate) key: ObjectKey,
    /// Strides that its header takes.
    pub(crate) start: u16,
    /// Whether it is compressed, so that only its header says where blocks are.
    pub(crate) framed: bool,
}

/// The objects that maps in memory name, of all volumes of a pool. It only grows, by about 50 bytes
/// an object.
#[derive(Debug, Default)]
pub(crate) struct ObjectTable {
    inner: RwLock<Inner>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Inner {
    logs: Vec<LogId>,
    slots: Vec<Slot>,
    index: HashTable<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    epoch: u64,
    seq: u64,
    log: u32,
    start: u16,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reserved,
    Plain,
    Framed,
}

/// No map has more objects: ids of more bits would cost every extent their room.
const MOST_OBJECTS: usize = u32::MAX as usize - 1;

impl ObjectTable {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The number of an object.
    ///
    /// # Errors
    /// `Corrupt` if it is known as another sort of object.
    pub(crate) fn intern(&self, info: &ObjectInfo) -> Result<ObjectId> {
        let known = self.read().find(&info.key, self.hash(&info.key));
        if let Some((id, slot)) = known
            && slot.state == State::of(info)
            && slot.start == info.start
        {
            return Ok(id);
        }
        self.put(&info.key, Some(info))
    }

    /// The number of an object that is still being built.
    ///
    /// # Errors
    /// `Internal` if the table is full.
    pub(crate) fn reserve(&self, key: &ObjectKey) -> Result<ObjectId> {
        self.put(key, None)
    }

    /// What is known of an object: nothing as long as its number is only reserved.
    pub(crate) fn info(&self, id: ObjectId) -> Option<ObjectInfo> {
        self.read().info(id)
    }

    /// The same of several; none where anything of them is not known.
    pub(crate) fn infos(&self, ids: &[ObjectId]) -> Option<Vec<ObjectInfo>> {
        let inner = self.read();
        ids.iter().map(|id| inner.info(*id)).collect()
    }

    /// Number of objects.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.read().slots.len()
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        let inner = self.read();
        inner.slots.capacity() * size_of::<Slot>()
            + inner.logs.capacity() * size_of::<LogId>()
            + inner.index.allocation_size()
    }

    fn put(&self, key: &ObjectKey, info: Option<&ObjectInfo>) -> Result<ObjectId> {
        let hash = self.hash(key);
        let mut inner = self.write();
        let Some((id, slot)) = inner.find(key, hash) else {
            return inner.add(key, info, hash, |other| self.hash(other));
        };
        let Some(info) = info else { return Ok(id) };
        if slot.state == State::Reserved {
            let slot = &mut inner.slots[id.0 as usize];
            (slot.state, slot.start) = (State::of(info), info.start);
        } else if slot.state != State::of(info) || slot.start != info.start {
            return Err(Error::new(ErrorKind::Corrupt, "read_map")
                .with("object", key)
                .reason("two pages of the map do not agree on this object")
                .help("run an audit of the pool"));
        }
        Ok(id)
    }

    fn hash(&self, key: &ObjectKey) -> u64 {
        self.hasher.hash_one(key)
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of(info: &ObjectInfo) -> Self {
        if info.framed {
            State::Framed
        } else {
            State::Plain
        }
    }
}

impl Inner {
    fn info(&self, id: ObjectId) -> Option<ObjectInfo> {
        let slot = self.slots.get(id.0 as usize)?;
        if slot.state == State::Reserved {
            return None;
        }
        Some(ObjectInfo {
            key: self.key(slot)?,
            start: slot.start,
            framed: slot.state == State::Framed,
        })
    }

    fn key(&self, slot: &Slot) -> Option<ObjectKey> {
        Some(ObjectKey {
            log: *self.logs.get(slot.log as usize)?,
            epoch: slot.epoch,
            seq: slot.seq,
        })
    }

    fn find(&self, key: &ObjectKey, hash: u64) -> Option<(ObjectId, Slot)> {
        let same = |id: &u32| self.key(&self.slots[*id as usize]) == Some(*key);
        let id = *self.index.find(hash, same)?;
        Some((ObjectId(id), self.slots[id as usize]))
    }

    fn add(
        &mut self,
        key: &ObjectKey,
        info: Option<&ObjectInfo>,
        hash: u64,
        hash_of: impl Fn(&ObjectKey) -> u64,
    ) -> Result<ObjectId> {
        if self.slots.len() >= MOST_OBJECTS {
            return Err(Error::new(ErrorKind::Internal, "read_map")
                .reason("the maps in memory name too many objects")
                .help("close the pool and open it again"));
        }
        let id = self.slots.len() as u32;
        let log = self.log(key.log);
        self.slots.push(Slot {
            epoch: key.epoch,
            seq: key.seq,
            log,
            start: info.map_or(0, |info| info.start),
            state: info.map_or(State::Reserved, State::of),
        });
        let Inner { logs, slots, index } = self;
        index.insert_unique(hash, id, |id| {
            let Slot {
                log, epoch, seq, ..
            } = slots[*id as usize];
            let log = logs[log as usize];
            hash_of(&ObjectKey { log, epoch, seq })
        });
        Ok(ObjectId(id))
    }

    /// The newest logs are asked for most.
    fn log(&mut self, log: LogId) -> u32 {
        let at = self.logs.iter().rposition(|known| *known == log);
        at.unwrap_or_else(|| {
            self.logs.push(log);
            self.logs.len() - 1
        }) as u32
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(log: u128, seq: u64) -> ObjectKey {
        ObjectKey {
            log: LogId(Uuid::from_u128(log)),
            epoch: 3,
            seq,
        }
    }

    fn info(key: ObjectKey, start: u16) -> ObjectInfo {
        ObjectInfo {
            key,
            start,
            framed: start == 0,
        }
    }

    #[test]
    fn an_object_has_one_number_and_reads_back() {
        let table = ObjectTable::new();
        let all: Vec<_> = (0..10_000)
            .map(|n| info(key(n % 3, n as u64), (n % 5) as u16))
            .collect();
        let ids: Vec<_> = all.iter().map(|info| table.intern(info).unwrap()).collect();
        for (info, id) in all.iter().zip(&ids) {
            assert_eq!(table.intern(info).unwrap(), *id);
            assert_eq!(table.info(*id), Some(*info));
        }
        assert_eq!(table.len(), 10_000);
        assert!(table.memory() <= 100 * table.len(), "{}", table.memory());
    }

    #[test]
    fn an_object_being_built_gets_its_start_later_and_only_once() {
        let table = ObjectTable::new();
        let id = table.reserve(&key(1, 1)).unwrap();
        assert_eq!(table.info(id), None);
        assert_eq!(table.intern(&info(key(1, 1), 7)).unwrap(), id);
        assert_eq!(table.reserve(&key(1, 1)).unwrap(), id);
        assert_eq!(table.info(id), Some(info(key(1, 1), 7)));
        let error = table.intern(&info(key(1, 1), 8)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(table.info(id), Some(info(key(1, 1), 7)));
    }

    #[test]
    fn a_number_from_elsewhere_is_not_an_object() {
        let table = ObjectTable::new();
        assert_eq!(table.info(ObjectId(0)), None);
    }
}

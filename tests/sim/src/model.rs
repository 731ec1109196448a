//! What the simulation knows of the pool: the volumes, what they may hold, and who has them open.

use std::collections::BTreeMap;
use std::sync::Arc;

use volmux_core::{BlockDevice, OriginKind, VolumeId};

use crate::history::{History, Moment, Shared};

/// Which volume, whatever it is called.
pub type Key = usize;

/// A change to the catalogue of which it is not known whether it came about.
#[derive(Clone, Debug)]
pub enum Doubt {
    /// The volume was made, from what was there when it was first asked for.
    Made {
        /// When that was.
        asked: Moment,
        /// How often the source's content had been settled by then.
        settled: u32,
    },
    /// It was deleted.
    Deleted,
    /// It has this name.
    Renamed(String),
    /// It has this size.
    Resized(u64),
    /// It holds what this snapshot holds, and has its size.
    Reverted(Key),
}

/// A volume.
#[derive(Clone, Debug)]
pub struct Vol {
    /// What it is called.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// How it was made, and from which.
    pub origin: Option<(OriginKind, Key)>,
    /// What it may hold.
    pub history: History,
    /// How often that was found out exactly.
    pub settled: u32,
    /// Whether it is known to be there.
    pub exists: bool,
    /// What else may be so, and since when.
    pub doubt: Option<(Doubt, Moment)>,
    /// The handle that writes it.
    pub writer: Option<usize>,
    /// A writer left without it being known that it closed the volume.
    pub unclosed: bool,
    /// Number of operations that need it to stay what it is.
    pub used: u32,
    /// An operation changes what it is.
    pub changing: bool,
    /// Whether a writer may be told that it was superseded.
    pub contested: bool,
}

impl Vol {
    /// One that is about to be made.
    pub fn new(name: String, size: u64) -> Self {
        Vol {
            name,
            size,
            origin: None,
            history: History::default(),
            settled: 0,
            exists: false,
            doubt: None,
            writer: None,
            unclosed: false,
            used: 0,
            changing: false,
            contested: false,
        }
    }

    /// Whether it only can be read.
    pub fn is_snapshot(&self) -> bool {
        matches!(self.origin, Some((OriginKind::Snapshot, _)))
    }

    /// Whether it is known to be there, and to stay what it is.
    pub fn is_firm(&self) -> bool {
        self.exists && self.doubt.is_none() && !self.changing
    }
}

/// An open volume.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Whose.
    pub host: usize,
    /// Of which volume.
    pub vol: Key,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// What it wrote.
    pub group: Shared,
    /// Number of requests in flight.
    pub requests: u32,
    /// It was told that somebody else has the volume.
    pub fenced: bool,
    /// It is looked at as a whole, so that nothing must be changed through it.
    pub still: bool,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Model {
    /// The volumes that are or may be there.
    pub vols: BTreeMap<Key, Vol>,
    /// The identity of each volume that is or was there.
    pub ids: BTreeMap<Key, VolumeId>,
    /// What is open.
    pub handles: BTreeMap<usize, Handle>,
    /// When the last change to the catalogue was asked for that succeeded.
    pub last_change: Moment,
    keys: usize,
    moments: Moment,
    writes: u64,
}

impl Model {
    /// The next moment.
    pub fn moment(&mut self) -> Moment {
        self.moments += 1;
        self.moments
    }

    /// A number for a write.
    pub fn next_write(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// Number of writes so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// A key that no volume and no handle had.
    pub fn next_key(&mut self) -> usize {
        self.keys += 1;
        self.keys
    }

    /// Adds a volume.
    pub fn add(&mut self, vol: Vol) -> Key {
        let key = self.next_key();
        self.vols.insert(key, vol);
        key
    }

    /// A volume that is known to be in the model.
    pub fn vol(&mut self, key: Key) -> &mut Vol {
        self.vols.get_mut(&key).expect("the volume is in the model")
    }

    /// The volumes for which `wanted` holds.
    pub fn which(&self, wanted: impl Fn(&Vol) -> bool) -> Vec<Key> {
        let found = self.vols.iter().filter(|(_, vol)| wanted(vol));
        found.map(|(key, _)| *key).collect()
    }

    /// Whether a volume has or may have this name.
    pub fn is_taken(&self, name: &str) -> bool {
        self.vols.values().any(|vol| {
            let renamed = matches!(&vol.doubt, Some((Doubt::Renamed(to), _)) if to == name);
            vol.name == name || renamed
        })
    }

    /// Whether nothing that was under way when the doubt arose can still come about.
    pub fn is_sealed(&self, since: Moment) -> bool {
        self.last_change > since
    }

    /// The handle is gone, be it by its own will or by another's.
    pub fn drop_handle(&mut self, id: usize) {
        let Some(handle) = self.handles.remove(&id) else {
            return;
        };
        handle.group.borrow_mut().close();
        // One that lost its volume may outlive it.
        let vol = self.vols.get_mut(&handle.vol);
        if let Some(vol) = vol.filter(|vol| vol.writer == Some(id)) {
            vol.writer = None;
            vol.unclosed = true;
        }
    }

    /// All that ran on `host`, or anywhere, is gone.
    pub fn crash(&mut self, host: Option<usize>) {
        let lost = |handle: &Handle| host.is_none_or(|host| handle.host == host);
        let handles = self.handles.iter().filter(|(_, handle)| lost(handle));
        let ids: Vec<usize> = handles.map(|(id, _)| *id).collect();
        for id in ids {
            let group = self.handles[&id].group.clone();
            self.drop_handle(id);
            group.borrow_mut().crash();
        }
        if host.is_some() {
            return;
        }
        for vol in self.vols.values_mut() {
            vol.history.crash();
            (vol.used, vol.changing, vol.contested) = (0, false, false);
        }
    }
}

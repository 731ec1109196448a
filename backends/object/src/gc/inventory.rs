//! What is in the store, by its names.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use volmux_core::{Result, VolumeId};

use super::Count;
use crate::keys::{LogId, Named, ObjectKey};
use crate::probe::PROBES;
use crate::store::{Listed, Store};

/// Everything below a pool's prefix.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// Objects of data or pages, and their lengths.
    pub data: Vec<(ObjectKey, u64)>,
    /// Numbers and lengths of each log's manifests, in order.
    pub manifests: BTreeMap<LogId, Vec<(u64, u64)>>,
    /// Marks of those who read.
    pub readers: Vec<(VolumeId, Listed)>,
    /// What has a name that volmux gives to nothing.
    pub foreign: Vec<Listed>,
    /// All but what is foreign.
    pub all: Count,
}

impl Inventory {
    pub async fn take(op: &'static str, store: &Store) -> Result<Self> {
        let mut inventory = Inventory::default();
        let mut listed = store.list(op, "", None);
        while let Some(object) = listed.try_next().await? {
            inventory.add(object);
        }
        for numbers in inventory.manifests.values_mut() {
            numbers.sort_unstable();
        }
        Ok(inventory)
    }

    fn add(&mut self, object: Listed) {
        let bytes = object.bytes;
        match object.name.parse() {
            Ok(Named::Data(key)) => self.data.push((key, bytes)),
            Ok(Named::Manifest(log, number)) => {
                self.manifests.entry(log).or_default().push((number, bytes));
            }
            Ok(Named::Reader(volume, _)) => self.readers.push((volume, object)),
            Ok(Named::Pool | Named::CatalogRecord(_) | Named::CatalogCheckpoint(_)) => {}
            Err(()) if object.name.starts_with(PROBES) => {}
            Err(()) => {
                self.foreign.push(object);
                return;
            }
        }
        self.all.add(bytes);
    }

    /// The number of a log's newest manifest.
    pub fn newest(&self, log: LogId) -> Option<u64> {
        Some(self.manifests.get(&log)?.last()?.0)
    }
}

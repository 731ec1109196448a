//! Where frames lie in compressed objects, in memory; and frames that are being read.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use volmux_core::Result;

use super::{ENTRY, Flights, Quick, Turn, Weight, quick};
use crate::frame::FrameTable;
use crate::keys::ObjectKey;

/// Bytes that a table of a usual object takes.
const USUAL: u64 = 300 + ENTRY;

/// The tables that were read last, within a budget of their own.
pub(crate) struct Tables {
    kept: Quick<ObjectKey, Arc<FrameTable>>,
    loads: Flights<ObjectKey, Arc<FrameTable>>,
    /// Frames that are being read: of an object, the one of that number. They land with their
    /// content.
    pub(crate) frames: Flights<(ObjectKey, u32), Bytes>,
}

impl Weighter<ObjectKey, Arc<FrameTable>> for Weight {
    fn weight(&self, _: &ObjectKey, table: &Arc<FrameTable>) -> u64 {
        table.memory() as u64 + ENTRY
    }
}

impl Tables {
    /// Tables that occupy at most `budget` bytes.
    pub(crate) fn new(budget: u64) -> Result<Self> {
        let items = usize::try_from(budget / USUAL).unwrap_or(usize::MAX);
        Ok(Tables {
            kept: quick(budget, items)?,
            loads: Flights::new(),
            frames: Flights::new(),
        })
    }

    /// Keeps a table.
    pub(crate) fn put(&self, object: ObjectKey, table: Arc<FrameTable>) {
        self.kept.insert(object, table);
    }

    /// A table, if it is there, or by `load`. Whoever wants it meanwhile waits for the one load.
    /// An error goes to all of them.
    pub(crate) async fn get_or_load(
        &self,
        object: ObjectKey,
        load: impl Future<Output = Result<Arc<FrameTable>>> + Send,
    ) -> Result<Arc<FrameTable>> {
        let lead = loop {
            if let Some(found) = self.kept.get(&object) {
                return Ok(found);
            }
            match self.loads.join(object) {
                Turn::Lead(lead) => break lead,
                Turn::Follow(follow) => {
                    if let Some(outcome) = follow.wait().await {
                        return outcome;
                    }
                }
            }
        };
        // Another load may have landed between the look and the join.
        if let Some(found) = self.kept.get(&object) {
            lead.land(Arc::clone(&found));
            return Ok(found);
        }
        match load.await {
            Ok(table) => {
                self.put(object, Arc::clone(&table));
                lead.land(Arc::clone(&table));
                Ok(table)
            }
            Err(error) => {
                lead.fail(&error);
                Err(error)
            }
        }
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tables({} bytes)", self.kept.weight())
    }
}

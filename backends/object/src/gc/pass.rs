//! Following all references, once or again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use volmux_core::Result;

use super::GETS;
use super::inventory::Inventory;
use super::marks::Marks;
use crate::catalog::{Catalog, Entry};
use crate::keys::{LogId, ObjectKey};
use crate::manifest::{Manifest, Phase};
use crate::owner::{Life, Owner};
use crate::shared::Shared;

/// What is needed, as far as it was followed.
pub(super) struct Pass<'a> {
    op: &'static str,
    shared: Arc<Shared>,
    catalog: &'a Catalog,
    pub marks: Marks,
    logs: BTreeMap<LogId, Log>,
    /// Writers of volumes who died and were not succeeded yet.
    dead: Vec<Owner>,
}

/// What is known of a log from its newest manifest.
#[derive(Clone, Copy, Debug)]
struct Log {
    number: u64,
    epoch: u64,
    /// Objects of the epoch from this number on may be in flight; none where nobody writes.
    in_flight: Option<u64>,
    /// A volume has it, or somebody who copies into it. What it names is needed.
    counts: bool,
}

impl<'a> Pass<'a> {
    pub fn new(op: &'static str, shared: Arc<Shared>, catalog: &'a Catalog) -> Self {
        Pass {
            op,
            marks: Marks::new(shared.clone()),
            shared,
            catalog,
            logs: BTreeMap::new(),
            dead: Vec::new(),
        }
    }

    /// Follows all references in the catalogue and in the manifests that were listed. What was
    /// followed before stays needed.
    pub async fn follow(&mut self, inventory: &Inventory) -> Result<()> {
        self.catalog.refresh(self.op).await?;
        let live = self.live_logs();
        let known: BTreeSet<LogId> = self.counting();
        let listed: Vec<(LogId, u64)> = inventory
            .manifests
            .keys()
            .filter_map(|log| Some((*log, inventory.newest(*log)?)))
            .filter(|(log, number)| {
                self.logs
                    .get(log)
                    .is_none_or(|known| known.number < *number)
            })
            .collect();
        let (op, shared) = (self.op, self.shared.clone());
        let mut newest = stream::iter(listed)
            .map(|(log, number)| newest(op, &shared, log, number))
            .buffered(GETS);
        let mut doubtful: Vec<Manifest> = Vec::new();
        while let Some(manifest) = newest.try_next().await? {
            let Some(manifest) = manifest else { continue };
            let live = live.contains(&manifest.log);
            let died = manifest.phase == Phase::Open && manifest.owner.life() == Life::Dead;
            match (live, died) {
                (false, true) => doubtful.push(manifest),
                (live, died) => {
                    if died {
                        self.dead.push(manifest.owner.clone());
                    }
                    self.take(manifest, live).await?;
                }
            }
        }
        drop(newest);
        for manifest in doubtful {
            // A process that died may have had a collection put blocks into this log, and sent a
            // manifest of another that names them, which has not arrived yet. It never does once
            // somebody else has opened that volume.
            let may_be_named = self.dead.iter().any(|dead| dead.is_with(&manifest.owner));
            self.take(manifest, may_be_named).await?;
        }
        // A copy becomes a volume before its log is closed. One that was closed when its manifest
        // was read is in the catalogue by now, if it ever comes there.
        self.catalog.refresh(self.op).await?;
        for log in self.live_logs() {
            if self.logs.get(&log).is_some_and(|known| !known.counts)
                && let Some(manifest) = self.shared.newest_manifest(self.op, log, 0).await?
            {
                self.take(manifest, true).await?;
            }
        }
        self.follow_bases(&known).await
    }

    /// What entries say themselves counts where their log has no manifest yet. It also does where
    /// the log is new since the first time: its manifests may have named things in between that
    /// somebody copied.
    async fn follow_bases(&mut self, known: &BTreeSet<LogId>) -> Result<()> {
        let first = known.is_empty();
        let entries: Vec<Arc<Entry>> = self.catalog.read(|state| state.iter().cloned().collect());
        for entry in entries {
            let by_manifest = entry.log.is_some_and(|log| match first {
                true => self.logs.contains_key(&log),
                false => known.contains(&log),
            });
            if !by_manifest {
                let followed = self.marks.follow(&entry.base).await;
                followed.map_err(|error| error.with("volume", &entry.name))?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, manifest: Manifest, live: bool) -> Result<()> {
        let writes = manifest.phase == Phase::Open && manifest.owner.life() != Life::Dead;
        let counts = live || writes;
        // A writer that is dead may have sent a manifest that has not arrived yet; only the next
        // one's claim makes sure that it never counts. In a log that no volume has it never does.
        let in_flight = manifest.phase == Phase::Open && counts;
        let log = Log {
            number: manifest.number,
            epoch: manifest.epoch,
            in_flight: in_flight.then_some(manifest.in_flight),
            counts,
        };
        self.logs.insert(manifest.log, log);
        if !counts {
            return Ok(());
        }
        let pin = manifest.pin.filter(|_| writes);
        for tip in [Some(manifest.tip), pin].into_iter().flatten() {
            let followed = self.marks.follow(&Arc::new(tip)).await;
            followed.map_err(|error| self.named(error, manifest.log))?;
        }
        Ok(())
    }

    /// Those of what was listed that nobody needs.
    pub fn garbage(&self, inventory: &Inventory) -> Vec<(ObjectKey, u64)> {
        let all = inventory.data.iter().copied();
        all.filter(|(key, _)| !self.is_needed(key)).collect()
    }

    /// Whether an object is referred to, or may come to be.
    pub fn is_needed(&self, key: &ObjectKey) -> bool {
        if self.marks.is_used(key) {
            return true;
        }
        match self.logs.get(&key.log) {
            // A later writer's. Of a dead log, only an early manifest may be left that fences.
            Some(log) if key.epoch > log.epoch => log.counts,
            Some(log) => {
                let in_flight = log.in_flight.filter(|_| key.epoch == log.epoch);
                in_flight.is_some_and(|first| key.seq >= first)
            }
            // A writer puts its claim before anything else. It may not have been listed.
            None => key.epoch > 0 && self.catalog.read(|state| state.by_log(key.log).is_some()),
        }
    }

    /// The number of the newest manifest of a log that has to be kept for what it says.
    pub fn newest(&self, log: LogId) -> Option<u64> {
        let log = self.logs.get(&log)?;
        log.counts.then_some(log.number)
    }

    /// The logs that are copied into and that no volume has, and their newest manifests.
    pub fn copies(&self) -> Vec<(LogId, u64)> {
        let live = self.live_logs();
        let copies = self
            .logs
            .iter()
            .filter(|(id, log)| log.counts && !live.contains(id));
        copies.map(|(id, log)| (*id, log.number)).collect()
    }

    /// The logs that volumes have.
    fn live_logs(&self) -> BTreeSet<LogId> {
        self.catalog
            .read(|state| state.iter().filter_map(|entry| entry.log).collect())
    }

    fn counting(&self) -> BTreeSet<LogId> {
        let counting = self.logs.iter().filter(|(_, log)| log.counts);
        counting.map(|(log, _)| *log).collect()
    }

    fn named(&self, error: volmux_core::Error, log: LogId) -> volmux_core::Error {
        match self.catalog.read(|state| state.by_log(log).cloned()) {
            Some(entry) => error.with("volume", &entry.name),
            None => error.with("log", log),
        }
    }
}

/// The manifest that was listed as a log's newest, or the one that took its place since.
async fn newest(
    op: &'static str,
    shared: &Shared,
    log: LogId,
    number: u64,
) -> Result<Option<Manifest>> {
    match shared.manifest(op, log, number).await? {
        None => shared.newest_manifest(op, log, 0).await,
        found => Ok(found),
    }
}

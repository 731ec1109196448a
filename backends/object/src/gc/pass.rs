//! Following all references, once or again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use tracing::warn;
use volmux_core::{ErrorKind, Result};

use super::GETS;
use super::inventory::Inventory;
use super::marks::Marks;
use crate::catalog::{Catalog, Entry};
use crate::keys::{LogId, ObjectKey};
use crate::manifest::{Manifest, Phase};
use crate::owner::{Life, Owner};
use crate::shared::Shared;
use crate::tip::Tip;

/// What is needed, as far as it was followed.
pub(super) struct Pass<'a> {
    op: &'static str,
    shared: Arc<Shared>,
    catalog: &'a Catalog,
    pub marks: Marks,
    logs: BTreeMap<LogId, Log>,
    /// Writers of volumes who died and were not succeeded yet.
    dead: Vec<Owner>,
    /// Logs of copies and collections whose owner died.
    doubtful: BTreeMap<LogId, Manifest>,
    /// What copies hold on to. Each is followed by itself: one that can't be must not hide what
    /// others have in common with it.
    pins: HashMap<Arc<Tip>, Marks>,
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
    /// Bytes in the tail of what a closed volume holds.
    tail: u64,
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
            doubtful: BTreeMap::new(),
            pins: HashMap::new(),
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
        while let Some(manifest) = newest.try_next().await? {
            let Some(manifest) = manifest else { continue };
            let live = live.contains(&manifest.log);
            if manifest.phase == Phase::Open && manifest.owner.life() == Life::Dead {
                match live {
                    true => self.dead.push(manifest.owner.clone()),
                    false if manifest.pin.is_some() => {
                        self.doubtful.insert(manifest.log, manifest.clone());
                    }
                    false => {}
                }
            }
            self.take(manifest, live).await?;
        }
        drop(newest);
        self.take_named().await?;
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

    /// A process that died may have had a collection put blocks into a log, and sent a manifest of
    /// another that names them, which has not arrived yet. It never does once somebody else has
    /// opened that volume.
    async fn take_named(&mut self) -> Result<()> {
        let may_be_named = |doubtful: &Manifest| {
            self.dead.iter().any(|dead| dead.is_with(&doubtful.owner))
                && self
                    .logs
                    .get(&doubtful.log)
                    .is_some_and(|log| !log.counts && log.number == doubtful.number)
        };
        let named: Vec<Manifest> = self
            .doubtful
            .values()
            .filter(|doubtful| may_be_named(doubtful))
            .cloned()
            .collect();
        for manifest in named {
            self.take(manifest, true).await?;
        }
        Ok(())
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
        // Only who copies, or collects, writes to a log that no volume has. What else such a log
        // still has is left over from a volume, and what it names may be gone.
        let may_write = live || manifest.pin.is_some();
        let open = manifest.phase == Phase::Open;
        let writes = open && may_write && manifest.owner.life() != Life::Dead;
        let counts = live || writes;
        // A writer that is dead may have sent a manifest that has not arrived yet; only the next
        // one's claim makes sure that it never counts. In a log that no volume has it never does.
        let in_flight = open && counts;
        let log = Log {
            number: manifest.number,
            epoch: manifest.epoch,
            in_flight: in_flight.then_some(manifest.in_flight),
            counts,
            tail: match manifest.phase == Phase::Closed && live {
                true => manifest.tip.tail_bytes(),
                false => 0,
            },
        };
        self.logs.insert(manifest.log, log);
        if !counts {
            return Ok(());
        }
        let followed = self.marks.follow(&Arc::new(manifest.tip)).await;
        followed.map_err(|error| self.named(error, manifest.log))?;
        match manifest.pin.filter(|_| writes) {
            Some(pin) => self.follow_pin(Arc::new(pin)).await,
            None => Ok(()),
        }
    }

    /// What a copy holds on to. Where some of it is gone, the copy was begun on something that was
    /// just being collected, and is begun again or fails.
    async fn follow_pin(&mut self, pin: Arc<Tip>) -> Result<()> {
        if self.pins.contains_key(&pin) {
            return Ok(());
        }
        let mut marks = Marks::new(self.shared.clone());
        match marks.follow(&pin).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                warn!(%error, "a copy reads what is not there any more");
            }
            other => other?,
        }
        self.pins.insert(pin, marks);
        Ok(())
    }

    /// Those of what was listed that nobody needs.
    pub fn garbage(&self, inventory: &Inventory) -> Vec<(ObjectKey, u64)> {
        let all = inventory.data.iter().copied();
        all.filter(|(key, _)| !self.is_needed(key)).collect()
    }

    /// Whether an object is referred to, or may come to be.
    pub fn is_needed(&self, key: &ObjectKey) -> bool {
        if self.marks.is_used(key) || self.pins.values().any(|pin| pin.is_used(key)) {
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

    /// The logs of closed volumes with so many bytes in their tails, and how many.
    pub fn tails(&self, least: u64) -> Vec<(LogId, u64)> {
        let long = self.logs.iter().filter(|(_, log)| log.tail >= least);
        long.map(|(id, log)| (*id, log.tail)).collect()
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

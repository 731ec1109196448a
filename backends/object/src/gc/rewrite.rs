//! Giving up objects of which little is needed: what is needed is copied into new ones, and
//! everything that refers to it changed.
//!
//! Nothing is deleted here, so nothing can be lost: a tip that was not changed goes on naming the
//! old objects, and the next collection sees that. Which tips can be changed:
//!
//! - what the catalogue holds for a snapshot, or for a volume that was never written, by a record;
//! - the tip of a closed volume, by a record that gives it a new log;
//! - that of a volume that is written through this pool object, by its engine.
//!
//! Volumes that others write, and snapshots that somebody reads, stay as they are, and so do all
//! objects that they refer to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use volmux_core::{ErrorKind, Result, VolumeId};

use super::inventory::Inventory;
use super::marks::Marks;
use super::moves::{self, Victim};
use super::own::{Own, Sink};
use super::pass::Pass;
use super::{Collector, GETS};
use crate::catalog::{Change, Entry};
use crate::engine::Engine;
use crate::keys::{LogId, ObjectKey};
use crate::manifest::{Manifest, Phase};
use crate::map::Relocator;
use crate::pool::Ready;
use crate::tip::{Root, Tip};

/// Blocks that are copied in one go: 1 GiB.
const BATCH: u64 = 1 << 18;
/// Volumes that one record of the catalogue changes.
const RECORD: usize = 1000;
/// How often a volume that is being written is tried.
const TRIES: usize = 3;

/// A tip that can be changed.
enum Holder {
    Base(VolumeId, Arc<Tip>),
    Closed(VolumeId, Root),
    Here(Arc<Engine>),
}

/// Who holds on to what.
struct Holders {
    changeable: Vec<Holder>,
    /// What all others refer to.
    fixed: Marks,
}

/// One go at giving up objects.
pub(super) struct Rewriting<'a> {
    op: &'static str,
    ready: &'a Ready,
    collector: &'a Collector<'a>,
    inventory: &'a Inventory,
}

impl<'a> Rewriting<'a> {
    pub fn new(
        op: &'static str,
        ready: &'a Ready,
        collector: &'a Collector<'a>,
        inventory: &'a Inventory,
    ) -> Self {
        Rewriting {
            op,
            ready,
            collector,
            inventory,
        }
    }

    /// Gives up some objects, none of which is in `tried`, and adds them to it. Returns how many
    /// blocks were copied: nothing is left to do once that is 0.
    pub async fn run(&self, pass: &Pass<'_>, tried: &mut BTreeSet<ObjectKey>) -> Result<u64> {
        let mut worst = self.sparse(&pass.marks);
        worst.retain(|victim| !tried.contains(&victim.info.key));
        if worst.is_empty() {
            return Ok(0);
        }
        let holders = self.holders(pass).await?;
        worst.retain(|victim| !holders.fixed.is_used(&victim.info.key));
        let mut left = BATCH;
        worst.retain(|victim| {
            let blocks = count(victim);
            let fits = blocks <= left;
            left -= if fits { blocks } else { 0 };
            fits
        });
        if worst.is_empty() {
            return Ok(0);
        }
        tried.extend(worst.iter().map(|victim| victim.info.key));
        let shared = &self.ready.shared;
        let own = Own::begin(self.op, shared.clone()).await?;
        let pages = pass.marks.pages();
        let moved = moves::copy(self.op, shared, &own, &pages.table, &worst).await?;
        let mut relocator = Relocator::new(&**pages, &pages.table, &moved);
        self.apply(&own, &mut relocator, holders.changeable).await?;
        own.end().await?;
        Ok(moved.blocks)
    }

    /// Objects of which less than half is needed, those of which least is first.
    fn sparse(&self, marks: &Marks) -> Vec<Victim> {
        let lengths: HashMap<ObjectKey, u64> = self.inventory.data.iter().copied().collect();
        let stride = self.ready.shared.seal.stride() as u64;
        let mut sparse: Vec<(u64, Victim)> = Vec::new();
        for (id, info, used) in marks.data() {
            let Some(length) = lengths.get(&info.key) else {
                continue;
            };
            let blocks = (length / stride).saturating_sub(info.start.into());
            let needed = used.blocks.len();
            if used.pages || used.tail || info.framed || needed >= blocks.div_ceil(2) {
                continue;
            }
            let victim = Victim {
                id,
                info,
                blocks: used.blocks.ranges(),
            };
            sparse.push((needed * 1000 / blocks, victim));
        }
        sparse.sort_by_key(|(needed, victim)| (*needed, victim.info.key));
        sparse.into_iter().map(|(_, victim)| victim).collect()
    }

    async fn holders(&self, pass: &Pass<'_>) -> Result<Holders> {
        let mut holders = Holders {
            changeable: Vec::new(),
            fixed: Marks::new(self.ready.shared.clone()),
        };
        let read = self.read_now(self.inventory).await?;
        let here: BTreeMap<VolumeId, Arc<Engine>> = self
            .ready
            .uses
            .all()
            .into_iter()
            .filter_map(|(id, of)| Some((id, of.engine()?)))
            .filter(|(_, engine)| engine.is_writer() && !engine.is_ending())
            .collect();
        let entries: Vec<Arc<Entry>> = self
            .ready
            .catalog
            .read(|state| state.iter().cloned().collect());
        let mut newest = stream::iter(entries)
            .map(|entry| self.newest(entry))
            .buffered(GETS);
        while let Some((entry, manifest)) = newest.try_next().await? {
            let holder = match (here.get(&entry.id), manifest) {
                (Some(engine), _) => Holder::Here(engine.clone()),
                (None, Some(manifest)) if manifest.phase == Phase::Closed => {
                    Holder::Closed(entry.id, manifest.tip.root)
                }
                (None, None) if entry.log.is_some() || !read.contains(&entry.id) => {
                    Holder::Base(entry.id, entry.base.clone())
                }
                (None, None) => {
                    holders.fixed.follow(&entry.base).await?;
                    continue;
                }
                (None, Some(manifest)) => {
                    holders.fixed.follow(&Arc::new(manifest.tip)).await?;
                    continue;
                }
            };
            holders.changeable.push(holder);
        }
        drop(newest);
        for (log, number) in pass.copies() {
            if let Some(copy) = self.ready.shared.manifest(self.op, log, number).await? {
                for tip in [Some(copy.tip), copy.pin].into_iter().flatten() {
                    holders.fixed.follow(&Arc::new(tip)).await?;
                }
            }
        }
        Ok(holders)
    }

    async fn newest(&self, entry: Arc<Entry>) -> Result<(Arc<Entry>, Option<Manifest>)> {
        let manifest = match entry.log.map(|log| (log, self.inventory.newest(log))) {
            Some((log, Some(number))) => {
                let manifest = self.ready.shared.manifest(self.op, log, number).await?;
                match manifest {
                    None => self.ready.shared.newest_manifest(self.op, log, 0).await?,
                    found => found,
                }
            }
            _ => None,
        };
        Ok((entry, manifest))
    }

    /// Volumes that somebody has open for reading.
    async fn read_now(&self, inventory: &Inventory) -> Result<BTreeSet<VolumeId>> {
        let mut read = BTreeSet::new();
        for (volume, mark) in &inventory.readers {
            if !read.contains(volume) && !self.collector.is_dead(&mark.name).await? {
                read.insert(*volume);
            }
        }
        Ok(read)
    }

    async fn apply(
        &self,
        own: &Own,
        relocator: &mut Relocator<'_>,
        holders: Vec<Holder>,
    ) -> Result<()> {
        let mut sink = Sink::new(own);
        let mut bases: Vec<(VolumeId, Arc<Tip>, Arc<Tip>)> = Vec::new();
        let mut closed: Vec<VolumeId> = Vec::new();
        let mut here: Vec<(Arc<Engine>, Root, Root)> = Vec::new();
        let mut same: HashMap<Arc<Tip>, Arc<Tip>> = HashMap::new();
        for holder in holders {
            match holder {
                Holder::Base(id, tip) => {
                    let root = relocator.tree(&tip.root, &mut sink).await?;
                    if root != tip.root {
                        let tail = tip.tail.clone();
                        let new = || Arc::new(Tip { root, tail });
                        let to = same.entry(tip.clone()).or_insert_with(new);
                        bases.push((id, tip, to.clone()));
                    }
                }
                Holder::Closed(id, root) => {
                    if relocator.tree(&root, &mut sink).await? != root {
                        closed.push(id);
                    }
                }
                Holder::Here(engine) => {
                    let from = engine.root();
                    let to = relocator.tree(&from, &mut sink).await?;
                    if from != to {
                        here.push((engine, from, to));
                    }
                }
            }
        }
        sink.finish().await?;
        for (engine, from, to) in here {
            self.go_on(own, relocator, &engine, (from, to)).await?;
        }
        for id in closed {
            self.renew(own, relocator, id).await?;
        }
        self.rebase(&bases).await?;
        self.put_back(&bases).await
    }

    /// Has a volume that is being written go on from the new tree.
    async fn go_on(
        &self,
        own: &Own,
        relocator: &mut Relocator<'_>,
        engine: &Engine,
        (mut from, mut to): (Root, Root),
    ) -> Result<()> {
        for _ in 0..TRIES {
            if from == to || engine.relocate(self.op, &from, to, own.living()).await? {
                return Ok(());
            }
            // A checkpoint was quicker. It shares most pages with the one before.
            let mut sink = Sink::new(own);
            from = engine.root();
            to = relocator.tree(&from, &mut sink).await?;
            sink.finish().await?;
        }
        Ok(())
    }

    /// Gives a closed volume a new log, which begins with the new tree: as reverting does, by a
    /// record of the catalogue, since that can't arrive late and name what is collected by then.
    async fn renew(&self, own: &Own, relocator: &mut Relocator<'_>, id: VolumeId) -> Result<()> {
        let (op, ready) = (self.op, self.ready);
        let of = ready.uses.of(id);
        let _turn = of.turn.lock().await;
        for _ in 0..TRIES {
            let head = ready.catalog.refresh(op).await?;
            let Some(entry) = ready.catalog.read(|state| state.by_id(id).cloned()) else {
                break;
            };
            let tip = match ready.end_log(op, &entry, &of, true).await {
                Ok(tip) => tip,
                // Somebody uses it: another time.
                Err(error) if error.kind() == ErrorKind::Busy => break,
                Err(error) => return Err(error),
            };
            let mut sink = Sink::new(own);
            let root = relocator.tree(&tip.root, &mut sink).await?;
            sink.finish().await?;
            let renewed = Entry {
                log: Some(LogId(ready.shared.ids.uuid())),
                base: Arc::new(Tip { root, ..tip }),
                ..Entry::clone(&entry)
            };
            if ready
                .catalog
                .try_commit(op, head, vec![Change::Put(renewed)])
                .await?
            {
                break;
            }
        }
        Ok(())
    }

    /// Changes what the catalogue says that volumes hold, where it still says the same.
    async fn rebase(&self, bases: &[(VolumeId, Arc<Tip>, Arc<Tip>)]) -> Result<()> {
        let catalog = &self.ready.catalog;
        for some in bases.chunks(RECORD) {
            loop {
                let head = catalog.refresh(self.op).await?;
                let changes: Vec<Change> = catalog.read(|state| {
                    let changed = some.iter().filter_map(|(id, from, to)| {
                        let entry = state.by_id(*id).filter(|entry| entry.base == *from)?;
                        Some(Change::Put(Entry {
                            base: to.clone(),
                            ..Entry::clone(entry)
                        }))
                    });
                    changed.collect()
                });
                if changes.is_empty() || catalog.try_commit(self.op, head, changes).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Gives snapshots their old content back that somebody began to read meanwhile. Who reads
    /// leaves a mark first and then looks what there is to read: he is seen here, or has seen the
    /// new content.
    async fn put_back(&self, bases: &[(VolumeId, Arc<Tip>, Arc<Tip>)]) -> Result<()> {
        if bases.is_empty() {
            return Ok(());
        }
        let inventory = Inventory::take(self.op, &self.ready.shared.store).await?;
        let read = self.read_now(&inventory).await?;
        let back: Vec<_> = bases
            .iter()
            .filter(|(id, ..)| read.contains(id))
            .map(|(id, from, to)| (*id, to.clone(), from.clone()))
            .collect();
        self.rebase(&back).await
    }
}

fn count(victim: &Victim) -> u64 {
    victim.blocks.iter().map(|range| range.len() as u64).sum()
}

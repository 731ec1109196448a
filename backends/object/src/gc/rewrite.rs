//! Giving up objects of which little is needed: what is needed is copied into new ones, and
//! everything that refers to it changed.
//!
//! Nothing is deleted here, so nothing can be lost: a tip that was not changed goes on naming the
//! old objects, and the next collection sees that. Which tips can be changed:
//!
//! - what the catalogue holds for a snapshot, by a record;
//! - the tip of a volume that is closed or was never opened, by a record that gives it a new log
//!   once the old one is retired: a claim of that may be under way, and arrive when what it names
//!   is collected;
//! - that of a volume that is written through this pool object, by its engine.
//!
//! Volumes that others write, and what somebody reads, stay as they are, and so do all objects that
//! they refer to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use tracing::{debug, warn};
use volmux_core::{ErrorKind, Result, VolumeId};

use super::inventory::Inventory;
use super::marks::Marks;
use super::moves::{self, Victim};
use super::own::{Own, Sink};
use super::pass::Pass;
use super::renew::New;
use super::{Collector, GETS};
use crate::catalog::{Change as Record, Entry};
use crate::engine::Engine;
use crate::keys::{LogId, ObjectKey};
use crate::manifest::{Manifest, Phase};
use crate::map::{ObjectInfo, Relocator};
use crate::owner::Life;
use crate::pool::Ready;
use crate::tip::{Root, Tip};

/// Blocks that are copied in one go: 1 GiB.
const BATCH: u64 = 1 << 18;
/// Snapshots that one record of the catalogue changes.
const RECORD: usize = 1000;
/// How often a volume that is in motion is tried.
pub(super) const TRIES: usize = 3;

/// A tip that can be changed.
enum Holder {
    Snapshot(VolumeId, Arc<Tip>),
    /// A volume that nobody has open.
    Idle(VolumeId, Root),
    Here(Arc<Engine>),
}

/// A tip and what takes its place.
type Change = (VolumeId, Arc<Tip>, Arc<Tip>);

/// What need not be tried again in one collection.
#[derive(Debug, Default)]
pub(super) struct Tried {
    objects: BTreeSet<ObjectKey>,
    logs: BTreeSet<LogId>,
}

/// An object of which little is needed.
struct Sparse {
    key: ObjectKey,
    /// Blocks that are.
    needed: u64,
}

/// Who holds on to what.
struct Holders {
    changeable: Vec<Holder>,
    /// What all others refer to.
    fixed: Marks,
}

/// One go at giving up objects.
pub(super) struct Rewriting<'a> {
    pub op: &'static str,
    pub ready: &'a Ready,
    collector: &'a Collector<'a>,
    pub inventory: &'a Inventory,
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
    /// blocks were copied, or volumes made ready for that: nothing is left to do once it is 0.
    pub async fn run(&self, pass: &Pass<'_>, tried: &mut Tried) -> Result<u64> {
        let folded = self.fold(pass, &mut tried.logs).await?;
        if folded > 0 {
            return Ok(folded);
        }
        let mut worst = self.sparse(&pass.marks).await?;
        worst.retain(|sparse| !tried.objects.contains(&sparse.key));
        if worst.is_empty() {
            return Ok(0);
        }
        let holders = self.holders(pass).await?;
        worst.retain(|sparse| !holders.fixed.is_used(&sparse.key));
        let mut left = BATCH;
        worst.retain(|sparse| {
            let fits = sparse.needed <= left;
            left -= if fits { sparse.needed } else { 0 };
            fits
        });
        if worst.is_empty() {
            return Ok(0);
        }
        tried.objects.extend(worst.iter().map(|sparse| sparse.key));
        let victims = victims(&pass.marks, &worst);
        let own = Own::begin(self.op, self.ready.shared.clone()).await?;
        let moved = self.give_up(&own, pass, &victims, holders).await;
        // Also after an error: what could not be put to use is garbage.
        let ended = own.end().await;
        let moved = moved?;
        ended?;
        Ok(moved)
    }

    async fn give_up(
        &self,
        own: &Own,
        pass: &Pass<'_>,
        victims: &[Arc<Victim>],
        holders: Holders,
    ) -> Result<u64> {
        let pages = pass.marks.pages();
        let moved = moves::copy(self.op, &self.ready.shared, own, &pages.table, victims).await?;
        debug!(
            blocks = moved.blocks,
            objects = victims.len(),
            "sparse objects are given up"
        );
        let mut relocator = Relocator::new(&**pages, &pages.table, &moved);
        self.apply(own, &mut relocator, holders.changeable).await?;
        Ok(moved.blocks)
    }

    /// Objects of which less than half is needed, those of which least is first.
    async fn sparse(&self, marks: &Marks) -> Result<Vec<Sparse>> {
        let lengths: HashMap<ObjectKey, u64> = self.inventory.data.iter().copied().collect();
        let shared = &self.ready.shared;
        let stride = shared.seal.stride() as u64;
        let full = shared.settings.object_blocks as u64;
        let mut sparse: Vec<(u64, Sparse)> = Vec::new();
        let mut note = |key: ObjectKey, needed: u64, blocks: u64| {
            if needed < blocks.div_ceil(2) {
                sparse.push((needed * 1000 / blocks, Sparse { key, needed }));
            }
        };
        let mut framed: Vec<(ObjectInfo, u64)> = Vec::new();
        for (_, info, used) in marks.data() {
            let Some(length) = lengths.get(&info.key) else {
                continue;
            };
            let needed = used.blocks.len();
            match info.framed {
                _ if used.pages || used.tail => {}
                false => note(
                    info.key,
                    needed,
                    (length / stride).saturating_sub(info.start.into()),
                ),
                // Only its header tells how many blocks it has, which is hardly more than this.
                true if needed < full.div_ceil(2) => framed.push((info, needed)),
                true => {}
            }
        }
        let mut tables = stream::iter(framed)
            .map(|(info, needed)| async move {
                (info, needed, shared.frame_table(self.op, &info).await)
            })
            .buffered(GETS);
        while let Some((info, needed, table)) = tables.next().await {
            match table {
                Ok(table) => note(info.key, needed, table.blocks().into()),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    warn!(%error, "a damaged object is left as it is");
                }
                Err(error) => return Err(error),
            }
        }
        drop(tables);
        sparse.sort_by_key(|(needed, sparse)| (*needed, sparse.key));
        Ok(sparse.into_iter().map(|(_, sparse)| sparse).collect())
    }

    async fn holders(&self, pass: &Pass<'_>) -> Result<Holders> {
        let mut holders = Holders {
            changeable: Vec::new(),
            fixed: Marks::new(self.ready.shared.clone()),
        };
        let read = self.read_now(self.inventory).await?;
        let is_read = |entry: &Entry| match entry.log {
            None => read.contains_key(&entry.id),
            // Who reads it elsewhere follows its commits, and finds its new log by that.
            Some(_) => read.get(&entry.id) == Some(&Life::Lives),
        };
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
            let here = match here.get(&entry.id) {
                // What a superseded one knows of may be collected.
                Some(engine) if engine.is_current(self.op).await? => Some(engine.clone()),
                _ => None,
            };
            let holder = match (here, manifest) {
                (Some(engine), _) => Holder::Here(engine),
                (None, Some(manifest)) if manifest.phase != Phase::Closed || is_read(&entry) => {
                    holders.fixed.follow(&Arc::new(manifest.tip)).await?;
                    continue;
                }
                (None, None) if is_read(&entry) => {
                    holders.fixed.follow(&entry.base).await?;
                    continue;
                }
                (None, Some(manifest)) => Holder::Idle(entry.id, manifest.tip.root),
                (None, None) if entry.log.is_some() => Holder::Idle(entry.id, entry.base.root),
                (None, None) => Holder::Snapshot(entry.id, entry.base.clone()),
            };
            holders.changeable.push(holder);
        }
        drop(newest);
        for (log, number) in pass.copies() {
            if let Some(copy) = self.ready.shared.manifest(self.op, log, number).await? {
                for tip in [Some(copy.tip), copy.pin].into_iter().flatten() {
                    match holders.fixed.follow(&Arc::new(tip)).await {
                        // See `Pass`. What it needs is kept whether it is known here or not.
                        Err(error) if error.kind() == ErrorKind::Corrupt => {}
                        other => other?,
                    }
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

    /// Volumes that somebody may have open for reading, and whether one is known to.
    pub(super) async fn read_now(&self, inventory: &Inventory) -> Result<BTreeMap<VolumeId, Life>> {
        let mut read = BTreeMap::new();
        for (volume, mark) in &inventory.readers {
            if read.get(volume) == Some(&Life::Lives) {
                continue;
            }
            match self.collector.life(&mark.name).await? {
                Some(Life::Dead) => {}
                Some(life) => {
                    read.insert(*volume, life);
                }
                None => {}
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
        let mut bases: Vec<Change> = Vec::new();
        let mut idle: Vec<VolumeId> = Vec::new();
        let mut here: Vec<(Arc<Engine>, Root, Root)> = Vec::new();
        let mut same: HashMap<Arc<Tip>, Arc<Tip>> = HashMap::new();
        for holder in holders {
            match holder {
                Holder::Snapshot(id, tip) => {
                    let root = relocator.tree(&tip.root, &mut sink).await?;
                    if root != tip.root {
                        let tail = tip.tail.clone();
                        let new = || Arc::new(Tip { root, tail });
                        let to = same.entry(tip.clone()).or_insert_with(new);
                        bases.push((id, tip, to.clone()));
                    }
                }
                Holder::Idle(id, root) => {
                    if relocator.tree(&root, &mut sink).await? != root {
                        idle.push(id);
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
        debug!(
            snapshots = bases.len(),
            idle = idle.len(),
            here = here.len(),
            "tips that name sparse objects",
        );
        for (engine, from, to) in here {
            self.go_on(own, relocator, &engine, (from, to)).await?;
        }
        self.renew(own, &mut New::Tree(relocator), idle).await?;
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
            if from == to {
                return Ok(());
            }
            match engine.relocate(self.op, &from, to, own.living()).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    own.doubt();
                    return match error.kind() {
                        // It is somebody else's by now.
                        ErrorKind::Fenced => Ok(()),
                        _ => Err(error),
                    };
                }
            }
            // A checkpoint was quicker. It shares most pages with the one before.
            let mut sink = Sink::new(own);
            from = engine.root();
            to = relocator.tree(&from, &mut sink).await?;
            sink.finish().await?;
        }
        Ok(())
    }

    /// Changes what the catalogue says that volumes hold, where it still says the same.
    async fn rebase(&self, bases: &[Change]) -> Result<()> {
        let catalog = &self.ready.catalog;
        for some in bases.chunks(RECORD) {
            loop {
                let head = catalog.refresh(self.op).await?;
                let changes: Vec<Record> = catalog.read(|state| {
                    let changed = some.iter().filter_map(|(id, from, to)| {
                        let entry = state.by_id(*id).filter(|entry| entry.base == *from)?;
                        Some(Record::Put(Entry {
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
    async fn put_back(&self, bases: &[Change]) -> Result<()> {
        if bases.is_empty() {
            return Ok(());
        }
        let inventory = Inventory::take(self.op, &self.ready.shared.store).await?;
        let read = self.read_now(&inventory).await?;
        let back: Vec<_> = bases
            .iter()
            .filter(|(id, ..)| read.contains_key(id))
            .map(|(id, from, to)| (*id, to.clone(), from.clone()))
            .collect();
        debug!(back = back.len(), "snapshots that are read now");
        self.rebase(&back).await
    }
}

/// What of these objects is needed, in their order.
fn victims(marks: &Marks, worst: &[Sparse]) -> Vec<Arc<Victim>> {
    let order: HashMap<ObjectKey, usize> = (0..).zip(worst).map(|(n, s)| (s.key, n)).collect();
    let mut victims: Vec<(usize, Arc<Victim>)> = Vec::new();
    for (id, info, used) in marks.data() {
        if let Some(place) = order.get(&info.key) {
            let blocks = used.blocks.ranges();
            victims.push((*place, Arc::new(Victim { id, info, blocks })));
        }
    }
    victims.sort_unstable_by_key(|(place, _)| *place);
    victims.into_iter().map(|(_, victim)| victim).collect()
}

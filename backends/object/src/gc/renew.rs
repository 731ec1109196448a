//! New logs for volumes that nobody has open: how what they hold is replaced.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use tracing::{debug, warn};
use volmux_core::{ErrorKind, Result, VolumeId};

use super::GETS;
use super::own::{Own, Sink};
use super::pass::Pass;
use super::rewrite::{Rewriting, TRIES};
use crate::catalog::{Change, Entry};
use crate::engine::Engine;
use crate::keys::LogId;
use crate::map::{PageSink, Relocator};
use crate::owner::Life;
use crate::tip::Tip;
use crate::uses::Use;

/// Volumes that one record changes. Nobody can open them meanwhile.
const RENEWED: usize = 64;

/// What a volume's new log begins with.
pub(super) enum New<'a, 'b> {
    /// The same, with everything where it lies by now.
    Tree(&'a mut Relocator<'b>),
    /// A checkpoint of all there is.
    Checkpoint,
}

impl Rewriting<'_> {
    /// Gives volumes that nobody has open new logs: as reverting does, by a record of the
    /// catalogue, since that can't arrive late and name what is collected by then.
    pub(super) async fn renew(
        &self,
        own: &Own,
        new: &mut New<'_, '_>,
        mut ids: Vec<VolumeId>,
    ) -> Result<()> {
        // Whoever takes the turns of several takes them in this order: no two can wait for each
        // other.
        ids.sort_unstable();
        for some in ids.chunks(RENEWED) {
            self.renew_some(own, new, some).await?;
        }
        Ok(())
    }

    async fn renew_some(&self, own: &Own, new: &mut New<'_, '_>, ids: &[VolumeId]) -> Result<()> {
        let (op, ready) = (self.op, self.ready);
        let of: Vec<Arc<Use>> = ids.iter().map(|id| ready.uses.of(*id)).collect();
        let mut turns = Vec::new();
        for of in &of {
            turns.push(of.turn.lock().await);
        }
        for _ in 0..TRIES {
            let head = ready.catalog.refresh(op).await?;
            let entries = ids.iter().zip(&of).filter_map(|(id, of)| {
                let entry = ready.catalog.read(|state| state.by_id(*id).cloned())?;
                Some((entry, of.clone()))
            });
            let mut ended = stream::iter(entries.collect::<Vec<_>>())
                .map(|(entry, of)| self.ended(entry, of))
                .buffered(GETS);
            let mut sink = Sink::new(own);
            let mut changes = Vec::new();
            while let Some(ended) = ended.try_next().await? {
                let Some((entry, tip)) = ended else { continue };
                if let Some(base) = self.renewed(new, tip, &mut sink).await? {
                    changes.push(Change::Put(Entry {
                        log: Some(LogId(ready.shared.ids.uuid())),
                        base: Arc::new(base),
                        ..Entry::clone(&entry)
                    }));
                }
            }
            drop(ended);
            sink.finish().await?;
            if changes.is_empty() || ready.catalog.try_commit(op, head, changes).await? {
                break;
            }
        }
        Ok(())
    }

    /// What a volume holds whose log was ended just now; none if somebody uses it.
    async fn ended(&self, entry: Arc<Entry>, of: Arc<Use>) -> Result<Option<(Arc<Entry>, Tip)>> {
        match self.ready.end_log(self.op, &entry, &of, true).await {
            Ok(tip) => Ok(Some((entry, tip))),
            Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What takes the place of a tip; none if it may stay.
    async fn renewed(
        &self,
        new: &mut New<'_, '_>,
        tip: Tip,
        sink: &mut dyn PageSink,
    ) -> Result<Option<Tip>> {
        let (root, tail) = match new {
            New::Tree(relocator) => {
                let root = relocator.tree(&tip.root, sink).await?;
                (root, tip.tail.clone())
            }
            New::Checkpoint => {
                let shared = &self.ready.shared;
                match Engine::checkpoint_of(self.op, shared, &tip, sink).await {
                    Ok(root) => (root, Vec::new()),
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        warn!(%error, "a damaged tail is left as it is");
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let now = Tip { root, tail };
        Ok((now != tip).then_some(now))
    }

    /// Makes checkpoints of closed volumes that were overwritten since their last one: until then
    /// all of what was written counts as needed. Adds their logs to `tried`, and returns how many
    /// they were.
    pub(super) async fn fold(&self, pass: &Pass<'_>, tried: &mut BTreeSet<LogId>) -> Result<u64> {
        let shared = &self.ready.shared;
        let object = (shared.settings.object_blocks * shared.seal.stride()) as u64;
        // In less than two full objects there is little to gain.
        let mut tails = pass.tails(2 * object);
        tails.retain(|(log, _)| !tried.contains(log));
        if tails.is_empty() {
            return Ok(0);
        }
        let read = self.read_now(self.inventory).await?;
        let mut wasteful: Vec<VolumeId> = Vec::new();
        for (log, _) in tails {
            let entry = self.ready.catalog.read(|state| state.by_log(log).cloned());
            let free = |entry: &Entry| {
                read.get(&entry.id) != Some(&Life::Lives) && !self.ready.uses.of(entry.id).is_used()
            };
            let Some(entry) = entry.filter(|entry| free(entry)) else {
                continue;
            };
            let (_, tip) = self.ready.committed_tip(self.op, &entry).await?;
            tried.insert(log);
            match Engine::tail_is_wasteful(self.op, shared, &tip).await {
                Ok(true) => wasteful.push(entry.id),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        if wasteful.is_empty() {
            return Ok(0);
        }
        let folded = wasteful.len() as u64;
        debug!(folded, "closed volumes that were overwritten");
        let own = Own::begin(self.op, shared.clone()).await?;
        let renewed = self.renew(&own, &mut New::Checkpoint, wasteful).await;
        let ended = own.end().await;
        renewed?;
        ended?;
        Ok(folded)
    }
}

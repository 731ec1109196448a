//! Garbage collection: deletes what no volume needs any more.
//!
//! What is needed: all that a volume's newest manifest names, or its base while its log has no
//! manifest; what a copy in progress holds on to; and what a writer may have put and not yet
//! committed, which is everything from its manifest's `in_flight` on. Writers, on any host, go on
//! meanwhile. Nobody's clock is asked. These steps make that safe:
//!
//! 1. Everything is listed, then all references are followed ([`marks`]). What was listed and is
//!    not needed is a candidate. From now on no writer can come to need it: what a writer commits
//!    later was needed now, or in flight, or was put after the listing.
//! 2. A record moves the catalogue's head. Somebody may have read an older manifest, before the
//!    listing, and be about to put it into the catalogue as a snapshot. That record, decided on an
//!    older head, now fails, or is already there.
//! 3. References are followed again, in the catalogue as of that record or later.
//! 4. Candidates that nothing refers to then are deleted.
//!
//! Objects of which little is needed are given up afterwards ([`rewrite`]), and deleted in the
//! same way.
//!
//! A crash at any point leaves garbage for the next collection. Several may run at once.
//!
//! A volume whose map can't be read keeps anything from being collected: what it refers to is not
//! known.

mod blocks;
mod inventory;
mod marks;
mod moves;
mod own;
mod pass;
mod renew;
mod rewrite;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use tracing::warn;
use volmux_core::{ErrorKind, Result};

use crate::catalog::{Catalog, Change};
use crate::keys::{self, LogId};
use crate::owner::{Life, Owner};
use crate::pool::Ready;
use crate::shared::Shared;
use crate::store::Listed;

use inventory::Inventory;
use pass::Pass;
use rewrite::{Rewriting, Tried};

/// Small objects that are read at once.
const GETS: usize = 16;

/// Objects, and the bytes in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// How many.
    pub(crate) objects: u64,
    /// Bytes in all.
    pub(crate) bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What a collection has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// What nobody needs, by name; it is gone if it was to be deleted.
    pub(crate) garbage: Vec<Listed>,
    /// What volmux did not put there.
    pub(crate) foreign: Vec<Listed>,
    /// What stays, without what is foreign.
    pub(crate) kept: Count,
}

impl Survey {
    /// Number and size of what nobody needs.
    pub(crate) fn freed(&self) -> Count {
        let mut freed = Count::default();
        for object in &self.garbage {
            freed.add(object.bytes);
        }
        freed
    }
}

/// What a collection has found and done, and what it knows by that.
struct Deleted<'a> {
    survey: Survey,
    inventory: Inventory,
    pass: Pass<'a>,
}

/// How often a collection that found something missing is begun again.
const RETRIES: u32 = 2;

/// Goes at giving up objects, in one collection. Each takes up to 1 GiB.
const REWRITES: usize = 256;

impl Ready {
    /// Deletes what nobody needs, and gives up objects of which less than half is needed.
    ///
    /// # Errors
    /// As [`Collector::collect`].
    pub(crate) async fn collect_all(&self, op: &'static str) -> Result<Count> {
        let mut freed = Count::default();
        let mut tried = Tried::default();
        let mut done = false;
        for _ in 0..REWRITES {
            let collector = Collector::new(op, &self.shared, &self.catalog);
            let deleted = collector.delete_patiently().await?;
            let more = deleted.survey.freed();
            freed.objects += more.objects;
            freed.bytes += more.bytes;
            if done {
                break;
            }
            let rewriting = Rewriting::new(op, self, &collector, &deleted.inventory);
            match rewriting.run(&deleted.pass, &mut tried).await {
                Ok(0) => break,
                Ok(_) => {}
                // What was put in vain must not stay in a full store.
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NoSpace) => {
                    warn!(%error, "sparse objects are left as they are this time");
                    done = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(freed)
    }
}

/// One collection.
pub(crate) struct Collector<'a> {
    op: &'static str,
    shared: &'a Arc<Shared>,
    catalog: &'a Catalog,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(op: &'static str, shared: &'a Arc<Shared>, catalog: &'a Catalog) -> Self {
        Collector {
            op,
            shared,
            catalog,
        }
    }

    /// Only looks. What was about to be committed may be taken for garbage.
    ///
    /// # Errors
    /// `Corrupt` for a volume whose map can't be read; those of the store.
    pub(crate) async fn look(&self) -> Result<Survey> {
        let inventory = Inventory::take(self.op, &self.shared.store).await?;
        let mut pass = Pass::new(self.op, self.shared.clone(), self.catalog);
        pass.follow(&inventory).await?;
        let garbage = pass.garbage(&inventory);
        self.survey(&inventory, &pass, garbage).await
    }

    /// Deletes what nobody needs.
    ///
    /// # Errors
    /// As [`look`](Self::look), with nothing deleted; those of the store.
    pub(crate) async fn collect(&self) -> Result<Survey> {
        Ok(self.delete().await?.survey)
    }

    /// As [`delete`](Self::delete), but what was about to be read may just have been replaced, and
    /// collected elsewhere.
    async fn delete_patiently(&self) -> Result<Deleted<'a>> {
        let mut tries = 0;
        loop {
            match self.delete().await {
                Err(error) if error.kind() == ErrorKind::Corrupt && tries < RETRIES => tries += 1,
                other => return other,
            }
        }
    }

    async fn delete(&self) -> Result<Deleted<'a>> {
        let inventory = Inventory::take(self.op, &self.shared.store).await?;
        let mut pass = Pass::new(self.op, self.shared.clone(), self.catalog);
        pass.follow(&inventory).await?;
        let mut garbage = pass.garbage(&inventory);
        let mut again = None;
        if !garbage.is_empty() {
            self.move_head().await?;
            let now = Inventory::take(self.op, &self.shared.store).await?;
            pass.follow(&now).await?;
            garbage.retain(|(key, _)| !pass.is_needed(key));
            again = Some(now);
        }
        let survey = self.survey(&inventory, &pass, garbage).await?;
        let (data, others): (Vec<_>, Vec<_>) = survey
            .garbage
            .iter()
            .map(|object| object.name.clone())
            .partition(|name| matches!(name.parse(), Ok(keys::Named::Data(_))));
        self.shared.store.delete(self.op, data).await?;
        // Manifests of a dead log go last: as long as they are there, it is known to be dead.
        self.shared.store.delete(self.op, others).await?;
        Ok(Deleted {
            survey,
            inventory: again.unwrap_or(inventory),
            pass,
        })
    }

    async fn move_head(&self) -> Result<()> {
        loop {
            let head = self.catalog.refresh(self.op).await?;
            let marker = self.shared.ids.uuid();
            let change = Change::Gc { marker };
            if self.catalog.try_commit(self.op, head, vec![change]).await? {
                return Ok(());
            }
        }
    }

    async fn survey(
        &self,
        inventory: &Inventory,
        pass: &Pass<'_>,
        garbage: Vec<(keys::ObjectKey, u64)>,
    ) -> Result<Survey> {
        let mut survey = Survey {
            garbage: Vec::new(),
            foreign: inventory.foreign.clone(),
            kept: inventory.all,
        };
        let data = garbage.into_iter().map(|(key, bytes)| Listed {
            name: key.to_string(),
            bytes,
        });
        survey.garbage.extend(data);
        survey
            .garbage
            .extend(self.old_manifests(inventory, pass).await?);
        survey.garbage.extend(self.dead_readers(inventory).await?);
        let freed = survey.freed();
        survey.kept.objects -= freed.objects;
        survey.kept.bytes -= freed.bytes;
        Ok(survey)
    }

    /// Manifests that are neither the newest of a log that counts, nor all that fences a writer.
    async fn old_manifests(&self, inventory: &Inventory, pass: &Pass<'_>) -> Result<Vec<Listed>> {
        let old = inventory.manifests.iter().flat_map(|(log, numbers)| {
            let newest = pass.newest(*log);
            let all = numbers
                .iter()
                .map(|(number, bytes)| (*log, *number, *bytes));
            all.filter(move |(_, number, _)| newest.is_none_or(|newest| *number < newest))
        });
        let old: Vec<(LogId, u64, u64)> = old.collect();
        let looked = stream::iter(old).map(|which| useless(self.op, self.shared.clone(), which));
        let old: Vec<Option<Listed>> = looked.buffered(GETS).collect().await;
        Ok(old.into_iter().flatten().collect())
    }

    /// Marks of readers who are gone, or whose volume is.
    async fn dead_readers(&self, inventory: &Inventory) -> Result<Vec<Listed>> {
        let mut dead = Vec::new();
        for (volume, mark) in &inventory.readers {
            let gone = self.catalog.read(|state| state.by_id(*volume).is_none());
            if gone || self.life(&mark.name).await? == Some(Life::Dead) {
                dead.push(mark.clone());
            }
        }
        Ok(dead)
    }

    /// Of who left a mark; none where the mark is gone.
    async fn life(&self, mark: &str) -> Result<Option<Life>> {
        let Some(body) = self.shared.store.get(self.op, mark).await? else {
            return Ok(None);
        };
        let owner: Option<Owner> = serde_json::from_slice(&body).ok();
        Ok(Some(match owner {
            None => Life::Elsewhere,
            Some(owner) if owner.was_rebooted() => Life::Dead,
            Some(owner) => owner.life(),
        }))
    }
}

/// The manifest, if it is of no use: neither the newest, which is not asked for here, nor all that
/// fences a writer.
async fn useless(
    op: &'static str,
    shared: Arc<Shared>,
    (log, number, bytes): (LogId, u64, u64),
) -> Option<Listed> {
    let name = keys::manifest(log, number);
    match shared.manifest(op, log, number).await {
        Ok(Some(manifest)) if manifest.is_claim() && manifest.fences => None,
        Ok(Some(_)) => Some(Listed { name, bytes }),
        Ok(None) => None,
        Err(error) => {
            // Whether it fences anybody is not known.
            warn!(%error, "an old manifest can't be read, and stays");
            None
        }
    }
}

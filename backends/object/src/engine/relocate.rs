//! What the garbage collection has volumes go on from: a tree that says the same and lies elsewhere,
//! or a checkpoint of what nobody has open.

use std::sync::Arc;

use volmux_core::Result;

use super::Engine;
use super::load::replayed;
use crate::map::{self, PageSink};
use crate::owner::Living;
use crate::shared::Shared;
use crate::tip::{Root, Tip};

impl Engine {
    /// The root of a tree that holds all that `tip` says.
    pub(crate) async fn checkpoint_of(
        op: &'static str,
        shared: &Shared,
        tip: &Tip,
        sink: &mut dyn PageSink,
    ) -> Result<Root> {
        let state = replayed(op, shared, tip).await?;
        map::apply(shared, &shared.table, &tip.root, state.active.iter(), sink).await
    }

    /// Whether less than half of what is in a tail is needed.
    pub(crate) async fn tail_is_wasteful(
        op: &'static str,
        shared: &Shared,
        tip: &Tip,
    ) -> Result<bool> {
        let state = replayed(op, shared, tip).await?;
        let runs = state.active.iter().filter(|run| run.place.is_some());
        let needed: u64 = runs.map(|run| run.blocks).sum();
        // Of compressed objects there may be more, so that this is said too seldom.
        let there = tip.tail_bytes() / shared.seal.stride() as u64;
        Ok(needed < there / 2)
    }

    /// The map's checkpoint that is gone on from at the moment.
    pub(crate) fn root(&self) -> Root {
        self.lock().root
    }

    /// Goes on from `to`, which says the same as `from`, and commits that; `false`, with nothing
    /// changed, where the checkpoint is not `from` any more. As long as `to` is in use and not
    /// committed, `keep` is held on to: as long as that lives, nobody collects what `to` names.
    /// After an error it is not known whether `to` is committed, or will be.
    pub(crate) async fn relocate(
        &self,
        op: &'static str,
        from: &Root,
        to: Root,
        keep: &Arc<Living>,
    ) -> Result<bool> {
        let role = self.role(op)?;
        {
            // A checkpoint that is being made goes on from the tree that is there now. Not held
            // until the commit: a writer that ends makes a checkpoint before it commits.
            let _turn = role.checkpointing.lock().await;
            role.check(op)?;
            let mut state = self.lock();
            if state.root != *from || state.writer.is_none() {
                return Ok(false);
            }
            role.kept().push(keep.clone());
            state.root = to;
            state.note_checkpoint();
        }
        self.commit(op).await?;
        Ok(true)
    }
}

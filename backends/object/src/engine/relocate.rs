//! Going on from a tree that says the same and lies elsewhere, once the garbage collection has
//! written one.

use std::sync::Arc;

use volmux_core::Result;

use super::Engine;
use crate::owner::Living;
use crate::tip::Root;

impl Engine {
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

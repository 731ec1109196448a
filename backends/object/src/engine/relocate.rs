//! Going on from a tree that says the same and lies elsewhere, once the garbage collection has
//! written one.

use std::sync::{Arc, PoisonError};

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
    pub(crate) async fn relocate(
        &self,
        op: &'static str,
        from: &Root,
        to: Root,
        keep: &Arc<Living>,
    ) -> Result<bool> {
        let role = self.role(op)?;
        // A checkpoint that is being made goes on from the tree that is there now.
        let _turn = role.checkpointing.lock().await;
        role.check(op)?;
        {
            let mut state = self.lock();
            if state.root != *from || state.writer.is_none() {
                return Ok(false);
            }
            self.kept(op)?.push(keep.clone());
            state.root = to;
            state.note_checkpoint();
        }
        self.commit(op).await?;
        self.kept(op)?.retain(|kept| !Arc::ptr_eq(kept, keep));
        Ok(true)
    }

    fn kept(&self, op: &'static str) -> Result<std::sync::MutexGuard<'_, Vec<Arc<Living>>>> {
        let kept = &self.role(op)?.kept;
        Ok(kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

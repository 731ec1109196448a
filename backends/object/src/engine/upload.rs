//! Uploading: what was sealed goes to the store, some objects at once.

use std::sync::Arc;
use std::time::Duration;

use volmux_core::{ByteRange, Result};

use super::building::{Building, Sealed};
use super::ready::Ready;
use super::{Engine, Role, Trouble};
use crate::keys::{LogId, ObjectKey};
use crate::tip::{BLOCK, TailItem};

/// Objects of one volume that are uploaded at once.
pub(super) const UPLOADS: usize = 4;

/// Between two goes at an upload that failed in spite of the store's own repeats.
const PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    /// Begins to upload an object. It is repeated until it succeeds, the volume is fenced, or the
    /// engine ends: what it holds was taken over from a caller.
    pub(super) fn upload(&self, sealed: Arc<Sealed>) {
        if let Some(engine) = self.me.upgrade() {
            tokio::spawn(async move { engine.upload_until_stored(&sealed).await });
        }
    }

    async fn upload_until_stored(&self, sealed: &Sealed) {
        let Some(role) = &self.role else {
            return;
        };
        let Ok(permit) = role.uploads.acquire().await else {
            return;
        };
        let mut ready = None;
        while !role.is_over() {
            match self.put("upload", sealed, &mut ready).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, "an upload failed and is repeated");
                    role.requests().trouble = Some(Trouble::new(error));
                    role.stored.notify_waiters();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(permit);
        if role.is_over() {
            return;
        }
        self.lock()
            .note_stored(sealed, ready.map(|ready| ready.bytes));
        role.requests().trouble = None;
        role.stored.notify_waiters();
        role.wanted.notify_one();
    }

    /// Puts the block that this volume ends in once it is cut off at `size`, with zeros after the
    /// end, as the first object of a new log; none where there is nothing to zero.
    pub(crate) async fn cut_block(
        &self,
        op: &'static str,
        log: LogId,
        size: u64,
    ) -> Result<Option<TailItem>> {
        let (block, within) = (size / BLOCK, (size % BLOCK) as usize);
        let content = self.read(op, ByteRange::new(block * BLOCK, BLOCK)).await?;
        if content[within..].iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut content = content.to_vec();
        content[within..].fill(0);
        let key = ObjectKey {
            log,
            epoch: 0,
            seq: 0,
        };
        let shared = &*self.shared;
        let id = shared.table.reserve(&key)?;
        let mut building = Building::new(id, key, &shared.seal, 1);
        building
            .push(block, &content)
            .map_err(|damage| self.damaged(op, &key.to_string(), damage))?;
        let sealed = Sealed::of(op, shared, building)?;
        let mut ready = None;
        self.put(op, &sealed, &mut ready).await?;
        let bytes = ready.map_or(sealed.bytes, |ready| ready.bytes);
        Ok(Some(TailItem::Object { key, bytes }))
    }

    /// Puts an object. What it is made into is kept in `ready`: another try puts the same bytes.
    async fn put(
        &self,
        op: &'static str,
        sealed: &Sealed,
        ready: &mut Option<Ready>,
    ) -> Result<()> {
        let made = match ready {
            Some(made) => made,
            None => ready.insert(sealed.ready(op, &self.shared).await?),
        };
        let (name, payload) = (sealed.key.to_string(), made.payload.clone());
        self.shared.store.put(op, &name, payload).await
    }
}

impl Role {
    /// Whether nothing may or need be put any more.
    pub(super) fn is_over(&self) -> bool {
        let requests = self.requests();
        requests.fenced || requests.given_up
    }
}

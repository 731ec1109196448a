//! Who has which volume open through this pool object.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use volmux_core::{Access, VolumeId};

use crate::engine::Engine;

/// How long readers go on with what was the newest commit when the store was last asked.
const FRESH: Duration = Duration::from_secs(1);

/// The volumes that were opened through one pool object.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<BTreeMap<VolumeId, Arc<Use>>>);

/// One volume, as far as this pool object uses it.
#[derive(Debug, Default)]
pub(crate) struct Use {
    /// Held while the volume is opened, and while nobody may open it.
    pub(crate) turn: AsyncMutex<()>,
    /// Virtual size in bytes, as far as it is known here.
    size: AtomicU64,
    holders: Mutex<Holders>,
}

#[derive(Debug, Default)]
struct Holders {
    engine: Option<Arc<Engine>>,
    /// When `engine` was the newest that the store knows of.
    fresh: Option<Instant>,
    /// Writers of an earlier epoch are fenced.
    epoch: u64,
    readers: u64,
    writers: u64,
}

impl Uses {
    /// What is known of a volume.
    pub(crate) fn of(&self, id: VolumeId) -> Arc<Use> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(id).or_default().clone()
    }

    /// The volume is gone.
    pub(crate) fn forget(&self, id: VolumeId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    /// All that are known.
    pub(crate) fn all(&self) -> Vec<(VolumeId, Arc<Use>)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(id, of)| (*id, of.clone())).collect()
    }
}

impl Use {
    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Notes a size that was looked up or made.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// The engine that all holders share; also one that is just ending, or has ended.
    pub(crate) fn engine(&self) -> Option<Arc<Engine>> {
        self.holders().engine.clone()
    }

    /// From now on all holders use this one.
    pub(crate) fn set_engine(&self, engine: Option<Arc<Engine>>) {
        let mut holders = self.holders();
        holders.engine = engine;
        holders.fresh = None;
    }

    /// The engine, if it was the newest a moment ago.
    pub(crate) fn fresh_engine(&self) -> Option<Arc<Engine>> {
        let holders = self.holders();
        let engine = holders.engine.as_ref().filter(|e| !e.is_ending())?;
        let fresh = holders.fresh.is_some_and(|then| then.elapsed() < FRESH);
        fresh.then(|| engine.clone())
    }

    /// Notes that `engine` was the newest at `then`; `None` if it may not be.
    pub(crate) fn set_fresh(&self, engine: &Arc<Engine>, then: Option<Instant>) {
        let mut holders = self.holders();
        if holders
            .engine
            .as_ref()
            .is_some_and(|e| Arc::ptr_eq(e, engine))
        {
            holders.fresh = then;
        }
    }

    pub(crate) fn is_written(&self) -> bool {
        self.holders().writers > 0
    }

    pub(crate) fn is_used(&self) -> bool {
        let holders = self.holders();
        holders.readers + holders.writers > 0
    }

    /// Whether a writer of this epoch may still go on.
    pub(crate) fn is_current(&self, epoch: u64) -> bool {
        self.holders().epoch == epoch
    }

    /// Strikes off the present writers; returns their engine.
    pub(crate) fn fence(&self) -> Option<Arc<Engine>> {
        let mut holders = self.holders();
        holders.epoch += 1;
        holders.writers = 0;
        holders.engine.clone()
    }

    /// One more holder; to be called in turn.
    pub(crate) fn enter(self: &Arc<Self>, access: Access) -> Hold {
        let mut holders = self.holders();
        match access {
            Access::ReadOnly => holders.readers += 1,
            Access::ReadWrite => holders.writers += 1,
        }
        Hold {
            of: self.clone(),
            access,
            epoch: holders.epoch,
        }
    }
}

/// One holder of a volume, until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) of: Arc<Use>,
    pub(crate) access: Access,
    pub(crate) epoch: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holders = self.of.holders();
        match self.access {
            Access::ReadOnly => holders.readers -= 1,
            // A fenced writer was struck off when it was fenced.
            Access::ReadWrite if self.epoch == holders.epoch => {
                holders.writers -= 1;
                if holders.writers == 0
                    && let Some(engine) = &holders.engine
                {
                    engine.close();
                }
            }
            Access::ReadWrite => {}
        }
        // A writer's engine stays: who opens the volume next waits for its end.
        let done = |engine: &Arc<Engine>| !engine.is_writer() || engine.has_ended();
        if holders.readers + holders.writers == 0 && holders.engine.as_ref().is_some_and(done) {
            holders.engine = None;
        }
    }
}

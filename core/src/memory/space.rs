//! How many blocks a memory pool may hold and holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts blocks. What a volume may rely on is counted before it is made, so the limit holds
/// without a lock over all volumes.
#[derive(Debug)]
pub(super) struct Space {
    total: u64,
    used: AtomicU64,
}

impl Space {
    pub(super) fn new(total: u64) -> Arc<Self> {
        Arc::new(Space {
            total,
            used: AtomicU64::new(0),
        })
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Sets `blocks` aside, or nothing; `None` where they would exceed the total.
    pub(super) fn reserve(self: &Arc<Self>, blocks: u64) -> Option<Reservation> {
        let fits = |used: u64| used.checked_add(blocks).filter(|&sum| sum <= self.total);
        if blocks > 0 {
            self.used
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
                .ok()?;
        }
        Some(Reservation {
            space: self.clone(),
            left: blocks,
        })
    }

    /// Counts `blocks` that are no longer held.
    pub(super) fn release(&self, blocks: u64) {
        self.used.fetch_sub(blocks, Ordering::AcqRel);
    }
}

/// Blocks that are set aside; what is not kept goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    left: u64,
}

impl Reservation {
    /// Leaves `blocks` of what was set aside to the caller's blocks, which give them back when they
    /// are dropped.
    pub(super) fn keep(&mut self, blocks: u64) {
        self.left -= blocks;
    }

    /// Leaves all that was set aside to the caller, who gives it back.
    pub(super) fn keep_rest(mut self) {
        self.left = 0;
    }

    /// Ends the reservation with exactly `blocks` counted, which the caller's blocks give back
    /// when they are dropped. It may be more than was set aside where the caller is about to drop
    /// the difference, and less than nothing where it gave back what it had counted before.
    pub(super) fn settle(mut self, blocks: i64) {
        let left = std::mem::take(&mut self.left);
        let change = blocks.wrapping_sub_unsigned(left);
        self.space
            .used
            .fetch_add(change.cast_unsigned(), Ordering::AcqRel);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.release(self.left);
    }
}

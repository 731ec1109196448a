//! Memory for cached blocks: made in slabs, used again for ever, never more than was allowed.
//!
//! An allocation for each block would cost what the allocator adds to it and, worse, would leave
//! it holes: a cache that has been busy for days would occupy more than its budget.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::tip::BLOCK;

/// Bytes in a slot.
pub(super) const SLOT: usize = BLOCK as usize;
/// Slots in a slab: 1 MiB, which the allocator takes from the system by itself and page by page.
const SLAB: usize = 256;

/// Where slots come from and go back to.
#[derive(Debug)]
pub(super) struct Slots {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Each is exactly one slot long.
    free: Vec<BytesMut>,
    made: usize,
}

impl Slots {
    /// At most `most` slots, made as they are needed.
    pub(super) fn new(most: usize) -> Arc<Self> {
        let state = Mutex::new(State {
            free: Vec::new(),
            made: 0,
        });
        Arc::new(Slots { most, state })
    }

    /// A copy of `block`, which is a slot long, that gives its slot back when its last clone is
    /// dropped. None where every slot is in use.
    pub(super) fn copy(self: &Arc<Self>, block: &[u8]) -> Option<Bytes> {
        let mut memory = self.take()?;
        memory.copy_from_slice(block);
        Some(Bytes::from_owner(Slot {
            memory,
            home: Arc::clone(self),
        }))
    }

    fn take(&self) -> Option<BytesMut> {
        let mut state = self.state();
        if let Some(slot) = state.free.pop() {
            return Some(slot);
        }
        let count = SLAB.min(self.most - state.made);
        if count == 0 {
            return None;
        }
        let mut slab = BytesMut::zeroed(count * SLOT);
        state.made += count;
        let first = slab.split_to(SLOT);
        while !slab.is_empty() {
            state.free.push(slab.split_to(SLOT));
        }
        Some(first)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Slot {
    memory: BytesMut,
    home: Arc<Slots>,
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.home.state().free.push(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_used_again() {
        let slots = Slots::new(SLAB + 3);
        let block = |n: usize| vec![n as u8; SLOT];
        let held: Vec<Bytes> = (0..SLAB + 3)
            .map(|n| slots.copy(&block(n)).unwrap())
            .collect();
        assert!(held.iter().enumerate().all(|(n, b)| b[..] == block(n)[..]));
        assert_eq!(slots.copy(&block(0)), None);
        let last = held[7].clone();
        drop(held);
        assert_eq!(last[..], block(7)[..]);
        let again: Vec<Bytes> = (0..SLAB + 2)
            .map(|n| slots.copy(&block(n + 9)).unwrap())
            .collect();
        assert_eq!(slots.copy(&block(0)), None, "one is still held");
        assert_eq!(last[..], block(7)[..]);
        drop((last, again));
        assert_eq!(slots.state().made, SLAB + 3);
        assert_eq!(slots.state().free.len(), SLAB + 3);
    }
}

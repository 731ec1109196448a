//! Memory for data objects, which is used again: what is given back to the system and taken anew
//! costs more than filling it, and leaves holes that nothing else fits into.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

/// Memory that is not in use at the moment.
#[derive(Debug)]
pub(crate) struct Buffers {
    free: Mutex<Vec<BytesMut>>,
    /// How much is kept at most.
    most: usize,
    /// Bytes in each.
    capacity: usize,
}

impl Buffers {
    /// For data objects of `capacity` bytes, of which `bytes` are in use at times.
    pub(crate) fn new(capacity: usize, bytes: usize) -> Self {
        Buffers {
            free: Mutex::default(),
            most: bytes / capacity.max(1),
            capacity,
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty one with room for so many bytes.
    pub(super) fn take(&self, bytes: usize) -> BytesMut {
        let used = (bytes == self.capacity)
            .then(|| self.free().pop())
            .flatten();
        used.unwrap_or_else(|| BytesMut::with_capacity(bytes))
    }

    /// Keeps what is not in use any more, if it is whole.
    pub(super) fn give(&self, bytes: Bytes) {
        let Ok(mut bytes) = bytes.try_into_mut() else {
            return;
        };
        bytes.clear();
        let mut free = self.free();
        if bytes.capacity() >= self.capacity && free.len() < self.most {
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 1 << 20;

    fn filled(buffers: &Buffers, bytes: usize) -> Bytes {
        let mut buffer = buffers.take(CAPACITY);
        assert!(buffer.is_empty());
        buffer.resize(bytes, 7);
        buffer.freeze()
    }

    #[test]
    fn memory_is_used_again_unless_somebody_still_has_it() {
        let buffers = Buffers::new(CAPACITY, 2 * CAPACITY);
        let first = filled(&buffers, CAPACITY);
        let address = first.as_ptr();
        buffers.give(first);
        let second = filled(&buffers, 5);
        assert_eq!(second.as_ptr(), address);
        let held = second.clone();
        buffers.give(second);
        assert_ne!(filled(&buffers, 5).as_ptr(), address);
        assert_eq!(&held[..], [7; 5]);
    }

    #[test]
    fn no_more_is_kept_than_allowed_and_nothing_of_another_size() {
        let buffers = Buffers::new(CAPACITY, 2 * CAPACITY);
        let all: Vec<Bytes> = (0..4).map(|_| filled(&buffers, CAPACITY)).collect();
        all.into_iter().for_each(|bytes| buffers.give(bytes));
        buffers.give(buffers.take(4096).freeze());
        assert_eq!(buffers.free().len(), 2);
        assert_eq!(buffers.take(4096).capacity(), 4096);
    }
}

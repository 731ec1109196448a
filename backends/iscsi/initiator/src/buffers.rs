//! Memory of long reads, which is used again: to get new memory takes the kernel longer than to
//! fill it with what came.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes that are kept for later.
const KEPT: usize = 4 << 20;

/// Buffers that nobody uses now, the one used last at the end.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer with room for so many bytes.
    pub fn take(&self, room: usize) -> Vec<u8> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().rposition(|buffer| buffer.capacity() >= room) {
            Some(at) => free.remove(at),
            None => Vec::with_capacity(room),
        }
    }

    /// Passes a buffer on to who wants to read it. It comes back when that is dropped.
    pub fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        let home = self.clone();
        Bytes::from_owner(Lent { buffer, home })
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
        while free.iter().map(Vec::capacity).sum::<usize>() > KEPT {
            free.remove(0);
        }
    }
}

struct Lent {
    buffer: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_used_again() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(100_000);
        buffer.extend_from_slice(&[7; 90_000]);
        let at = buffer.as_ptr();
        let read = buffers.lend(buffer);
        let part = read.slice(5..10);
        drop(read);
        let other = buffers.take(100_000);
        assert_ne!(other.as_ptr(), at, "somebody has a part");
        assert_eq!(part, [7; 5][..]);
        drop(part);
        let again = buffers.take(80_000);
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        drop(again);
        assert!(buffers.take(200_000).capacity() >= 200_000);
    }

    #[test]
    fn not_more_is_kept_than_said() {
        let buffers = Arc::new(Buffers::default());
        let all: Vec<Bytes> = (1..20)
            .map(|size| buffers.lend(buffers.take(size << 18)))
            .collect();
        drop(all);
        drop(buffers.lend(buffers.take(KEPT + 1)));
        let kept = buffers.0.lock().expect("not poisoned");
        assert!(kept.iter().map(Vec::capacity).sum::<usize>() <= KEPT);
    }
}

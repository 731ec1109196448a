//! Memory for what is read.

use std::collections::TryReserveError;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Room for a known number of bytes, which become [`Bytes`] without a copy once they are there.
///
/// They begin at a multiple of 64, and not where a page begins. Processors that copy a memory page
/// with one instruction (`rep movsb`) take three times as long where the target lies up to 32 bytes
/// further in its page than the source in its own (measured on AMD Zen 3). What `malloc` returns for
/// a large buffer lies 16 bytes into a page, and a file's page cache at 0: the worst case for each
/// read of a file. At 64, neither copying in nor sending from there behind a short header is slow.
///
/// The memory of large ones is used again, up to 16 MiB in the process: a system that has to find
/// and clear each page anew takes longer than what fills them.
#[derive(Debug)]
pub struct Buffer {
    bytes: Memory,
    start: usize,
    length: usize,
}

const LINE: usize = 64;
const PAGE: usize = 4096;

/// What is shorter, `malloc` finds without the system.
const LARGE: usize = 128 << 10;
/// What is longer would leave room for little else.
const LARGEST: usize = 4 << 20;
/// Bytes that are kept for the next buffers.
const KEPT: usize = 16 << 20;

static FREE: Free = Free(Mutex::new(Vec::new()));

/// Memory that no buffer has at the moment. All of it is empty: nothing of what one held is ever
/// in the next.
struct Free(Mutex<Vec<Vec<u8>>>);

impl Free {
    fn list(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many bytes, and for no more than twice as many.
    fn take(&self, bytes: usize) -> Option<Vec<u8>> {
        if !(LARGE..=LARGEST).contains(&bytes) {
            return None;
        }
        let mut list = self.list();
        let fits = |kept: &Vec<u8>| (bytes..=2 * bytes).contains(&kept.capacity());
        let found = list.iter().rposition(fits)?;
        Some(list.swap_remove(found))
    }

    fn give(&self, mut bytes: Vec<u8>) {
        if !(LARGE..=2 * LARGEST).contains(&bytes.capacity()) {
            return;
        }
        bytes.clear();
        let mut list = self.list();
        let kept: usize = list.iter().map(Vec::capacity).sum();
        if kept + bytes.capacity() <= KEPT {
            list.push(bytes);
        }
    }
}

/// Memory that goes back to [`FREE`].
#[derive(Debug)]
struct Memory(Vec<u8>);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        FREE.give(std::mem::take(&mut self.0));
    }
}

impl Buffer {
    /// Room for `length` bytes.
    ///
    /// # Errors
    /// If there is not so much memory. Nothing is written to it, so more may be granted than the
    /// machine has.
    pub fn new(length: usize) -> Result<Self, TryReserveError> {
        let needed = length.saturating_add(2 * LINE);
        let mut bytes = FREE.take(needed).unwrap_or_default();
        bytes.try_reserve_exact(needed)?;
        let at = bytes.as_ptr().addr();
        let line = at.next_multiple_of(LINE);
        let on_a_page = line.is_multiple_of(PAGE);
        let start = if on_a_page { line + LINE } else { line } - at;
        bytes.resize(start, 0);
        Ok(Buffer {
            bytes: Memory(bytes),
            start,
            length,
        })
    }

    /// Where to append the bytes. To append more than there is room for costs a copy; to remove
    /// what is there already is an error.
    pub fn room(&mut self) -> &mut Vec<u8> {
        &mut self.bytes.0
    }

    /// How many bytes are still to be appended.
    pub fn missing(&self) -> usize {
        (self.start + self.length).saturating_sub(self.bytes.0.len())
    }

    /// The bytes that were appended.
    ///
    /// # Panics
    /// If more was removed than appended.
    pub fn into_bytes(self) -> Bytes {
        let Buffer {
            mut bytes, start, ..
        } = self;
        let end = bytes.0.len();
        if bytes.0.capacity() >= LARGE {
            return Bytes::from_owner(bytes).slice(start..end);
        }
        // A vector that is full becomes `Bytes` without an allocation.
        let mut bytes = std::mem::take(&mut bytes.0);
        bytes.resize(bytes.capacity(), 0);
        Bytes::from(bytes).slice(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_comes_out_and_lies_well() {
        for length in [0, 1, 511, 4096, 10_000, 1 << 20] {
            for _ in 0..8 {
                let mut buffer = Buffer::new(length).expect("memory");
                assert_eq!(buffer.missing(), length);
                let data: Vec<u8> = (0..length).map(|i| i as u8).collect();
                let (first, second) = data.split_at(length / 3);
                buffer.room().extend_from_slice(first);
                assert_eq!(buffer.missing(), second.len());
                buffer.room().extend_from_slice(second);
                let bytes = buffer.into_bytes();
                assert_eq!(bytes, data);
                if length > 0 {
                    let at = bytes.as_ptr().addr();
                    assert!(
                        at.is_multiple_of(LINE) && !at.is_multiple_of(PAGE),
                        "{length} bytes at {at:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn memory_of_large_ones_is_used_again_and_shows_nothing_of_before() {
        let free = Free(Mutex::default());
        for length in [LARGE - 1, LARGE, 1 << 20, LARGEST, 2 * LARGEST + 1] {
            let mut used = Vec::with_capacity(length);
            used.resize(length, 7);
            let address = used.as_ptr();
            free.give(used);
            let again = free.take(length);
            if (LARGE..=LARGEST).contains(&length) {
                let again = again.expect("kept");
                assert_eq!(again.as_ptr(), address);
                assert!(again.is_empty());
            } else {
                assert_eq!(again, None, "{length}");
            }
        }
        free.give(Vec::with_capacity(1 << 20));
        assert_eq!(free.take(LARGE), None, "far more than was asked for");
        for _ in 0..100 {
            free.give(Vec::with_capacity(1 << 20));
        }
        assert!(free.list().iter().map(Vec::capacity).sum::<usize>() <= KEPT);
    }

    #[test]
    fn less_than_asked_for_is_what_there_is() {
        let mut buffer = Buffer::new(4096).expect("memory");
        buffer.room().extend_from_slice(b"short");
        assert_eq!(buffer.into_bytes(), &b"short"[..]);
    }

    #[test]
    fn absurd_lengths_are_refused() {
        for length in [usize::MAX, usize::MAX - 100, isize::MAX as usize] {
            assert!(Buffer::new(length).is_err(), "{length}");
        }
    }
}

//! Memory that begins where a disk wants it to, as `O_DIRECT` needs.

use std::collections::TryReserveError;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Room for a known number of bytes at an aligned address. The memory of large ones is used again,
/// up to 16 MiB in the process: to find and clear new pages takes longer than to fill them.
#[derive(Debug)]
pub struct Aligned {
    /// As long as what has been written to.
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

/// What is shorter, `malloc` finds without the system.
const LARGE: usize = 128 << 10;
/// What is longer would leave room for little else.
const LARGEST: usize = 4 << 20;
/// Bytes that are kept for the next ones.
const KEPT: usize = 16 << 20;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<Vec<u8>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn used_before(bytes: usize) -> Option<Vec<u8>> {
    if !(LARGE..=LARGEST).contains(&bytes) {
        return None;
    }
    let mut free = free();
    let fits = |kept: &Vec<u8>| (bytes..=2 * bytes).contains(&kept.capacity());
    let found = free.iter().rposition(fits)?;
    Some(free.swap_remove(found))
}

impl Aligned {
    /// Room for `length` bytes at a multiple of `alignment`, a power of two.
    ///
    /// # Errors
    /// If there is not so much memory. Nothing is written to it, so more may be granted than the
    /// machine has.
    pub fn new(length: usize, alignment: usize) -> Result<Self, TryReserveError> {
        let needed = length.saturating_add(alignment);
        let mut bytes = used_before(needed).unwrap_or_default();
        bytes.try_reserve_exact(needed)?;
        let at = bytes.as_ptr().addr();
        let start = at.next_multiple_of(alignment) - at;
        bytes.resize(start, 0);
        Ok(Aligned {
            bytes,
            start,
            length,
        })
    }

    /// A copy of `data`.
    ///
    /// # Errors
    /// If there is not so much memory.
    pub fn copy(data: &[u8], alignment: usize) -> Result<Self, TryReserveError> {
        let mut aligned = Aligned::new(data.len(), alignment)?;
        aligned.bytes.extend_from_slice(data);
        Ok(aligned)
    }

    /// How many bytes there is room for.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Where the bytes begin. There is room for [`len`](Self::len), which need not be initialised.
    /// It stays there however this is moved.
    pub fn pointer(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr().wrapping_add(self.start)
    }

    /// The bytes, those never written to as zeros.
    pub fn slice(&mut self) -> &mut [u8] {
        self.bytes.resize(self.start + self.length, 0);
        &mut self.bytes[self.start..]
    }

    /// The first `filled` of the bytes.
    ///
    /// # Safety
    /// They must have been written to, through [`pointer`](Self::pointer) or before.
    pub unsafe fn filled(mut self, filled: usize) -> Bytes {
        assert!(filled <= self.length, "more than there is room for");
        // SAFETY: `new` has reserved this and more, and the caller vouches for the content.
        unsafe { self.bytes.set_len(self.start + filled) };
        self.into_bytes()
    }

    /// What has been written to the [`slice`](Self::slice), or copied.
    pub fn into_bytes(self) -> Bytes {
        let start = self.start;
        let end = self.bytes.len();
        Bytes::from_owner(self).slice(start..end)
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if !(LARGE..=2 * LARGEST).contains(&bytes.capacity()) {
            return;
        }
        bytes.clear();
        let mut free = free();
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if kept + bytes.capacity() <= KEPT {
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_holds_what_was_put_there() {
        for length in [0, 1, 512, 4096, 300_000, 1 << 20] {
            for alignment in [1, 512, 4096] {
                let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                let bytes = Aligned::copy(&data, alignment)
                    .expect("memory")
                    .into_bytes();
                assert_eq!(bytes, data);
                assert!(length == 0 || bytes.as_ptr().addr().is_multiple_of(alignment));
                let mut raw = Aligned::new(length, alignment).expect("memory");
                assert!(raw.pointer().addr().is_multiple_of(alignment));
                raw.slice().copy_from_slice(&data);
                assert_eq!(raw.into_bytes(), data);
            }
        }
    }

    #[test]
    fn what_was_written_through_the_pointer_is_there() {
        let mut aligned = Aligned::new(1000, 512).expect("memory");
        // SAFETY: there is room for 1000 bytes.
        unsafe { aligned.pointer().write_bytes(7, 900) };
        // SAFETY: they were written just now.
        let bytes = unsafe { aligned.filled(900) };
        assert_eq!(bytes, vec![7; 900]);
    }

    #[test]
    fn memory_that_is_used_again_shows_nothing_of_before() {
        for _ in 0..4 {
            let mut aligned = Aligned::new(1 << 20, 4096).expect("memory");
            assert!(aligned.slice().iter().all(|&byte| byte == 0));
            aligned.slice().fill(1);
        }
    }

    #[test]
    fn absurd_lengths_are_refused() {
        assert!(Aligned::new(usize::MAX, 4096).is_err());
    }
}

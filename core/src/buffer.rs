//! Memory for what is read.

use std::collections::TryReserveError;

use bytes::Bytes;

/// Room for a known number of bytes, which become [`Bytes`] without a copy once they are there.
///
/// They begin at a multiple of 64, and not where a page begins. Processors that copy a memory page
/// with one instruction (`rep movsb`) take three times as long where the target lies up to 32 bytes
/// further in its page than the source in its own (measured on AMD Zen 3). What `malloc` returns for
/// a large buffer lies 16 bytes into a page, and a file's page cache at 0: the worst case for each
/// read of a file. At 64, neither copying in nor sending from there behind a short header is slow.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

const LINE: usize = 64;
const PAGE: usize = 4096;

impl Buffer {
    /// Room for `length` bytes.
    ///
    /// # Errors
    /// If there is not so much memory. Nothing is written to it, so more may be granted than the
    /// machine has.
    pub fn new(length: usize) -> Result<Self, TryReserveError> {
        let mut bytes = Vec::<u8>::new();
        bytes.try_reserve_exact(length.saturating_add(2 * LINE))?;
        let at = bytes.as_ptr().addr();
        let line = at.next_multiple_of(LINE);
        let on_a_page = line.is_multiple_of(PAGE);
        let start = if on_a_page { line + LINE } else { line } - at;
        bytes.resize(start, 0);
        Ok(Buffer {
            bytes,
            start,
            length,
        })
    }

    /// Where to append the bytes. To append more than there is room for costs a copy; to remove
    /// what is there already is an error.
    pub fn room(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// How many bytes are still to be appended.
    pub fn missing(&self) -> usize {
        (self.start + self.length).saturating_sub(self.bytes.len())
    }

    /// The bytes that were appended.
    ///
    /// # Panics
    /// If more was removed than appended.
    pub fn into_bytes(mut self) -> Bytes {
        let end = self.bytes.len();
        // A vector that is full becomes `Bytes` without an allocation.
        self.bytes.resize(self.bytes.capacity(), 0);
        Bytes::from(self.bytes).slice(self.start..end)
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

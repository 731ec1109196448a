//! Reading ahead: who reads in sequence, little at a time, finds in the cache what comes next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};

use volmux_core::ByteRange;

use super::Engine;

/// Sequential readers of one volume that are told apart.
const STREAMS: usize = 8;

/// Reads in sequence before anything is read ahead, and bytes.
const HITS: u32 = 3;
const SEQUENCE: u64 = 16 << 10;

/// Bytes that are read ahead at first; twice what was read in sequence later on.
const FIRST: u64 = 128 << 10;

/// Bytes that are read ahead at most: what a store far away gives in the time of a request.
pub(crate) const MOST: u64 = 4 << 20;

/// Who has so much in flight hides the store's latency well enough.
const BUSY: u64 = 1 << 20;

/// Sequential readers of an open volume.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Bytes that are being read.
    in_flight: AtomicU64,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    all: Vec<Stream>,
    /// Number of the last read.
    last: u64,
}

#[derive(Debug)]
struct Stream {
    begin: u64,
    /// Where the next read begins, if it goes on.
    next: u64,
    /// How far was read ahead.
    ahead: u64,
    hits: u32,
    /// Number of its last read.
    used: u64,
}

/// A read under way.
pub(super) struct Reading<'a> {
    of: &'a Ahead,
    length: u64,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.of.in_flight.fetch_sub(self.length, Ordering::Relaxed);
    }
}

impl Ahead {
    /// Notes a read, until what is returned is dropped, and says what to read ahead, up to `most`
    /// bytes.
    pub(super) fn note(&self, range: ByteRange, most: u64) -> (Reading<'_>, Option<ByteRange>) {
        let length = range.length;
        let before = self.in_flight.fetch_add(length, Ordering::Relaxed);
        let next = match self.streams.try_lock() {
            Ok(mut streams) => streams.note(range, before + length >= BUSY, most),
            // It is only a hint, and waiting would cost more.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => None,
        };
        (Reading { of: self, length }, next)
    }
}

impl Streams {
    fn note(&mut self, range: ByteRange, busy: bool, most: u64) -> Option<ByteRange> {
        self.last += 1;
        // Requests that are in flight together come in any order.
        let near = 4 * range.length;
        let goes_on = |stream: &&mut Stream| stream.next.abs_diff(range.offset) <= near;
        let Some(stream) = self.all.iter_mut().find(goes_on) else {
            self.begin(range);
            return None;
        };
        stream.used = self.last;
        if range.end() <= stream.next {
            return None;
        }
        stream.hits = stream.hits.saturating_add(1);
        stream.next = range.end();
        let read = stream.next - stream.begin;
        if busy || stream.hits < HITS || read < SEQUENCE {
            return None;
        }
        let window = (2 * read).max(FIRST).min(most);
        if stream.ahead >= stream.next + window / 2 {
            return None;
        }
        let from = stream.ahead.max(stream.next);
        stream.ahead = stream.next + window;
        Some(ByteRange::from_to(from, stream.ahead))
    }

    fn begin(&mut self, range: ByteRange) {
        if self.all.len() >= STREAMS {
            let oldest = (0..self.all.len()).min_by_key(|i| self.all[*i].used);
            if let Some(oldest) = oldest {
                self.all.swap_remove(oldest);
            }
        }
        self.all.push(Stream {
            begin: range.offset,
            next: range.end(),
            ahead: range.end(),
            hits: 0,
            used: self.last,
        });
    }
}

impl Engine {
    /// Begins to read a range into the cache.
    pub(super) async fn read_ahead(&self, range: ByteRange) {
        let Some(engine) = self.me.upgrade() else {
            return;
        };
        let mut reading = Box::pin(async move {
            // Whoever needs it will see for themselves.
            if let Err(error) = engine.read_into_cache("read_ahead", range).await {
                tracing::debug!(%error, "reading ahead failed");
            }
        });
        // It is under way before the caller goes on, who would soon ask for the same.
        if futures::poll!(&mut reading).is_pending() {
            tokio::spawn(reading);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1 << 10;
    const GIB: u64 = 1 << 30;

    fn sequence(streams: &mut Streams, at: u64, length: u64, count: u64) -> Vec<ByteRange> {
        (0..count)
            .filter_map(|i| streams.note(ByteRange::new(at + i * length, length), false, MOST))
            .collect()
    }

    #[test]
    fn a_sequence_is_read_ahead_of_once_and_without_a_gap() {
        let mut streams = Streams::default();
        let ahead = sequence(&mut streams, GIB, 4 * KIB, 10_000);
        assert_eq!(ahead[0].offset, GIB + 16 * KIB);
        for pair in ahead.windows(2) {
            assert_eq!(pair[0].end(), pair[1].offset);
        }
        let last = ahead.last().expect("some");
        let read = GIB + 10_000 * 4 * KIB;
        assert!(last.end() >= read + MOST / 2 && last.end() <= read + MOST);
        assert!(ahead.len() < 40, "{} requests", ahead.len());
    }

    #[test]
    fn sequences_beside_one_another_are_told_apart() {
        let mut streams = Streams::default();
        let mut found = 0;
        for i in 0..64 {
            for reader in 0..STREAMS as u64 {
                let range = ByteRange::new(reader * GIB + i * 16 * KIB, 16 * KIB);
                found += usize::from(streams.note(range, false, MOST).is_some());
            }
        }
        assert!(found >= STREAMS * 2, "{found}");
    }

    #[test]
    fn the_same_again_is_no_sequence() {
        let mut streams = Streams::default();
        for _ in 0..100 {
            let range = ByteRange::new(GIB, 4 * KIB);
            assert_eq!(streams.note(range, false, MOST), None);
        }
    }

    #[test]
    fn who_has_much_in_flight_reads_for_itself() {
        let mut streams = Streams::default();
        for i in 0..100 {
            let range = ByteRange::new(i << 20, 1 << 20);
            assert_eq!(streams.note(range, true, MOST), None);
        }
    }

    #[test]
    fn what_is_in_flight_is_counted() {
        let ahead = Ahead::default();
        let (first, _) = ahead.note(ByteRange::new(0, 5), MOST);
        let (second, _) = ahead.note(ByteRange::new(9, 7), MOST);
        assert_eq!(ahead.in_flight.load(Ordering::Relaxed), 12);
        drop((first, second));
        assert_eq!(ahead.in_flight.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn nothing_is_read_ahead_of_scattered_reads(
            blocks in proptest::collection::vec(0..1u64 << 24, 0..500)
        ) {
            let mut streams = Streams::default();
            for block in blocks {
                // Never near the one before.
                let range = ByteRange::new(block * 64 * KIB, 4 * KIB);
                let again = streams.all.iter().any(|s| s.next.abs_diff(range.offset) <= 16 * KIB);
                if !again {
                    prop_assert_eq!(streams.note(range, false, MOST), None);
                }
            }
        }
    }
}

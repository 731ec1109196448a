//! Writes that the target has confirmed and not yet made durable.
//!
//! A target with a write cache may lose them together with the session that they were sent in: it
//! was restarted, or another one took its place. They are kept until a flush that came after them
//! has succeeded, and sent again in a new session before anything else is.

use std::collections::VecDeque;

use bytes::Bytes;
use volmux_core::ByteRange;

/// Data that is kept before a flush is begun, in bytes.
pub const FLUSH_FROM: usize = 32 << 20;
/// Data that is kept at most.
pub const MOST: usize = 64 << 20;
/// Requests that are kept at most, whatever they hold.
const MOST_ENTRIES: usize = 16_384;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// This was written at a byte offset.
    Written(u64, Bytes),
    /// This range was made zeros; whether its space was given back.
    Zeroed(ByteRange, bool),
}

impl Done {
    fn bytes(&self) -> usize {
        match self {
            Done::Written(_, data) => data.len(),
            Done::Zeroed(..) => 0,
        }
    }
}

/// The list of them, in the order in which they were confirmed.
///
/// Requests that overlap and are in flight together have no order, so that of their confirmations is
/// as good as any.
#[derive(Debug, Default)]
pub struct Unflushed {
    entries: VecDeque<Done>,
    /// Number of the first entry, counted since the volume was opened.
    first: u64,
    bytes: usize,
}

/// A point in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

impl Unflushed {
    /// Adds what was confirmed just now.
    pub fn add(&mut self, done: Done) {
        self.bytes += done.bytes();
        self.entries.push_back(done);
    }

    /// The end of the list, as it is now.
    pub fn end(&self) -> Mark {
        Mark(self.first + self.entries.len() as u64)
    }

    /// Drops everything before `mark`: it is durable.
    pub fn flushed(&mut self, mark: Mark) {
        while self.first < mark.0
            && let Some(done) = self.entries.pop_front()
        {
            self.bytes -= done.bytes();
            self.first += 1;
        }
    }

    /// All of it.
    pub fn entries(&self) -> Vec<Done> {
        self.entries.iter().cloned().collect()
    }

    /// Whether there is so much that a flush should begin.
    pub fn is_much(&self) -> bool {
        self.bytes >= FLUSH_FROM || self.entries.len() >= MOST_ENTRIES / 2
    }

    /// Whether there is so much that nothing may be added before a flush.
    pub fn is_full(&self) -> bool {
        self.bytes >= MOST || self.entries.len() >= MOST_ENTRIES
    }

    /// Whether all is durable.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_came_after_a_mark_is_kept(
            before in proptest::collection::vec(0usize..100, 0..40),
            after in proptest::collection::vec(0usize..100, 0..40),
        ) {
            let mut list = Unflushed::default();
            let written = |length: &usize| Done::Written(7, Bytes::from(vec![1; *length]));
            before.iter().map(written).for_each(|done| list.add(done));
            let mark = list.end();
            after.iter().map(written).for_each(|done| list.add(done));
            list.flushed(mark);
            let left: Vec<Done> = after.iter().map(written).collect();
            prop_assert_eq!(list.entries(), left);
            prop_assert_eq!(list.bytes, after.iter().sum::<usize>());
            list.flushed(mark);
            prop_assert_eq!(list.entries().len(), after.len(), "once only");
            list.flushed(list.end());
            prop_assert!(list.is_empty() && list.bytes == 0);
        }
    }

    #[test]
    fn there_is_a_limit_to_bytes_and_to_entries() {
        let mut list = Unflushed::default();
        list.add(Done::Written(0, Bytes::from(vec![0; FLUSH_FROM])));
        assert!(list.is_much() && !list.is_full());
        list.add(Done::Written(0, Bytes::from(vec![0; MOST - FLUSH_FROM])));
        assert!(list.is_full());
        list.flushed(list.end());
        for _ in 0..MOST_ENTRIES {
            assert!(!list.is_full());
            list.add(Done::Zeroed(ByteRange::new(0, 1), true));
        }
        assert!(list.is_full());
    }
}

//! Bytes as they come over a connection: in pieces, which are not joined unless they must be.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Bytes in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    /// Each with where it begins. None is empty.
    pieces: Vec<(usize, Bytes)>,
    length: usize,
}

impl Pieces {
    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Appends a piece.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            let start = self.length;
            self.length += piece.len();
            self.pieces.push((start, piece));
        }
    }

    /// Some of the bytes, copied only where they lie in several pieces; none where there are not
    /// so many.
    pub(crate) fn get(&self, range: Range<usize>) -> Option<Cow<'_, [u8]>> {
        if range.start > range.end || range.end > self.length {
            return None;
        }
        let first = self.pieces.partition_point(|(at, _)| *at <= range.start);
        let mut rest = self.pieces.get(first.saturating_sub(1)..)?.iter();
        let mut within = |wanted: &Range<usize>| {
            let (at, piece) = rest.next()?;
            piece.get(wanted.start - at..piece.len().min(wanted.end - at))
        };
        let Some(found) = within(&range) else {
            return Some(Cow::default());
        };
        if found.len() == range.len() {
            return Some(Cow::Borrowed(found));
        }
        let mut joined = Vec::with_capacity(range.len());
        joined.extend_from_slice(found);
        while joined.len() < range.len() {
            joined.extend_from_slice(within(&(range.start + joined.len()..range.end))?);
        }
        Some(Cow::Owned(joined))
    }

    /// All of it in one piece.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        if let [(_, only)] = &mut self.pieces[..] {
            return std::mem::take(only);
        }
        let mut joined = BytesMut::with_capacity(self.length);
        for (_, piece) in &self.pieces {
            joined.extend_from_slice(piece);
        }
        joined.freeze()
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        let mut pieces = Pieces::default();
        pieces.push(bytes);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lies_in_one_piece_is_not_copied() {
        let mut pieces = Pieces::from(Bytes::from_static(b"first"));
        pieces.push(Bytes::from_static(b"second"));
        assert!(matches!(pieces.get(0..5), Some(Cow::Borrowed(b"first"))));
        assert!(matches!(pieces.get(5..11), Some(Cow::Borrowed(b"second"))));
        assert!(matches!(pieces.get(4..6), Some(Cow::Owned(_))));
        let alone = Bytes::from(vec![1, 2, 3]);
        let address = alone.as_ptr();
        assert_eq!(Pieces::from(alone).into_bytes().as_ptr(), address);
    }

    proptest! {
        #[test]
        fn pieces_read_as_what_they_are_pieces_of(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9),
            from in 0..80_usize,
            length in 0..80_usize,
        ) {
            let whole = parts.concat();
            let mut pieces = Pieces::default();
            parts.into_iter().for_each(|part| pieces.push(part.into()));
            prop_assert_eq!(pieces.len(), whole.len());
            let range = from..from + length;
            let found = pieces.get(range.clone());
            prop_assert_eq!(found.as_deref(), whole.get(range));
            prop_assert_eq!(pieces.into_bytes(), whole);
        }
    }
}

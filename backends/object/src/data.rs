//! Data objects: blocks that were written together, and a header that says where they belong.

use bytes::Bytes;

use crate::codec::{Malformed, Reader, put_varint};
use crate::seal::Seal;

/// What one write, or some that follow one another, put into a data object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block of the volume.
    pub(crate) start: u64,
    pub(crate) blocks: u64,
    /// Whether the blocks became holes; otherwise their content is in the object, in the order of
    /// the extents.
    pub(crate) hole: bool,
}

/// The header of a data object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// In the order in which they were written: what is later wins.
    pub(crate) extents: Vec<Extent>,
}

/// Volumes end before this block: their size in bytes has to fit an `i64`.
pub(crate) const LAST_BLOCK: u64 = 1 << 51;

impl Header {
    /// Adds what was written or discarded.
    pub(crate) fn push(&mut self, start: u64, blocks: u64, hole: bool) {
        match self.extents.last_mut() {
            Some(last) if last.hole == hole && last.start + last.blocks == start => {
                last.blocks += blocks;
            }
            _ => self.extents.push(Extent {
                start,
                blocks,
                hole,
            }),
        }
    }

    /// Number of blocks whose content is in the object.
    pub(crate) fn stored(&self) -> u64 {
        let stored = self.extents.iter().filter(|extent| !extent.hole);
        stored.map(|extent| extent.blocks).sum()
    }

    /// As it is stored, before it is sealed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.extents.len() * 7);
        put_varint(&mut out, self.extents.len() as u64);
        for extent in &self.extents {
            put_varint(&mut out, extent.start);
            put_varint(&mut out, extent.blocks << 1 | u64::from(extent.hole));
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(crate) fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let header = Self::read(&mut reader)?;
        reader.end()?;
        Ok(header)
    }

    /// Reads it from the beginning of something longer.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = reader.count(2)?;
        let mut extents = Vec::with_capacity(count);
        let mut stored = 0u64;
        for _ in 0..count {
            let start = reader.varint()?;
            let both = reader.varint()?;
            let (blocks, hole) = (both >> 1, both & 1 == 1);
            let end = start.checked_add(blocks).filter(|end| *end <= LAST_BLOCK);
            if blocks == 0 || end.is_none() {
                return Err(Malformed("an extent can't be"));
            }
            if !hole {
                stored = stored.saturating_add(blocks);
            }
            extents.push(Extent {
                start,
                blocks,
                hole,
            });
        }
        if stored > u64::from(u32::MAX) {
            return Err(Malformed("it tells of more blocks than an object can hold"));
        }
        Ok(Header { extents })
    }
}

/// How long a data object's header is guessed to be when it is read; longer ones take a second
/// read. Some 2,000 extents fit.
pub(crate) const HEADER_GUESS: u64 = 16 << 10;

/// Strides that a header takes whose body has this length.
pub(crate) fn strides(body: usize, stride: usize) -> u16 {
    let strides = (Seal::HEAD + body).div_ceil(stride);
    // A header of 65,535 strides would tell of millions of extents.
    u16::try_from(strides).unwrap_or(u16::MAX)
}

/// What fills a header's envelope up to where the first block or frame begins.
pub(crate) fn filling(envelope: &Bytes, stride: usize) -> Bytes {
    vec![0; envelope.len().next_multiple_of(stride) - envelope.len()].into()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_follows_is_joined() {
        let mut header = Header::default();
        header.push(5, 1, false);
        header.push(6, 2, false);
        header.push(8, 1, true);
        header.push(8, 1, false);
        assert_eq!(header.extents.len(), 3);
        assert_eq!(header.stored(), 4);
    }

    proptest! {
        #[test]
        fn a_header_reads_back(
            extents in vec((0..LAST_BLOCK / 2, 1..1000u64, any::<bool>()), 0..50)
        ) {
            let mut header = Header::default();
            for (start, blocks, hole) in extents {
                header.push(start, blocks, hole);
            }
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn what_reads_as_a_header_is_written_the_same(bytes in vec(0..6u8, 0..60)) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}

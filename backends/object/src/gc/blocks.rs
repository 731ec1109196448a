//! Sets of an object's blocks.

use std::ops::Range;

/// So many ranges take as much room as a bit for each block of a usual object.
const RANGES: usize = 32;
/// No object has so many blocks: they would be 256 MiB. It is only a page that says so.
const MOST: u64 = 1 << 16;

/// Some of an object's blocks. Small where they lie together, and never larger than 8 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Blocks {
    /// In order, with gaps between them.
    Ranges(Vec<Range<u32>>),
    /// A bit for each block.
    Bits(Vec<u64>),
    /// More than an object can have.
    All,
}

impl Default for Blocks {
    fn default() -> Self {
        Blocks::Ranges(Vec::new())
    }
}

impl Blocks {
    /// Adds blocks, which may be in it already.
    pub fn add(&mut self, start: u32, blocks: u64) {
        let end = u64::from(start) + blocks;
        if end > MOST {
            *self = Blocks::All;
        }
        let end = end as u32;
        match self {
            Blocks::All => {}
            Blocks::Bits(bits) => set(bits, start..end),
            Blocks::Ranges(ranges) => {
                // Those that the new one touches become one with it.
                let from = ranges.partition_point(|range| range.end < start);
                let to = ranges.partition_point(|range| range.start <= end);
                let touched = &ranges[from..to];
                let start = touched
                    .first()
                    .map_or(start, |range| range.start.min(start));
                let end = touched.last().map_or(end, |range| range.end.max(end));
                ranges.splice(from..to, std::iter::once(start..end));
                if ranges.len() > RANGES {
                    let mut bits = Vec::new();
                    for range in ranges.drain(..) {
                        set(&mut bits, range);
                    }
                    *self = Blocks::Bits(bits);
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Blocks::Ranges(ranges) if ranges.is_empty())
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        match self {
            Blocks::Ranges(ranges) => ranges.iter().map(|range| range.len() as u64).sum(),
            Blocks::Bits(bits) => bits.iter().map(|word| u64::from(word.count_ones())).sum(),
            Blocks::All => u64::MAX,
        }
    }

    /// They as ranges, in order, with gaps between them; none where they can't be told.
    pub fn ranges(&self) -> Vec<Range<u32>> {
        let bits = match self {
            Blocks::Ranges(ranges) => return ranges.clone(),
            Blocks::Bits(bits) => bits,
            Blocks::All => return Vec::new(),
        };
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for at in 0..bits.len() as u32 * 64 {
            if bits[at as usize / 64] >> (at % 64) & 1 == 1 {
                match ranges.last_mut() {
                    Some(last) if last.end == at => last.end += 1,
                    _ => ranges.push(at..at + 1),
                }
            }
        }
        ranges
    }
}

fn set(bits: &mut Vec<u64>, range: Range<u32>) {
    let words = range.end.div_ceil(64) as usize;
    if bits.len() < words {
        bits.resize(words, 0);
    }
    for at in range {
        bits[at as usize / 64] |= 1 << (at % 64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_holds_what_was_added(
            adds in prop::collection::vec((0..2000u32, 1..40u64), 0..200),
        ) {
            let (mut blocks, mut model) = (Blocks::default(), BTreeSet::new());
            for (start, count) in adds {
                blocks.add(start, count);
                model.extend(start..start + count as u32);
                prop_assert_eq!(blocks.len(), model.len() as u64);
            }
            let ranges = blocks.ranges();
            prop_assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
            let listed: Vec<u32> = ranges.into_iter().flatten().collect();
            prop_assert_eq!(listed, model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(blocks.is_empty(), model.is_empty());
        }
    }

    #[test]
    fn an_absurd_number_takes_no_memory() {
        let mut blocks = Blocks::default();
        blocks.add(u32::MAX, 1);
        assert_eq!(blocks, Blocks::All);
        blocks.add(0, 5);
        assert_eq!((blocks.len(), blocks.ranges()), (u64::MAX, Vec::new()));
        assert!(!blocks.is_empty());
    }
}

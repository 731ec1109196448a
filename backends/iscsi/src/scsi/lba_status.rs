//! Which blocks are backed by storage: GET LBA STATUS (SBC-3 5.6).

use super::wire::{Malformed, at_least, be32, be64, body};

/// Whether storage is behind a block (SBC-3 4.7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// It is mapped, or the target does not know: it may hold anything.
    Mapped,
    /// It is not backed. It reads as zeros if the unit's LBPRZ says so.
    Deallocated,
    /// It is not backed, but storage is reserved for it. It reads like a deallocated one.
    Anchored,
}

/// Blocks in a row of the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LbaStatus {
    /// The first block.
    pub lba: u64,
    /// How many; at least 1.
    pub blocks: u64,
    /// Their state.
    pub state: BlockState,
}

/// Reads the reply to a question about `lba` and the blocks behind it, on a unit of `end` blocks.
/// The ranges are without gaps, begin at `lba` and don't go beyond `end`; what the target tells
/// behind a gap is left out, so there may be more to ask for.
///
/// # Errors
/// If it does not begin with a range that holds `lba`: no state may be made up for a block.
pub fn parse_lba_status(bytes: &[u8], lba: u64, end: u64) -> Result<Vec<LbaStatus>, Malformed> {
    let bytes = at_least(bytes, 8, "the status of blocks")?;
    // It counts what follows its own four bytes; descriptors begin behind another four.
    let told = usize::try_from(be32(bytes, 0).unwrap_or(0)).unwrap_or(usize::MAX);
    let list = body(bytes, 8, told.saturating_sub(4));
    let mut ranges: Vec<LbaStatus> = Vec::new();
    let mut next = lba;
    for descriptor in list.chunks_exact(16) {
        let first = be64(descriptor, 0).unwrap_or(0);
        let blocks = u64::from(be32(descriptor, 8).unwrap_or(0));
        let past = first.saturating_add(blocks).min(end);
        // The first range may begin before what was asked for. tgt wraps lengths at 2^32 blocks:
        // what it tells then is too short, with a gap behind.
        let follows = match ranges.is_empty() {
            true => first <= lba,
            false => first == next,
        };
        if !follows || past <= next {
            break;
        }
        // SBC-4 adds "mapped or unknown" and "unknown", which are no promise either.
        let state = match descriptor[12] & 0x0f {
            1 => BlockState::Deallocated,
            2 => BlockState::Anchored,
            _ => BlockState::Mapped,
        };
        match ranges.last_mut().filter(|last| last.state == state) {
            Some(last) => last.blocks += past - next,
            None => ranges.push(LbaStatus {
                lba: next,
                blocks: past - next,
                state,
            }),
        }
        next = past;
    }
    match ranges.is_empty() {
        true => Err(Malformed(format!("the status of block {lba} is not told"))),
        false => Ok(ranges),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(ranges: &[(u64, u32, u8)]) -> Vec<u8> {
        let length = 4 + 16 * ranges.len() as u32;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([0; 4]);
        for (lba, blocks, state) in ranges {
            bytes.extend(lba.to_be_bytes());
            bytes.extend(blocks.to_be_bytes());
            bytes.extend([*state, 0, 0, 0]);
        }
        bytes
    }

    fn range(lba: u64, blocks: u64, state: BlockState) -> LbaStatus {
        LbaStatus { lba, blocks, state }
    }

    #[test]
    fn ranges_are_clipped_and_joined() {
        use BlockState::{Anchored, Deallocated, Mapped};
        let bytes = build(&[
            (0, 8, 0),
            (8, 8, 1),
            (16, 8, 2),
            (24, 8, 0),
            (32, 8, 3),
            (40, 99, 4),
        ]);
        let expected = [
            range(4, 4, Mapped),
            range(8, 8, Deallocated),
            range(16, 8, Anchored),
            range(24, 40, Mapped),
        ];
        assert_eq!(parse_lba_status(&bytes, 4, 64).expect("ranges"), expected);
    }

    #[test]
    fn nothing_is_told_of_blocks_that_the_target_does_not_name() {
        use BlockState::Mapped;
        let gap = build(&[(0, 4, 0), (8, 4, 1)]);
        assert_eq!(
            parse_lba_status(&gap, 0, 64).expect("ranges"),
            [range(0, 4, Mapped)]
        );
        let overlap = build(&[(0, 4, 0), (3, 4, 1)]);
        assert_eq!(
            parse_lba_status(&overlap, 0, 64).expect("ranges"),
            [range(0, 4, Mapped)]
        );
        let zero = build(&[(0, 0, 0), (0, 4, 1)]);
        assert!(parse_lba_status(&zero, 0, 64).is_err());
        let later = build(&[(5, 4, 1)]);
        assert!(parse_lba_status(&later, 4, 64).is_err());
        let before = build(&[(0, 4, 1)]);
        assert!(parse_lba_status(&before, 4, 64).is_err());
        assert!(parse_lba_status(&build(&[(0, 9, 1)]), 64, 64).is_err());
        assert!(parse_lba_status(&build(&[]), 0, 64).is_err());
        assert!(parse_lba_status(&[0; 7], 0, 64).is_err());
        let mut short = build(&[(0, 4, 0), (4, 4, 1)]);
        short[3] = 4 + 16;
        assert_eq!(
            parse_lba_status(&short, 0, 64).expect("ranges"),
            [range(0, 4, Mapped)]
        );
        short[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(parse_lba_status(&short, 0, 64).expect("ranges").len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), lba: u64, end: u64,
        ) {
            if let Ok(ranges) = parse_lba_status(&bytes, lba, end) {
                prop_assert!(ranges.len() <= bytes.len() / 16);
                prop_assert_eq!(ranges[0].lba, lba);
                for pair in ranges.windows(2) {
                    prop_assert_eq!(pair[0].lba + pair[0].blocks, pair[1].lba);
                    prop_assert!(pair[0].state != pair[1].state);
                }
                let last = ranges[ranges.len() - 1];
                prop_assert!(ranges.iter().all(|range| range.blocks > 0));
                prop_assert!(last.lba + last.blocks <= end);
            }
        }

        #[test]
        fn what_is_built_is_read(
            lengths in proptest::collection::vec((1_u32.., 0_u8..3), 1..20),
            start in 0_u64..1 << 50,
        ) {
            let mut next = start;
            let ranges: Vec<_> = lengths.iter().map(|(blocks, state)| {
                let range = (next, *blocks, *state);
                next += u64::from(*blocks);
                range
            }).collect();
            let read = parse_lba_status(&build(&ranges), start, u64::MAX).expect("ranges");
            prop_assert_eq!(read.iter().map(|range| range.blocks).sum::<u64>(), next - start);
            for (lba, blocks, state) in ranges {
                let one = read.iter().find(|r| r.lba <= lba && lba < r.lba + r.blocks).expect("it");
                prop_assert!(lba + u64::from(blocks) <= one.lba + one.blocks);
                prop_assert_eq!(one.state as u8, state);
            }
        }
    }
}

//! Which blocks are to be deallocated: the parameter list of UNMAP (SBC-3 5.31.2).

use bytes::Bytes;

use super::pieces::{Cut, Piece};

/// Ranges that the length field of the list, and of the command, have room for.
pub(crate) const MOST_RANGES: u32 = (u16::MAX as u32 - 8) / 16;

/// The list of these ranges, of which there are at most [`MOST_RANGES`].
pub(crate) fn parameter_list(ranges: &[Piece]) -> Bytes {
    let descriptors = 16 * ranges.len() as u16;
    let mut list = Vec::with_capacity(8 + usize::from(descriptors));
    list.extend((descriptors + 6).to_be_bytes());
    list.extend(descriptors.to_be_bytes());
    list.extend([0; 4]);
    for range in ranges {
        list.extend(range.lba.to_be_bytes());
        list.extend(range.blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list.into()
}

/// The ranges for one command each: at most `most_ranges` of them, and `cut.most` blocks together.
/// No range may overflow; those of no blocks are left out.
pub(crate) fn commands(ranges: &[(u64, u64)], cut: Cut, most_ranges: u32) -> Vec<Vec<Piece>> {
    let most_ranges = most_ranges.clamp(1, MOST_RANGES) as usize;
    let mut commands: Vec<Vec<Piece>> = Vec::new();
    let mut blocks = 0;
    let pieces = ranges
        .iter()
        .flat_map(|(lba, blocks)| cut.pieces(*lba, *blocks));
    for piece in pieces {
        let together = u64::from(piece.blocks) + blocks;
        match commands.last_mut() {
            Some(last) if last.len() < most_ranges && together <= cut.most.into() => {
                last.push(piece);
                blocks = together;
            }
            _ => {
                commands.push(vec![piece]);
                blocks = piece.blocks.into();
            }
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_has_its_lengths_in_front() {
        let ranges = [
            Piece {
                lba: 0x0102_0304_0506_0708,
                blocks: 0x090a_0b0c,
            },
            Piece { lba: 1, blocks: 2 },
        ];
        let list = parameter_list(&ranges);
        assert_eq!(list[..8], [0, 38, 0, 32, 0, 0, 0, 0]);
        assert_eq!(
            list[8..24],
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0]
        );
        assert_eq!(list[24..], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]);
        let most = vec![ranges[1]; MOST_RANGES as usize];
        let list = parameter_list(&most);
        assert_eq!(list.len(), 8 + 16 * 4095);
        assert_eq!(u16::from_be_bytes([list[0], list[1]]), 65526);
    }

    proptest! {
        #[test]
        fn commands_hold_every_block_once_and_keep_the_limits(
            ranges in proptest::collection::vec((0..1_u64 << 60, 0_u64..300), 0..20),
            most in 1_u32..200, step in 1_u32..20, from in 0_u32..20, most_ranges in 0_u32..9,
        ) {
            let commands = commands(&ranges, Cut { most, step, from }, most_ranges);
            let mut pieces: Vec<&Piece> = Vec::new();
            for command in &commands {
                prop_assert!(!command.is_empty());
                prop_assert!(command.len() <= most_ranges.max(1) as usize);
                let blocks: u64 = command.iter().map(|piece| u64::from(piece.blocks)).sum();
                prop_assert!(blocks <= most.into());
                pieces.extend(command);
            }
            let mut pieces = pieces.into_iter();
            for (lba, blocks) in ranges {
                let mut next = lba;
                while next < lba + blocks {
                    let piece = pieces.next().expect("a piece");
                    prop_assert_eq!(piece.lba, next);
                    next += u64::from(piece.blocks);
                }
                prop_assert_eq!(next, lba + blocks);
            }
            prop_assert!(pieces.next().is_none());
        }
    }
}

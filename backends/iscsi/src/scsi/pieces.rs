//! How a request becomes commands that the target takes.

/// Blocks in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub lba: u64,
    pub blocks: u32,
}

/// How long pieces may be, and where they are best cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Most blocks of a piece; at least 1.
    pub most: u32,
    /// Pieces end at multiples of so many blocks, if one does within `most`; at least 1.
    pub step: u32,
    /// The first block from which `step` counts.
    pub from: u32,
}

impl Cut {
    /// The range in pieces, in order, without gaps. `lba + blocks` must not overflow.
    pub fn pieces(self, lba: u64, blocks: u64) -> impl Iterator<Item = Piece> {
        let (most, step) = (u64::from(self.most.max(1)), u64::from(self.step.max(1)));
        let offset = u64::from(self.from) % step;
        let end = lba + blocks;
        let mut next = lba;
        std::iter::from_fn(move || {
            if next >= end {
                return None;
            }
            let mut past = end.min(next.saturating_add(most));
            if past < end {
                // The last place to cut that is not behind `past`.
                let over = (past + step - offset) % step;
                if past - next > over {
                    past -= over;
                }
            }
            let piece = Piece {
                lba: next,
                // It is not more than `most`.
                blocks: (past - next) as u32,
            };
            next = past;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(most: u32, step: u32, from: u32, lba: u64, blocks: u64) -> Vec<(u64, u32)> {
        let pieces = Cut { most, step, from }.pieces(lba, blocks);
        pieces.map(|piece| (piece.lba, piece.blocks)).collect()
    }

    #[test]
    fn pieces_end_where_physical_blocks_do() {
        assert_eq!(cut(20, 8, 0, 3, 50), [(3, 13), (16, 16), (32, 16), (48, 5)]);
        assert_eq!(cut(20, 8, 7, 0, 40), [(0, 15), (15, 16), (31, 9)]);
        assert_eq!(cut(20, 8, 0, 3, 20), [(3, 20)]);
        assert_eq!(cut(5, 8, 0, 0, 12), [(0, 5), (5, 3), (8, 4)]);
        assert_eq!(cut(5, 8, 0, 0, 0), []);
    }

    proptest! {
        #[test]
        fn pieces_are_the_range_exactly(
            most in 1_u32..100, step in 0_u32..40, from: u32, lba in 0..u64::MAX - 2000,
            blocks in 0_u64..2000,
        ) {
            let mut next = lba;
            for piece in (Cut { most, step, from }).pieces(lba, blocks) {
                prop_assert_eq!(piece.lba, next);
                prop_assert!(piece.blocks >= 1 && piece.blocks <= most);
                next += u64::from(piece.blocks);
            }
            prop_assert_eq!(next, lba + blocks);
        }
    }
}

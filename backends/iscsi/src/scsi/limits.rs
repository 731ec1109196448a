//! How much a command may ask of a logical unit: pages B0h and B1h of vital product data.

use super::inquiry::page;
use super::wire::{Malformed, be16, be32, be64};

/// Block limits, page B0h (SBC-3 6.6.4). 0 is what the standard makes of it: not reported, or for
/// UNMAP and COMPARE AND WRITE not supported. What a short page lacks is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockLimits {
    /// WSNZ: WRITE SAME of no blocks does not mean all of them, but is refused.
    pub write_same_non_zero: bool,
    /// Most blocks of one COMPARE AND WRITE.
    pub max_compare_and_write: u8,
    /// Transfers of a multiple of so many blocks cause no delay.
    pub optimal_granularity: u16,
    /// Most blocks of one read or write.
    pub max_transfer: u32,
    /// Reads and writes longer than so many blocks may be slower.
    pub optimal_transfer: u32,
    /// Most blocks of one UNMAP, all ranges together; `u32::MAX` is no limit.
    pub max_unmap_blocks: u32,
    /// Most ranges of one UNMAP; `u32::MAX` is no limit.
    pub max_unmap_ranges: u32,
    /// Blocks are deallocated in groups of so many.
    pub unmap_granularity: u32,
    /// The first block of the first whole group, if it is told.
    pub unmap_alignment: Option<u32>,
    /// Most blocks of one WRITE SAME.
    pub max_write_same: u64,
}

impl BlockLimits {
    /// Reads the reply to INQUIRY.
    ///
    /// # Errors
    /// If it is not that page.
    pub fn parse(bytes: &[u8]) -> Result<BlockLimits, Malformed> {
        // Offsets as in the standard, which counts the header.
        let length = 4 + page(bytes, 0xb0)?.len();
        let bytes = &bytes[..length];
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let four = |at: usize| be32(bytes, at).unwrap_or(0);
        let alignment = four(32);
        let valid = alignment & 0x8000_0000 != 0;
        Ok(BlockLimits {
            write_same_non_zero: byte(4) & 1 != 0,
            max_compare_and_write: byte(5),
            optimal_granularity: be16(bytes, 6).unwrap_or(0),
            max_transfer: four(8),
            optimal_transfer: four(12),
            max_unmap_blocks: four(20),
            max_unmap_ranges: four(24),
            unmap_granularity: four(28),
            unmap_alignment: Some(alignment & 0x7fff_ffff).filter(|_| valid),
            max_write_same: be64(bytes, 36).unwrap_or(0),
        })
    }
}

/// What the medium is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rotation {
    /// It is not told.
    #[default]
    Unknown,
    /// It does not rotate.
    None,
    /// So many rotations a minute.
    PerMinute(u16),
}

/// Block device characteristics, page B1h (SBC-3 6.6.2): how fast the medium rotates.
///
/// # Errors
/// If it is not that page.
pub fn parse_rotation(bytes: &[u8]) -> Result<Rotation, Malformed> {
    Ok(match be16(page(bytes, 0xb1)?, 0) {
        Some(1) => Rotation::None,
        Some(rate @ 0x0401..=0xfffe) => Rotation::PerMinute(rate),
        _ => Rotation::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(limits: &BlockLimits) -> Vec<u8> {
        let mut bytes = vec![0, 0xb0, 0, 0x3c];
        bytes.extend([
            u8::from(limits.write_same_non_zero),
            limits.max_compare_and_write,
        ]);
        bytes.extend(limits.optimal_granularity.to_be_bytes());
        let alignment = limits.unmap_alignment.map_or(0, |at| at | 0x8000_0000);
        for number in [
            limits.max_transfer,
            limits.optimal_transfer,
            99,
            limits.max_unmap_blocks,
            limits.max_unmap_ranges,
            limits.unmap_granularity,
            alignment,
        ] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(limits.max_write_same.to_be_bytes());
        bytes.resize(64, 0);
        bytes
    }

    #[test]
    fn a_short_page_of_older_devices_is_read() {
        let limits = BlockLimits {
            optimal_granularity: 8,
            max_transfer: 0x1234,
            max_unmap_blocks: 7,
            ..BlockLimits::default()
        };
        let mut bytes = build(&limits);
        bytes[3] = 0x0c;
        let read = BlockLimits::parse(&bytes).expect("that page");
        assert_eq!(
            read,
            BlockLimits {
                max_unmap_blocks: 0,
                ..limits
            }
        );
        assert!(BlockLimits::parse(&[0, 0xb1, 0, 0]).is_err());
        assert!(BlockLimits::parse(&[]).is_err());
    }

    #[test]
    fn rotation_is_read() {
        let of = |rate: u16| {
            let [high, low] = rate.to_be_bytes();
            parse_rotation(&[0, 0xb1, 0, 2, high, low])
        };
        assert_eq!(of(0), Ok(Rotation::Unknown));
        assert_eq!(of(1), Ok(Rotation::None));
        assert_eq!(of(7200), Ok(Rotation::PerMinute(7200)));
        assert_eq!(of(0xffff), Ok(Rotation::Unknown));
        assert_eq!(parse_rotation(&[0, 0xb1, 0, 60, 1]), Ok(Rotation::Unknown));
        assert!(parse_rotation(&[0, 0xb0, 0, 2, 0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = BlockLimits::parse(&bytes);
            let _ = parse_rotation(&bytes);
        }

        #[test]
        fn what_is_built_is_read(
            (write_same_non_zero, max_compare_and_write, optimal_granularity, max_transfer)
                in any::<(bool, u8, u16, u32)>(),
            (optimal_transfer, max_unmap_blocks, max_unmap_ranges, unmap_granularity)
                in any::<(u32, u32, u32, u32)>(),
            unmap_alignment in proptest::option::of(0_u32..0x8000_0000),
            max_write_same: u64,
        ) {
            let limits = BlockLimits {
                write_same_non_zero, max_compare_and_write, optimal_granularity, max_transfer,
                optimal_transfer, max_unmap_blocks, max_unmap_ranges, unmap_granularity,
                unmap_alignment, max_write_same,
            };
            prop_assert_eq!(BlockLimits::parse(&build(&limits)), Ok(limits));
        }
    }
}

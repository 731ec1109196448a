//! How large a logical unit is: READ CAPACITY (SBC-3 5.15, 5.16).

use super::wire::{Malformed, at_least, be16, be32, be64};

/// The size of a logical unit and of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Number of blocks; at least 1, and in bytes less than 2^63.
    pub blocks: u64,
    /// Bytes a block: a power of 2, 512 to 65536.
    pub block_size: u32,
    /// Blocks in a physical block, as a power of 2 (0 to 15); 0 also if it is not told.
    pub physical_exponent: u8,
    /// The first block that begins a physical block.
    pub lowest_aligned: u16,
    /// LBPME: space is managed, by UNMAP or WRITE SAME.
    pub provisioned: bool,
    /// LBPRZ: what is unmapped reads as zeros.
    pub reads_zeros: bool,
}

impl Capacity {
    /// Reads the reply to READ CAPACITY(16). Of older devices only 12 bytes come.
    ///
    /// # Errors
    /// With less than 12 bytes, or a size that this library can't work with.
    pub fn parse_16(bytes: &[u8]) -> Result<Capacity, Malformed> {
        let bytes = at_least(bytes, 12, "the capacity")?;
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let last = be64(bytes, 0).unwrap_or(0);
        let capacity = Capacity {
            blocks: last.saturating_add(1),
            block_size: be32(bytes, 8).unwrap_or(0),
            physical_exponent: byte(13) & 0x0f,
            lowest_aligned: be16(bytes, 14).unwrap_or(0) & 0x3fff,
            provisioned: byte(14) & 0x80 != 0,
            reads_zeros: byte(14) & 0x40 != 0,
        };
        capacity.check()
    }

    /// Reads the reply to READ CAPACITY(10).
    ///
    /// # Errors
    /// With less than 8 bytes, or a size that this library can't work with; also where there are
    /// more blocks than READ CAPACITY(10) can tell.
    pub fn parse_10(bytes: &[u8]) -> Result<Capacity, Malformed> {
        let bytes = at_least(bytes, 8, "the capacity")?;
        let last = be32(bytes, 0).unwrap_or(0);
        if last == u32::MAX {
            let reason = "more blocks than READ CAPACITY(10) can tell";
            return Err(Malformed(reason.into()));
        }
        let capacity = Capacity {
            blocks: u64::from(last) + 1,
            block_size: be32(bytes, 4).unwrap_or(0),
            physical_exponent: 0,
            lowest_aligned: 0,
            provisioned: false,
            reads_zeros: false,
        };
        capacity.check()
    }

    fn check(self) -> Result<Capacity, Malformed> {
        let Capacity {
            blocks, block_size, ..
        } = self;
        if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
            let reason = format!("blocks of {block_size} bytes; 512 to 65536 can be worked with");
            return Err(Malformed(reason));
        }
        let bytes = blocks.checked_mul(block_size.into());
        match bytes.is_some_and(|bytes| i64::try_from(bytes).is_ok()) {
            true => Ok(self),
            false => {
                let reason = format!("{blocks} blocks of {block_size} bytes are too much");
                Err(Malformed(reason))
            }
        }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        // It was checked.
        self.blocks * u64::from(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(capacity: &Capacity) -> Vec<u8> {
        let mut bytes = (capacity.blocks - 1).to_be_bytes().to_vec();
        bytes.extend(capacity.block_size.to_be_bytes());
        bytes.extend([0, capacity.physical_exponent]);
        let flags = u16::from(capacity.provisioned) << 15 | u16::from(capacity.reads_zeros) << 14;
        bytes.extend((flags | capacity.lowest_aligned).to_be_bytes());
        bytes.resize(32, 0);
        bytes
    }

    fn of(last: u64, block: u32) -> Vec<u8> {
        [&last.to_be_bytes()[..], &block.to_be_bytes()].concat()
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for (last, block) in [
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (i64::MAX as u64 / 512, 512),
            (0, 0),
            (0, 511),
            (0, 520),
            (0, 256),
            (0, 131_072),
        ] {
            assert!(
                Capacity::parse_16(&of(last, block)).is_err(),
                "{last} {block}"
            );
        }
        let most = Capacity::parse_16(&of(i64::MAX as u64 / 512 - 1, 512)).expect("just fits");
        assert_eq!(most.bytes(), (i64::MAX as u64) / 512 * 512);
        assert!(Capacity::parse_16(&of(1, 512)[..11]).is_err());
        assert_eq!(
            Capacity::parse_16(&of(0, 4096)).expect("one block").bytes(),
            4096
        );
    }

    #[test]
    fn the_short_form_has_an_end() {
        let short = |last: u32| [last.to_be_bytes(), 512_u32.to_be_bytes()].concat();
        assert_eq!(
            Capacity::parse_10(&short(7)).expect("8 blocks").bytes(),
            4096
        );
        assert!(Capacity::parse_10(&short(u32::MAX)).is_err());
        assert!(Capacity::parse_10(&short(7)[..7]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let parsed = [Capacity::parse_16(&bytes), Capacity::parse_10(&bytes)];
            for capacity in parsed.into_iter().flatten() {
                prop_assert!(capacity.bytes() >= 512);
            }
        }

        #[test]
        fn what_is_built_is_read(
            blocks in 1_u64..1 << 40, shift in 9_u32..17, physical_exponent in 0_u8..16,
            lowest_aligned in 0_u16..0x4000, provisioned: bool, reads_zeros: bool,
        ) {
            let capacity = Capacity {
                blocks, block_size: 1 << shift, physical_exponent, lowest_aligned, provisioned,
                reads_zeros,
            };
            prop_assert_eq!(Capacity::parse_16(&build(&capacity)), Ok(capacity));
        }
    }
}

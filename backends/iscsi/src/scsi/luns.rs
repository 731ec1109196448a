//! Which logical units a target has: REPORT LUNS (SPC-4 6.33, SAM-5 4.7).

use super::wire::{Malformed, at_least, be16, be32, be64, body};

/// The highest number that single-level addressing has.
const LAST: u64 = 0x3fff;

/// The logical units of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Luns {
    /// Their numbers, 0 to 16383, in order and each once: those with peripheral or flat addressing.
    pub numbers: Vec<u64>,
    /// How many others there are, which this library can't address.
    pub others: usize,
    /// How many bytes the whole list has, with its header. If that is more than came, ask again
    /// with room for so many.
    pub needed: u64,
}

impl Luns {
    /// Reads the reply. At most 16384 numbers come of it, however long it is.
    ///
    /// # Errors
    /// With less than eight bytes.
    pub fn parse(bytes: &[u8]) -> Result<Luns, Malformed> {
        let bytes = at_least(bytes, 8, "the list of logical units")?;
        let length = be32(bytes, 0).unwrap_or(0);
        let list = body(bytes, 8, usize::try_from(length).unwrap_or(usize::MAX));
        let mut luns = Luns {
            needed: 8 + u64::from(length),
            ..Luns::default()
        };
        for entry in list.chunks_exact(8) {
            match number(entry) {
                Some(number) => luns.numbers.push(number.into()),
                None => luns.others += 1,
            }
        }
        luns.numbers.sort_unstable();
        luns.numbers.dedup();
        Ok(luns)
    }
}

/// The number in an entry of the list: peripheral addressing on bus 0, or flat.
fn number(entry: &[u8]) -> Option<u16> {
    let first = be16(entry, 0)?;
    let single_level = be64(entry, 0)? << 16 == 0;
    match first >> 14 {
        0 if first < 0x100 && single_level => Some(first),
        1 if single_level => Some(first & LAST as u16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(entries: &[[u8; 8]]) -> Vec<u8> {
        let mut bytes = (8 * entries.len() as u32).to_be_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(entries.as_flattened());
        bytes
    }

    fn entry(high: u8, low: u8) -> [u8; 8] {
        [high, low, 0, 0, 0, 0, 0, 0]
    }

    #[test]
    fn both_ways_of_addressing_are_read() {
        let nested = [0, 3, 0, 1, 0, 0, 0, 0];
        let bytes = build(&[
            entry(0x41, 0),
            entry(0, 1),
            entry(0, 0),
            entry(0x40, 1),
            entry(0x7f, 0xff),
            entry(1, 0),
            entry(0xc1, 1),
            nested,
        ]);
        let luns = Luns::parse(&bytes).expect("a list");
        assert_eq!(luns.numbers, [0, 1, 0x100, 0x3fff]);
        assert_eq!((luns.others, luns.needed), (3, bytes.len() as u64));
    }

    #[test]
    fn lengths_that_lie_do_no_harm() {
        let mut bytes = build(&[entry(0, 1), entry(0, 2)]);
        bytes[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        let luns = Luns::parse(&bytes[..20]).expect("a list");
        assert_eq!(
            (luns.numbers, luns.needed),
            (vec![1], 8 + u64::from(u32::MAX))
        );
        bytes[..4].copy_from_slice(&8_u32.to_be_bytes());
        assert_eq!(Luns::parse(&bytes).expect("a list").numbers, [1]);
        assert!(Luns::parse(&bytes[..7]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(luns) = Luns::parse(&bytes) {
                prop_assert!(luns.numbers.len() + luns.others <= bytes.len() / 8);
                prop_assert!(luns.numbers.is_sorted());
            }
        }

        #[test]
        fn what_is_built_is_read(numbers in proptest::collection::btree_set(0_u64..=LAST, 0..50)) {
            let entries: Vec<[u8; 8]> = numbers.iter().map(|number| {
                let [high, low] = (*number as u16).to_be_bytes();
                entry(if *number > 255 { high | 0x40 } else { high }, low)
            }).collect();
            let luns = Luns::parse(&build(&entries)).expect("a list");
            prop_assert_eq!(luns.numbers, numbers.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(luns.others, 0);
        }
    }
}

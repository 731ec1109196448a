//! Sense data (SPC-4 4.5): why a command was not done.

use std::fmt;

use super::wire::{be32, be64, body};
use super::words;

/// Sense keys (SPC-4 table 43) that are acted upon.
pub(crate) mod key {
    pub const RECOVERED_ERROR: u8 = 0x1;
    pub const NOT_READY: u8 = 0x2;
    pub const MEDIUM_ERROR: u8 = 0x3;
    pub const HARDWARE_ERROR: u8 = 0x4;
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const ABORTED_COMMAND: u8 = 0xb;
    pub const MISCOMPARE: u8 = 0xe;
}

/// What sense data say. Whatever was cut off is 0 or `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sense {
    /// It is about an earlier command, which had been answered with GOOD (SPC-4 4.5.5); the command
    /// that it comes with was not done.
    pub deferred: bool,
    /// Sense key, 0 to 15.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
    /// INFORMATION: for a block device the first block that failed, or how far a comparison came.
    pub information: Option<u64>,
}

impl Sense {
    /// Reads sense data in fixed or descriptor format. `None` for anything else, and for what was
    /// cut before the sense key.
    pub fn parse(bytes: &[u8]) -> Option<Sense> {
        let code = bytes.first()? & 0x7f;
        let deferred = code & 1 == 1;
        match code {
            0x70 | 0x71 => fixed(bytes, deferred),
            0x72 | 0x73 => by_descriptors(bytes, deferred),
            _ => None,
        }
    }

    /// Additional sense code and qualifier in one number, as the tables write them: `0x2a09`.
    pub fn code(&self) -> u16 {
        u16::from_be_bytes([self.asc, self.ascq])
    }
}

/// SPC-4 4.5.3.
fn fixed(bytes: &[u8], deferred: bool) -> Option<Sense> {
    let key = bytes.get(2)? & 0x0f;
    // How many of the bytes behind the eighth mean something. Cut sense data may lack even that.
    let length = bytes.get(7).copied().unwrap_or(0);
    let more = body(bytes, 8, length.into());
    let valid = bytes[0] & 0x80 != 0;
    let information = be32(bytes, 3).filter(|_| valid).map(u64::from);
    Some(Sense {
        deferred,
        key,
        asc: more.get(4).copied().unwrap_or(0),
        ascq: more.get(5).copied().unwrap_or(0),
        information,
    })
}

/// SPC-4 4.5.2.
fn by_descriptors(bytes: &[u8], deferred: bool) -> Option<Sense> {
    let mut sense = Sense {
        deferred,
        key: bytes.get(1)? & 0x0f,
        asc: bytes.get(2).copied().unwrap_or(0),
        ascq: bytes.get(3).copied().unwrap_or(0),
        information: None,
    };
    let length = bytes.get(7).copied().unwrap_or(0);
    let mut rest = body(bytes, 8, length.into());
    while let [kind, length, ..] = rest {
        let (descriptor, after) = rest.split_at(rest.len().min(2 + usize::from(*length)));
        // Type 0, 12 bytes, VALID.
        if *kind == 0 && *length == 0x0a && descriptor.get(2).is_some_and(|b| b & 0x80 != 0) {
            sense.information = sense.information.or(be64(descriptor, 4));
        }
        rest = after;
    }
    Some(sense)
}

impl fmt::Display for Sense {
    /// In words, with the numbers behind: `medium error, unrecovered read error (03/11/00)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.deferred {
            f.write_str("of an earlier command: ")?;
        }
        f.write_str(words::of_key(self.key))?;
        if let Some(words) = words::of_code(self.asc, self.ascq) {
            write!(f, ", {words}")?;
        }
        let Sense { key, asc, ascq, .. } = self;
        write!(f, " ({key:02x}/{asc:02x}/{ascq:02x})")?;
        match self.information {
            Some(information) => write!(f, ", information {information:#x}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fixed_bytes(sense: &Sense) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70 | u8::from(sense.deferred);
        bytes[2] = sense.key;
        if let Some(information) = sense.information {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&(information as u32).to_be_bytes());
        }
        bytes[7] = 10;
        (bytes[12], bytes[13]) = (sense.asc, sense.ascq);
        bytes
    }

    fn descriptor_bytes(sense: &Sense) -> Vec<u8> {
        let mut bytes = vec![
            0x72 | u8::from(sense.deferred),
            sense.key,
            sense.asc,
            sense.ascq,
        ];
        // A descriptor of another type comes first: sense key specific.
        bytes.extend([0, 0, 0, 20, 2, 6, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0, 0x0a, u8::from(sense.information.is_some()) << 7, 0]);
        bytes.extend(sense.information.unwrap_or(7).to_be_bytes());
        bytes
    }

    #[test]
    fn both_formats_are_read() {
        let sense = Sense {
            deferred: false,
            key: key::MEDIUM_ERROR,
            asc: 0x11,
            ascq: 0,
            information: Some(0x1234),
        };
        assert_eq!(Sense::parse(&fixed_bytes(&sense)), Some(sense));
        assert_eq!(Sense::parse(&descriptor_bytes(&sense)), Some(sense));
        assert_eq!(
            sense.to_string(),
            "medium error, unrecovered read error (03/11/00), information 0x1234"
        );
        let deferred = Sense {
            deferred: true,
            information: None,
            ..sense
        };
        assert_eq!(Sense::parse(&fixed_bytes(&deferred)), Some(deferred));
        assert_eq!(Sense::parse(&descriptor_bytes(&deferred)), Some(deferred));
        assert!(
            deferred
                .to_string()
                .starts_with("of an earlier command: medium")
        );
    }

    #[test]
    fn what_was_cut_off_is_zero() {
        let sense = Sense {
            deferred: false,
            key: key::UNIT_ATTENTION,
            asc: 0x2a,
            ascq: 9,
            information: Some(5),
        };
        let bytes = fixed_bytes(&sense);
        assert_eq!(Sense::parse(&bytes[..2]), None);
        let cut = Sense::parse(&bytes[..3]).expect("a key");
        assert_eq!((cut.key, cut.code(), cut.information), (6, 0, None));
        let cut = Sense::parse(&bytes[..13]).expect("a key");
        assert_eq!((cut.code(), cut.information), (0x2a00, Some(5)));
        let mut lying = bytes.clone();
        lying[7] = 2;
        assert_eq!(Sense::parse(&lying).expect("a key").code(), 0);
        let bytes = descriptor_bytes(&sense);
        assert_eq!(Sense::parse(&bytes[..1]), None);
        let cut = Sense::parse(&bytes[..27]).expect("a key");
        assert_eq!((cut.code(), cut.information), (0x2a09, None));
        assert_eq!(Sense::parse(&[0x7f, 0, 0, 0]), None);
        assert_eq!(Sense::parse(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(sense) = Sense::parse(&bytes) {
                prop_assert!(sense.key < 16);
                prop_assert!(!sense.to_string().is_empty());
            }
        }

        #[test]
        fn what_is_built_is_read(
            deferred: bool, key in 0_u8..16, asc: u8, ascq: u8, information: Option<u64>,
        ) {
            let sense = Sense { deferred, key, asc, ascq, information };
            prop_assert_eq!(Sense::parse(&descriptor_bytes(&sense)), Some(sense));
            let information = information.map(|number| number & 0xffff_ffff);
            let sense = Sense { information, ..sense };
            prop_assert_eq!(Sense::parse(&fixed_bytes(&sense)), Some(sense));
        }
    }
}

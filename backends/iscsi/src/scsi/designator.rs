//! Names of a logical unit: page 83h of vital product data (SPC-4 7.8.5).

use std::fmt::{self, Write as _};

use super::inquiry::page;
use super::wire::{Malformed, text};

/// What a designator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Association {
    /// The logical unit.
    LogicalUnit,
    /// The port of the target by which it was asked.
    TargetPort,
    /// The target device.
    TargetDevice,
    /// Reserved.
    Reserved,
}

/// Of which sort a designator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DesignatorKind {
    /// Type 0: as the vendor likes.
    Vendor,
    /// Type 1: begins with the vendor's T10 identification.
    T10,
    /// Type 2: EUI-64, of 8, 12 or 16 bytes.
    Eui64,
    /// Type 3: NAA, of 8 or 16 bytes.
    Naa,
    /// Type 8: a SCSI name string (`iqn.…`, `naa.…`, `eui.…`).
    ScsiName,
    /// Any other type, by its number.
    Other(u8),
}

/// A designator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Designator {
    /// What it names.
    pub association: Association,
    /// Of which sort it is.
    pub kind: DesignatorKind,
    /// The designator itself.
    pub bytes: Vec<u8>,
}

impl fmt::Display for Designator {
    /// As Linux writes them: `naa.6001405…`, `eui.…`, `t10.…`; a SCSI name as it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hexadecimal = self.bytes.iter().fold(String::new(), |mut text, byte| {
            // Never fails: it is a string.
            let _ = write!(text, "{byte:02x}");
            text
        });
        match self.kind {
            DesignatorKind::T10 => write!(f, "t10.{}", text(&self.bytes)),
            DesignatorKind::Eui64 => write!(f, "eui.{hexadecimal}"),
            DesignatorKind::Naa => write!(f, "naa.{hexadecimal}"),
            DesignatorKind::ScsiName => f.write_str(&text(&self.bytes)),
            DesignatorKind::Vendor => write!(f, "vendor.{hexadecimal}"),
            DesignatorKind::Other(kind) => write!(f, "type-{kind}.{hexadecimal}"),
        }
    }
}

/// The designators of page 83h, in the target's order. One that is cut is left out.
///
/// # Errors
/// If it is not that page.
pub fn parse_designators(bytes: &[u8]) -> Result<Vec<Designator>, Malformed> {
    let mut rest = page(bytes, 0x83)?;
    let mut designators = Vec::new();
    // At most 16384 of four bytes or more: the page ends after 64 KiB.
    while let [_, flags, _, length, after @ ..] = rest {
        let Some((bytes, after)) = after.split_at_checked((*length).into()) else {
            break;
        };
        let association = match flags >> 4 & 3 {
            0 => Association::LogicalUnit,
            1 => Association::TargetPort,
            2 => Association::TargetDevice,
            _ => Association::Reserved,
        };
        let kind = match flags & 0x0f {
            0 => DesignatorKind::Vendor,
            1 => DesignatorKind::T10,
            2 => DesignatorKind::Eui64,
            3 => DesignatorKind::Naa,
            8 => DesignatorKind::ScsiName,
            other => DesignatorKind::Other(other),
        };
        designators.push(Designator {
            association,
            kind,
            bytes: bytes.to_vec(),
        });
        rest = after;
    }
    Ok(designators)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(parts: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
        let mut list = Vec::new();
        for (association, kind, bytes) in parts {
            list.extend([1, association << 4 | kind, 0, bytes.len() as u8]);
            list.extend(bytes);
        }
        let mut page = vec![0, 0x83];
        page.extend((list.len() as u16).to_be_bytes());
        page.extend(list);
        page
    }

    #[test]
    fn designators_are_read_and_shown() {
        let parts = [
            (0, 3, vec![0x60, 1, 2, 3, 4, 5, 6, 0xff]),
            (0, 2, vec![1; 8]),
            (0, 1, b"IET     0001".to_vec()),
            (1, 8, b"iqn.2026-01.org.example:a,t,0x0001\0\0".to_vec()),
            (1, 4, vec![0, 0, 0, 1]),
        ];
        let bytes = build(&parts);
        let designators = parse_designators(&bytes).expect("a page");
        let shown: Vec<String> = designators.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "naa.60010203040506ff",
                "eui.0101010101010101",
                "t10.IET     0001",
                "iqn.2026-01.org.example:a,t,0x0001",
                "type-4.00000001",
            ]
        );
        assert_eq!(designators[3].association, Association::TargetPort);
        let cut = parse_designators(&bytes[..bytes.len() - 1]).expect("a page");
        assert_eq!(cut, designators[..4]);
        assert!(parse_designators(&[0, 0x80, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(mut bytes in proptest::collection::vec(any::<u8>(), 4..200)) {
            bytes[1] = 0x83;
            let designators = parse_designators(&bytes).expect("that page");
            let length: usize = designators.iter().map(|one| 4 + one.bytes.len()).sum();
            prop_assert!(length <= bytes.len() - 4);
        }

        #[test]
        fn what_is_built_is_read(
            parts in proptest::collection::vec(
                (0_u8..4, 0_u8..16, proptest::collection::vec(any::<u8>(), 0..20)), 0..10),
        ) {
            let designators = parse_designators(&build(&parts)).expect("a page");
            prop_assert_eq!(designators.len(), parts.len());
            for (one, (_, _, bytes)) in designators.iter().zip(&parts) {
                prop_assert_eq!(&one.bytes, bytes);
            }
        }
    }
}

//! How a logical unit takes space and gives it back: page B2h of vital product data.

use super::inquiry::page;
use super::wire::Malformed;

/// How space is taken (SBC-3 6.6.6, table 208).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProvisioningType {
    /// It is not told; also fully provisioned units say that.
    #[default]
    Unknown,
    /// Resource provisioned: space is reserved for every block.
    Resource,
    /// Thin provisioned: space is taken on write.
    Thin,
    /// A number that the standard reserves.
    Reserved(u8),
}

/// Logical block provisioning, page B2h (SBC-3 6.6.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogicalBlockProvisioning {
    /// How many blocks, as a power of 2, a threshold counts in; 0 if there are no thresholds.
    pub threshold_exponent: u8,
    /// LBPU: UNMAP is there.
    pub unmap: bool,
    /// LBPWS: WRITE SAME(16) may unmap.
    pub write_same_16: bool,
    /// LBPWS10: WRITE SAME(10) may unmap.
    pub write_same_10: bool,
    /// LBPRZ: what is unmapped reads as zeros.
    pub reads_zeros: bool,
    /// ANC_SUP: blocks can be anchored.
    pub anchor: bool,
    /// How space is taken.
    pub kind: ProvisioningType,
}

impl LogicalBlockProvisioning {
    /// Reads the reply to INQUIRY. What a short page lacks is not there.
    ///
    /// # Errors
    /// If it is not that page.
    pub fn parse(bytes: &[u8]) -> Result<LogicalBlockProvisioning, Malformed> {
        let content = page(bytes, 0xb2)?;
        let byte = |at: usize| content.get(at).copied().unwrap_or(0);
        let flags = byte(1);
        Ok(LogicalBlockProvisioning {
            threshold_exponent: byte(0),
            unmap: flags & 0x80 != 0,
            write_same_16: flags & 0x40 != 0,
            write_same_10: flags & 0x20 != 0,
            // SBC-4 makes it three bits: 010b is a pattern of the vendor, xx1b zeros.
            reads_zeros: flags & 0x04 != 0,
            anchor: flags & 0x02 != 0,
            kind: match byte(2) & 7 {
                0 => ProvisioningType::Unknown,
                1 => ProvisioningType::Resource,
                2 => ProvisioningType::Thin,
                other => ProvisioningType::Reserved(other),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_flags_are_read() {
        // As tgt says it of a thin unit.
        let thin = LogicalBlockProvisioning::parse(&[0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
        let expected = LogicalBlockProvisioning {
            threshold_exponent: 0,
            unmap: true,
            write_same_16: true,
            write_same_10: true,
            reads_zeros: true,
            anchor: false,
            kind: ProvisioningType::Thin,
        };
        assert_eq!(thin, Ok(expected));
        let pattern = LogicalBlockProvisioning::parse(&[0, 0xb2, 0, 4, 9, 0x0a, 1, 0]);
        let pattern = pattern.expect("that page");
        assert!(!pattern.reads_zeros && pattern.anchor && !pattern.unmap);
        assert_eq!(
            (pattern.threshold_exponent, pattern.kind),
            (9, ProvisioningType::Resource)
        );
        let cut = LogicalBlockProvisioning::parse(&[0, 0xb2, 0, 4, 3]).expect("that page");
        assert_eq!(
            cut,
            LogicalBlockProvisioning {
                threshold_exponent: 3,
                ..Default::default()
            }
        );
        assert!(LogicalBlockProvisioning::parse(&[0, 0xb2, 0]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let parsed = LogicalBlockProvisioning::parse(&bytes);
            prop_assert_eq!(parsed.is_ok(), bytes.len() >= 4 && bytes[1] == 0xb2);
        }
    }
}

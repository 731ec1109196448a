//! Whether a command is there, and with which bits: REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).

use super::wire::{Malformed, at_least, be16, body};

/// What a target says about one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// It does not know just now, or does not tell.
    Unknown,
    /// It does not have it.
    Unsupported,
    /// It has it. For each bit of the command descriptor block: whether it looks at that.
    Supported(Vec<u8>),
}

impl Operation {
    /// Reads the reply about one command.
    ///
    /// # Errors
    /// With less than four bytes.
    pub fn parse(bytes: &[u8]) -> Result<Operation, Malformed> {
        let bytes = at_least(bytes, 4, "what is said of a command")?;
        let length = be16(bytes, 2).unwrap_or(0);
        Ok(match bytes[1] & 7 {
            1 => Operation::Unsupported,
            3 | 5 => Operation::Supported(body(bytes, 4, length.into()).to_vec()),
            _ => Operation::Unknown,
        })
    }

    /// Whether it has these bits in the second byte of the command descriptor block.
    pub(crate) fn has_flags(&self, flags: u8) -> bool {
        match self {
            Operation::Supported(usage) => usage.get(1).is_some_and(|byte| byte & flags == flags),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_are_there_only_if_the_target_says_so() {
        let operation = Operation::parse(&[0, 3, 0, 2, 0x93, 0x19]).expect("a reply");
        assert!(operation.has_flags(0x01) && operation.has_flags(0x18));
        assert!(!operation.has_flags(0x02));
        let cut = Operation::parse(&[0, 3, 0, 16, 0x93]).expect("a reply");
        assert!(!cut.has_flags(0x01));
        assert_eq!(Operation::parse(&[0, 1, 0, 0]), Ok(Operation::Unsupported));
        assert_eq!(Operation::parse(&[0, 0, 0, 0]), Ok(Operation::Unknown));
        assert!(!Operation::Unknown.has_flags(0));
        assert!(Operation::parse(&[0, 3, 0]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            prop_assert_eq!(Operation::parse(&bytes).is_ok(), bytes.len() >= 4);
        }
    }
}

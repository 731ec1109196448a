//! Caching and write protection: MODE SENSE (SPC-4 6.13, 7.5; SBC-3 6.5).

use super::wire::{Malformed, at_least, be16, body};

/// The code of the caching mode page (SBC-3 6.5.5).
pub const CACHING: u8 = 0x08;
/// The code that stands for all mode pages.
pub const ALL_PAGES: u8 = 0x3f;

/// What the mode parameters say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mode {
    /// WP: writes are refused.
    pub write_protected: bool,
    /// DPOFUA: reads and writes may have these bits.
    pub force_unit_access: bool,
    /// WCE of the caching page: writes are done before they are durable. `None` without that page.
    pub write_cache: Option<bool>,
}

impl Mode {
    /// Reads the reply to MODE SENSE(6).
    ///
    /// # Errors
    /// With less than the four bytes of the header.
    pub fn parse_6(bytes: &[u8]) -> Result<Mode, Malformed> {
        let bytes = at_least(bytes, 4, "the mode parameters")?;
        let all = body(bytes, 0, 1 + usize::from(bytes[0]));
        Ok(Mode::of(bytes[2], all, 4 + usize::from(bytes[3])))
    }

    /// Reads the reply to MODE SENSE(10).
    ///
    /// # Errors
    /// With less than the eight bytes of the header.
    pub fn parse_10(bytes: &[u8]) -> Result<Mode, Malformed> {
        let bytes = at_least(bytes, 8, "the mode parameters")?;
        let length = usize::from(be16(bytes, 0).unwrap_or(0));
        let descriptors = usize::from(be16(bytes, 6).unwrap_or(0));
        let all = body(bytes, 0, 2 + length);
        Ok(Mode::of(bytes[3], all, 8 + descriptors))
    }

    fn of(device_specific: u8, all: &[u8], pages: usize) -> Mode {
        Mode {
            write_protected: device_specific & 0x80 != 0,
            force_unit_access: device_specific & 0x10 != 0,
            write_cache: caching(all.get(pages..).unwrap_or_default()),
        }
    }
}

fn caching(mut rest: &[u8]) -> Option<bool> {
    while let [code, length, ..] = *rest {
        // SPF: the header is longer, and so is the length.
        let (header, length) = match code & 0x40 != 0 {
            true => (4, be16(rest, 2)?),
            false => (2, length.into()),
        };
        if code & 0x7f == CACHING {
            return rest
                .get(2)
                .filter(|_| length > 0)
                .map(|flags| flags & 4 != 0);
        }
        rest = rest.get(header + usize::from(length)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_page_is_found_behind_others() {
        // A block descriptor, a page with a subpage, the caching page.
        let mut tail = vec![0; 8];
        tail.extend([0x4a, 1, 0, 2, 9, 9, 0x88, 0x12, 0x04]);
        tail.resize(8 + 6 + 0x14, 0);
        let mut six = vec![3 + tail.len() as u8, 0, 0x90, 8];
        six.extend(&tail);
        let mode = Mode {
            write_protected: true,
            force_unit_access: true,
            write_cache: Some(true),
        };
        assert_eq!(Mode::parse_6(&six), Ok(mode));
        let mut ten = vec![0, 6 + tail.len() as u8, 0, 0x90, 0, 0, 0, 8];
        ten.extend(&tail);
        assert_eq!(Mode::parse_10(&ten), Ok(mode));
        six[4 + 8 + 6 + 2] = 0;
        assert_eq!(
            Mode::parse_6(&six).expect("parameters").write_cache,
            Some(false)
        );
        for cut in [4, 12, 14, 18, 20] {
            assert_eq!(
                Mode::parse_6(&six[..cut]).expect("a header").write_cache,
                None
            );
        }
        // It tells a length that ends before the page.
        six[0] = 3;
        assert_eq!(Mode::parse_6(&six).expect("a header").write_cache, None);
        assert!(Mode::parse_6(&six[..3]).is_err());
        assert!(Mode::parse_10(&ten[..7]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Mode::parse_6(&bytes).is_ok(), bytes.len() >= 4);
            prop_assert_eq!(Mode::parse_10(&bytes).is_ok(), bytes.len() >= 8);
        }
    }
}

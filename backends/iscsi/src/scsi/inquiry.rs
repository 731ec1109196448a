//! What a logical unit says it is: standard INQUIRY data and the pages 00h and 80h of vital product
//! data (SPC-4 6.6, 7.8).

use super::wire::{Malformed, at_least, be16, body, text};

/// Standard INQUIRY data (SPC-4 6.6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// Peripheral qualifier, 0 to 7: 0 if a device is there, 3 if the number stands for none.
    pub qualifier: u8,
    /// Peripheral device type, 0 to 31: 0 is a block device that works as a disk.
    pub device_type: u8,
    /// The version of SPC that it says it keeps to: 5 is SPC-3, 6 SPC-4.
    pub version: u8,
    /// T10 vendor identification, without padding.
    pub vendor: String,
    /// Product identification, without padding.
    pub product: String,
    /// Product revision level, without padding.
    pub revision: String,
}

impl Inquiry {
    /// Reads the reply; what is cut behind the first five bytes is empty.
    ///
    /// # Errors
    /// With less than five bytes.
    pub fn parse(bytes: &[u8]) -> Result<Inquiry, Malformed> {
        let bytes = at_least(bytes, 5, "INQUIRY data")?;
        let told = 5 + usize::from(bytes[4]);
        let bytes = &bytes[..bytes.len().min(told)];
        let field = |from: usize, to: usize| {
            let to = to.min(bytes.len());
            text(bytes.get(from..to).unwrap_or_default())
        };
        Ok(Inquiry {
            qualifier: bytes[0] >> 5,
            device_type: bytes[0] & 0x1f,
            version: bytes[2],
            vendor: field(8, 16),
            product: field(16, 32),
            revision: field(32, 36),
        })
    }
}

/// The content of a page of vital product data, behind its header of four bytes; as much of it as
/// came.
///
/// # Errors
/// If it is another page, as from devices that give the standard data instead.
pub(crate) fn page(bytes: &[u8], code: u8) -> Result<&[u8], Malformed> {
    let what = "a page of vital product data";
    let bytes = at_least(bytes, 4, what)?;
    if bytes[1] != code {
        let got = bytes[1];
        return Err(Malformed(format!(
            "page {code:02x}h was asked for, {got:02x}h came"
        )));
    }
    let length = be16(bytes, 2).unwrap_or(0);
    Ok(body(bytes, 4, length.into()))
}

/// The pages that there are, from page 00h (SPC-4 7.8.10).
///
/// # Errors
/// If it is not that page.
pub fn parse_pages(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    // At most 64 KiB, which the length of the page allows.
    Ok(page(bytes, 0x00)?.to_vec())
}

/// The unit serial number, from page 80h (SPC-4 7.8.15): without padding, and with bytes escaped
/// that are not printable. `None` if it is empty.
///
/// # Errors
/// If it is not that page.
pub fn parse_serial(bytes: &[u8]) -> Result<Option<String>, Malformed> {
    let serial = text(page(bytes, 0x80)?);
    Ok(Some(serial).filter(|serial| !serial.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn standard_data_are_read_as_far_as_they_go() {
        let mut bytes = vec![0x20, 0, 6, 2, 31, 0, 0, 0];
        bytes.extend(b"IET     VIRTUAL-DISK    0001");
        let inquiry = Inquiry::parse(&bytes).expect("data");
        assert_eq!(
            (inquiry.qualifier, inquiry.device_type, inquiry.version),
            (1, 0, 6)
        );
        assert_eq!(inquiry.vendor, "IET");
        assert_eq!(
            (&*inquiry.product, &*inquiry.revision),
            ("VIRTUAL-DISK", "0001")
        );
        let cut = Inquiry::parse(&bytes[..18]).expect("data");
        assert_eq!(
            (&*cut.vendor, &*cut.product, &*cut.revision),
            ("IET", "VI", "")
        );
        bytes[4] = 11;
        assert_eq!(Inquiry::parse(&bytes).expect("data").product, "");
        assert!(Inquiry::parse(&bytes[..4]).is_err());
    }

    #[test]
    fn pages_are_what_was_asked_for() {
        assert_eq!(
            parse_pages(&[0, 0, 0, 3, 0, 0x80, 0x83]),
            Ok(vec![0, 0x80, 0x83])
        );
        assert_eq!(parse_pages(&[0, 0, 0xff, 0xff, 0]), Ok(vec![0]));
        assert_eq!(
            parse_serial(b"\0\x80\0\x06 beaf1"),
            Ok(Some("beaf1".into()))
        );
        assert_eq!(parse_serial(b"\0\x80\0\x02    "), Ok(None));
        assert!(parse_serial(b"\0\x83\0\x02ab").is_err());
        assert!(parse_serial(b"\0\x80\0").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Inquiry::parse(&bytes);
            let _ = parse_pages(&bytes);
            if let Ok(Some(serial)) = parse_serial(&bytes) {
                prop_assert!(serial.is_ascii() && !serial.is_empty());
            }
        }

        #[test]
        fn serials_come_back(serial in "[!-~]([ -~]{0,250}[!-~])?") {
            let serial = serial.replace(['\\', '"', '\''], "x");
            let mut bytes = vec![0, 0x80, 0, serial.len() as u8];
            bytes.extend(serial.as_bytes());
            prop_assert_eq!(parse_serial(&bytes), Ok(Some(serial)));
        }
    }
}

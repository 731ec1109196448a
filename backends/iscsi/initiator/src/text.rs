//! Keys and values of login and text PDUs (RFC 7143 section 6.1).

use bytes::BytesMut;

use crate::error::{Error, Result};

/// Longest name of a key.
const KEY: usize = 63;

/// Keys with their values, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(pub Vec<(String, String)>);

impl Keys {
    pub fn add(&mut self, key: &str, value: impl Into<String>) {
        self.0.push((key.to_owned(), value.into()));
    }

    /// The value of a key that may be there once.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| &**value)
    }

    /// In a login each may be there once (RFC 7143 section 6.2).
    pub fn check_once(&self) -> Result<()> {
        let mut names: Vec<&str> = self.0.iter().map(|(key, _)| &**key).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::protocol(format!("the key {} comes twice", pair[0]))),
            None => Ok(()),
        }
    }

    pub fn encode(&self) -> BytesMut {
        let mut bytes = BytesMut::new();
        for (key, value) in &self.0 {
            for part in [key, "=", value, "\0"] {
                bytes.extend_from_slice(part.as_bytes());
            }
        }
        bytes
    }

    /// What `encode` made, or a target. It may end without a NUL, and have empty parts.
    pub fn parse(bytes: &[u8]) -> Result<Keys> {
        let mut keys = Keys::default();
        for pair in bytes
            .split(|byte| *byte == 0)
            .filter(|pair| !pair.is_empty())
        {
            let wrong = || {
                let start: String = String::from_utf8_lossy(pair).chars().take(80).collect();
                Error::protocol(format!("{start:?} is no key with a value"))
            };
            let text = std::str::from_utf8(pair).map_err(|_| wrong())?;
            let (key, value) = text.split_once('=').ok_or_else(wrong)?;
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-+@_/[]:#".contains(&byte);
            if key.is_empty() || key.len() > KEY || !key.bytes().all(known) {
                return Err(wrong());
            }
            keys.add(key, value);
        }
        Ok(keys)
    }
}

/// A number: decimal or hexadecimal.
pub fn number(value: &str) -> Option<u32> {
    match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None if value.bytes().all(|digit| digit.is_ascii_digit()) => value.parse().ok(),
        None => None,
    }
}

/// A binary value in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    format!("0x{}", digits.collect::<String>())
}

/// A binary value of at most `most` bytes: hexadecimal, with a half byte in front if their number is
/// odd, or base64.
pub fn binary(value: &str, most: usize) -> Option<Vec<u8>> {
    let (kind, digits) = value.split_at_checked(2)?;
    if digits.is_empty() || digits.len() > 2 * most {
        return None;
    }
    let bytes = match kind {
        "0x" | "0X" => {
            let even = if digits.len() % 2 == 1 { "0" } else { "" };
            let digits = format!("{even}{digits}");
            let nibble = |digit: &u8| char::from(*digit).to_digit(16);
            let pairs = digits.as_bytes().chunks(2);
            let bytes = pairs.map(|pair| Some((nibble(&pair[0])? << 4 | nibble(&pair[1])?) as u8));
            bytes.collect::<Option<Vec<u8>>>()?
        }
        "0b" | "0B" => base64(digits)?,
        _ => return None,
    };
    (bytes.len() <= most).then_some(bytes)
}

/// RFC 4648 section 4, with or without `=` at the end.
fn base64(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_come_back(pairs in prop::collection::vec(("[A-Z][A-Za-z0-9_.-]{0,62}", "[ -~]{0,99}"), 0..9)) {
            let keys = Keys(pairs);
            prop_assert_eq!(Keys::parse(&keys.encode()).expect("keys"), keys);
        }

        #[test]
        fn whatever_comes_does_no_harm(bytes: Vec<u8>) {
            let _ = Keys::parse(&bytes);
            let text = String::from_utf8_lossy(&bytes);
            let _ = (binary(&text, 64), number(&text));
        }

        #[test]
        fn binary_values_come_back(bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            prop_assert_eq!(binary(&hex(&bytes), 64), Some(bytes));
        }
    }

    #[test]
    fn values_are_read() {
        assert_eq!(binary("0x1ff", 2), Some(vec![1, 255]));
        assert_eq!(binary("0bTWFu", 3), Some(b"Man".to_vec()));
        assert_eq!(binary("0bTWE=", 3), Some(b"Ma".to_vec()));
        for wrong in ["", "0", "0x", "0xgg", "0b!", "1234", "0x000000", "é"] {
            assert_eq!(binary(wrong, 2), None, "{wrong}");
        }
        assert_eq!(
            (number("0x1F"), number("31"), number("+1")),
            (Some(31), Some(31), None)
        );
    }
}

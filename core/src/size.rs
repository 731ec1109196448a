//! Sizes and byte ranges.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A size in bytes.
///
/// Parses `1048576`, `10GiB`, `1.5TiB`, `500MB`. `KiB…EiB` and the bare letters `K…E` are powers of
/// 1024 (as `qemu-img` reads them), `kB…EB` powers of 1000. A fraction must come to whole bytes.
/// Displays as the largest power-of-1024 unit, rounded to two digits; the exact value is
/// [`bytes`](Self::bytes).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSize(u64);

impl ByteSize {
    /// No bytes.
    pub const ZERO: ByteSize = ByteSize(0);

    /// A size of `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        ByteSize(bytes)
    }

    /// `n` KiB. Panics if that exceeds 64 bits, so it is for constants.
    pub const fn kib(n: u64) -> Self {
        ByteSize(n.checked_mul(1 << 10).expect("size fits 64 bits"))
    }

    /// `n` MiB. Panics if that exceeds 64 bits, so it is for constants.
    pub const fn mib(n: u64) -> Self {
        ByteSize(n.checked_mul(1 << 20).expect("size fits 64 bits"))
    }

    /// `n` GiB. Panics if that exceeds 64 bits, so it is for constants.
    pub const fn gib(n: u64) -> Self {
        ByteSize(n.checked_mul(1 << 30).expect("size fits 64 bits"))
    }

    /// The exact number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Rounded up to a multiple of `unit` bytes; `None` where that exceeds 64 bits.
    pub fn round_up(self, unit: u64) -> Option<Self> {
        self.0.checked_next_multiple_of(unit).map(ByteSize)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = (63 - (self.0 | 1).leading_zeros()) as usize / 10;
        let scale = 1u64 << (unit * 10);
        let text = if self.0.is_multiple_of(scale) {
            format!("{} {}", self.0 / scale, UNITS[unit])
        } else {
            format!("{:.2} {}", self.0 as f64 / scale as f64, UNITS[unit])
        };
        f.pad(&text)
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            Error::new(ErrorKind::InvalidInput, "parse_size")
                .with("size", text)
                .reason(reason)
                .help("write bytes (1048576) or a unit: 512MiB, 10GiB, 1.5TiB, 500MB")
        };
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let scale = unit_scale(unit.trim()).ok_or_else(|| wrong("the unit is not known"))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) {
            return Err(wrong("this is not a number"));
        }
        let whole: u128 = whole.parse().map_err(|_| wrong("this is not a number"))?;
        let mut bytes = whole
            .checked_mul(scale)
            .ok_or_else(|| wrong("more than 64 bits"))?;
        if !fraction.is_empty() {
            if fraction.len() > 18 {
                return Err(wrong("too many digits after the point"));
            }
            let digits: u128 = fraction
                .parse()
                .map_err(|_| wrong("this is not a number"))?;
            let divisor = 10u128.pow(fraction.len() as u32);
            if !(digits * scale).is_multiple_of(divisor) {
                return Err(wrong("this is not a whole number of bytes"));
            }
            bytes += digits * scale / divisor;
        }
        u64::try_from(bytes)
            .map(ByteSize)
            .map_err(|_| wrong("more than 64 bits"))
    }
}

fn unit_scale(unit: &str) -> Option<u128> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Some(1);
    }
    let power = "kmgtpe".find(unit.chars().next()?.to_ascii_lowercase())? as u32 + 1;
    match &unit[1..] {
        "" | "iB" | "ib" => Some(1024u128.pow(power)),
        "B" => Some(1000u128.pow(power)),
        _ => None,
    }
}

/// `length` bytes from `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl ByteRange {
    /// `length` bytes from `offset`.
    pub const fn new(offset: u64, length: u64) -> Self {
        ByteRange { offset, length }
    }

    /// From `start` up to, not including, `end`. Empty if `end` is not past `start`.
    pub const fn from_to(start: u64, end: u64) -> Self {
        ByteRange {
            offset: start,
            length: end.saturating_sub(start),
        }
    }

    /// First byte past the range; saturates at the largest 64-bit number.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes that are in both.
    pub fn intersect(&self, other: &ByteRange) -> ByteRange {
        ByteRange::from_to(self.offset.max(other.offset), self.end().min(other.end()))
    }

    /// Checks that the range lies within a device of `size` bytes.
    ///
    /// # Errors
    /// `InvalidInput` that names range and size.
    pub fn check_within(&self, size: u64, op: &'static str) -> Result<()> {
        match self.offset.checked_add(self.length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::new(ErrorKind::InvalidInput, op)
                .with("offset", self.offset)
                .with("length", self.length)
                .with("size", size)
                .reason("the range reaches past the end of the volume")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_parse_in_every_usual_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("10GiB", 10 << 30),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("1.5 TiB", 3 << 39),
            ("500MB", 500_000_000),
            ("1kB", 1000),
            ("15EiB", 15 << 60),
            ("7b", 7),
        ] {
            assert_eq!(
                text.parse::<ByteSize>().expect(text).bytes(),
                bytes,
                "{text}"
            );
        }
    }

    #[test]
    fn wrong_sizes_are_refused_with_a_hint() {
        for text in [
            "",
            "GiB",
            "10X",
            "-1",
            "1e9",
            "1.0001KiB",
            "16EiB",
            "99999999999999999999",
            "1..2",
            "1.",
            "10 G iB",
        ] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.get("help").is_some());
        }
    }

    #[test]
    fn display_picks_the_largest_unit() {
        assert_eq!(ByteSize::gib(10).to_string(), "10 GiB");
        assert_eq!(ByteSize::new(1536).to_string(), "1.50 KiB");
        assert_eq!(ByteSize::ZERO.to_string(), "0 B");
        assert_eq!(ByteSize::new(u64::MAX).to_string(), "16.00 EiB");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn bytes_round_trip(bytes in any::<u64>()) {
            prop_assert_eq!(bytes.to_string().parse::<ByteSize>().unwrap().bytes(), bytes);
        }
    }
}

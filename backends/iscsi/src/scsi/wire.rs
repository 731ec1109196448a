//! Numbers in what targets send: big-endian, and only where there are enough bytes.

/// What is wrong with a reply: it does not have the form that the standard gives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// As many bytes as there must be, at least.
pub(crate) fn at_least<'a>(
    bytes: &'a [u8],
    length: usize,
    what: &str,
) -> Result<&'a [u8], Malformed> {
    match bytes.len() >= length {
        true => Ok(bytes),
        false => Err(Malformed(format!(
            "{what} has {} bytes, at least {length} are needed",
            bytes.len()
        ))),
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    let end = at.checked_add(N)?;
    bytes.get(at..end)?.try_into().ok()
}

/// Two bytes at `at`; `None` past the end.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_be_bytes)
}

/// Four bytes at `at`; `None` past the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_be_bytes)
}

/// Eight bytes at `at`; `None` past the end.
pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_be_bytes)
}

/// What follows a header of `header` bytes, of the length that the header tells, as far as it is
/// there: a reply is cut where the initiator had no room for more.
pub(crate) fn body(bytes: &[u8], header: usize, length: usize) -> &[u8] {
    let rest = bytes.get(header..).unwrap_or_default();
    &rest[..rest.len().min(length)]
}

/// Text that stands in a field of fixed length: without the padding; bytes that are not printable
/// ASCII are escaped, so that different fields stay different.
pub(crate) fn text(bytes: &[u8]) -> String {
    let padding = |byte: &u8| matches!(byte, 0 | b' ');
    let start = bytes.iter().position(|byte| !padding(byte));
    let end = bytes.iter().rposition(|byte| !padding(byte));
    match (start, end) {
        (Some(start), Some(end)) => bytes[start..=end].escape_ascii().to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_past_the_end_are_none() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(be16(&bytes, 6), Some(0x0708));
        assert_eq!(be16(&bytes, 7), None);
        assert_eq!(be32(&bytes, 4), Some(0x0506_0708));
        assert_eq!(be32(&bytes, usize::MAX), None);
        assert_eq!(be64(&bytes, 0), Some(0x0102_0304_0506_0708));
        assert_eq!(be64(&bytes, 1), None);
    }

    #[test]
    fn text_is_cut_and_escaped() {
        assert_eq!(text(b"  beaf11   \0"), "beaf11");
        assert_eq!(text(b"a b\n"), "a b\\n");
        assert_eq!(text(&[0xff, b'x']), "\\xffx");
        assert_eq!(text(b"   "), "");
    }

    #[test]
    fn bodies_end_where_the_bytes_do() {
        assert_eq!(body(&[1, 2, 3, 4], 2, 1), [3]);
        assert_eq!(body(&[1, 2, 3, 4], 2, 100), [3, 4]);
        assert_eq!(body(&[1], 2, 100), [0_u8; 0]);
    }
}

//! The content of writes: each byte tells which write it is from and where it belongs.

use crate::rng::mix;

const UNIT: u64 = 16;

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

fn unit(id: u64, number: u64) -> [u8; UNIT as usize] {
    let mut bytes = [0; UNIT as usize];
    let hidden = (id ^ number).wrapping_mul(ODD);
    bytes[..8].copy_from_slice(&hidden.to_le_bytes());
    bytes[8..].copy_from_slice(&check(id, number).to_le_bytes());
    bytes
}

fn check(id: u64, number: u64) -> u64 {
    (id.rotate_left(32) ^ number).wrapping_mul(ODD) | 1
}

/// Which write a unit says that it is from.
fn id_of(hidden: u64, number: u64) -> u64 {
    // Newton's iteration doubles the number of right bits, of which there are three to begin with.
    let inverse = (0..5).fold(ODD, |x, _| {
        x.wrapping_mul(2u64.wrapping_sub(ODD.wrapping_mul(x)))
    });
    hidden.wrapping_mul(inverse) ^ number
}

/// What write `id` puts at `offset` of a volume. 0 is not an id: it stands for zeros.
pub fn fill(id: u64, offset: u64, length: usize) -> Vec<u8> {
    if id == 0 {
        return vec![0; length];
    }
    let mut bytes = Vec::with_capacity(length + 2 * UNIT as usize);
    let (first, end) = (offset / UNIT, (offset + length as u64).div_ceil(UNIT));
    for number in first..end {
        bytes.extend_from_slice(&unit(id, number));
    }
    let skip = (offset % UNIT) as usize;
    bytes.drain(..skip);
    bytes.truncate(length);
    bytes
}

/// Whether `bytes` at `offset` are wholly what write `id` put there.
pub fn is_from(id: u64, offset: u64, bytes: &[u8]) -> bool {
    if id == 0 {
        // Compared with itself, shifted by one: that is a memcmp, not a loop over bytes.
        return bytes.is_empty() || (bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]);
    }
    let head = ((UNIT - offset % UNIT) % UNIT).min(bytes.len() as u64) as usize;
    let whole = (bytes.len() - head) / UNIT as usize * UNIT as usize;
    let (head, rest) = bytes.split_at(head);
    let (body, tail) = rest.split_at(whole);
    let start = offset + head.len() as u64;
    let mut number = start / UNIT;
    for piece in body.chunks_exact(UNIT as usize) {
        if piece != unit(id, number) {
            return false;
        }
        number += 1;
    }
    head == fill(id, offset, head.len()) && tail == fill(id, number * UNIT, tail.len())
}

/// What can be said of `bytes` found at `offset`, for a reader of a failure.
pub fn describe(offset: u64, bytes: &[u8]) -> String {
    let skip = ((UNIT - offset % UNIT) % UNIT) as usize;
    let Some(piece) = bytes.get(skip..skip + UNIT as usize) else {
        return format!("{bytes:02x?}");
    };
    let (mut hidden, mut seen) = ([0; 8], [0; 8]);
    hidden.copy_from_slice(&piece[..8]);
    seen.copy_from_slice(&piece[8..]);
    let (hidden, seen) = (u64::from_le_bytes(hidden), u64::from_le_bytes(seen));
    let number = (offset + skip as u64) / UNIT;
    let id = id_of(hidden, number);
    if hidden == 0 && seen == 0 {
        "zeros".into()
    } else if seen == check(id, number) {
        format!("write {}", id & 0xff_ffff_ffff)
    } else {
        "what no write put here".into()
    }
}

/// An id that differs from seed to seed, so that no content is right by accident.
pub const fn id(seed: u64, number: u64) -> u64 {
    ((mix(seed) & 0xffff) << 40) | number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_known_by_place_and_write_at_every_alignment() {
        for offset in [0, 1, 15, 16, 17, 4095, 1 << 40] {
            for length in [0, 1, 7, 15, 16, 17, 33, 4096] {
                let bytes = fill(7, offset, length);
                assert_eq!(bytes.len(), length);
                assert!(is_from(7, offset, &bytes));
                if length > 0 {
                    assert!(!is_from(0, offset, &bytes) || length < 16);
                }
                if length >= 16 {
                    assert!(!is_from(8, offset, &bytes));
                    assert!(!is_from(7, offset + 16, &bytes));
                }
            }
        }
        assert!(is_from(0, 3, &[0; 100]));
        let mut bytes = fill(7, 5, 100);
        assert_eq!(&bytes[20..60], fill(7, 25, 40));
        bytes[99] ^= 1;
        assert!(!is_from(7, 5, &bytes));
    }
}

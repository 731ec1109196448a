//! What a fuzzer may throw at envelopes.

use uuid::Uuid;

use super::{CRC_AT, Kind, LIMIT};
use crate::seal::{Damage, DataKey, Seal};

const NAME: &str = "logs/0123456789abcdef0123456789abcdef/d/0000000001-0000000002";
const KINDS: [Kind; 5] = [
    Kind::CatalogRecord,
    Kind::CatalogCheckpoint,
    Kind::Manifest,
    Kind::DataHeader,
    Kind::MapPage,
];

/// One of two pools, and a kind, by a byte.
fn chosen(which: u8) -> (Seal, Kind) {
    let pool = Uuid::from_u128(1);
    let seal = match which % 2 {
        0 => Seal::plain(pool),
        _ => Seal::encrypted(pool, DataKey::new([9; 32])),
    };
    (seal, KINDS[usize::from(which / 2) % KINDS.len()])
}

/// Bytes as they may come from a store, with the checksum that belongs to them.
pub(crate) fn envelope(body: &[u8]) -> bool {
    let Some((which, bytes)) = body.split_first() else {
        return false;
    };
    let (seal, kind) = chosen(*which);
    let mut bytes = bytes.to_vec();
    let Ok(length) = Seal::envelope_length(&bytes) else {
        assert!(seal.unwrap(kind, NAME, &bytes).is_err());
        return false;
    };
    assert!((Seal::HEAD..=LIMIT).contains(&length));
    let (head, rest) = bytes.split_at(Seal::HEAD);
    let crc = seal.crc(NAME, &head[..CRC_AT], rest);
    bytes[CRC_AT..Seal::HEAD].copy_from_slice(&crc);
    match seal.unwrap(kind, NAME, &bytes) {
        Ok(plain) => {
            // A checksum anybody can make, but not a tag.
            assert!(seal.key().is_none(), "a forged envelope was believed");
            assert_eq!(plain, bytes[Seal::HEAD..]);
            assert_eq!((bytes.len(), bytes[4]), (length, kind as u8));
            true
        }
        Err(Damage::Checksum) => panic!("its checksum is right"),
        Err(_) => false,
    }
}

/// A good envelope, which is then changed in one bit, or taken for another one.
pub(crate) fn change(body: &[u8]) -> bool {
    let Some(([which, low, high, other], content)) = body.split_first_chunk() else {
        return false;
    };
    let (seal, kind) = chosen(*which);
    let wrapped = seal.wrap(kind, NAME, content, [*other; 12]);
    let mut bytes = wrapped.expect("it is short").to_vec();
    let opened = |bytes: &[u8]| seal.unwrap(kind, NAME, bytes);
    assert_eq!(opened(&bytes).as_deref(), Ok(content));
    assert_eq!(Seal::envelope_length(&bytes), Ok(bytes.len()));
    let bit = usize::from(u16::from_le_bytes([*low, *high])) % (bytes.len() * 8);
    assert!(opened(&bytes[..bit / 8]).is_err(), "cut off");
    assert!(seal.unwrap(kind, &NAME[1..], &bytes).is_err(), "moved");
    let (another, another_kind) = chosen(*other);
    if *which % 2 != *other % 2 {
        assert!(another.unwrap(kind, NAME, &bytes).is_err());
    } else if kind != another_kind {
        assert!(seal.unwrap(another_kind, NAME, &bytes).is_err());
    }
    bytes[bit / 8] ^= 1 << (bit % 8);
    assert!(opened(&bytes).is_err(), "bit {bit} is not missed");
    true
}

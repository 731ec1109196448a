//! What a journal's files hold.
//!
//! A file is a segment: a header of 512 bytes, and from byte 4096 on records, each at a multiple
//! of 8. Numbers are little-endian. A position counts bytes of records since the journal began,
//! through all its segments.
//!
//! | bytes of a header | what |
//! |---|---|
//! | 0..8 | `VMXJRNL` and the format version, 1 |
//! | 8..24, 24..40 | the pool, the log |
//! | 40..56 | the journal |
//! | 56..72 | salt: a random number that every use of a file as a segment has of its own |
//! | 72..80 | generation: later segments have higher ones |
//! | 80..88 | position of the first record |
//! | 88..96 | position before which everything was synced when this was written |
//! | 96..508 | zeros |
//! | 508..512 | CRC-32C of 0..508 |
//!
//! | bytes of a record | what |
//! |---|---|
//! | 0..4 | CRC-32C of seed, position and 4..24 |
//! | 4..8 | length of the body |
//! | 8..16 | position before which everything was synced when this was written |
//! | 16..20 | CRC-32C of seed and body |
//! | 20..24 | zeros |
//! | 24.. | body: 1 (write) or 2 (zeros), offset and length in the volume, the data of a write; in an encrypted pool this by AES-256-GCM with the position as nonce, and the tag |
//!
//! The seed is the CRC-32C of pool, log, journal and salt, and the key is derived from the same:
//! what an earlier use of the file left there never passes for a record.

use std::sync::Arc;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use aws_lc_rs::error::Unspecified;
use bytes::Bytes;
use crc32c::crc32c_append;
use uuid::Uuid;
use volmux_core::ByteRange;

use crate::keys::LogId;
use crate::seal::{Damage, Seal, TAG, crc_of};

/// Where a segment's records begin.
pub(super) const RECORDS: u64 = 4096;
/// Bytes of a segment's header.
pub(super) const HEADER: usize = 512;
/// Bytes of a record before its body.
pub(super) const HEAD: usize = 24;
/// What records begin at multiples of.
pub(super) const ALIGN: usize = 8;
/// Bytes of a body before the data.
pub(super) const ABOUT: usize = 17;
/// Most data that a record has.
pub(super) const MOST: usize = 256 << 10;
/// Longest body.
pub(super) const BODY_MOST: usize = ABOUT + MOST + TAG;
pub(super) const MAGIC: &[u8; 8] = b"VMXJRNL\x01";
/// No position and no generation is as large as this; what is added to one below it does not
/// overflow.
pub(crate) const TOO_LARGE: u64 = 1 << 62;
const WRITE: u8 = 1;
const ZERO: u8 = 2;

/// A change to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// `data` at byte `offset`.
    Write { offset: u64, data: Bytes },
    /// Zeros.
    Zero { range: ByteRange },
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) pool: Uuid,
    pub(super) log: LogId,
    pub(super) journal: Uuid,
    pub(super) salt: Uuid,
    pub(super) generation: u64,
    pub(super) first: u64,
    pub(super) synced: u64,
}

impl Header {
    /// As it is stored.
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(MAGIC);
        out[8..24].copy_from_slice(self.pool.as_bytes());
        out[24..40].copy_from_slice(self.log.0.as_bytes());
        out[40..56].copy_from_slice(self.journal.as_bytes());
        out[56..72].copy_from_slice(self.salt.as_bytes());
        out[72..80].copy_from_slice(&self.generation.to_le_bytes());
        out[80..88].copy_from_slice(&self.first.to_le_bytes());
        out[88..96].copy_from_slice(&self.synced.to_le_bytes());
        let crc = crc_of(&[&out[..HEADER - 4]]);
        out[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what [`encode`](Self::encode) wrote; none where it is something else.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        if u32_at(bytes, HEADER - 4) != crc_of(&[&bytes[..HEADER - 4]]) || !bytes.starts_with(MAGIC)
        {
            return None;
        }
        let numbers = [u64_at(bytes, 72), u64_at(bytes, 80), u64_at(bytes, 88)];
        if numbers.iter().any(|number| *number >= TOO_LARGE) {
            return None;
        }
        Some(Header {
            pool: uuid_at(bytes, 8),
            log: LogId(uuid_at(bytes, 24)),
            journal: uuid_at(bytes, 40),
            salt: uuid_at(bytes, 56),
            generation: numbers[0],
            first: numbers[1],
            synced: numbers[2],
        })
    }

    /// The format version, where it is a segment of a later format.
    pub(super) fn later_version(bytes: &[u8; HEADER]) -> Option<u8> {
        let version = bytes[7];
        (bytes.starts_with(&MAGIC[..7]) && version > MAGIC[7]).then_some(version)
    }
}

/// The beginning of a record, which is intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Length of the body.
    pub(super) body: usize,
    /// Everything before this was synced when the record was written.
    pub(super) synced: u64,
    crc: u32,
}

impl Head {
    /// Length of the whole record.
    pub(super) fn size(&self) -> usize {
        (HEAD + self.body).next_multiple_of(ALIGN)
    }
}

/// Writes and reads the records of one segment.
#[derive(Clone, Debug)]
pub(super) struct Records {
    seed: u32,
    key: Option<Arc<LessSafeKey>>,
}

impl Records {
    /// Of the segment with this header.
    pub(super) fn new(seal: &Seal, header: &Header) -> Result<Self, Damage> {
        let parts: [&[u8]; 5] = [
            b"volmux journal\0",
            header.pool.as_bytes(),
            header.log.0.as_bytes(),
            header.journal.as_bytes(),
            header.salt.as_bytes(),
        ];
        let key = seal.key().map(|key| key.subkey(&parts)).transpose();
        Ok(Records {
            seed: crc_of(&parts),
            key: key.map_err(|Unspecified| Damage::Cipher)?.map(Arc::new),
        })
    }

    /// Length of the record of a change with this much data.
    pub(super) fn size(data: usize, encrypted: bool) -> usize {
        let tag = if encrypted { TAG } else { 0 };
        (HEAD + ABOUT + data + tag).next_multiple_of(ALIGN)
    }

    /// Appends the record of `op` to `out`.
    pub(super) fn encode(
        &self,
        position: u64,
        synced: u64,
        op: &Op,
        out: &mut Vec<u8>,
    ) -> Result<(), Damage> {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD]);
        let (kind, offset, length, data) = match op {
            Op::Write { offset, data } => (WRITE, *offset, data.len() as u64, &data[..]),
            Op::Zero { range } => (ZERO, range.offset, range.length, &[][..]),
        };
        out.push(kind);
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(data);
        if let Some(key) = &self.key {
            let body = &mut out[start + HEAD..];
            let tag = key
                .seal_in_place_separate_tag(nonce(position), Aad::empty(), body)
                .map_err(|Unspecified| Damage::Cipher)?;
            out.extend_from_slice(tag.as_ref());
        }
        let (head, body) = out[start..].split_at_mut(HEAD);
        head[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
        head[8..16].copy_from_slice(&synced.to_le_bytes());
        head[16..20].copy_from_slice(&crc32c_append(self.seed, body).to_le_bytes());
        let crc = self.head_crc(position, head);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        out.resize(start + (out.len() - start).next_multiple_of(ALIGN), 0);
        Ok(())
    }

    /// The beginning of the record at `position`, if there is one.
    pub(super) fn head(&self, position: u64, head: &[u8]) -> Option<Head> {
        let head = head.get(..HEAD)?;
        if u32_at(head, 0) != self.head_crc(position, head) {
            return None;
        }
        let body = u32_at(head, 4) as usize;
        let (synced, crc) = (u64_at(head, 8), u32_at(head, 16));
        let possible = (ABOUT..=BODY_MOST).contains(&body);
        possible.then_some(Head { body, synced, crc })
    }

    /// Whether `body` is what belongs to `head`.
    pub(super) fn fits(&self, head: &Head, body: &[u8]) -> bool {
        body.len() == head.body && crc32c_append(self.seed, body) == head.crc
    }

    /// The change that a `body` that [`fits`](Self::fits) says.
    pub(super) fn decode(&self, position: u64, body: &[u8]) -> Result<Op, Damage> {
        let opened;
        let body = match &self.key {
            None => body,
            Some(key) => {
                let mut sealed = body.to_vec();
                let plain = key.open_in_place(nonce(position), Aad::empty(), &mut sealed);
                let length = plain.map_err(|Unspecified| Damage::Authentication)?.len();
                sealed.truncate(length);
                opened = sealed;
                &opened[..]
            }
        };
        let wrong = Damage::Length(body.len());
        let (about, data) = body.split_at_checked(ABOUT).ok_or(wrong)?;
        let (offset, length) = (u64_at(about, 1), u64_at(about, 9));
        match about[0] {
            WRITE if data.len() as u64 == length && data.len() <= MOST => Ok(Op::Write {
                offset,
                data: Bytes::copy_from_slice(data),
            }),
            ZERO if data.is_empty() => Ok(Op::Zero {
                range: ByteRange::new(offset, length),
            }),
            _ => Err(wrong),
        }
    }

    pub(super) fn head_crc(&self, position: u64, head: &[u8]) -> u32 {
        crc32c_append(
            crc32c_append(self.seed, &position.to_le_bytes()),
            &head[4..HEAD],
        )
    }
}

fn nonce(position: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&position.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut out = [0; 16];
    out.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::tests::both;

    fn header(seal: &Seal, salt: u128) -> Header {
        Header {
            pool: seal.pool(),
            log: LogId(Uuid::from_u128(2)),
            journal: Uuid::from_u128(3),
            salt: Uuid::from_u128(salt),
            generation: 4,
            first: 5,
            synced: 6,
        }
    }

    fn read(records: &Records, position: u64, bytes: &[u8]) -> Option<Op> {
        let head = records.head(position, bytes)?;
        let body = bytes.get(HEAD..HEAD + head.body)?;
        records.fits(&head, body).then_some(())?;
        records.decode(position, body).ok()
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for seal in both(1, 1) {
            let header = header(&seal, 9);
            let mut bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Some(header.clone()));
            for bit in 0..HEADER * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::decode(&bytes), None, "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            let records = Records::new(&seal, &header).unwrap();
            let data = Bytes::from_static(b"some data in it");
            let op = Op::Write { offset: 77, data };
            let mut bytes = Vec::new();
            records.encode(1000, 900, &op, &mut bytes).unwrap();
            let used = HEAD + records.head(1000, &bytes).unwrap().body;
            for bit in 0..used * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read(&records, 1000, &bytes), None, "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            assert_eq!(read(&records, 1000, &bytes), Some(op));
        }
    }

    #[test]
    fn an_encrypted_record_shows_nothing_of_its_change() {
        let [_, seal] = both(1, 1);
        let records = Records::new(&seal, &header(&seal, 9)).unwrap();
        let data = Bytes::from_static(b"a secret that nobody else may know");
        let mut bytes = Vec::new();
        let offset = u64::from_le_bytes(*b"position");
        records
            .encode(
                8,
                0,
                &Op::Write {
                    offset,
                    data: data.clone(),
                },
                &mut bytes,
            )
            .unwrap();
        assert!(bytes.windows(6).all(|w| !data.windows(6).any(|d| d == w)));
        assert!(bytes.windows(8).all(|w| w != b"position"));
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let [seal, _] = both(1, 1);
        let mut bytes = header(&seal, 1).encode();
        assert_eq!(Header::later_version(&bytes), None);
        bytes[7] = 2;
        assert_eq!(Header::decode(&bytes), None);
        assert_eq!(Header::later_version(&bytes), Some(2));
    }

    proptest! {
        #[test]
        fn a_record_is_valid_in_its_place_alone(
            position in any::<u64>(), other in any::<u64>(), synced in any::<u64>(),
            offset in any::<u64>(), length in any::<u64>(),
            data in prop::collection::vec(any::<u8>(), 0..600), write in any::<bool>(),
        ) {
            let op = if write {
                Op::Write { offset, data: Bytes::from(data.clone()) }
            } else {
                Op::Zero { range: ByteRange::new(offset, length) }
            };
            for seal in both(1, 1) {
                let records = Records::new(&seal, &header(&seal, 9)).unwrap();
                let mut bytes = b"12345678".to_vec();
                records.encode(position, synced, &op, &mut bytes).unwrap();
                let bytes = &bytes[8..];
                let data = if write { data.len() } else { 0 };
                prop_assert_eq!(bytes.len(), Records::size(data, seal.key().is_some()));
                let head = records.head(position, bytes).unwrap();
                prop_assert_eq!((head.size(), head.synced), (bytes.len(), synced));
                prop_assert_eq!(read(&records, position, bytes), Some(op.clone()));
                if other != position {
                    prop_assert_eq!(read(&records, other, bytes), None);
                }
                let reused = Records::new(&seal, &header(&seal, 10)).unwrap();
                prop_assert_eq!(reused.head(position, bytes), None);
                prop_assert_eq!(read(&records, position, &bytes[..head.body]), None);
            }
        }

        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..100)) {
            for seal in both(1, 1) {
                let records = Records::new(&seal, &header(&seal, 9)).unwrap();
                let _ = records.decode(1, &body);
                let _ = records.head(1, &body);
            }
        }
    }
}

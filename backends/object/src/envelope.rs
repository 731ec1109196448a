//! The envelope that every piece of metadata is stored in.
//!
//! | bytes | what (numbers are little-endian) |
//! |---|---|
//! | 0..4 | `VMX1`: this layout, which no later format changes |
//! | 4 | kind |
//! | 5 | flags: 1 = encrypted |
//! | 6..8 | format version of the body |
//! | 8..12 | length of the body |
//! | 12..24 | nonce, zeros where it is not encrypted |
//! | 24..40 | authentication tag, zeros where it is not encrypted |
//! | 40..44 | CRC-32C of the pool's id, the name, bytes 0..40 and the body as stored |
//! | 44.. | body |

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use aws_lc_rs::error::Unspecified;
use bytes::{Bytes, BytesMut};

use crate::seal::{Damage, Seal, TAG, crc_of};

/// Format version of everything this volmux writes.
pub const FORMAT: u16 = 1;

const MAGIC: &[u8; 4] = b"VMX1";
const ENCRYPTED: u8 = 1;
const NONCE: usize = 12;
const NONCE_AT: usize = 12;
const TAG_AT: usize = NONCE_AT + NONCE;
const CRC_AT: usize = TAG_AT + TAG;
/// Longest envelope: nothing longer is written, and none is read into memory.
const LIMIT: usize = 64 << 20;

/// What an envelope holds. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A record of the catalogue.
    CatalogRecord = 1,
    /// A checkpoint of the catalogue.
    CatalogCheckpoint = 2,
    /// A manifest of a log.
    Manifest = 3,
    /// The header of a data object.
    DataHeader = 4,
    /// A page of a map.
    MapPage = 5,
    /// The header of a compressed data object.
    FramedHeader = 6,
}

impl Seal {
    /// Length of an envelope without its body.
    pub const HEAD: usize = CRC_AT + 4;
    /// Longest body.
    pub const BODY_LIMIT: usize = LIMIT - Self::HEAD;

    /// `body` in an envelope that only fits `name`. The nonce must be random: it may never be the
    /// same twice for one kind and name.
    ///
    /// # Errors
    /// `Length` if the body is longer than [`BODY_LIMIT`](Self::BODY_LIMIT).
    pub fn wrap(
        &self,
        kind: Kind,
        name: &str,
        body: &[u8],
        nonce: [u8; NONCE],
    ) -> Result<Bytes, Damage> {
        if body.len() > Self::BODY_LIMIT {
            return Err(Damage::Length(body.len()));
        }
        let mut envelope = BytesMut::zeroed(Self::HEAD);
        envelope.extend_from_slice(body);
        let (head, body) = envelope.split_at_mut(Self::HEAD);
        head[..4].copy_from_slice(MAGIC);
        head[4] = kind as u8;
        head[6..8].copy_from_slice(&FORMAT.to_le_bytes());
        head[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        if let Some(cipher) = self.cipher(kind, name)? {
            head[5] = ENCRYPTED;
            head[NONCE_AT..TAG_AT].copy_from_slice(&nonce);
            let tag = cipher
                .seal_in_place_separate_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(&head[..NONCE_AT]),
                    body,
                )
                .map_err(|Unspecified| Damage::Cipher)?;
            head[TAG_AT..CRC_AT].copy_from_slice(tag.as_ref());
        }
        let crc = self.crc(name, &head[..CRC_AT], body);
        head[CRC_AT..].copy_from_slice(&crc);
        Ok(envelope.freeze())
    }

    /// What [`wrap`](Self::wrap) put into the envelope, which `bytes` must be the whole of.
    ///
    /// # Errors
    /// What is wrong with it; `Version` only for an envelope that is intact.
    pub fn unwrap(&self, kind: Kind, name: &str, bytes: &[u8]) -> Result<Bytes, Damage> {
        let length = Self::envelope_length(bytes)?;
        if bytes.len() < length {
            return Err(Damage::TooShort(bytes.len()));
        }
        if bytes.len() > length {
            return Err(Damage::Length(bytes.len()));
        }
        let (head, body) = bytes.split_at(Self::HEAD);
        if head[CRC_AT..] != self.crc(name, &head[..CRC_AT], body) {
            return Err(Damage::Checksum);
        }
        let found = u16::from_le_bytes([head[6], head[7]]);
        if found != FORMAT {
            return Err(Damage::Version { found });
        }
        if head[4] != kind as u8 {
            let (found, expected) = (head[4], kind as u8);
            return Err(Damage::Kind { found, expected });
        }
        match self.cipher(kind, name)? {
            None if head[5] == 0 => Ok(Bytes::copy_from_slice(body)),
            Some(cipher) if head[5] == ENCRYPTED => {
                let mut nonce = [0; NONCE];
                nonce.copy_from_slice(&head[NONCE_AT..TAG_AT]);
                let mut plain = BytesMut::zeroed(body.len());
                cipher
                    .open_separate_gather(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(&head[..NONCE_AT]),
                        body,
                        &head[TAG_AT..CRC_AT],
                        &mut plain,
                    )
                    .map_err(|Unspecified| Damage::Authentication)?;
                Ok(plain.freeze())
            }
            _ => Err(Damage::Encryption),
        }
    }

    /// Length of the whole envelope that begins with `head`, of at least [`HEAD`](Self::HEAD)
    /// bytes; never more than 64 MiB.
    ///
    /// # Errors
    /// If no envelope begins so.
    pub fn envelope_length(head: &[u8]) -> Result<usize, Damage> {
        let Some(start) = head
            .first_chunk::<12>()
            .filter(|_| head.len() >= Self::HEAD)
        else {
            return Err(Damage::TooShort(head.len()));
        };
        if !start.starts_with(MAGIC) {
            return Err(Damage::Magic);
        }
        let body = u32::from_le_bytes([start[8], start[9], start[10], start[11]]) as usize;
        if body > Self::BODY_LIMIT {
            return Err(Damage::Length(body));
        }
        Ok(Self::HEAD + body)
    }

    /// Whether `bytes` say that they are an envelope of this kind. What they say is not verified.
    pub fn looks_like(kind: Kind, bytes: &[u8]) -> bool {
        bytes.get(4) == Some(&(kind as u8))
    }

    /// The key for one kind and name alone; none where the pool is not encrypted.
    fn cipher(&self, kind: Kind, name: &str) -> Result<Option<LessSafeKey>, Damage> {
        let Some(key) = self.key() else {
            return Ok(None);
        };
        let pool = self.pool();
        let info: [&[u8]; 4] = [
            b"volmux metadata\0",
            pool.as_bytes(),
            &[kind as u8],
            name.as_bytes(),
        ];
        key.subkey(&info)
            .map(Some)
            .map_err(|Unspecified| Damage::Cipher)
    }

    fn crc(&self, name: &str, head: &[u8], body: &[u8]) -> [u8; 4] {
        let pool = self.pool();
        crc_of(&[pool.as_bytes(), name.as_bytes(), b"\0", head, body]).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::tests::both;

    fn wrap(seal: &Seal, name: &str, body: &[u8]) -> Bytes {
        seal.wrap(Kind::Manifest, name, body, [7; 12])
            .expect("it fits")
    }

    #[test]
    fn every_flipped_bit_of_an_envelope_is_found() {
        for seal in both(1, 1) {
            let mut bytes = wrap(&seal, "a", b"some body").to_vec();
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let damage = seal.unwrap(Kind::Manifest, "a", &bytes);
                let damage = damage.expect_err("a bit is wrong");
                assert!(!matches!(damage, Damage::Version { .. }), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let [seal, _] = both(1, 1);
        let mut bytes = wrap(&seal, "a", b"of the future").to_vec();
        bytes[6] += 1;
        let crc = seal.crc("a", &bytes[..CRC_AT], &bytes[Seal::HEAD..]);
        bytes[CRC_AT..Seal::HEAD].copy_from_slice(&crc);
        assert_eq!(
            seal.unwrap(Kind::Manifest, "a", &bytes),
            Err(Damage::Version { found: FORMAT + 1 })
        );
    }

    #[test]
    fn a_plain_envelope_does_not_pass_for_an_encrypted_one() {
        let [plain, encrypted] = both(1, 1);
        for (writer, reader) in [(&plain, &encrypted), (&encrypted, &plain)] {
            assert_eq!(
                reader.unwrap(Kind::Manifest, "a", &wrap(writer, "a", b"x")),
                Err(Damage::Encryption)
            );
        }
    }

    #[test]
    fn what_is_too_long_is_neither_written_nor_believed() {
        let [seal, _] = both(1, 1);
        let body = vec![0; Seal::BODY_LIMIT + 1];
        let length = Err(Damage::Length(body.len()));
        assert_eq!(seal.wrap(Kind::MapPage, "a", &body, [0; 12]), length);
        let longest = wrap(&seal, "a", &body[1..]);
        assert_eq!(Seal::envelope_length(&longest), Ok(LIMIT));
        let mut head = longest[..Seal::HEAD].to_vec();
        head[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let length = Err(Damage::Length(u32::MAX as usize));
        assert_eq!(Seal::envelope_length(&head), length);
    }

    #[test]
    fn the_layout_is_what_it_says() {
        let [seal, _] = both(0x1234, 1);
        let bytes = wrap(&seal, "logs/x", b"body");
        assert_eq!(&bytes[..12], b"VMX1\x03\0\x01\0\x04\0\0\0");
        assert_eq!(&bytes[12..40], &[0; 28]);
        let mut covered = seal.pool().as_bytes().to_vec();
        covered.extend_from_slice(b"logs/x\0");
        covered.extend_from_slice(&bytes[..40]);
        covered.extend_from_slice(b"body");
        assert_eq!(bytes[40..44], crc32c::crc32c(&covered).to_le_bytes());
        assert_eq!(&bytes[44..], b"body");
    }

    proptest! {
        #[test]
        fn an_envelope_opens_as_what_it_was_and_only_in_its_place(
            name in "[a-z0-9/-]{1,40}",
            other in "[a-z0-9/-]{1,40}",
            body in prop::collection::vec(any::<u8>(), 0..300),
            cut in any::<prop::sample::Index>(),
            more in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            for (seal, elsewhere) in both(1, 1).into_iter().zip(both(2, 1)) {
                let bytes = wrap(&seal, &name, &body);
                let unwrap = |bytes: &[u8]| seal.unwrap(Kind::Manifest, &name, bytes);
                prop_assert_eq!(Seal::envelope_length(&bytes), Ok(bytes.len()));
                prop_assert_eq!(unwrap(&bytes), Ok(Bytes::from(body.clone())));
                prop_assert!(elsewhere.unwrap(Kind::Manifest, &name, &bytes).is_err());
                prop_assert!(seal.unwrap(Kind::MapPage, &name, &bytes).is_err());
                if other != name {
                    prop_assert!(seal.unwrap(Kind::Manifest, &other, &bytes).is_err());
                }
                prop_assert!(unwrap(&bytes[..cut.index(bytes.len())]).is_err());
                let longer = [&bytes[..], &more].concat();
                prop_assert!(unwrap(&longer).is_err());
            }
            let [_, other_key] = both(1, 2);
            let bytes = wrap(&both(1, 1)[1], &name, &body);
            prop_assert_eq!(
                other_key.unwrap(Kind::Manifest, &name, &bytes),
                Err(Damage::Authentication)
            );
        }

        #[test]
        fn no_bytes_make_it_panic(
            tail in prop::collection::vec(any::<u8>(), 0..100),
            magic in any::<bool>(),
        ) {
            let bytes = [if magic { &MAGIC[..] } else { b"" }, &tail].concat();
            for seal in both(1, 1) {
                prop_assert!(seal.unwrap(Kind::DataHeader, "a", &bytes).is_err());
            }
        }
    }
}

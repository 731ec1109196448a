//! Integrity and secrecy of what is stored: checksums, or authenticated encryption.
//!
//! Every checksum and every key is bound to the pool and to the name of what it protects, so that
//! an object that was put in the place of another one is found out as a flipped bit is.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use crc32c::crc32c_append;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::keys::ObjectKey;
use crate::tip::BLOCK;

/// Bytes of content in a slot.
pub const CONTENT: usize = BLOCK as usize;
/// Bytes of a checksum.
const CRC: usize = 4;
/// Bytes of an authentication tag.
pub(crate) const TAG: usize = 16;

/// What is wrong with stored bytes, or with what was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    /// Fewer bytes than the smallest valid thing has.
    #[error("cut off after {0} bytes")]
    TooShort(usize),
    /// It does not begin as everything of a volmux pool does.
    #[error("does not hold what volmux stores (wrong magic number)")]
    Magic,
    /// It is something else than what was to be read.
    #[error("holds something of kind {found} where kind {expected} belongs")]
    Kind {
        /// What the envelope says.
        found: u8,
        /// What was asked for.
        expected: u8,
    },
    /// Intact, but of a later format. Not damage: the caller should say "update volmux".
    #[error("has format version {found}, which this volmux does not know")]
    Version {
        /// What the envelope says.
        found: u16,
    },
    /// Plain in an encrypted pool, or the other way round.
    #[error("is encrypted where it must not be, or is not where it must be")]
    Encryption,
    /// Its length is not what the envelope says, or is out of bounds.
    #[error("has a length of {0} bytes, which is not possible here")]
    Length(usize),
    /// Some bits changed, or it belongs to another name or pool.
    #[error("does not fit its checksum")]
    Checksum,
    /// Some bits changed, it belongs to another name or pool, or the key is another one.
    #[error("does not fit its authentication tag")]
    Authentication,
    /// Its compressed content is not what was compressed.
    #[error("can't be decompressed")]
    Compression,
    /// The cipher refused to work.
    #[error("cannot be encrypted")]
    Cipher,
}

/// A pool's secret key of 256 bits; wiped when it is dropped.
#[derive(Clone)]
pub(crate) struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    /// From its bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        DataKey(Zeroizing::new(bytes))
    }

    /// Its bytes.
    #[cfg(any(test, fuzzing))]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose alone, by HKDF-SHA-256. This key is uniformly random: there is
    /// nothing to extract, only to expand.
    pub fn subkey(&self, info: &[&[u8]]) -> Result<LessSafeKey, Unspecified> {
        let derived = Prk::new_less_safe(HKDF_SHA256, &self.0[..]);
        let key = UnboundKey::from(derived.expand(info, &AES_256_GCM)?);
        Ok(LessSafeKey::new(key))
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(secret)")
    }
}

/// How everything in one pool is protected. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Seal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: Uuid,
    key: Option<DataKey>,
}

impl Seal {
    /// By checksums.
    pub fn plain(pool: Uuid) -> Seal {
        Seal(Arc::new(Inner { pool, key: None }))
    }

    /// By authenticated encryption.
    pub fn encrypted(pool: Uuid, key: DataKey) -> Seal {
        let key = Some(key);
        Seal(Arc::new(Inner { pool, key }))
    }

    /// The pool's id.
    pub fn pool(&self) -> Uuid {
        self.0.pool
    }

    /// The pool's key, where it is encrypted.
    pub(crate) fn key(&self) -> Option<&DataKey> {
        self.0.key.as_ref()
    }

    /// Distance in bytes from one block of a data object to the next: content and tail.
    pub fn stride(&self) -> usize {
        CONTENT + if self.key().is_some() { TAG } else { CRC }
    }

    /// The protection of the blocks of one object.
    pub fn blocks(&self, object: &ObjectKey) -> BlockSeal {
        BlockSeal(self.tail(b"volmux block\0", object))
    }

    /// The protection of the frames of one object. Blocks and frames never have the same key, so
    /// that a frame and a block may have the same number.
    pub fn frames(&self, object: &ObjectKey) -> FrameSeal {
        FrameSeal(self.tail(b"volmux frame\0", object))
    }

    /// Bytes of what protects a block or frame.
    pub fn tail_length(&self) -> usize {
        self.stride() - CONTENT
    }

    fn tail(&self, purpose: &[u8], object: &ObjectKey) -> Tail {
        let name = object.to_string();
        let info: [&[u8]; 3] = [purpose, self.0.pool.as_bytes(), name.as_bytes()];
        match &self.0.key {
            None => Tail::Crc(crc_of(&info)),
            Some(key) => Tail::Tag(key.subkey(&info).ok().map(Arc::new)),
        }
    }
}

/// The checksum of `parts`, one after the other.
pub(crate) fn crc_of(parts: &[&[u8]]) -> u32 {
    parts.iter().fold(0, |crc, part| crc32c_append(crc, part))
}

/// Protects the blocks of one object, each under its number in the object. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BlockSeal(Tail);

#[derive(Clone)]
enum Tail {
    /// The checksum so far, to which number and content are added.
    Crc(u32),
    /// A key that no other object has, so that the number may be the nonce.
    Tag(Option<Arc<LessSafeKey>>),
}

impl BlockSeal {
    /// Completes `slot`, whose first 4096 bytes are the content of block `index`; encrypts these
    /// in place where the pool is encrypted. The same index must never be sealed with different
    /// content: no name of an object is used twice.
    ///
    /// # Errors
    /// `Length` if the slot is not exactly [`Seal::stride`] long.
    pub fn seal(&self, index: u32, slot: &mut [u8]) -> Result<(), Damage> {
        let length = slot.len();
        let (content, tail) = slot
            .split_at_mut_checked(CONTENT)
            .ok_or(Damage::Length(length))?;
        if tail.len() != self.0.length() {
            return Err(Damage::Length(length));
        }
        self.0.seal(index, content, tail)
    }

    /// Verifies `slot` as block `index` and puts its content into `out`, of 4096 bytes. On an
    /// error, `out` holds nothing of use.
    ///
    /// # Errors
    /// `Checksum` or `Authentication` where it is not what was sealed; `TooShort` or `Length`
    /// where slot or `out` have another length than they must.
    pub fn open(&self, index: u32, slot: &[u8], out: &mut [u8]) -> Result<(), Damage> {
        let (content, tail) = slot
            .split_at_checked(CONTENT)
            .ok_or(Damage::TooShort(slot.len()))?;
        if tail.len() != self.0.length() {
            return Err(Damage::Length(slot.len()));
        }
        if out.len() != CONTENT {
            return Err(Damage::Length(out.len()));
        }
        self.0.open(index, content, tail, out)
    }
}

/// Protects the frames of one object, each under its number in the object.
pub(crate) struct FrameSeal(Tail);

impl FrameSeal {
    /// Completes a frame, of which `bytes` are the content: encrypts it in place where the pool is
    /// encrypted, and appends the tail. As with blocks, no number may be used twice.
    ///
    /// # Errors
    /// `Cipher`.
    pub fn seal(&self, index: u32, bytes: &mut Vec<u8>) -> Result<(), Damage> {
        let mut tail = [0; TAG];
        let tail = &mut tail[..self.0.length()];
        self.0.seal(index, bytes, tail)?;
        bytes.extend_from_slice(tail);
        Ok(())
    }

    /// Verifies `bytes` as frame `index`, tail included, and puts what is before the tail into
    /// `out`. On an error, `out` holds nothing of use.
    ///
    /// # Errors
    /// `Checksum` or `Authentication` where it is not what was sealed; `TooShort`.
    pub fn open(&self, index: u32, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Damage> {
        let length = bytes.len().checked_sub(self.0.length());
        let length = length.ok_or(Damage::TooShort(bytes.len()))?;
        let (content, tail) = bytes.split_at(length);
        out.clear();
        out.resize(length, 0);
        self.0.open(index, content, tail, out)
    }
}

impl Tail {
    fn seal(&self, index: u32, content: &mut [u8], tail: &mut [u8]) -> Result<(), Damage> {
        match self {
            Tail::Crc(seed) => tail.copy_from_slice(&crc_of_block(*seed, index, content)),
            Tail::Tag(key) => {
                let key = key.as_ref().ok_or(Damage::Cipher)?;
                let tag = key
                    .seal_in_place_separate_tag(nonce_of(index), Aad::empty(), content)
                    .map_err(|Unspecified| Damage::Cipher)?;
                tail.copy_from_slice(tag.as_ref());
            }
        }
        Ok(())
    }

    /// `out` is as long as `content`, and `tail` as long as it must be.
    fn open(&self, index: u32, content: &[u8], tail: &[u8], out: &mut [u8]) -> Result<(), Damage> {
        match self {
            Tail::Crc(seed) => {
                if tail != crc_of_block(*seed, index, content) {
                    return Err(Damage::Checksum);
                }
                out.copy_from_slice(content);
                Ok(())
            }
            Tail::Tag(key) => {
                let key = key.as_ref().ok_or(Damage::Cipher)?;
                key.open_separate_gather(nonce_of(index), Aad::empty(), content, tail, out)
                    .map_err(|Unspecified| Damage::Authentication)
            }
        }
    }

    fn length(&self) -> usize {
        match self {
            Tail::Crc(_) => CRC,
            Tail::Tag(_) => TAG,
        }
    }
}

impl fmt::Debug for BlockSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Tail::Crc(_) => "BlockSeal(checksum)",
            Tail::Tag(_) => "BlockSeal(encryption)",
        })
    }
}

fn crc_of_block(seed: u32, index: u32, content: &[u8]) -> [u8; CRC] {
    crc32c_append(crc32c_append(seed, &index.to_le_bytes()), content).to_le_bytes()
}

fn nonce_of(index: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&index.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::LogId;

    pub(crate) fn both(pool: u128, key: u8) -> [Seal; 2] {
        let pool = Uuid::from_u128(pool);
        [
            Seal::plain(pool),
            Seal::encrypted(pool, DataKey::new([key; 32])),
        ]
    }

    fn object(log: u128, epoch: u64, seq: u64) -> ObjectKey {
        let log = LogId(Uuid::from_u128(log));
        ObjectKey { log, epoch, seq }
    }

    fn sealed(seal: &Seal, object: &ObjectKey, index: u32, content: &[u8]) -> Vec<u8> {
        let mut slot = content.to_vec();
        slot.resize(seal.stride(), 0xee);
        seal.blocks(object).seal(index, &mut slot).expect("it fits");
        slot
    }

    fn opened(seal: &Seal, object: &ObjectKey, index: u32, slot: &[u8]) -> Result<Vec<u8>, Damage> {
        let mut out = vec![0; CONTENT];
        seal.blocks(object).open(index, slot, &mut out)?;
        Ok(out)
    }

    #[test]
    fn every_flipped_bit_of_a_block_is_found() {
        let content: Vec<u8> = (0..CONTENT).map(|i| (i * 7 / 3) as u8).collect();
        for seal in both(1, 1) {
            let key = object(1, 2, 3);
            let mut slot = sealed(&seal, &key, 4, &content);
            for bit in 0..slot.len() * 8 {
                slot[bit / 8] ^= 1 << (bit % 8);
                assert!(opened(&seal, &key, 4, &slot).is_err(), "bit {bit}");
                slot[bit / 8] ^= 1 << (bit % 8);
            }
            assert_eq!(opened(&seal, &key, 4, &slot), Ok(content.clone()));
        }
    }

    #[test]
    fn a_block_of_zeros_is_not_a_slot_of_zeros() {
        for seal in both(1, 1) {
            let slot = vec![0; seal.stride()];
            assert!(opened(&seal, &object(1, 2, 3), 0, &slot).is_err());
        }
    }

    #[test]
    fn an_encrypted_block_shows_nothing_of_its_content() {
        let [_, seal] = both(1, 1);
        let (a, b) = (object(1, 2, 3), object(1, 2, 4));
        let content = vec![0; CONTENT];
        let slots = [
            sealed(&seal, &a, 0, &content),
            sealed(&seal, &a, 1, &content),
            sealed(&seal, &b, 0, &content),
        ];
        for (i, slot) in slots.iter().enumerate() {
            assert!(slot.windows(8).all(|w| w != [0; 8]), "{i}");
            assert!(slots[..i].iter().all(|other| other[..16] != slot[..16]));
        }
    }

    #[test]
    fn no_key_shows_in_debug() {
        let seal = Seal::encrypted(
            Uuid::nil(),
            DataKey::new(*b"0123456789canary0123456789canary"),
        );
        let shown = format!("{seal:?} {:?}", seal.blocks(&object(1, 1, 1)));
        assert!(
            !shown.contains("canary") && !shown.contains("99, 97"),
            "{shown}"
        );
        assert!(shown.contains("secret"));
    }

    proptest! {
        #[test]
        fn a_block_opens_as_what_it_was_and_only_in_its_place(
            seed in any::<u8>(),
            index in any::<u32>(),
            other in any::<u32>(),
            cut in 0usize..CONTENT,
        ) {
            let content: Vec<u8> = (0..CONTENT).map(|i| (i as u8).wrapping_mul(seed)).collect();
            let key = object(5, 6, 7);
            for (seal, elsewhere) in both(1, 1).into_iter().zip(both(2, 1)) {
                let slot = sealed(&seal, &key, index, &content);
                prop_assert_eq!(opened(&seal, &key, index, &slot), Ok(content.clone()));
                prop_assert!(opened(&elsewhere, &key, index, &slot).is_err());
                for wrong in [object(5, 6, 8), object(5, 7, 7), object(4, 6, 7)] {
                    prop_assert!(opened(&seal, &wrong, index, &slot).is_err());
                }
                if other != index {
                    prop_assert!(opened(&seal, &key, other, &slot).is_err());
                }
                prop_assert!(opened(&seal, &key, index, &slot[..slot.len() - 1]).is_err());
                prop_assert!(opened(&seal, &key, index, &slot[..cut]).is_err());
            }
            let [plain, encrypted] = both(1, 1);
            let [_, other_key] = both(1, 2);
            let slot = sealed(&encrypted, &key, index, &content);
            prop_assert_eq!(
                opened(&other_key, &key, index, &slot),
                Err(Damage::Authentication)
            );
            prop_assert!(opened(&plain, &key, index, &slot).is_err());
        }
    }
}

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::keys::{LogId, ObjectKey};
use crate::seal::tests::both;

const CODECS: [Codec; 2] = [Codec::Lz4, Codec::Zstd];

fn key() -> ObjectKey {
    let log = LogId(Uuid::from_u128(7));
    let (epoch, seq) = (2, 3);
    ObjectKey { log, epoch, seq }
}

/// Whole blocks, each of noise, of zeros, or of a word over and over.
fn any_content() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        any::<u64>().prop_map(|seed| (seed, true)),
        (0..3u64).prop_map(|word| (word, false)),
    ];
    vec(word, 1..=FRAME as usize).prop_map(|blocks| {
        let block = |(seed, noise): (u64, bool)| {
            (0..CONTENT as u64 / 8).flat_map(move |n| {
                let mixed = (seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(seed | 1);
                let word = if noise { mixed ^ (mixed >> 29) } else { seed };
                word.to_le_bytes()
            })
        };
        blocks.into_iter().flat_map(block).collect()
    })
}

fn encode(codec: Codec, content: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(codec).expect("there is memory");
    // What it did before must make no difference.
    encoder.encode(&[0x5a; FRAME_BYTES]);
    encoder.encode(content).to_vec()
}

fn decode(codec: Codec, stored: &[u8], length: usize) -> Result<Vec<u8>, Damage> {
    let mut content = vec![0xee; length];
    Decoder::default().decode(codec, stored, &mut content)?;
    Ok(content)
}

fn any_header() -> impl Strategy<Value = Header> {
    vec((0..1u64 << 40, 1..70u64, any::<bool>()), 0..9).prop_map(|extents| {
        let mut header = Header::default();
        header.push(1 << 50, 1, false);
        for (start, blocks, hole) in extents {
            header.push(start, blocks, hole);
        }
        header
    })
}

proptest! {
    #[test]
    fn a_frame_reads_back_and_is_never_longer(content in any_content()) {
        for codec in CODECS {
            let stored = encode(codec, &content);
            prop_assert!(stored.len() <= content.len());
            let back = decode(codec, &stored, content.len());
            prop_assert!(back.as_ref() == Ok(&content));
            // A frame that says less or more than it must is not taken for one.
            for length in [content.len() - CONTENT, content.len() + CONTENT] {
                if length != stored.len() {
                    prop_assert!(decode(codec, &stored, length).is_err());
                }
            }
        }
    }

    #[test]
    fn whatever_is_changed_in_a_sealed_frame_is_found(
        content in any_content(),
        at in any::<prop::sample::Index>(),
        bits in 1..=255u8,
        cut in any::<prop::sample::Index>(),
        number in 0..3u32,
    ) {
        for (seal, elsewhere) in both(1, 1).into_iter().zip(both(2, 1)) {
            for codec in CODECS {
                let mut bytes = encode(codec, &content);
                let length = bytes.len();
                let frames = seal.frames(&key());
                frames.seal(number, &mut bytes).unwrap();
                prop_assert_eq!(bytes.len(), length + seal.tail_length());
                let mut opened = vec![1, 2, 3];
                prop_assert_eq!(frames.open(number, &bytes, &mut opened), Ok(()));
                let back = decode(codec, &opened, content.len());
                prop_assert!(back.as_ref() == Ok(&content));
                prop_assert!(frames.open(number + 1, &bytes, &mut opened).is_err());
                prop_assert!(elsewhere.frames(&key()).open(number, &bytes, &mut opened).is_err());
                let other = ObjectKey { seq: 4, ..key() };
                prop_assert!(seal.frames(&other).open(number, &bytes, &mut opened).is_err());
                let cut = &bytes[..cut.index(bytes.len())];
                prop_assert!(frames.open(number, cut, &mut opened).is_err());
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
                prop_assert!(frames.open(number, &bytes, &mut opened).is_err());
            }
        }
    }

    #[test]
    fn no_bytes_make_a_codec_panic_or_write_elsewhere(
        content in any_content(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        noise in vec(any::<u8>(), 0..200),
        blocks in 1..=FRAME as usize,
    ) {
        for codec in CODECS {
            let mut stored = encode(codec, &content);
            for (at, byte) in &changes {
                let at = at.index(stored.len());
                stored[at] = *byte;
            }
            for bytes in [&stored[..], &stored[..cut.index(stored.len())], &noise] {
                if let Ok(back) = decode(codec, bytes, blocks * CONTENT) {
                    prop_assert_eq!(back.len(), blocks * CONTENT);
                }
            }
        }
    }

    #[test]
    fn a_header_with_a_table_reads_back(
        header in any_header(),
        zstd in any::<bool>(),
        seed in any::<u16>(),
        tail in 4..17usize,
    ) {
        let blocks = header.stored() as u32;
        let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
        let lengths = (0..frames(blocks)).map(|n| seed.wrapping_mul(n as u16 | 1) % 4096);
        let lengths: Vec<u16> = lengths.collect();
        let table = FrameTable::new(codec, blocks, lengths.clone());
        let body = table.encode(&header.encode());
        prop_assert_eq!(
            body.len(),
            header.encode().len() + encoded_length(lengths.len())
        );
        prop_assert_eq!(FrameTable::decode(&body), Ok((header, table.clone())));
        let mut at = 0;
        for (frame, length) in (0..).zip(&lengths) {
            let stored = usize::from(*length) + 1 + tail;
            prop_assert_eq!(table.stored(frame, tail), Some(stored));
            let end = at + stored as u64;
            prop_assert_eq!(table.range(frame..frame + 1, tail), Some(at..end));
            prop_assert_eq!(table.range(0..frame + 1, tail), Some(0..end));
            at = end;
        }
        prop_assert_eq!(table.total(tail), at);
        let all = (0..frames(blocks)).map(|frame| table.content(frame));
        prop_assert_eq!(all.sum::<usize>(), blocks as usize * CONTENT);
        prop_assert_eq!(table.range(0..frames(blocks) + 1, tail), None);
        prop_assert_eq!(table.range(u32::MAX - 1..u32::MAX, tail), None);
        prop_assert_eq!(table.stored(frames(blocks), tail), None);
        for cut in 0..body.len() {
            prop_assert!(FrameTable::decode(&body[..cut]).is_err());
        }
    }

    #[test]
    fn what_reads_as_a_table_is_written_the_same(mut bytes in vec(0..5u8, 0..60)) {
        // One extent, so that it often is one.
        bytes.splice(0..0, [1, 0]);
        if let Ok((header, table)) = FrameTable::decode(&bytes) {
            prop_assert_eq!(table.encode(&header.encode()), bytes);
        }
    }
}

#[test]
fn a_table_can_not_tell_of_more_than_an_object_holds() {
    let body = |blocks: u64, frames: usize, length: u16| {
        let mut header = Header::default();
        header.push(0, blocks, false);
        let table = FrameTable::new(Codec::Lz4, 0, vec![length; frames]);
        FrameTable::decode(&table.encode(&header.encode()))
    };
    assert!(body(MOST_BLOCKS, MOST_BLOCKS as usize / 16, u16::MAX).is_ok());
    assert!(body(MOST_BLOCKS + 1, MOST_BLOCKS as usize / 16 + 1, 9).is_err());
    assert!(body(17, 2, 4095).is_ok());
    assert!(body(17, 2, 4096).is_err(), "longer than its one block");
    assert!(body(17, 1, 0).is_err());
    assert!(body(17, 3, 0).is_err());
    let nothing = FrameTable::new(Codec::Lz4, 0, Vec::new());
    let body = nothing.encode(&Header::default().encode());
    assert!(FrameTable::decode(&body).is_err());
}

/// What earlier versions have stored has to be read for ever.
#[test]
fn frames_of_the_first_version_are_read() {
    let content: Vec<u8> = (0..2 * CONTENT).map(|i| b"volmux!\n"[i / 5 % 8]).collect();
    let of = |hex: &str| -> Vec<u8> {
        let digits = hex.as_bytes().chunks_exact(2);
        let byte = |two: &[u8]| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap();
        digits.map(byte).collect()
    };
    for (codec, stored) in [(Codec::Lz4, LZ4), (Codec::Zstd, ZSTD)] {
        let back = decode(codec, &of(stored), content.len());
        assert!(
            back.as_ref() == Ok(&content),
            "{codec:?} {:?}",
            encode(codec, &content)
        );
    }
}

const LZ4: &str = "\
    10760100ff146f6f6f6f6f6c6c6c6c6c6d6d6d6d6d7575757575787878787821212121210a0a0a0a\
    0a2800ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffde6078787878\
    2121\
    ";
const ZSTD: &str = "\
    28b52ffd60001f650100e876767676766f6f6f6f6f6c6d6d6d6d6d757878787878210a0a0a0a0a76\
    0500d0bf5403c0056c015b56e005\
    ";

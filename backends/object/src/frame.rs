//! Frames: the content of a compressed data object, cut into pieces that can be read one by one.
//!
//! A frame is the content of 16 blocks that follow one another in the object, the last one of what
//! is left. It is stored compressed, or as it is where that makes it no smaller, and protected as
//! it is stored. How long each is stands in the object's header, after the extents.

use std::io;
use std::ops::Range;

use lz4_flex::block::{self, CompressTable};
use zstd::bulk::{Compressor, Decompressor};

use crate::codec::{Malformed, Reader};
use crate::config::Compression;
use crate::data::Header;
use crate::seal::{CONTENT, Damage};

/// Blocks in a frame.
pub(crate) const FRAME: u32 = 16;
/// Bytes of content in a frame.
pub(crate) const FRAME_BYTES: usize = FRAME as usize * CONTENT;
/// No object has more blocks: they would be 256 MiB.
const MOST_BLOCKS: u64 = 1 << 16;
/// Twice as fast as the usual level 3, for a few percent more bytes.
const LEVEL: i32 = 1;

/// How frames are compressed. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Codec {
    /// LZ4 blocks.
    Lz4 = 1,
    /// Zstandard frames.
    Zstd = 2,
}

impl Codec {
    /// What a pool is made with; none where it does not compress.
    pub(crate) fn of(compression: Compression) -> Option<Self> {
        match compression {
            Compression::None => None,
            Compression::Lz4 => Some(Codec::Lz4),
            Compression::Zstd => Some(Codec::Zstd),
        }
    }
}

/// Which frames an object has, and how long each is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrameTable {
    codec: Codec,
    /// Blocks in the object.
    blocks: u32,
    /// Bytes of each frame without what protects it, less one.
    lengths: Box<[u16]>,
}

impl FrameTable {
    /// Of an object of `blocks` blocks, whose frames have these lengths, less one.
    pub(crate) fn new(codec: Codec, blocks: u32, lengths: Vec<u16>) -> Self {
        FrameTable {
            codec,
            blocks,
            lengths: lengths.into(),
        }
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.lengths.len() * size_of::<u16>()
    }

    /// Bytes of content in a frame.
    pub(crate) fn content(&self, frame: u32) -> usize {
        let before = u64::from(frame) * u64::from(FRAME);
        let blocks = u64::from(self.blocks).saturating_sub(before);
        blocks.min(FRAME.into()) as usize * CONTENT
    }

    /// Bytes of a frame in the store, of which `tail` protect it; none where there is no such frame.
    pub(crate) fn stored(&self, frame: u32, tail: usize) -> Option<usize> {
        let length = self.lengths.get(frame as usize)?;
        Some(usize::from(*length) + 1 + tail)
    }

    /// Where frames are, in bytes from where the first one begins; none where not all are there.
    pub(crate) fn range(&self, frames: Range<u32>, tail: usize) -> Option<Range<u64>> {
        let (first, end) = (frames.start as usize, frames.end as usize);
        let before = self.lengths.get(..first)?;
        let wanted = self.lengths.get(first..end)?;
        let start = sum(before, tail);
        Some(start..start + sum(wanted, tail))
    }

    /// Bytes of all frames in the store.
    pub(crate) fn total(&self, tail: usize) -> u64 {
        sum(&self.lengths, tail)
    }

    /// The body of an object's header.
    pub(crate) fn encode(&self, extents: &[u8]) -> Vec<u8> {
        let mut body = Vec::with_capacity(extents.len() + encoded_length(self.lengths.len()));
        body.extend_from_slice(extents);
        body.push(self.codec as u8);
        for length in &self.lengths {
            body.extend_from_slice(&length.to_le_bytes());
        }
        body
    }

    /// Reads the body of an object's header.
    pub(crate) fn decode(body: &[u8]) -> Result<(Header, Self), Malformed> {
        let mut reader = Reader::new(body);
        let header = Header::read(&mut reader)?;
        let stored = header.stored();
        if stored == 0 || stored > MOST_BLOCKS {
            return Err(Malformed("it can't have so many blocks in frames"));
        }
        let codec = match reader.u8()? {
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            _ => return Err(Malformed("it is compressed in an unknown way")),
        };
        let lengths = reader.bytes(2 * frames(stored as u32) as usize)?;
        reader.end()?;
        let pairs = lengths.chunks_exact(2);
        let table = FrameTable {
            codec,
            blocks: stored as u32,
            lengths: pairs
                .map(|two| u16::from_le_bytes([two[0], two[1]]))
                .collect(),
        };
        let last = frames(stored as u32) - 1;
        if table
            .stored(last, 0)
            .is_none_or(|stored| stored > table.content(last))
        {
            return Err(Malformed("a frame is longer than what it holds"));
        }
        Ok((header, table))
    }
}

/// Frames that so many blocks make.
pub(crate) fn frames(blocks: u32) -> u32 {
    blocks.div_ceil(FRAME)
}

/// Bytes that a table adds to a header.
pub(crate) fn encoded_length(frames: usize) -> usize {
    1 + 2 * frames
}

fn sum(lengths: &[u16], tail: usize) -> u64 {
    let content: u64 = lengths.iter().map(|length| u64::from(*length) + 1).sum();
    content + (lengths.len() * tail) as u64
}

/// Compresses frames.
pub(crate) struct Encoder {
    with: With,
    compressed: Vec<u8>,
    decoder: Decoder,
    again: Vec<u8>,
}

enum With {
    Lz4(CompressTable),
    Zstd(Compressor<'static>),
}

impl Encoder {
    /// # Errors
    /// Those of the codec, if it can't be set up.
    pub(crate) fn new(codec: Codec) -> io::Result<Self> {
        Ok(Encoder {
            with: match codec {
                Codec::Lz4 => With::Lz4(CompressTable::large()),
                Codec::Zstd => With::Zstd(Compressor::new(LEVEL)?),
            },
            compressed: vec![0; block::get_maximum_output_size(FRAME_BYTES)],
            decoder: Decoder::default(),
            again: Vec::new(),
        })
    }

    /// A frame's content, of at most [`FRAME_BYTES`], as it is stored: no longer than it is.
    pub(crate) fn encode<'a>(&'a mut self, content: &'a [u8]) -> &'a [u8] {
        let (codec, length) = match &mut self.with {
            With::Lz4(table) => {
                let done = block::compress_into_with_table(content, &mut self.compressed, table);
                (Codec::Lz4, done.ok())
            }
            With::Zstd(compressor) => {
                let done = compressor.compress_to_buffer(content, &mut self.compressed[..]);
                (Codec::Zstd, done.ok())
            }
        };
        let smaller = length.filter(|length| *length > 0 && *length < content.len());
        let Some(compressed) = smaller.and_then(|length| self.compressed.get(..length)) else {
            return content;
        };
        // A fault of the codec shall cost room, not the content.
        self.again.clear();
        self.again.resize(content.len(), 0);
        let back = self.decoder.decode(codec, compressed, &mut self.again);
        match back.is_ok() && self.again == content {
            true => compressed,
            false => content,
        }
    }
}

/// Decompresses frames.
#[derive(Default)]
pub(crate) struct Decoder {
    zstd: Option<Decompressor<'static>>,
}

impl Decoder {
    /// Fills `content`, whose length is that of the frame's content, from how it is stored.
    /// Whatever `stored` says, nothing is allocated but the codec's own state.
    ///
    /// # Errors
    /// `Compression`; then `content` holds nothing of use.
    pub(crate) fn decode(
        &mut self,
        codec: Codec,
        stored: &[u8],
        content: &mut [u8],
    ) -> Result<(), Damage> {
        if stored.len() == content.len() {
            content.copy_from_slice(stored);
            return Ok(());
        }
        let length = match codec {
            Codec::Lz4 => block::decompress_into(stored, content).ok(),
            Codec::Zstd => {
                let zstd = self.zstd.get_or_insert_with(Decompressor::default);
                zstd.decompress_to_buffer(stored, content).ok()
            }
        };
        match length == Some(content.len()) {
            true => Ok(()),
            false => Err(Damage::Compression),
        }
    }
}

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

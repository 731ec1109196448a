//! What a fuzzer may throw bytes at: the decoders of everything that a store gives back. Not part
//! of the library: there is no such module unless it is built for fuzzing.

use std::path::Path;

use uuid::Uuid;
use volmux_core::VolumeId;

use crate::codec::Reader;
use crate::data::Header;
use crate::frame::{Codec, Decoder, Encoder, FRAME, FrameTable, frames};
use crate::keys::{self, LogId, Named, ObjectKey};
use crate::manifest::Manifest;
use crate::map::{ObjectTable, Page, span};
use crate::owner::Owner;
use crate::seal::CONTENT;
use crate::tip::{BLOCK, Tip};

/// Gives bytes to the decoder that the first of them selects.
///
/// # Panics
/// If a decoder is at fault: what it accepts does not keep to the format, or does not read back.
pub fn decode(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else {
        return;
    };
    match which % 7 {
        0 => map_page(body),
        1 => tip(body),
        2 => manifest(body),
        3 => header(body),
        4 => framed_header(body),
        5 => frame(body),
        _ => name(body),
    }
}

/// Gives bytes to the decoder that the first of them selects: of records, descriptions, keys and
/// what else is not in an object of a log. Whether it took them.
///
/// # Panics
/// As [`decode`].
pub fn records(bytes: &[u8]) -> bool {
    let Some((which, body)) = bytes.split_first() else {
        return false;
    };
    match which % 11 {
        0 => crate::catalog::fuzz::record(body),
        1 => crate::catalog::fuzz::checkpoint(body),
        2 => crate::envelope::fuzz::envelope(body),
        3 => crate::envelope::fuzz::change(body),
        4 => crate::format::fuzz::description(body),
        5 => crate::secret::fuzz::key(body),
        6 => crate::secret::fuzz::wrapped(body),
        7 => crate::secret::fuzz::credentials(body),
        8 => crate::journal::fuzz::header(body),
        9 => crate::journal::fuzz::record(body),
        _ => owner(body) || names(body),
    }
}

/// Makes a journal in `dir` as the bytes say, damages it as they say, and recovers it. `dir` is
/// for nobody else, and as empty afterwards as it was.
///
/// # Panics
/// If something else is recovered than what must be, or recovery is at fault.
pub fn journal(dir: &Path, bytes: &[u8]) {
    crate::journal::fuzz::recovery(dir, bytes);
}

/// A page of a map.
pub(crate) fn map_page(body: &[u8]) {
    let table = ObjectTable::new();
    let Ok(page) = Page::decode(body, &table) else {
        return;
    };
    let again = page.encode(&table).expect("its objects are known");
    assert_eq!(Page::decode(&again, &table).as_ref(), Ok(&page));
    let mut end = page.base();
    for run in page.runs(0, u64::MAX) {
        assert!(run.start >= end && run.end() <= page.base() + span(0));
        end = run.end();
    }
    assert!(page.children().is_sorted_by(|a, b| a.slot < b.slot));
    assert!(page.mapped() <= span(page.level()));
}

fn tip(body: &[u8]) {
    let mut reader = Reader::new(body);
    if let Ok(tip) = Tip::decode(&mut reader) {
        let mut again = Vec::new();
        tip.encode(&mut again);
        assert_eq!(Tip::decode(&mut Reader::new(&again)), Ok(tip));
    }
}

fn manifest(body: &[u8]) {
    let log = LogId(Uuid::nil());
    if let Ok(manifest) = Manifest::decode(log, 7, body)
        && let Ok(again) = manifest.encode()
    {
        assert_eq!(Manifest::decode(log, 7, &again), Ok(manifest));
    }
}

fn header(body: &[u8]) {
    if let Ok(header) = Header::decode(body) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

fn framed_header(body: &[u8]) {
    if let Ok((header, table)) = FrameTable::decode(body) {
        assert_eq!(table.encode(&header.encode()), body);
        let frames = frames(header.stored() as u32);
        assert_eq!(table.range(0..frames, 4), Some(0..table.total(4)));
        assert_eq!(table.range(0..frames + 1, 4), None);
        let content: usize = (0..frames).map(|frame| table.content(frame)).sum();
        assert_eq!(content as u64, header.stored() * BLOCK);
    }
}

/// What is left of a frame once its checksum was right.
fn frame(body: &[u8]) {
    let Some(([which, blocks], stored)) = body.split_first_chunk() else {
        return;
    };
    let codec = match which % 2 {
        0 => Codec::Lz4,
        _ => Codec::Zstd,
    };
    let blocks = usize::from(blocks % FRAME as u8) + 1;
    let mut content = vec![0xee; blocks * CONTENT];
    if Decoder::default()
        .decode(codec, stored, &mut content)
        .is_ok()
    {
        let mut encoder = Encoder::new(codec).expect("there is memory");
        let again = encoder.encode(&content).to_vec();
        let mut back = vec![0x11; content.len()];
        let done = Decoder::default().decode(codec, &again, &mut back);
        assert_eq!((done, back == content), (Ok(()), true));
    }
}

fn name(body: &[u8]) {
    if let Ok(name) = str::from_utf8(body)
        && let Ok(Named::Data(key)) = name.parse()
    {
        assert_eq!(key.to_string(), name);
    }
}

/// What readers leave behind, and manifests name their writers by.
fn owner(body: &[u8]) -> bool {
    let Ok(owner) = serde_json::from_slice::<Owner>(body) else {
        return false;
    };
    let again = serde_json::to_vec(&owner).expect("it has a JSON form");
    assert_eq!(serde_json::from_slice::<Owner>(&again).ok(), Some(owner));
    true
}

/// Every name that can be made reads back as what it says.
fn names(body: &[u8]) -> bool {
    let mut reader = Reader::new(body);
    let (Ok(a), Ok(b), Ok(id)) = (reader.varint(), reader.varint(), reader.uuid()) else {
        return false;
    };
    let (log, volume) = (LogId(id), VolumeId::from_u128(id.as_u128()));
    let key = ObjectKey {
        log,
        epoch: a,
        seq: b,
    };
    for (name, named) in [
        (key.to_string(), Named::Data(key)),
        (keys::manifest(log, a), Named::Manifest(log, a)),
        (keys::catalog_record(a), Named::CatalogRecord(a)),
        (keys::catalog_checkpoint(b), Named::CatalogCheckpoint(b)),
        (keys::reader(volume, id), Named::Reader(volume, id)),
    ] {
        assert_eq!(name.parse(), Ok(named), "{name}");
    }
    true
}

#[cfg(test)]
mod tests;

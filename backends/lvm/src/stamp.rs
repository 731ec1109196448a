//! Whether a group's metadata has changed, told without starting a process.
//!
//! lvm2 writes all metadata of a group as text into a ring on its physical volumes, and then, in
//! one sector, where the newest text begins, how long it is, and its checksum: that sector is the
//! commit (`lib/format_text/layout.h`, `man lvm`'s "metadata area"). As long as it is the same, what
//! was reported then is true now.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::OFlags;

/// A physical volume is read in blocks of this size: no disk has larger sectors.
const BLOCK: usize = 4096;
const SECTOR: usize = 512;
/// The label lies in one of the first sectors.
const LABEL_SECTORS: usize = 4;
const MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";

/// One commit of a group's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The sector that says where the newest text is.
    header: Vec<u8>,
    /// The commit's number, as the text says.
    pub seqno: u64,
}

/// Where the metadata of a group is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    device: PathBuf,
}

impl Place {
    /// On a physical volume whose metadata area is in use.
    pub fn new(device: impl Into<PathBuf>) -> Self {
        Place {
            device: device.into(),
        }
    }

    /// The last commit.
    ///
    /// # Errors
    /// If the device can't be read, or does not look as it should: then nothing is known, and lvm2
    /// must be asked.
    pub fn read(&self) -> io::Result<Stamp> {
        let mut options = File::options();
        // Past the page cache, as lvm2 writes.
        options
            .read(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed());
        let disk = options.open(&self.device)?;
        read_stamp(&|offset, block| disk.read_exact_at(block, offset))
    }
}

#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

fn read_stamp(read: Read<'_>) -> io::Result<Stamp> {
    let strange = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut block = Box::new(Block([0; BLOCK]));
    read(0, &mut block.0)?;
    let area = metadata_area(&block.0).ok_or_else(|| strange("no LVM label"))?;
    let at = area.offset;
    read(at / BLOCK as u64 * BLOCK as u64, &mut block.0)?;
    let start = (at % BLOCK as u64) as usize;
    let header = block.0.get(start..start + SECTOR);
    let header = header
        .ok_or_else(|| strange("a metadata area that is not aligned"))?
        .to_vec();
    let text = newest_text(&header, area).ok_or_else(|| strange("no LVM metadata area"))?;
    // The number stands in the first lines, which lie in at most two blocks.
    let mut bytes = Vec::with_capacity(2 * BLOCK);
    let first = text / BLOCK as u64 * BLOCK as u64;
    for offset in [first, first + BLOCK as u64] {
        if offset < area.offset + area.size {
            read(offset, &mut block.0)?;
            bytes.extend_from_slice(&block.0);
        }
    }
    let seqno = seqno(&bytes[(text - first) as usize..]);
    let seqno = seqno.ok_or_else(|| strange("no LVM metadata"))?;
    Ok(Stamp { header, seqno })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    offset: u64,
    size: u64,
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at.checked_add(8)?)?;
    eight.try_into().ok().map(u64::from_le_bytes)
}

/// The first metadata area that the label names. `label_header`: "LABELONE", sector, checksum, offset
/// of the content, type. `pv_header`: UUID (32), size (8), then areas of data and, after one of zeros,
/// of metadata; each is offset and size.
fn metadata_area(start: &[u8]) -> Option<Area> {
    let label = start
        .chunks_exact(SECTOR)
        .take(LABEL_SECTORS)
        .find(|sector| sector.starts_with(b"LABELONE") && &sector[24..32] == b"LVM2 001")?;
    let mut at = le32(label, 20)? as usize + 32 + 8;
    while le64(label, at)? != 0 {
        at += 16;
    }
    let area = Area {
        offset: le64(label, at + 16)?,
        size: le64(label, at + 24)?,
    };
    let whole =
        area.offset.is_multiple_of(SECTOR as u64) && area.offset.checked_add(area.size).is_some();
    (area.offset != 0 && area.size > SECTOR as u64 && whole).then_some(area)
}

/// Where the newest text begins. `mda_header`: checksum, magic, version, start and size of the area,
/// then places: offset, size, checksum, flags.
fn newest_text(header: &[u8], area: Area) -> Option<u64> {
    let right = header.get(4..20)? == MAGIC
        && le64(header, 24)? == area.offset
        && le64(header, 32)? == area.size;
    let offset = le64(header, 40)?;
    (right && offset >= SECTOR as u64 && offset < area.size).then(|| area.offset + offset)
}

/// The number in `vg {\nid = "…"\nseqno = 17\n`.
fn seqno(text: &[u8]) -> Option<u64> {
    let line = text.split(|&b| b == b'\n').nth(2)?;
    let number = line.strip_prefix(b"seqno = ")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Reads a stamp from a disk of these bytes: its label, and behind it the rest, from 4096 on.
#[cfg(any(test, fuzzing))]
pub fn fuzz(bytes: &[u8]) {
    let (label, rest) = bytes.split_at(bytes.len().min(160));
    let _ = read_stamp(&|offset, block| {
        block.fill(0);
        let (from, at) = if offset == 0 {
            (label, SECTOR)
        } else {
            (rest, 0)
        };
        let skipped = offset.saturating_sub(BLOCK as u64) as usize;
        let from = from
            .get(if offset == 0 { 0 } else { skipped }..)
            .unwrap_or_default();
        let length = from.len().min(block.len() - at);
        block[at..at + length].copy_from_slice(&from[..length]);
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AREA: u64 = 4096;
    const SIZE: u64 = 1_044_480;

    /// A disk as `pvcreate` and `vgcreate` make one, with the text at `offset` of the area.
    fn disk(offset: u64, seqno: u64) -> Vec<u8> {
        let mut disk = vec![0; (AREA + SIZE) as usize];
        let label = &mut disk[512..1024];
        label[..8].copy_from_slice(b"LABELONE");
        label[20..24].copy_from_slice(&32u32.to_le_bytes());
        label[24..32].copy_from_slice(b"LVM2 001");
        // Behind UUID and size: data from 1 MiB, the end; metadata, the end.
        for (at, value) in [(72, 1u64 << 20), (80, 0), (104, AREA), (112, SIZE)] {
            label[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let header = &mut disk[AREA as usize..][..512];
        header[4..20].copy_from_slice(MAGIC);
        for (at, value) in [(24, AREA), (32, SIZE), (40, offset), (48, 3253)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let text = format!("vg {{\nid = \"Cw4Gzr\"\nseqno = {seqno}\nformat = \"lvm2\"\n");
        let room = &mut disk[(AREA + offset) as usize..];
        let length = text.len().min(room.len());
        room[..length].copy_from_slice(&text.as_bytes()[..length]);
        disk
    }

    fn stamp(disk: &[u8]) -> io::Result<Stamp> {
        read_stamp(&|offset, block| {
            let end = (offset as usize).saturating_add(block.len());
            let from = disk
                .get(offset as usize..end)
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            block.copy_from_slice(from);
            Ok(())
        })
    }

    #[test]
    fn the_last_commit_is_read() {
        for offset in [512, 53_248, 512 + 4096 - 20, SIZE - 600] {
            assert_eq!(
                stamp(&disk(offset, 17)).expect("right").seqno,
                17,
                "{offset}"
            );
        }
    }

    #[test]
    fn each_commit_is_another_stamp() {
        let first = stamp(&disk(512, 17)).expect("right");
        assert_eq!(first, stamp(&disk(512, 17)).expect("right"));
        assert_ne!(first, stamp(&disk(4096, 18)).expect("right"));
    }

    #[test]
    fn what_is_strange_is_an_error() {
        let good = disk(512, 17);
        stamp(&good).expect("right");
        for at in [
            512,
            512 + 24,
            512 + 104,
            4096 + 4,
            4096 + 24,
            4096 + 41,
            4096 + 512 + 22,
        ] {
            let mut bad = good.clone();
            bad[at] = 0x7f;
            stamp(&bad).expect_err("it is damaged");
        }
        stamp(&good[..4096]).expect_err("it is cut off");
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in prop_oneof![512usize..640, 4096usize..4160, 4608usize..4680], value: [u8; 8]) {
            let mut bad = disk(512, 17);
            bad[at..at + 8].copy_from_slice(&value);
            let _ = stamp(&bad);
        }
    }
}

//! Reference counts of an image that was not closed properly, made anew from its tables.
//!
//! imago keeps them in memory for a while, and writes an entry of the L1 table at once. A process that
//! is killed in between leaves a cluster in use that counts as free, and the next one to be allocated
//! would be that. So an image is marked as dirty as long as it is written, as QEMU does with lazy
//! reference counts, and what finds it so counts anew first. Where the mark is gone, so is QEMU's need
//! to do the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{CLUSTER, FEATURES_AT, Header, PER_L2};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// Counts in a block of them, which is a cluster of counts of 2 bytes.
const PER_BLOCK: u64 = CLUSTER / 2;
const DIRTY: u64 = 1;

/// Marks an image as one whose reference counts may be wrong, durably, or as one whose are right.
pub fn set_dirty(file: &File, dirty: bool) -> io::Result<()> {
    let mut features = [0; 8];
    file.read_exact_at(&mut features, FEATURES_AT)?;
    let before = u64::from_be_bytes(features);
    let after = before & !DIRTY | u64::from(dirty);
    if before == after {
        return Ok(());
    }
    file.write_all_at(&after.to_be_bytes(), FEATURES_AT)?;
    if dirty { file.sync_data() } else { Ok(()) }
}

/// Takes the mark of a dirty image out of a part of its header that was read: imago knows nothing of
/// it.
pub fn hide_dirty(bytes: &mut [u8], offset: u64) {
    let last = FEATURES_AT + 7;
    let at = last
        .checked_sub(offset)
        .and_then(|at| usize::try_from(at).ok());
    if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
        *byte &= !(DIRTY as u8);
    }
}

/// Counts anew what the tables of an image refer to, and makes that durable. Nobody else has it.
///
/// # Errors
/// `InvalidData` if two entries lead to one cluster, or one leads to where none can be.
pub fn repair(file: &File, header: &Header) -> io::Result<()> {
    let mut counts = Counts::of(file, header)?;
    counts.write(file, header)?;
    file.sync_data()?;
    set_dirty(file, false)
}

/// The header, the L1 table and the L2 tables, each with its offset.
pub fn tables(file: &File, header: &Header) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let bytes = |entries: &[u64]| {
        entries
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect()
    };
    let l1 = table(file, header.l1.offset, header.l1.entries)?;
    let mut found = vec![
        (0, super::storage::read_start(file)?),
        (header.l1.offset, bytes(&l1)),
    ];
    for offset in l1
        .into_iter()
        .map(|entry| entry & OFFSET)
        .filter(|offset| *offset != 0)
    {
        found.push((offset, bytes(&table(file, offset, CLUSTER / 8)?)));
    }
    Ok(found)
}

struct Counts {
    /// By cluster.
    used: Vec<u16>,
    /// Where the blocks of counts are, by their index.
    blocks: Vec<u64>,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn table(file: &File, offset: u64, entries: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; (entries * 8) as usize];
    let mut done = 0;
    while done < bytes.len() {
        // A file may end within a table: what is missing reads as zeros.
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let entries = bytes.as_chunks::<8>().0.iter();
    Ok(entries.map(|entry| u64::from_be_bytes(*entry)).collect())
}

impl Counts {
    fn of(file: &File, header: &Header) -> io::Result<Counts> {
        let most = file.metadata()?.len().div_ceil(CLUSTER);
        let mut counts = Counts {
            used: vec![0; most as usize],
            blocks: Vec::new(),
        };
        counts.add(0, CLUSTER)?;
        counts.add(header.l1.offset, header.l1.entries * 8)?;
        counts.add(header.refcounts.offset, header.refcounts.entries * 8)?;
        counts.blocks = table(file, header.refcounts.offset, header.refcounts.entries)?;
        for block in counts
            .blocks
            .clone()
            .into_iter()
            .filter(|block| *block != 0)
        {
            counts.add(block, CLUSTER)?;
        }
        let entries = header.size.div_ceil(PER_L2);
        for entry in table(file, header.l1.offset, entries)? {
            let l2 = entry & OFFSET;
            if l2 == 0 {
                continue;
            }
            counts.add(l2, CLUSTER)?;
            for entry in table(file, l2, CLUSTER / 8)? {
                if entry & COMPRESSED != 0 {
                    let offset = entry & ((1 << 54) - 1);
                    let sectors = ((entry >> 54) & 0xff) + 1;
                    counts.add_part(offset, sectors * 512)?;
                } else if entry & OFFSET != 0 {
                    counts.add(entry & OFFSET, CLUSTER)?;
                }
            }
        }
        Ok(counts)
    }

    /// Counts whole clusters, which are nobody else's.
    fn add(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if !offset.is_multiple_of(CLUSTER) {
            return Err(damaged("a table leads to where no cluster begins"));
        }
        for cluster in offset / CLUSTER..(offset + length).div_ceil(CLUSTER) {
            if *self.count(cluster)? != 0 {
                return Err(damaged("two entries of its tables lead to one cluster"));
            }
            *self.count(cluster)? = 1;
        }
        Ok(())
    }

    /// Counts compressed data, which may lie within clusters with others.
    fn add_part(&mut self, offset: u64, length: u64) -> io::Result<()> {
        for cluster in offset / CLUSTER..(offset + length).div_ceil(CLUSTER) {
            *self.count(cluster)? += 1;
        }
        Ok(())
    }

    fn count(&mut self, cluster: u64) -> io::Result<&mut u16> {
        let at = cluster as usize;
        // The last cluster of a file may have been allocated, and nothing written there.
        let most = self.used.len() + PER_BLOCK as usize;
        if cluster as usize >= most {
            return Err(damaged("a table leads past the end of the file"));
        }
        if at >= self.used.len() {
            self.used.resize(at + 1, 0);
        }
        Ok(&mut self.used[at])
    }

    fn write(&mut self, file: &File, header: &Header) -> io::Result<()> {
        // A new block counts itself, and so may need another one.
        let mut added = true;
        while std::mem::take(&mut added) {
            for index in 0..(self.used.len() as u64).div_ceil(PER_BLOCK) {
                let block = self.blocks.get(index as usize).copied();
                let block =
                    block.ok_or_else(|| damaged("its table of reference counts is too small"))?;
                let range = (index * PER_BLOCK) as usize..self.used.len();
                let needed = self.used[range].iter().take(PER_BLOCK as usize);
                if block == 0 && needed.clone().any(|count| *count != 0) {
                    let cluster = self.used.len() as u64;
                    self.used.push(1);
                    self.blocks[index as usize] = cluster * CLUSTER;
                    added = true;
                }
            }
        }
        for (index, block) in self
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, block)| **block != 0)
        {
            let start = index * PER_BLOCK as usize;
            let mut bytes = vec![0; CLUSTER as usize];
            let used = self.used.get(start..).unwrap_or_default();
            for (count, at) in used.iter().zip(bytes.as_chunks_mut::<2>().0) {
                *at = count.to_be_bytes();
            }
            write_changed(file, &bytes, *block)?;
        }
        let table: Vec<u8> = self
            .blocks
            .iter()
            .flat_map(|block| block.to_be_bytes())
            .collect();
        file.sync_data()?;
        write_changed(file, &table, header.refcounts.offset)
    }
}

/// Writes the parts that are not so yet: a table is mostly a hole.
fn write_changed(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    const PART: usize = 4096;
    let mut found = [0; PART];
    for (at, part) in (offset..).step_by(PART).zip(bytes.chunks(PART)) {
        let found = &mut found[..part.len()];
        found.fill(0);
        // What is past the end reads as zeros.
        let _read = file.read_at(found, at)?;
        if found != part {
            file.write_all_at(part, at)?;
        }
    }
    Ok(())
}

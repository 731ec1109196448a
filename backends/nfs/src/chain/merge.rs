//! Merging a file of a chain into the one below it.
//!
//! A merge writes into the lower file what the upper one holds itself, which changes nothing that
//! anybody reads: all who read the lower one do so through the upper one. Only when all of it is
//! durable, those who refer to the upper file refer to the lower one instead, each by one write of
//! one sector or one rename, and the upper one is dropped. It may be cut short at any moment: what
//! was written into the lower file until then is written again.
//!
//! Both files are locked meanwhile, as nobody else may use them. Whoever wants to makes the merge
//! stop soon; the next collection begins it anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use volmux_core::{ByteRange, ByteSize, Collected, Error, ErrorKind, Result, VolumeName};

use super::collect::{OP, blocks, candidate_of, open_for_change};
use super::header::CLUSTER;
use super::image::{self, ChainError, Image, Own, Part, header_of, is_frozen, open_node};
use super::share::is_snapshot;
use crate::audit::References;
use crate::inner::Inner;
use crate::inuse;
use crate::layout::{PoolDirs, file_error};
use crate::node::Node;
use crate::queue::Stop;
use crate::record::{FORMAT_VERSION, MergeRecord, VolumeRecord};
use crate::sys::{self, Locked};

/// Bytes that are merged before a look at whether somebody waits.
const CHUNK: u64 = 1 << 20;

/// How an attempt at a merge ended.
pub enum Merge {
    Done {
        freed: u64,
    },
    /// All is merged, and somebody is at work on a volume that is to have the lower file.
    Pending,
    /// Somebody uses one of the files, or wants to.
    InUse,
    NoRoom {
        wanted: u64,
    },
}

/// Two files that nobody else uses, the upper one to be merged into the lower one.
struct Pair {
    from: Part,
    into: Part,
}

impl Inner {
    /// The part of a chain that `node` is, alone.
    fn part(&self, pool: &PoolDirs, node: Node) -> Result<Option<Part>> {
        let Some(file) = self.alone(pool, node, false)? else {
            return Ok(None);
        };
        let header = header_of(node, &file).map_err(|error| self.chain_error(OP, error))?;
        let file = Arc::new(file);
        Ok(Some(Part { node, file, header }))
    }

    fn pair(&self, pool: &PoolDirs, from: Node, into: Node) -> Result<Option<Pair>> {
        let Some(into) = self.part(pool, into)? else {
            return Ok(None);
        };
        let Some(from) = self.part(pool, from)? else {
            return Ok(None);
        };
        Ok(Some(Pair { from, into }))
    }

    pub fn merge(&self, pool: &PoolDirs, from: Node, into: Node, stop: &Stop) -> Result<Merge> {
        let Some(pair) = self.pair(pool, from, into)? else {
            return Ok(Merge::InUse);
        };
        // What is locked now, nobody can begin to refer to.
        let references = self.known(pool)?;
        if candidate_of(&references, into) != Some(from) {
            return Ok(Merge::InUse);
        }
        let failed = |error: io::Error| self.data_error(OP, error);
        let parts = image::patiently(|| image::parts_below(pool, pair.into.again()));
        parts
            .and_then(|parts| hide_larger_past(&pair.from, parts))
            .map_err(|error| self.chain_error(OP, error))?;
        let upper = Image::of(vec![pair.from.again()], false);
        let upper = upper.map_err(|error| self.chain_error(OP, error))?;
        let mut wanted = 0;
        let whole = ByteRange::new(0, upper.size());
        let counted = upper.own(whole, |part, own| {
            wanted += if own == Own::Data { part.length } else { 0 };
            Ok(())
        });
        counted.map_err(failed)?;
        let free = self.space(OP)?.free.bytes();
        if wanted > free {
            return Ok(Merge::NoRoom { wanted });
        }
        let before = blocks(&pair.into.file).map_err(failed)?;
        let mut lower = Lower::open(self, pool, &pair.into, upper.size())?;
        let mut waited_for = false;
        let mut buffer = vec![0; CHUNK as usize];
        let copied = upper.own(whole, |part, own| {
            let mut at = part.offset;
            while at < part.end() {
                if stop.check(OP).is_err()
                    || inuse::is_waited_for(&pair.from.file)?
                    || inuse::is_waited_for(&pair.into.file)?
                {
                    waited_for = true;
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let piece = ByteRange::new(at, (part.end() - at).min(CHUNK));
                match own {
                    Own::Zeros => lower.zero(piece)?,
                    Own::Data => {
                        let part = &mut buffer[..piece.length as usize];
                        upper.read(part, at)?;
                        lower.write(part, at)?;
                    }
                }
                at = piece.end();
            }
            Ok(())
        });
        match copied {
            Err(_) if waited_for => {
                lower.close().map_err(failed)?;
                stop.check(OP)?;
                return Ok(Merge::InUse);
            }
            copied => copied.map_err(failed)?,
        }
        lower.end(upper.size()).map_err(failed)?;
        drop(lower);
        // What is never written again may be referred to by many, and all of them have to come to refer
        // to the other file, also after a crash: the files are locked no more then. What a volume writes
        // is referred to by that alone, and so by one rename.
        let of_volume = |(_, record): &&(VolumeName, VolumeRecord)| record.data == from;
        let volume = references.records.iter().find(of_volume);
        let noted = volume.is_none_or(|(_, record)| is_snapshot(record));
        if noted {
            let record = MergeRecord {
                version: FORMAT_VERSION,
                from,
                into,
            };
            pool.begin_merge(&record)
                .map_err(|e| file_error(OP, self.layout.path(), e))?;
        }
        match self.take_place(pool, &pair, &references)? {
            Some(freed) => {
                let taken = blocks(&pair.into.file).map_err(failed)?;
                let taken = taken.saturating_sub(before);
                let freed = freed.saturating_sub(taken);
                Ok(Merge::Done { freed })
            }
            None if noted => Ok(Merge::Pending),
            None => Ok(Merge::InUse),
        }
    }

    /// Ends a merge that was cut short after all was copied. Whether none is pending any more.
    pub fn end_pending(&self, pool: &PoolDirs, collected: &mut Collected) -> Result<bool> {
        let pending = pool
            .merge()
            .map_err(|error| self.layout.record_error(OP, "merge.json", error))?;
        let Some(MergeRecord { from, into, .. }) = pending else {
            return Ok(true);
        };
        let failed = |error: io::Error| self.data_error(OP, error);
        let nodes = pool.nodes().map_err(failed)?;
        if !nodes.contains(&from) {
            pool.end_merge().map_err(failed)?;
            return Ok(true);
        }
        let Some(pair) = self.pair(pool, from, into)? else {
            return Ok(false);
        };
        let references = self.known(pool)?;
        let attached = |(_, record): &(VolumeName, VolumeRecord)| {
            record.data == from && !record.attachments.is_empty()
        };
        if references.records.iter().any(attached) {
            // A host has its path.
            return Ok(false);
        }
        let written =
            |(_, record): &(VolumeName, VolumeRecord)| record.data == from && !is_snapshot(record);
        if references.records.iter().any(written) {
            // No merge of this kind is noted, for it may have been written since.
            pool.end_merge().map_err(failed)?;
            return Ok(true);
        }
        match self.take_place(pool, &pair, &references)? {
            Some(freed) => {
                collected.freed = ByteSize::new(collected.freed.bytes() + freed);
                collected.objects += 1;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Has all who refer to the upper file refer to the lower one, and drops the upper one. `None` if
    /// somebody is at work on a volume that does.
    fn take_place(
        &self,
        pool: &PoolDirs,
        pair: &Pair,
        references: &References,
    ) -> Result<Option<u64>> {
        let (from, into) = (pair.from.node, pair.into.node);
        let failed = |error: io::Error| self.data_error(OP, error);
        let above = references.needed.iter();
        let above = above.filter(|(_, below)| **below == Some(from));
        for (node, _) in above {
            self.set_parent(pool, *node, from, into)?;
        }
        let volumes = references.records.iter();
        for (name, _) in volumes.filter(|(_, record)| record.data == from) {
            if !self.set_data(pool, name, from, &pair.into)? {
                return Ok(None);
            }
        }
        let freed = blocks(&pair.from.file).map_err(failed)?;
        pool.remove_data(from).map_err(failed)?;
        rustix::fs::fsync(&pool.data).map_err(|errno| failed(errno.into()))?;
        pool.end_merge().map_err(failed)?;
        Ok(Some(freed))
    }

    /// Puts another file below an image, whose users would have to have locked the present one.
    fn set_parent(&self, pool: &PoolDirs, node: Node, from: Node, into: Node) -> Result<()> {
        let failed = |error| self.chain_error(OP, error);
        let io = |error| failed(ChainError::Io(node, error));
        let frozen = open_node(pool, node, OFlags::RDONLY).map_err(failed)?;
        let frozen = is_frozen(&frozen).map_err(io)?;
        let Some(file) = open_for_change(pool, node, false).map_err(failed)? else {
            return Ok(());
        };
        let header = header_of(node, &file).map_err(failed)?;
        let Some(header) = header.filter(|header| header.parent == from) else {
            return Ok(());
        };
        let bytes = header.with_parent(into).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, OP)
                .with("path", self.layout.full("data").join(node.to_string()).display())
                .reason("there is no room in the image's header for the name of another file")
                .help("take out what was added to it (qemu-img bitmap --remove), or flatten the volume")
        })?;
        file.write_all_at(&bytes, 0)
            .and_then(|()| file.sync_data())
            .map_err(io)?;
        if frozen {
            image::freeze(&*file).map_err(io)?;
        }
        Ok(())
    }

    /// Gives a volume the lower file for its data. `false` if somebody is at work on it.
    fn set_data(
        &self,
        pool: &PoolDirs,
        name: &VolumeName,
        from: Node,
        into: &Part,
    ) -> Result<bool> {
        // Who has the name may be waiting for the files that are locked here.
        let Some(_name) = pool.try_lock_name(name, OP)? else {
            return Ok(false);
        };
        let moves = pool.lock_move(OP)?;
        let record = self.find(OP, name)?;
        let Some(mut record) = record.filter(|record| record.data == from) else {
            return Ok(true);
        };
        if !record.attachments.is_empty() {
            // Attached since then: a host has its path.
            return Ok(false);
        }
        record.set_data(into.node);
        pool.publish_over(name, &record, None, &moves)
            .map_err(|e| file_error(OP, self.layout.full("volumes"), e))?;
        if !is_snapshot(&record) {
            image::thaw(&**into.file).map_err(|e| self.data_error(OP, e))?;
        }
        Ok(true)
    }
}

/// Puts zeros into the upper image where it shows zeros only because the lower one ends before: that
/// end is about to move, and what the lower one, or the file below that, holds of a larger past must at
/// no moment show. `lower` is the lower one and the files below it.
pub fn hide_larger_past(upper: &Part, mut lower: Vec<Part>) -> std::result::Result<(), ChainError> {
    let io = |error| ChainError::Io(upper.node, error);
    let (Some(header), Some(above)) = (&lower[0].header, &upper.header) else {
        return Ok(());
    };
    let (end, new_end) = (header.size, above.size);
    let below = match lower.get(1) {
        None => 0,
        Some(Part { file, header, .. }) => match header {
            Some(header) => header.size,
            None => file.metadata().map_err(io)?.len(),
        },
    };
    let first = end.next_multiple_of(CLUSTER).min(new_end);
    let last = below.next_multiple_of(CLUSTER).min(new_end).max(first);
    if end >= new_end || last == end {
        return Ok(());
    }
    image::begin_writing(upper)?;
    lower.insert(0, upper.again());
    let image = Image::of(lower, true)?;
    let hide = || {
        if first > end {
            // The cluster in which it ends, as it shows now.
            let start = end / CLUSTER * CLUSTER;
            let mut shown = vec![0; (first - start) as usize];
            image.read(&mut shown, start)?;
            image.write(&shown, start)?;
        }
        let (mut at, mut gaps) = (first, Vec::new());
        image.own(ByteRange::from_to(first, last), |own, _| {
            gaps.push(ByteRange::from_to(at, own.offset));
            at = own.end();
            Ok(())
        })?;
        gaps.push(ByteRange::from_to(at, last));
        for gap in gaps.into_iter().filter(|gap| !gap.is_empty()) {
            image.zero(gap, false)?;
        }
        image.end_writing()
    };
    hide().map_err(io)
}

/// The file that another one is merged into.
enum Lower {
    Raw(Arc<Locked>),
    Image(Image),
}

impl Lower {
    /// Made as large as the upper one.
    fn open(inner: &Inner, pool: &PoolDirs, part: &Part, size: u64) -> Result<Lower> {
        let failed = |error| inner.data_error(OP, error);
        if part.header.is_none() {
            if part.file.metadata().map_err(failed)?.len() < size {
                part.file.set_len(size).map_err(failed)?;
            }
            return Ok(Lower::Raw(part.file.clone()));
        }
        let parts = image::patiently(|| image::parts_below(pool, part.again()));
        let image = parts.and_then(|parts| {
            image::begin_writing(&parts[0])?;
            Image::of(parts, true)
        });
        let image = image.map_err(|error| inner.chain_error(OP, error))?;
        if image.size() < size {
            // What shows there of a larger past, the upper one hides.
            image.grow(size).map_err(failed)?;
        }
        Ok(Lower::Image(image))
    }

    fn write(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        match self {
            Lower::Raw(file) => file.write_all_at(data, at),
            Lower::Image(image) => image.write(data, at),
        }
    }

    fn zero(&mut self, range: ByteRange) -> io::Result<()> {
        match self {
            Lower::Raw(file) => zero_raw(file, range),
            Lower::Image(image) => image.zero(range, false),
        }
    }

    /// Makes all durable.
    fn close(&mut self) -> io::Result<()> {
        match self {
            Lower::Raw(file) => file.sync_all(),
            Lower::Image(image) => image.end_writing(),
        }
    }

    /// Cuts off what lies past the upper one's end, and makes all durable.
    fn end(&mut self, size: u64) -> io::Result<()> {
        match self {
            Lower::Raw(file) if file.metadata()?.len() > size => file.set_len(size)?,
            Lower::Image(image) if image.size() > size => image.shrink(size)?,
            _ => {}
        }
        self.close()
    }
}

fn zero_raw(file: &File, range: ByteRange) -> io::Result<()> {
    match sys::punch_hole(file, range) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let zeros = vec![0; range.length as usize];
            file.write_all_at(&zeros, range.offset)
        }
        done => done,
    }
}

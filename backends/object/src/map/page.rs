//! Pages of a map's tree, in memory and as stored.
//!
//! A leaf holds the runs of 2^11 blocks, a page above it up to 2^9 pages of the level below. Which
//! page of its level it is, counted from the volume's first block, is part of each page.

use volmux_core::{Error, ErrorKind, Result};

use super::{MOST_BLOCKS, ObjectId, ObjectInfo, ObjectTable, Place, Run};
use crate::codec::{Malformed, Reader, put_varint};
use crate::keys::{LogId, ObjectKey};
use crate::tip::PagePtr;

const LEAF_BITS: u32 = 11;
const FAN_BITS: u32 = 9;
/// Pages that a page above the leaves can have.
const FAN: u64 = 1 << FAN_BITS;
/// The level at which one page spans the largest volume.
pub(super) const TOP: u8 = 5;

/// Blocks below a page of this level.
pub(crate) fn span(level: u8) -> u64 {
    1 << (LEAF_BITS + FAN_BITS * u32::from(level.min(TOP)))
}

/// A page of a map, decoded and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    level: u8,
    number: u64,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Leaf(Box<[Extent]>),
    Inner {
        objects: Box<[ObjectKey]>,
        children: Box<[Packed]>,
    },
}

/// A mapped run, from its leaf's first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u16,
    blocks: u16,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed {
    mapped: u64,
    offset: u32,
    length: u32,
    slot: u16,
    object: u16,
}

/// A page below another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// Which one of those that its parent can have.
    pub(crate) slot: u16,
    /// Where it is.
    pub(crate) page: PagePtr,
    /// Mapped blocks below it, at least 1.
    pub(crate) mapped: u64,
}

impl Page {
    /// The leaf with this number. The runs are in order, and none reaches out of it.
    pub(super) fn leaf(number: u64, runs: &[Run]) -> Page {
        let base = number << LEAF_BITS;
        let extents = runs.iter().filter_map(|run| {
            Some(Extent {
                start: (run.start - base) as u16,
                blocks: run.blocks as u16,
                place: run.place?,
            })
        });
        Page {
            level: 0,
            number,
            content: Content::Leaf(extents.collect()),
        }
    }

    /// The page with this number of a level above the leaves. The children are in order.
    pub(super) fn inner(level: u8, number: u64, children: &[Child]) -> Page {
        let mut objects: Vec<_> = children.iter().map(|child| child.page.object).collect();
        objects.sort_unstable();
        objects.dedup();
        let packed = children.iter().map(|child| Packed {
            mapped: child.mapped,
            offset: child.page.offset,
            length: child.page.length,
            slot: child.slot,
            object: objects.partition_point(|key| *key < child.page.object) as u16,
        });
        Page {
            level,
            number,
            content: Content::Inner {
                children: packed.collect(),
                objects: objects.into(),
            },
        }
    }

    /// Levels that are below it.
    pub(crate) fn level(&self) -> u8 {
        self.level
    }

    /// Which one of its level it is.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The first block that it spans.
    pub(crate) fn base(&self) -> u64 {
        self.number * span(self.level)
    }

    /// Number of blocks that are mapped.
    pub(crate) fn mapped(&self) -> u64 {
        match &self.content {
            Content::Leaf(extents) => extents.iter().map(|e| u64::from(e.blocks)).sum(),
            Content::Inner { children, .. } => children.iter().map(|child| child.mapped).sum(),
        }
    }

    /// Bytes that it takes in memory.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>()
            + match &self.content {
                Content::Leaf(extents) => size_of_val(&**extents),
                Content::Inner { objects, children } => {
                    size_of_val(&**objects) + size_of_val(&**children)
                }
            }
    }

    /// Number of extents, if it is a leaf.
    #[cfg(test)]
    pub(crate) fn extents(&self) -> usize {
        match &self.content {
            Content::Leaf(extents) => extents.len(),
            Content::Inner { .. } => 0,
        }
    }

    /// The mapped runs between two blocks, in order; none if it is not a leaf.
    pub(crate) fn runs(&self, from: u64, to: u64) -> impl Iterator<Item = Run> + '_ {
        let base = self.base();
        let extents = match &self.content {
            Content::Leaf(extents) => &extents[..],
            Content::Inner { .. } => &[],
        };
        let run = move |extent: &Extent| Run {
            start: base + u64::from(extent.start),
            blocks: extent.blocks.into(),
            place: Some(extent.place),
        };
        let first = extents.partition_point(|extent| run(extent).end() <= from);
        let runs = extents[first..].iter().map(run);
        runs.take_while(move |run| from < to && run.start < to)
            .map(move |run| run.clip(from, to))
    }

    /// The pages below it, in order; none if it is a leaf.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn children(&self) -> impl Iterator<Item = Child> + '_ {
        let (objects, children) = self.packed();
        children.iter().filter_map(|child| child.unpacked(objects))
    }

    /// Those from `slot` on.
    pub(super) fn children_from(&self, slot: u64) -> impl Iterator<Item = Child> + '_ {
        let (objects, children) = self.packed();
        let first = children.partition_point(|child| u64::from(child.slot) < slot);
        let children = children[first..].iter();
        children.filter_map(|child| child.unpacked(objects))
    }

    fn packed(&self) -> (&[ObjectKey], &[Packed]) {
        match &self.content {
            Content::Leaf(_) => (&[], &[]),
            Content::Inner { objects, children } => (objects, children),
        }
    }

    /// The body that is stored.
    ///
    /// # Errors
    /// `Internal` for an object of which the table does not know where its blocks start.
    pub(crate) fn encode(&self, table: &ObjectTable) -> Result<Vec<u8>> {
        let mut out = vec![self.level];
        put_varint(&mut out, self.number);
        match &self.content {
            Content::Leaf(extents) => encode_leaf(&mut out, extents, table)?,
            Content::Inner { objects, children } => encode_inner(&mut out, objects, children),
        }
        Ok(out)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(crate) fn decode(body: &[u8], table: &ObjectTable) -> Result<Page, Malformed> {
        let mut reader = Reader::new(body);
        let level = reader.u8()?;
        let number = reader.varint()?;
        if level > TOP || number > (MOST_BLOCKS - 1) / span(level) {
            return Err(Malformed("the page is outside of every volume"));
        }
        let content = if level == 0 {
            decode_leaf(&mut reader, table)?
        } else {
            decode_inner(&mut reader, span(level - 1))?
        };
        reader.end()?;
        Ok(Page {
            level,
            number,
            content,
        })
    }

    /// That it is the page which its parent speaks of.
    pub(super) fn check(&self, at: &PagePtr, level: u8, number: u64) -> Result<()> {
        if self.level == level && self.number == number {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "read_map")
            .with("object", at.object)
            .with("offset", at.offset)
            .reason("the map leads to a page of another place")
            .help("run `volmux pool scrub`, and restore the volume from a backup"))
    }
}

impl Packed {
    fn unpacked(&self, objects: &[ObjectKey]) -> Option<Child> {
        Some(Child {
            slot: self.slot,
            page: PagePtr {
                object: *objects.get(usize::from(self.object))?,
                offset: self.offset,
                length: self.length,
            },
            mapped: self.mapped,
        })
    }
}

fn encode_leaf(out: &mut Vec<u8>, extents: &[Extent], table: &ObjectTable) -> Result<()> {
    let mut ids: Vec<ObjectId> = extents.iter().map(|extent| extent.place.object).collect();
    ids.sort_unstable();
    ids.dedup();
    let infos = table.infos(&ids).ok_or_else(|| {
        Error::new(ErrorKind::Internal, "write_map")
            .reason("a page of the map names an object that is not complete")
    })?;
    let mut objects: Vec<_> = infos.into_iter().zip(ids).collect();
    objects.sort_unstable();
    let keys: Vec<ObjectKey> = objects.iter().map(|(info, _)| info.key).collect();
    encode_keys(out, &keys);
    for (info, _) in &objects {
        put_varint(out, u64::from(info.start) << 1 | u64::from(info.framed));
    }
    let mut place_of: Vec<_> = (0..).zip(&objects).map(|(at, (_, id))| (*id, at)).collect();
    place_of.sort_unstable();
    put_varint(out, extents.len() as u64);
    let mut end = 0;
    for extent in extents {
        let Place { object, index } = extent.place;
        let at = place_of.partition_point(|(id, _)| *id < object);
        put_varint(out, (extent.start - end).into());
        put_varint(out, (extent.blocks - 1).into());
        put_varint(out, place_of[at].1);
        put_varint(out, index.into());
        end = extent.start + extent.blocks;
    }
    Ok(())
}

fn decode_leaf(reader: &mut Reader<'_>, table: &ObjectTable) -> Result<Content, Malformed> {
    let keys = decode_keys(reader, span(0))?;
    let mut objects = Vec::with_capacity(keys.len());
    for key in keys {
        let both = reader.varint()?;
        let start = u16::try_from(both >> 1).map_err(|_| Malformed("a header is too long"))?;
        let framed = both & 1 == 1;
        let info = ObjectInfo { key, start, framed };
        objects.push(info);
    }
    let count = reader.count(4)?;
    let mut raw = Vec::with_capacity(count.min(span(0) as usize));
    let mut end = 0u64;
    for _ in 0..count {
        let start = reader.varint()?.saturating_add(end);
        let blocks = reader.varint()?.saturating_add(1);
        let (object, index) = (reader.varint_u32()?, reader.varint_u32()?);
        end = start.saturating_add(blocks);
        if end > span(0) || object as usize >= objects.len() {
            return Err(Malformed("an extent is outside of its page"));
        }
        if u64::from(index) + blocks > 1 << 32 {
            return Err(Malformed("an extent is outside of its object"));
        }
        raw.push((start as u16, blocks as u16, object as usize, index));
    }
    // The table only gets to know what a page says that is whole.
    let intern = |info| table.intern(info);
    let ids: Result<Vec<ObjectId>> = objects.iter().map(intern).collect();
    let ids = ids.map_err(|_| Malformed("it does not agree with other pages on an object"))?;
    let extents = raw
        .into_iter()
        .map(|(start, blocks, object, index)| Extent {
            start,
            blocks,
            place: Place {
                object: ids[object],
                index,
            },
        });
    Ok(Content::Leaf(extents.collect()))
}

fn encode_inner(out: &mut Vec<u8>, objects: &[ObjectKey], children: &[Packed]) {
    encode_keys(out, objects);
    put_varint(out, children.len() as u64);
    let (mut slot, mut expected) = (0, 0u32);
    for child in children {
        put_varint(out, (child.slot - slot).into());
        put_varint(out, child.object.into());
        // Mostly 0: pages are packed in the order in which they are named.
        put_varint(out, child.offset.wrapping_sub(expected).into());
        put_varint(out, child.length.into());
        put_varint(out, child.mapped);
        slot = child.slot + 1;
        expected = child.offset.wrapping_add(child.length);
    }
}

fn decode_inner(reader: &mut Reader<'_>, below: u64) -> Result<Content, Malformed> {
    let objects = decode_keys(reader, FAN)?;
    let count = reader.count(5)?;
    let mut children = Vec::with_capacity(count.min(FAN as usize));
    let (mut next, mut expected) = (0u64, 0u32);
    for _ in 0..count {
        let slot = reader.varint()?.saturating_add(next);
        let object = reader.varint()?;
        let offset = reader.varint_u32()?.wrapping_add(expected);
        let length = reader.varint_u32()?;
        let mapped = reader.varint()?;
        if slot >= FAN || object >= objects.len() as u64 {
            return Err(Malformed("a page below is outside of its parent"));
        }
        if mapped == 0 || mapped > below {
            return Err(Malformed(
                "a page below maps more, or fewer, blocks than it can",
            ));
        }
        children.push(Packed {
            mapped,
            offset,
            length,
            slot: slot as u16,
            object: object as u16,
        });
        next = slot + 1;
        expected = offset.wrapping_add(length);
    }
    Ok(Content::Inner {
        objects: objects.into(),
        children: children.into(),
    })
}

/// Keys in order: those of each log, and of each of its epochs, after one another.
fn encode_keys(out: &mut Vec<u8>, keys: &[ObjectKey]) {
    let logs = || keys.chunk_by(|a, b| a.log == b.log);
    put_varint(out, logs().count() as u64);
    for keys in logs() {
        let epochs = || keys.chunk_by(|a, b| a.epoch == b.epoch);
        out.extend(keys[0].log.0.as_bytes());
        put_varint(out, epochs().count() as u64);
        for keys in epochs() {
            put_varint(out, keys[0].epoch);
            put_varint(out, keys.len() as u64);
            let mut next = 0;
            for key in keys {
                put_varint(out, key.seq - next);
                next = key.seq.wrapping_add(1);
            }
        }
    }
}

fn decode_keys(reader: &mut Reader<'_>, most: u64) -> Result<Vec<ObjectKey>, Malformed> {
    let mut keys: Vec<ObjectKey> = Vec::new();
    for _ in 0..reader.count(19)? {
        let log = LogId(reader.uuid()?);
        for _ in 0..reader.count(3)? {
            let epoch = reader.varint()?;
            let mut next = Some(0u64);
            for _ in 0..reader.count(1)? {
                let more = reader.varint()?;
                let seq = next.and_then(|next| next.checked_add(more));
                let seq = seq.ok_or(Malformed("a number is too large"))?;
                let key = ObjectKey { log, epoch, seq };
                if keys.last().is_some_and(|last| *last >= key) || keys.len() as u64 >= most {
                    return Err(Malformed("its objects are not in order"));
                }
                keys.push(key);
                next = seq.checked_add(1);
            }
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests;

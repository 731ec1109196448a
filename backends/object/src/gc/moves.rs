//! Copying the blocks that are needed out of objects of which little is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use tracing::warn;
use volmux_core::{ErrorKind, Result};

use super::own::Own;
use crate::engine::{Building, Sealed};
use crate::keys::ObjectKey;
use crate::map::{Moves, ObjectId, ObjectInfo, ObjectTable, Place, Run, push};
use crate::seal::CONTENT;
use crate::shared::Shared;

/// GETs that are under way at once, and blocks in one of them.
const GETS: usize = 4;
const GET_BLOCKS: u32 = 512;
/// Blocks that are read along rather than making another GET.
const GAP: u32 = 8;

/// An object that is given up.
#[derive(Clone, Debug)]
pub(super) struct Victim {
    pub id: ObjectId,
    pub info: ObjectInfo,
    /// Its blocks that are needed.
    pub blocks: Vec<Range<u32>>,
}

/// Blocks that were next to each other, and still are.
#[derive(Clone, Copy, Debug)]
struct Piece {
    index: u32,
    blocks: u32,
    to: Place,
}

/// Where blocks of victims are now.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// In the order of their old places.
    pieces: BTreeMap<ObjectId, Vec<Piece>>,
    /// Blocks in all.
    pub blocks: u64,
}

impl Moves for Moved {
    fn moved(&self, run: Run, out: &mut Vec<Run>) -> bool {
        let pieces = run.place.and_then(|place| self.pieces.get(&place.object));
        let (Some(place), Some(pieces)) = (run.place, pieces) else {
            push(out, run);
            return false;
        };
        let (mut at, mut changed) = (run.start, false);
        let old = |block: u64| place.index + (block - run.start) as u32;
        while at < run.end() {
            let index = old(at);
            let next = pieces.partition_point(|piece| piece.index + piece.blocks <= index);
            let (end, to) = match pieces.get(next) {
                // It was not needed when the victims were chosen: it stays where it is.
                None => (run.end(), None),
                Some(piece) if piece.index > index => (at + u64::from(piece.index - index), None),
                Some(piece) => {
                    let within = index - piece.index;
                    let end = at + u64::from(piece.blocks - within);
                    (end, Some(piece.to.plus(within.into())))
                }
            };
            let end = end.min(run.end());
            changed |= to.is_some();
            let here = Run {
                start: at,
                blocks: end - at,
                place: to.or(Some(place.plus(at - run.start))),
            };
            push(out, here);
            at = end;
        }
        changed
    }
}

/// Copies what is needed of victims into objects of `own`, and tells `table` of those. A victim
/// that can't be read stays: the next scrub tells of it.
pub(super) async fn copy(
    op: &'static str,
    shared: &Arc<Shared>,
    own: &Own,
    table: &ObjectTable,
    victims: &[Arc<Victim>],
) -> Result<Moved> {
    let gets = victims.iter().flat_map(|victim| {
        let spans = spans(&victim.blocks);
        spans.into_iter().map(move |span| (victim.clone(), span))
    });
    let gets: Vec<(Arc<Victim>, Vec<Range<u32>>)> = gets.collect();
    let mut read = stream::iter(gets)
        .map(|(victim, span)| read(op, shared.clone(), victim, span))
        .buffered(GETS);
    let mut copier = Copier {
        op,
        shared,
        own,
        table,
        moved: Moved::default(),
        building: None,
    };
    let mut damaged: Vec<ObjectKey> = Vec::new();
    while let Some((victim, got)) = read.next().await {
        match got {
            Ok(blocks) => {
                for (index, content) in blocks {
                    copier.add(&victim, index, &content).await?;
                }
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                warn!(%error, "a damaged object is left as it is");
                damaged.push(victim.info.key);
            }
            Err(error) => return Err(error),
        }
    }
    drop(read);
    let mut moved = copier.finish().await?;
    for victim in victims
        .iter()
        .filter(|victim| damaged.contains(&victim.info.key))
    {
        moved.pieces.remove(&victim.id);
    }
    Ok(moved)
}

/// Puts ranges that lie near each other together, for one GET each.
fn spans(blocks: &[Range<u32>]) -> Vec<Vec<Range<u32>>> {
    let mut spans: Vec<Vec<Range<u32>>> = Vec::new();
    for range in blocks {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + GET_BLOCKS);
            let piece = start..end;
            match spans.last_mut() {
                Some(span)
                    if span.last().is_some_and(|last| start - last.end <= GAP)
                        && span
                            .first()
                            .is_some_and(|first| end - first.start <= GET_BLOCKS) =>
                {
                    span.push(piece);
                }
                _ => spans.push(vec![piece]),
            }
            start = end;
        }
    }
    spans
}

type Blocks = Vec<(u32, Vec<u8>)>;

/// Some blocks of an object, verified.
async fn read(
    op: &'static str,
    shared: Arc<Shared>,
    victim: Arc<Victim>,
    span: Vec<Range<u32>>,
) -> (Arc<Victim>, Result<Blocks>) {
    let blocks = read_blocks(op, &shared, &victim.info, &span).await;
    (victim, blocks)
}

async fn read_blocks(
    op: &'static str,
    shared: &Shared,
    info: &ObjectInfo,
    span: &[Range<u32>],
) -> Result<Blocks> {
    let (Some(first), Some(last)) = (span.first(), span.last()) else {
        return Ok(Vec::new());
    };
    let slots = shared
        .stored_blocks(op, info, first.start..last.end)
        .await?;
    let mut blocks = Vec::new();
    for index in span.iter().cloned().flatten() {
        let mut content = vec![0; CONTENT];
        slots.open(shared, op, index, &mut content)?;
        blocks.push((index, content));
    }
    Ok(blocks)
}

/// Fills objects.
struct Copier<'a> {
    op: &'static str,
    shared: &'a Arc<Shared>,
    own: &'a Own,
    table: &'a ObjectTable,
    moved: Moved,
    /// And its number in `table`.
    building: Option<(Building, ObjectId)>,
}

impl Copier<'_> {
    async fn add(&mut self, victim: &Victim, index: u32, content: &[u8]) -> Result<()> {
        let (op, shared) = (self.op, self.shared);
        if self.building.is_none() {
            let key = self.own.key();
            let id = shared.table.reserve(&key)?;
            let blocks = shared.settings.object_blocks;
            let building = Building::new(id, key, &shared.seal, blocks);
            self.building = Some((building, self.table.reserve(&key)?));
        }
        let Some((building, id)) = &mut self.building else {
            return Ok(());
        };
        // Several volumes may have the block: the header can't say where it belongs, and nobody
        // reads it for that, since the object is in no tail.
        let start = building.bytes() / shared.seal.stride();
        let place = building
            .push(start as u64, content)
            .map_err(|damage| shared.damaged(op, &victim.info.key.to_string(), damage))?;
        let to = Place {
            object: *id,
            index: place.index,
        };
        let pieces = self.moved.pieces.entry(victim.id).or_default();
        match pieces.last_mut() {
            Some(last)
                if last.index + last.blocks == index && last.to.plus(last.blocks.into()) == to =>
            {
                last.blocks += 1;
            }
            _ => pieces.push(Piece {
                index,
                blocks: 1,
                to,
            }),
        }
        self.moved.blocks += 1;
        if building.room() == 0 {
            self.put().await?;
        }
        Ok(())
    }

    async fn put(&mut self) -> Result<()> {
        let Some((building, _)) = self.building.take() else {
            return Ok(());
        };
        let (op, shared) = (self.op, self.shared);
        let sealed = Sealed::of(op, shared, building)?;
        let name = sealed.key.to_string();
        let payload = sealed.ready(op, shared).await?.payload;
        if let Some(info) = shared.table.info(sealed.id) {
            self.table.intern(&info)?;
        }
        shared.store.put(op, &name, payload).await
    }

    async fn finish(mut self) -> Result<Moved> {
        self.put().await?;
        Ok(self.moved)
    }
}

//! Reading: from what is on its way to the store, from the cache, and from the store.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio_util::task::AbortOnDropHandle;
use volmux_core::{Buffer, ByteRange, Error, ErrorKind, Result};

use super::Engine;
use super::slots::Slots;
use super::state::ZEROS;
use crate::cache::{BlockKey, Fetch, Lead};
use crate::frame::FRAME;
use crate::map::{self, ObjectId, ObjectInfo, Place, Run};
use crate::scrub::Verified;
use crate::seal::CONTENT;
use crate::tip::{BLOCK, Root};

/// GETs of one read that are under way at once.
const GETS: usize = 8;

/// Bytes that are read at once. No memory is filled for what comes after a failure.
const PART: u64 = 16 << 20;

/// Blocks in one GET at most.
const GET_BLOCKS: u32 = 1024;

/// Blocks between two that are wanted, which are read with them rather than making two GETs.
const GAP: u32 = 8;

/// Longer reads leave the cache as it is: who reads so much at once reads it once.
const CACHED: u64 = 256 << 10;

/// Blocks that were looked at, in the order in which they are wanted.
type Wanted = Vec<(u64, Place)>;

/// A block that is to be loaded, for others too where they are told.
type Load = (u64, Place, Option<Lead<BlockKey, Bytes>>);

impl Engine {
    /// Reads a range that lies within the volume.
    pub(crate) async fn read(&self, op: &'static str, range: ByteRange) -> Result<Bytes> {
        let (_reading, next) = self.ahead.note(range, self.shared.settings.ahead);
        if let Some(next) = next {
            self.read_ahead(next).await;
        }
        if range.offset.is_multiple_of(BLOCK) && range.length == BLOCK {
            return self.read_block(op, range.offset / BLOCK).await;
        }
        let mut buffer = Buffer::new(range.length as usize).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, op)
                .with("length", range.length)
                .reason("this is too much for one read")
                .with_source(error)
        })?;
        let mut rest = range;
        while !rest.is_empty() {
            let part = ByteRange::new(rest.offset, rest.length.min(PART));
            buffer = self.read_out(op, Out::part(part, buffer)).await?.buffer;
            rest = ByteRange::from_to(part.end(), rest.end());
        }
        Ok(buffer.into_bytes())
    }

    /// Reads a range of the store's blocks that are not in the cache into it.
    pub(super) async fn read_into_cache(&self, op: &'static str, range: ByteRange) -> Result<()> {
        let out = Out::nothing(range, true).map_err(|error| error.with("for", op))?;
        self.read_out(op, out).await.map(drop)
    }

    async fn read_out(&self, op: &'static str, mut out: Out) -> Result<Out> {
        let blocks = out.range.offset / BLOCK..out.range.end().div_ceil(BLOCK);
        let mut stored: Vec<Run> = Vec::new();
        let (root, unknown) = self.collect(blocks, &mut out, &mut stored);
        for blocks in unknown {
            let runs = self.checkpointed_runs(op, root, blocks).await?;
            stored.extend(runs.into_iter().filter(|run| run.place.is_some()));
        }
        self.fetch_runs(op, &stored, out).await
    }

    async fn read_block(&self, op: &'static str, block: u64) -> Result<Bytes> {
        let (root, place) = {
            let state = self.lock();
            let place = state.overlaid(block);
            if let (Some(Some(place)), Some(writer)) = (place, &state.writer)
                && let Some(content) = writer.block(place)
            {
                return Ok(Bytes::copy_from_slice(content));
            }
            (state.root, place)
        };
        let place = match place {
            Some(place) => place,
            None => match self.checkpointed_now(root, block) {
                Some(place) => place,
                None => self.checkpointed(op, root, block).await?,
            },
        };
        match place {
            Some(place) => self.fetch_block(op, place).await,
            None => Ok(ZEROS),
        }
    }

    /// Copies what is in memory, adds what is stored to `stored`, and returns for which blocks the
    /// checkpoint, which is returned too, has to be asked. Holes need nothing: `out` is zeros.
    fn collect(
        &self,
        blocks: Range<u64>,
        out: &mut Out,
        stored: &mut Vec<Run>,
    ) -> (Root, Vec<Range<u64>>) {
        let state = self.lock();
        let mut unknown = Vec::new();
        let mut known = |run: Run| {
            let Some(place) = run.place else { return };
            let in_memory = state.writer.as_ref().filter(|w| w.block(place).is_some());
            match in_memory {
                Some(writer) => {
                    for i in 0..run.blocks {
                        if let Some(content) = writer.block(place.plus(i)) {
                            out.put(run.start + i, content);
                        }
                    }
                }
                None => stored.push(run),
            }
        };
        for span in state.active.cover(blocks.start, blocks.end) {
            if let Some(place) = span.found {
                known(Run {
                    start: span.start,
                    blocks: span.blocks,
                    place,
                });
                continue;
            }
            let gap = span.start..span.end();
            match &state.frozen {
                None => unknown.push(gap),
                Some(frozen) => {
                    for span in frozen.overlay.cover(gap.start, gap.end) {
                        match span.found {
                            None => unknown.push(span.start..span.end()),
                            Some(place) => known(Run {
                                start: span.start,
                                blocks: span.blocks,
                                place,
                            }),
                        }
                    }
                }
            }
        }
        (state.root, unknown)
    }

    /// Where a block lies by the checkpoint, if the pages that tell are in memory.
    pub(super) fn checkpointed_now(&self, root: Root, block: u64) -> Option<Option<Place>> {
        let runs = map::lookup_cached(&*self.shared, &root, block, block + 1);
        // What is wrong with a page is said when it is asked for in earnest.
        let runs = runs.ok().flatten()?;
        Some(runs.first().and_then(|run| run.place))
    }

    /// Where a block lies by the checkpoint.
    pub(super) async fn checkpointed(
        &self,
        op: &'static str,
        root: Root,
        block: u64,
    ) -> Result<Option<Place>> {
        let runs = self.checkpointed_runs(op, root, block..block + 1).await?;
        Ok(runs.first().and_then(|run| run.place))
    }

    async fn checkpointed_runs(
        &self,
        op: &'static str,
        root: Root,
        blocks: Range<u64>,
    ) -> Result<Vec<Run>> {
        let pages = &*self.shared;
        let runs = map::lookup(pages, &root, blocks.start, blocks.end).await;
        runs.map_err(|error| error.with("for", op))
    }

    /// One block that is in the store.
    pub(super) async fn fetch_block(&self, op: &'static str, place: Place) -> Result<Bytes> {
        loop {
            let lead = match self.shared.cache.fetch(place.object.number(), place.index) {
                Fetch::Found(content) => return Ok(content),
                Fetch::Follow(follow) => match follow.wait().await {
                    Some(outcome) => return outcome,
                    None => continue,
                },
                Fetch::Lead(lead) => lead,
            };
            let engine = self.alive(op)?;
            return elsewhere(op, async move { engine.load_block(op, place, lead).await }).await;
        }
    }

    async fn load_block(
        &self,
        op: &'static str,
        place: Place,
        lead: Lead<BlockKey, Bytes>,
    ) -> Result<Bytes> {
        let (object, index) = (place.object, place.index);
        let got = self.get_blocks(op, object, index..index + 1).await;
        let content = got.and_then(|slots| slots.content(&self.shared, op, index));
        match content {
            Ok(content) => {
                let cache = &self.shared.cache;
                lead.land(cache.put_block(object.number(), index, &content));
                Ok(content)
            }
            Err(error) => {
                lead.fail(&error);
                Err(error)
            }
        }
    }

    /// Blocks that are in the store, into `out`.
    async fn fetch_runs(&self, op: &'static str, runs: &[Run], mut out: Out) -> Result<Out> {
        let mut again: Wanted = Vec::new();
        for run in runs {
            let Some(place) = run.place else { continue };
            again.extend((0..run.blocks).map(|i| (run.start + i, place.plus(i))));
        }
        while !again.is_empty() {
            let wanted = std::mem::take(&mut again);
            let (mut load, mut follows) = (Vec::new(), Vec::new());
            for (block, place) in wanted {
                let (object, index) = (place.object.number(), place.index);
                let fetch = match out.keep {
                    true => Some(self.shared.cache.fetch(object, index)),
                    false => self.shared.cache.look(object, index),
                };
                match fetch {
                    Some(Fetch::Found(content)) => out.put(block, &content),
                    Some(Fetch::Follow(follow)) => follows.push((block, place, follow)),
                    Some(Fetch::Lead(lead)) => load.push((block, place, Some(lead))),
                    None => load.push((block, place, None)),
                }
            }
            if !load.is_empty() {
                let engine = self.alive(op)?;
                let loaded = async move { engine.load(op, load, out).await };
                out = elsewhere(op, loaded).await?;
            }
            for (block, place, follow) in follows {
                match follow.wait().await {
                    Some(content) => out.put(block, &content?),
                    None => again.push((block, place)),
                }
            }
        }
        Ok(out)
    }

    /// Gets blocks from the store in as few GETs as make sense.
    async fn load(&self, op: &'static str, mut load: Vec<Load>, mut out: Out) -> Result<Out> {
        let keep = out.keep;
        load.sort_unstable_by_key(|(_, place, _)| *place);
        let (wanted, mut leads): (Wanted, Vec<_>) = load
            .into_iter()
            .map(|(block, place, lead)| ((block, place), lead))
            .unzip();
        let mut gets = stream::iter(self.groups(&wanted))
            .map(|group| self.get_group(op, group))
            .buffer_unordered(GETS);
        let mut content = [0; CONTENT];
        let done = async {
            while let Some((group, slots)) = gets.try_next().await? {
                for (block, place) in &wanted[group.blocks.clone()] {
                    let whole = out.whole(*block);
                    let partly = whole.is_none();
                    let target = whole.unwrap_or(&mut content);
                    slots.open(&self.shared, op, place.index, target)?;
                    if keep {
                        let number = place.object.number();
                        self.shared.cache.put_blocks(number, place.index, target);
                    }
                    if partly {
                        out.put(*block, &content);
                    }
                }
                // Whoever follows finds it in the cache, or loads it again.
                leads[group.blocks]
                    .iter_mut()
                    .for_each(|lead| drop(lead.take()));
            }
            Ok(())
        };
        let result: Result<()> = done.await;
        drop(gets);
        match result {
            Ok(()) => Ok(out),
            Err(error) => {
                for lead in leads.into_iter().flatten() {
                    lead.fail(&error);
                }
                Err(error)
            }
        }
    }

    fn alive(&self, op: &'static str) -> Result<Arc<Engine>> {
        let engine = self.me.upgrade();
        engine.ok_or_else(|| Error::new(ErrorKind::Internal, op).reason("the volume was closed"))
    }

    /// Reads what is stored of a range that lies within the volume, past every cache, and verifies
    /// what `verified` does not have yet. One result for each GET.
    pub(crate) async fn verify(
        &self,
        op: &'static str,
        range: ByteRange,
        verified: &mut Verified,
    ) -> Result<Vec<Result<()>>> {
        let blocks = range.offset / BLOCK..range.end().div_ceil(BLOCK);
        let mut out = Out::nothing(range, false).map_err(|error| error.with("for", op))?;
        let mut runs: Vec<Run> = Vec::new();
        let (root, unknown) = self.collect(blocks, &mut out, &mut runs);
        for blocks in unknown {
            runs.extend(self.checkpointed_runs(op, root, blocks).await?);
        }
        let mut wanted: Wanted = Vec::new();
        for run in runs {
            let Some(place) = run.place else { continue };
            let all = (0..run.blocks).map(|i| (run.start + i, place.plus(i)));
            wanted.extend(all.filter(|(_, p)| verified.insert(p.object.number(), p.index)));
        }
        wanted.sort_unstable_by_key(|(_, place)| *place);
        let mut results = Vec::new();
        let mut content = [0; CONTENT];
        for group in self.groups(&wanted) {
            let Group {
                object,
                indexes,
                blocks,
            } = group;
            let info = self.info(op, object)?;
            let slots = async {
                self.verify_table(op, &info, object, verified).await?;
                self.shared.stored_blocks(op, &info, indexes).await
            };
            let slots = match slots.await {
                Ok(slots) => slots,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            let mut places = wanted[blocks].iter();
            results.push(places.try_for_each(|(_, place)| {
                slots.open(&self.shared, op, place.index, &mut content)
            }));
        }
        Ok(results)
    }

    fn groups(&self, wanted: &[(u64, Place)]) -> Vec<Group> {
        let info = |object| self.shared.table.info(object);
        groups(wanted, |object| {
            info(object).is_some_and(|info| info.framed)
        })
    }

    async fn get_group(&self, op: &'static str, group: Group) -> Result<(Group, Slots)> {
        let slots = self
            .get_blocks(op, group.object, group.indexes.clone())
            .await?;
        Ok((group, slots))
    }

    /// Some blocks of one object, from the disk cache where they are there.
    async fn get_blocks(
        &self,
        op: &'static str,
        object: ObjectId,
        blocks: Range<u32>,
    ) -> Result<Slots> {
        let info = self.info(op, object)?;
        let disk = self.shared.disk.as_ref();
        if let Some(disk) = disk
            && let Some(bytes) = disk.get(&info.key, blocks.clone()).await
        {
            let (seal, bytes) = (&self.shared.seal, bytes.into());
            return Ok(Slots::stored(seal, &info, blocks.start, bytes));
        }
        if info.framed {
            let contents = self.framed_blocks(op, object, &info, blocks).await?;
            return Ok(Slots::decompressed(&info, contents));
        }
        let slots = self.shared.stored_blocks(op, &info, blocks).await?;
        if let Some(disk) = disk {
            disk.put(&info.key, slots.first(), slots.bytes());
        }
        Ok(slots)
    }

    fn info(&self, op: &'static str, object: ObjectId) -> Result<ObjectInfo> {
        let info = self.shared.table.info(object);
        info.ok_or_else(|| Error::new(ErrorKind::Internal, op).reason("an object has no name"))
    }
}

/// Work for the runtime's threads rather than for the one that asked: that of an export would do
/// for all its requests, one after the other, what they can do side by side. It ends with whoever
/// waits for it.
async fn elsewhere<T: Send + 'static>(
    op: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let ended = AbortOnDropHandle::new(tokio::spawn(work)).await;
    ended.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?
}

/// What a read fills.
struct Out {
    range: ByteRange,
    buffer: Buffer,
    /// Where in the buffer's memory the range begins.
    from: usize,
    /// Whether what comes from the store goes into the cache.
    keep: bool,
    /// Whether the range goes nowhere else.
    nowhere: bool,
}

impl Out {
    /// The next part of what `buffer` takes.
    fn part(range: ByteRange, mut buffer: Buffer) -> Out {
        let room = buffer.room();
        let from = room.len();
        // What is not stored reads as zeros.
        room.resize(from + range.length as usize, 0);
        Out {
            range,
            buffer,
            from,
            keep: range.length <= CACHED,
            nowhere: false,
        }
    }

    /// For what is only to be looked at, or kept.
    fn nothing(range: ByteRange, keep: bool) -> Result<Out> {
        let buffer = Buffer::new(0);
        let buffer = buffer.map_err(|e| Error::new(ErrorKind::Internal, "read").with_source(e))?;
        Ok(Out {
            range,
            buffer,
            from: 0,
            keep,
            nowhere: true,
        })
    }

    /// Where a block goes of which all is wanted.
    fn whole(&mut self, block: u64) -> Option<&mut [u8]> {
        if self.nowhere {
            return None;
        }
        let at = (block * BLOCK).checked_sub(self.range.offset)? as usize;
        let bytes = &mut self.buffer.room()[self.from..];
        bytes.get_mut(at..at + CONTENT)
    }

    /// The part of a block that is wanted.
    fn put(&mut self, block: u64, content: &[u8]) {
        if self.nowhere {
            return;
        }
        let start = block * BLOCK;
        let from = start.max(self.range.offset);
        let to = (start + BLOCK).min(self.range.end());
        let target = (from - self.range.offset) as usize..(to - self.range.offset) as usize;
        self.buffer.room()[self.from..][target]
            .copy_from_slice(&content[(from - start) as usize..(to - start) as usize]);
    }
}

/// Blocks that one GET brings.
struct Group {
    object: ObjectId,
    indexes: Range<u32>,
    /// Which of those that are wanted.
    blocks: Range<usize>,
}

/// Puts blocks that lie together into groups; they are in the order of their places. In objects
/// that are `framed`, those lie together that are in neighbouring frames.
fn groups(wanted: &[(u64, Place)], framed: impl Fn(ObjectId) -> bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let near = |object: ObjectId, end: u32, index: u32| {
        index.saturating_sub(end) <= GAP || index / FRAME <= end.div_ceil(FRAME) && framed(object)
    };
    for (at, (_, place)) in wanted.iter().enumerate() {
        match groups.last_mut() {
            Some(group)
                if group.object == place.object
                    && near(group.object, group.indexes.end, place.index)
                    && place.index - group.indexes.start < GET_BLOCKS =>
            {
                group.indexes.end = place.index + 1;
                group.blocks.end = at + 1;
            }
            _ => groups.push(Group {
                object: place.object,
                indexes: place.index..place.index + 1,
                blocks: at..at + 1,
            }),
        }
    }
    groups
}

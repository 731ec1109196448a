//! Reading compressed objects.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::yield_now;
use volmux_core::Result;

use super::Engine;
use super::load::decode_header;
use crate::cache::Turn;
use crate::codec::Malformed;
use crate::frame::{Decoder, FRAME, FrameTable};
use crate::map::{ObjectId, ObjectInfo};
use crate::scrub::Verified;
use crate::seal::{CONTENT, Damage};
use crate::shared::Shared;

/// Frames that are decompressed before others have their turn.
const AT_ONCE: u32 = 4;

/// Some blocks of a compressed object, decompressed.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    /// Number of the first one.
    pub(crate) first: u32,
    pub(crate) bytes: Bytes,
}

impl Shared {
    /// Where the frames of a compressed object are.
    pub(crate) async fn frame_table(
        &self,
        op: &'static str,
        info: &ObjectInfo,
    ) -> Result<Arc<FrameTable>> {
        let load = self.load_table(op, info);
        self.tables.get_or_load(info.key, load).await
    }

    /// The same, past the cache.
    async fn load_table(&self, op: &'static str, info: &ObjectInfo) -> Result<Arc<FrameTable>> {
        let name = info.key.to_string();
        let end = u64::from(info.start) * self.seal.stride() as u64;
        let got = self.store.get_range(op, &name, 0..end).await?;
        let bytes = got.ok_or_else(|| self.missing(op, &name))?;
        let (found, _, table) = decode_header(op, self, &info.key, &bytes)?;
        match table.filter(|_| found == *info) {
            Some(table) => Ok(Arc::new(table)),
            None => {
                let malformed = Malformed("the map and the object's header do not agree");
                Err(self.malformed(op, &name, malformed))
            }
        }
    }

    /// Some blocks of a compressed object, from the store and verified, with all that share
    /// frames with them. One GET, and another one where it is not known yet where frames are.
    pub(crate) async fn unframed(
        &self,
        op: &'static str,
        info: &ObjectInfo,
        blocks: Range<u32>,
    ) -> Result<Contents> {
        let table = self.frame_table(op, info).await?;
        let name = info.key.to_string();
        let frames = blocks.start / FRAME..blocks.end.div_ceil(FRAME);
        let tail = self.seal.tail_length();
        let range = table.range(frames.clone(), tail).ok_or_else(|| {
            let malformed = Malformed("the map names a block that the object does not have");
            self.malformed(op, &name, malformed)
                .with("frame", frames.start)
        })?;
        let base = u64::from(info.start) * self.seal.stride() as u64;
        let got = self
            .store
            .get_range(op, &name, base + range.start..base + range.end)
            .await
            .map_err(|error| error.with("frame", frames.start))?;
        let bytes = got.ok_or_else(|| self.missing(op, &name))?;
        let mut rest = &bytes[..];
        let all: usize = frames.clone().map(|frame| table.content(frame)).sum();
        let mut content = Vec::with_capacity(all);
        let seal = self.seal.frames(&info.key);
        let (mut decoder, mut opened) = (Decoder::default(), Vec::new());
        for frame in frames.clone() {
            if frame > frames.start && (frame - frames.start).is_multiple_of(AT_ONCE) {
                yield_now().await;
            }
            let damaged = |damage| self.damaged(op, &name, damage).with("frame", frame);
            let length = table.stored(frame, tail).unwrap_or_default();
            let (stored, after) = rest
                .split_at_checked(length)
                .ok_or_else(|| damaged(Damage::TooShort(rest.len())))?;
            rest = after;
            seal.open(frame, stored, &mut opened).map_err(damaged)?;
            let from = content.len();
            content.resize(from + table.content(frame), 0);
            decoder
                .decode(table.codec(), &opened, &mut content[from..])
                .map_err(damaged)?;
        }
        Ok(Contents {
            first: frames.start * FRAME,
            bytes: content.into(),
        })
    }
}

impl Engine {
    /// Blocks of a compressed object. What else is in their frames goes into the cache, too: who
    /// reads little by little reads that next. A frame that is being read is read only once.
    pub(super) async fn framed_blocks(
        &self,
        op: &'static str,
        object: ObjectId,
        info: &ObjectInfo,
        blocks: Range<u32>,
    ) -> Result<Contents> {
        let shared = &*self.shared;
        let frame = blocks.start / FRAME;
        if blocks.end.div_ceil(FRAME) != frame + 1 {
            let contents = shared.unframed(op, info, blocks).await?;
            self.keep_on_disk(info, &contents);
            return Ok(contents);
        }
        let first = frame * FRAME;
        let lead = loop {
            match shared.tables.frames.join((info.key, frame)) {
                Turn::Lead(lead) => break lead,
                Turn::Follow(follow) => {
                    if let Some(outcome) = follow.wait().await {
                        return outcome.map(|bytes| Contents { first, bytes });
                    }
                }
            }
        };
        // Another load may have landed before the join.
        if let Some(found) = self.cached(object, &blocks) {
            return Ok(found);
        }
        match shared.unframed(op, info, blocks.clone()).await {
            Ok(contents) => {
                self.keep_neighbours(object, &blocks, &contents);
                self.keep_on_disk(info, &contents);
                lead.land(contents.bytes.clone());
                Ok(contents)
            }
            Err(error) => {
                lead.fail(&error);
                Err(error)
            }
        }
    }

    fn cached(&self, object: ObjectId, blocks: &Range<u32>) -> Option<Contents> {
        let mut bytes = Vec::new();
        for index in blocks.clone() {
            bytes.extend_from_slice(&self.shared.cache.block(object.number(), index)?);
        }
        Some(Contents {
            first: blocks.start,
            bytes: bytes.into(),
        })
    }

    /// The blocks themselves are kept by who wants them.
    fn keep_neighbours(&self, object: ObjectId, blocks: &Range<u32>, contents: &Contents) {
        let (cache, number) = (&self.shared.cache, object.number());
        let at = |index: u32| (index - contents.first) as usize * CONTENT;
        let before = contents.bytes.get(..at(blocks.start));
        cache.put_blocks(number, contents.first, before.unwrap_or_default());
        let after = contents.bytes.get(at(blocks.end)..);
        cache.put_blocks(number, blocks.end, after.unwrap_or_default());
    }

    /// The disk keeps blocks, as if the object were not compressed. It is the only place where
    /// this object's blocks are protected one by one.
    fn keep_on_disk(&self, info: &ObjectInfo, contents: &Contents) {
        let (Some(disk), shared) = (&self.shared.disk, &self.shared) else {
            return;
        };
        let (seal, stride) = (shared.seal.blocks(&info.key), shared.seal.stride());
        let mut slots = vec![0; contents.bytes.len() / CONTENT * stride];
        let blocks = contents.bytes.chunks_exact(CONTENT);
        for ((index, block), slot) in (contents.first..)
            .zip(blocks)
            .zip(slots.chunks_exact_mut(stride))
        {
            slot[..CONTENT].copy_from_slice(block);
            if seal.seal(index, slot).is_err() {
                return;
            }
        }
        disk.put(&info.key, contents.first, slots.into());
    }

    /// Before anything of a compressed object is verified for the first time, its header is.
    pub(super) async fn verify_table(
        &self,
        op: &'static str,
        info: &ObjectInfo,
        object: ObjectId,
        verified: &mut Verified,
    ) -> Result<()> {
        if info.framed && verified.insert_table(object.number()) {
            let table = self.shared.load_table(op, info).await?;
            self.shared.tables.put(info.key, table);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

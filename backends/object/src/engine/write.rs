//! Writing: into the object that is being filled, and what to do when there is no room.

use bytes::Bytes;
use volmux_core::{ByteRange, ErrorKind, Result};

use super::state::{State, Writer};
use super::{Engine, Role};
use crate::journal::Op;
use crate::map::Place;
use crate::seal::CONTENT;
use crate::tip::{BLOCK, Root};

/// Blocks that are taken over in one go, while others wait for the lock.
const STEP: usize = 64;

/// A piece of a change that lies within one block, or covers whole ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// Whole blocks.
    Whole { start: u64, blocks: u64 },
    /// A part of one.
    Part {
        block: u64,
        within: usize,
        length: usize,
    },
}

impl Piece {
    fn bytes(&self) -> usize {
        match self {
            Piece::Whole { blocks, .. } => (blocks * BLOCK) as usize,
            Piece::Part { length, .. } => *length,
        }
    }
}

/// Takes a range apart at the borders of blocks.
fn pieces(range: ByteRange) -> impl Iterator<Item = Piece> {
    let (mut at, end) = (range.offset, range.end());
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (block, within) = (at / BLOCK, (at % BLOCK) as usize);
        let blocks = (end - at) / BLOCK;
        let piece = if within == 0 && blocks > 0 {
            Piece::Whole {
                start: block,
                blocks,
            }
        } else {
            Piece::Part {
                block,
                within,
                length: (CONTENT - within).min((end - at) as usize),
            }
        };
        at += piece.bytes() as u64;
        Some(piece)
    })
}

impl Engine {
    /// Writes `data`, which lies within the volume.
    pub(crate) async fn write(&self, op: &'static str, offset: u64, data: &Bytes) -> Result<()> {
        let mut rest = data.clone();
        for piece in pieces(ByteRange::new(offset, data.len() as u64)) {
            let content = rest.split_to(piece.bytes());
            match piece {
                Piece::Whole { start, .. } => self.write_blocks(op, start, content).await?,
                Piece::Part { block, within, .. } => {
                    self.write_part(op, block, within, &content).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros, and frees the blocks that lie in it.
    pub(crate) async fn zero(&self, op: &'static str, range: ByteRange, size: u64) -> Result<()> {
        // The last block is whole where the range reaches the volume's end.
        let end = if range.end() == size {
            size.next_multiple_of(BLOCK)
        } else {
            range.end()
        };
        for piece in pieces(ByteRange::from_to(range.offset, end)) {
            match piece {
                Piece::Whole { start, blocks } => self.punch(op, start, blocks).await?,
                Piece::Part {
                    block,
                    within,
                    length,
                } => {
                    let zeros = Bytes::from_static(&[0; CONTENT]).slice(..length);
                    self.write_part(op, block, within, &zeros).await?;
                }
            }
        }
        Ok(())
    }

    async fn write_blocks(&self, op: &'static str, mut start: u64, mut data: Bytes) -> Result<()> {
        let role = self.role(op)?;
        while !data.is_empty() {
            let written = {
                let mut state = self.lock();
                role.check(op)?;
                if self.has_room(role, &state) {
                    self.take(op, &mut state, role, start, &data)?
                } else {
                    0
                }
            };
            if written == 0 {
                self.room(op, role).await?;
            } else {
                let _ = data.split_to(written * CONTENT);
                start += written as u64;
            }
        }
        Ok(())
    }

    /// Takes over what fits of `data` into the object that is being filled; returns how many
    /// blocks those are.
    fn take(
        &self,
        op: &'static str,
        state: &mut State,
        role: &Role,
        start: u64,
        data: &Bytes,
    ) -> Result<usize> {
        self.make_room(op, state)?;
        let Some(writer) = &mut state.writer else {
            return Ok(0);
        };
        let room = writer.building(&self.shared)?.room();
        let blocks = (data.len() / CONTENT).min(STEP).min(room);
        let content = data.slice(..blocks * CONTENT);
        if let Some(journal) = role.journal() {
            let offset = start * BLOCK;
            let data = content.clone();
            writer.journal = journal.append(Op::Write { offset, data })?;
        }
        let building = writer.building(&self.shared)?;
        let damaged = |damage| self.damaged(op, "a new object", damage);
        let before = state.active.get(start).flatten();
        match before.filter(|place| blocks == 1 && place.object == building.id) {
            Some(place) => building.change(place.index, 0, &content).map_err(damaged)?,
            None => {
                let place = building.push(start, &content).map_err(damaged)?;
                state.active.insert(start, blocks as u64, Some(place));
            }
        }
        writer.change += 1;
        self.make_room(op, state)?;
        Ok(blocks)
    }

    /// Seals the object that is being filled if it is full.
    fn make_room(&self, op: &'static str, state: &mut State) -> Result<()> {
        let full = |writer: &Writer| writer.building.as_ref().is_some_and(|b| b.room() == 0);
        if state.writer.as_ref().is_some_and(full) {
            self.seal_and_upload(op, state)?;
        }
        Ok(())
    }

    /// Makes whole blocks holes.
    async fn punch(&self, op: &'static str, start: u64, blocks: u64) -> Result<()> {
        let role = self.role(op)?;
        loop {
            {
                let mut state = self.lock();
                role.check(op)?;
                if self.has_room(role, &state) {
                    return self.punch_now(op, &mut state, role, start, blocks);
                }
            }
            self.room(op, role).await?;
        }
    }

    fn punch_now(
        &self,
        op: &'static str,
        state: &mut State,
        role: &Role,
        start: u64,
        blocks: u64,
    ) -> Result<()> {
        self.make_room(op, state)?;
        let Some(writer) = &mut state.writer else {
            return Ok(());
        };
        if let Some(journal) = role.journal() {
            let range = ByteRange::new(start * BLOCK, blocks * BLOCK);
            writer.journal = journal.append(Op::Zero { range })?;
        }
        writer.building(&self.shared)?.push_hole(start, blocks);
        state.active.insert(start, blocks, None);
        writer.change += 1;
        Ok(())
    }

    /// Changes a part of one block. What the rest of it holds may have to be read first; then the
    /// block must not have changed meanwhile, which what it is stored as tells.
    async fn write_part(
        &self,
        op: &'static str,
        block: u64,
        within: usize,
        data: &Bytes,
    ) -> Result<()> {
        let role = self.role(op)?;
        let mut read: Option<Known> = None;
        loop {
            let next = {
                let mut state = self.lock();
                role.check(op)?;
                if !self.has_room(role, &state) {
                    Next::Wait
                } else {
                    self.change_part(op, &mut state, role, (block, within, data), read.take())?
                }
            };
            match next {
                Next::Done => return Ok(()),
                Next::Wait => self.room(op, role).await?,
                Next::Read(root, place) => {
                    read = match self.know(op, block, root, place).await {
                        Ok(known) => Some(known),
                        // What is read from an old place may be collected.
                        Err(error)
                            if error.kind() == ErrorKind::Corrupt
                                && self.has_moved(block, root, place) =>
                        {
                            None
                        }
                        Err(error) => return Err(error),
                    };
                }
            }
        }
    }

    /// Reads a block from its place; where that is not known, from that in the checkpoint `root`.
    async fn know(
        &self,
        op: &'static str,
        block: u64,
        root: Root,
        place: Option<Place>,
    ) -> Result<Known> {
        let place = match place {
            Some(place) => Some(place),
            None => self.checkpointed(op, root, block).await?,
        };
        let content = match place {
            Some(place) => self.fetch_block(op, place).await?,
            None => super::state::ZEROS,
        };
        Ok(Known {
            root,
            place,
            content,
        })
    }

    /// Whether a block that was to be read from `place`, or from that in the checkpoint `root`, is
    /// elsewhere by now.
    fn has_moved(&self, block: u64, root: Root, place: Option<Place>) -> bool {
        let state = self.lock();
        let now = state.overlaid(block);
        state.root != root || now.is_some_and(|now| now != place)
    }

    fn change_part(
        &self,
        op: &'static str,
        state: &mut State,
        role: &Role,
        (block, within, data): (u64, usize, &Bytes),
        read: Option<Known>,
    ) -> Result<Next> {
        let root = state.root;
        let read = read.filter(|known| known.root == root);
        let place = match (state.overlaid(block), &read) {
            (Some(place), _) => place,
            (None, Some(known)) => known.place,
            (None, None) => match self.checkpointed_now(root, block) {
                Some(place) => place,
                None => return Ok(Next::Read(root, None)),
            },
        };
        let Some(writer) = &mut state.writer else {
            return Ok(Next::Done);
        };
        let mut content = match place {
            // Zeros over a hole leave it one. It is a change all the same: whoever was superseded
            // has to find that out when it flushes.
            None if data.iter().all(|byte| *byte == 0) => {
                self.punch_now(op, state, role, block, 1)?;
                return Ok(Next::Done);
            }
            None => vec![0; CONTENT],
            Some(place) => match (writer.block(place), read) {
                (Some(content), _) => content.to_vec(),
                (None, Some(known)) if known.place == Some(place) => known.content.to_vec(),
                _ => return Ok(Next::Read(root, Some(place))),
            },
        };
        content[within..within + data.len()].copy_from_slice(data);
        let taken = self.take(op, state, role, block, &Bytes::from(content))?;
        debug_assert_eq!(taken, 1);
        Ok(Next::Done)
    }

    /// Whether more may be taken into memory, and into the journal.
    fn has_room(&self, role: &Role, state: &State) -> bool {
        let settings = &self.shared.settings;
        let held = state.writer.as_ref().map_or(0, Writer::held);
        let journal = role.journal();
        // Only as long as the checkpoint that is being made does not lag behind.
        let lags = state.frozen.is_some()
            && (state.active.len() >= settings.overlay || state.tail.len() >= 2 * settings.tail);
        held < settings.pending
            && !lags
            && journal.is_none_or(|journal| journal.has_room(STEP * CONTENT))
    }

    /// Waits until uploads have made room, and commits in the journal.
    async fn room(&self, op: &'static str, role: &Role) -> Result<()> {
        loop {
            let stored = role.stored.notified();
            tokio::pin!(stored);
            // From here on no notification is missed.
            stored.as_mut().enable();
            role.check(op)?;
            let change = {
                let state = self.lock();
                if self.has_room(role, &state) {
                    return Ok(());
                }
                state.writer.as_ref().map_or(0, |writer| writer.change)
            };
            if let Some(trouble) = &role.requests().trouble {
                return Err(trouble.error(op));
            }
            match role.journal().filter(|j| !j.has_room(STEP * CONTENT)) {
                None => stored.await,
                Some(journal) => {
                    role.want(change);
                    tokio::select! {
                        biased;
                        () = journal.room(STEP * CONTENT) => {}
                        () = stored => {}
                    }
                }
            }
        }
    }

    /// Closes the object that is being filled, if there is anything in it, and sends it off.
    pub(super) fn seal_and_upload(&self, op: &'static str, state: &mut State) -> Result<()> {
        if let Some(sealed) = state.seal(op, &self.shared)? {
            self.upload(sealed);
        }
        Ok(())
    }
}

/// A block as it was read: still that, as long as it lies in the same place. Where the checkpoint
/// was asked for the place, it has to be the same checkpoint too.
#[derive(Debug)]
struct Known {
    root: Root,
    place: Option<Place>,
    content: Bytes,
}

/// What changing a part of a block has come to.
enum Next {
    Done,
    /// Wait for room.
    Wait,
    /// Read the block first, from here; where that is not known yet, ask this checkpoint.
    Read(Root, Option<Place>),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_comes_apart_without_gap_or_overlap(offset in 0..50_000u64, length in 0..50_000u64) {
            let mut at = offset;
            let mut parts = 0;
            for piece in pieces(ByteRange::new(offset, length)) {
                match piece {
                    Piece::Whole { start, blocks } => {
                        prop_assert_eq!(start * BLOCK, at);
                        prop_assert!(blocks > 0);
                    }
                    Piece::Part { block, within, length } => {
                        parts += 1;
                        prop_assert_eq!(block * BLOCK + within as u64, at);
                        prop_assert!(length > 0 && length < CONTENT && within + length <= CONTENT);
                    }
                }
                at += piece.bytes() as u64;
            }
            prop_assert_eq!(at, offset + length);
            prop_assert!(parts <= 2);
        }
    }
}

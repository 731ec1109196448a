//! The changes to a map since its checkpoint, in memory.
//!
//! Runs are kept in order in pieces of at most [`FULL`]; a list of the pieces' first blocks leads to
//! the piece. A copy shares the pieces until one side changes them.

use std::sync::Arc;

use super::{ObjectId, Place, Run};

/// What an overlay says of some blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first block.
    pub(crate) start: u64,
    /// Number of blocks, at least 1.
    pub(crate) blocks: u64,
    /// None: nothing is said. Otherwise where the first block lies, or that it is a hole.
    pub(crate) found: Option<Option<Place>>,
}

impl Span {
    /// The block after the last.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.blocks
    }
}

/// Where blocks lie of which something was said, and which of them are holes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    /// The first block of each piece.
    firsts: Vec<u64>,
    pieces: Vec<Arc<Vec<Entry>>>,
    len: usize,
}

/// A run in 20 bytes. Of a hole, `b` and `c` are the two halves of its length, for a discard has
/// no limit; of a mapped run, `b` is the length and `c` the index.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
struct Entry {
    start: u64,
    object: u32,
    b: u32,
    c: u32,
}

const HOLE: u32 = u32::MAX;
/// Entries in a piece: few enough to be moved aside quickly.
const FULL: usize = 128;
/// Entries by which a piece grows.
const GROW: usize = 16;

/// Position of an entry: piece, and entry within it.
type At = (usize, usize);

impl Overlay {
    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is said of any block.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it takes, about.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        // Of each piece: the list's own fields and those of its reference counts.
        let entries: usize = self.pieces.iter().map(|piece| piece.capacity()).sum();
        entries * size_of::<Entry>()
            + self.pieces.capacity() * 8
            + self.firsts.capacity() * 8
            + self.pieces.len() * 40
    }

    /// Says where `blocks` blocks from `start` on lie, or that they are holes; what was said of
    /// them before is forgotten. A mapped run must not have an index above `u32::MAX`.
    pub(crate) fn insert(&mut self, start: u64, blocks: u64, place: Option<Place>) {
        if blocks == 0 {
            return;
        }
        if place.is_none() || u32::try_from(blocks).is_ok() {
            let place = place.map(|place| (place, blocks as u32));
            self.replace(start, blocks, Some(Entry::new(start, blocks, place)));
            return;
        }
        // Exactly 2^32 blocks: all that an object can have, and one more than an entry.
        let half = blocks / 2;
        self.insert(start, half, place);
        self.insert(
            start + half,
            blocks - half,
            place.map(|place| place.plus(half)),
        );
    }

    /// Forgets what was said of `blocks` blocks from `start` on.
    #[cfg(test)]
    pub(crate) fn clear(&mut self, start: u64, blocks: u64) {
        if blocks > 0 {
            self.replace(start, blocks, None);
        }
    }

    /// What is said of one block.
    pub(crate) fn get(&self, block: u64) -> Option<Option<Place>> {
        let run = self.entry(self.first_after(block))?.run();
        (run.start <= block).then(|| run.place.map(|place| place.plus(block - run.start)))
    }

    /// The runs that are not wholly before `block`, in order.
    pub(crate) fn runs_from(&self, block: u64) -> Runs<'_> {
        Runs {
            overlay: self,
            at: self.first_after(block),
        }
    }

    /// All runs, in order.
    pub(crate) fn iter(&self) -> Runs<'_> {
        Runs {
            overlay: self,
            at: (0, 0),
        }
    }

    /// All that is said, and not said, of the blocks from `start` to before `end`, in order.
    pub(crate) fn cover(&self, start: u64, end: u64) -> Cover<'_> {
        Cover {
            runs: self.runs_from(start),
            next: None,
            at: start,
            end,
        }
    }

    /// Whether anything is said of any of the blocks from `start` to before `end`.
    pub(crate) fn touches(&self, start: u64, end: u64) -> bool {
        let run = self.runs_from(start).next();
        start < end && run.is_some_and(|run| run.start < end)
    }

    /// The first entry that ends after `block`.
    fn first_after(&self, block: u64) -> At {
        let piece = self.firsts.partition_point(|first| *first <= block);
        let Some(before) = piece.checked_sub(1) else {
            return (0, 0);
        };
        let entries = &self.pieces[before];
        let next = entries.partition_point(|entry| entry.start <= block);
        // There is one before: the piece begins at or before the block.
        let at = if entries[next - 1].end() > block {
            next - 1
        } else {
            next
        };
        self.normal((before, at))
    }

    /// The first entry that begins at `block` or later.
    fn first_from(&self, block: u64) -> At {
        let piece = self.firsts.partition_point(|first| *first < block);
        let Some(before) = piece.checked_sub(1) else {
            return (0, 0);
        };
        let at = self.pieces[before].partition_point(|entry| entry.start < block);
        self.normal((before, at))
    }

    /// The end of a piece is the beginning of the next.
    fn normal(&self, (piece, at): At) -> At {
        if at == self.pieces[piece].len() {
            (piece + 1, 0)
        } else {
            (piece, at)
        }
    }

    fn before(&self, (piece, at): At) -> Option<Entry> {
        match at.checked_sub(1) {
            Some(at) => Some(self.pieces[piece][at]),
            None => self.pieces[..piece].last()?.last().copied(),
        }
    }

    fn entry(&self, (piece, at): At) -> Option<&Entry> {
        self.pieces.get(piece)?.get(at)
    }

    /// Puts `new` in the place of all that is said of a range.
    fn replace(&mut self, start: u64, blocks: u64, new: Option<Entry>) {
        let end = start.saturating_add(blocks);
        let (mut from, mut to) = (self.first_after(start), self.first_from(end));
        // At most what is left of the first, the new one, and what is left of the last.
        let mut put = [Entry::NONE; 3];
        let mut count = 0;
        let mut add = |run: Run| {
            if count > 0
                && let Some(joined) = Entry::joined(&put[count - 1].run(), &run)
            {
                put[count - 1] = joined;
            } else {
                put[count] = Entry::of(&run);
                count += 1;
            }
        };
        let joins = |a: Option<Run>, b: Option<Run>| Entry::joined(&a?, &b?);
        let new = new.map(|entry| entry.run());
        let first = (from < to)
            .then(|| self.entry(from).map(Entry::run))
            .flatten();
        match first {
            Some(first) if first.start < start => add(first.clip(0, start)),
            _ => {
                let before = self.before(from).map(|entry| entry.run());
                if let Some(before) = before.filter(|_| joins(before, new).is_some()) {
                    from = self.back(from);
                    add(before);
                }
            }
        }
        if let Some(new) = new {
            add(new);
        }
        let last = self.before(to).map(|entry| entry.run());
        match last {
            Some(last) if last.start < end && last.end() > end => add(last.clip(end, u64::MAX)),
            _ => {
                let next = self.entry(to).map(Entry::run);
                if let Some(next) = next.filter(|_| joins(new, next).is_some()) {
                    to = self.normal((to.0, to.1 + 1));
                    add(next);
                }
            }
        }
        self.splice(from, to, &put[..count]);
    }

    /// The position before one that is not the first.
    fn back(&self, (piece, at): At) -> At {
        match at.checked_sub(1) {
            Some(at) => (piece, at),
            None => (piece - 1, self.pieces[piece - 1].len() - 1),
        }
    }

    /// Replaces the entries from `from` to before `to`.
    fn splice(&mut self, from: At, to: At, put: &[Entry]) {
        let ((first, at), (last, until)) = (from, to);
        if first == self.pieces.len() {
            // Behind all others: the last piece takes it.
            let Some(first) = first.checked_sub(1) else {
                if !put.is_empty() {
                    self.pieces.push(Arc::new(put.to_vec()));
                    self.firsts.push(put[0].start);
                    self.len = put.len();
                }
                return;
            };
            let at = self.pieces[first].len();
            self.splice_in(first, at, at, put);
            return;
        }
        if first == last {
            self.splice_in(first, at, until, put);
            return;
        }
        if until > 0 {
            self.splice_in(last, 0, until, &[]);
        }
        let gone = first + 1..last;
        self.len -= self.pieces[gone.clone()]
            .iter()
            .map(|piece| piece.len())
            .sum::<usize>();
        self.pieces.drain(gone.clone());
        self.firsts.drain(gone);
        let until = self.pieces[first].len();
        self.splice_in(first, at, until, put);
    }

    /// Replaces entries of one piece, and splits or drops the piece where that asks for it.
    fn splice_in(&mut self, piece: usize, at: usize, until: usize, put: &[Entry]) {
        let entries = Arc::make_mut(&mut self.pieces[piece]);
        let room = entries.capacity() - entries.len();
        if room < put.len() {
            entries.reserve_exact(GROW);
        }
        match put {
            [one] if at == until => entries.insert(at, *one),
            _ => drop(entries.splice(at..until, put.iter().copied())),
        }
        self.len = self.len + put.len() - (until - at);
        if entries.len() > FULL {
            // Those written in order leave full pieces behind them.
            let keep = if at + put.len() == entries.len() {
                FULL
            } else {
                FULL / 2
            };
            let rest = entries.split_off(keep);
            entries.shrink_to_fit();
            self.firsts.insert(piece + 1, rest[0].start);
            self.pieces.insert(piece + 1, Arc::new(rest));
        } else if entries.capacity() > entries.len() + 2 * GROW {
            entries.shrink_to(entries.len() + GROW);
        }
        match self.pieces[piece].first() {
            Some(first) => self.firsts[piece] = first.start,
            None => {
                self.pieces.remove(piece);
                self.firsts.remove(piece);
                return;
            }
        }
        if until - at > put.len() {
            self.unite(piece);
        }
    }

    /// Joins a piece that lost entries with the next, so that no row of small ones is left.
    fn unite(&mut self, piece: usize) {
        let Some(next) = self.pieces.get(piece + 1) else {
            return;
        };
        if self.pieces[piece].len() + next.len() > FULL / 2 {
            return;
        }
        let next = self.pieces.remove(piece + 1);
        self.firsts.remove(piece + 1);
        Arc::make_mut(&mut self.pieces[piece]).extend_from_slice(&next);
    }
}

impl Entry {
    const NONE: Entry = Entry {
        start: 0,
        object: HOLE,
        b: 0,
        c: 0,
    };

    fn new(start: u64, blocks: u64, place: Option<(Place, u32)>) -> Entry {
        let (object, b, c) = match place {
            None => (HOLE, blocks as u32, (blocks >> 32) as u32),
            Some((place, blocks)) => (place.object.0, blocks, place.index),
        };
        Entry {
            start,
            object,
            b,
            c,
        }
    }

    /// Of a run that fits: part of an entry, or two that `joined` found to fit.
    fn of(run: &Run) -> Entry {
        let place = run.place.map(|place| (place, run.blocks as u32));
        Entry::new(run.start, run.blocks, place)
    }

    /// One entry for two runs, if the one continues the other and both fit.
    fn joined(run: &Run, next: &Run) -> Option<Entry> {
        let blocks = run.blocks + next.blocks;
        let fits = run.place.is_none() || u32::try_from(blocks).is_ok();
        (fits && run.continued_by(next)).then(|| Entry::of(&Run { blocks, ..*run }))
    }

    fn run(&self) -> Run {
        let Entry {
            start,
            object,
            b,
            c,
        } = *self;
        let (blocks, place) = if object == HOLE {
            (u64::from(b) | u64::from(c) << 32, None)
        } else {
            let object = ObjectId(object);
            (b.into(), Some(Place { object, index: c }))
        };
        Run {
            start,
            blocks,
            place,
        }
    }

    fn end(&self) -> u64 {
        self.run().end()
    }
}

/// Runs of an overlay, in order.
#[derive(Clone, Debug)]
pub(crate) struct Runs<'a> {
    overlay: &'a Overlay,
    at: At,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let entry = self.overlay.entry(self.at)?;
        self.at = self.overlay.normal((self.at.0, self.at.1 + 1));
        Some(entry.run())
    }
}

/// Spans that cover a range.
#[derive(Clone, Debug)]
pub(crate) struct Cover<'a> {
    runs: Runs<'a>,
    next: Option<Run>,
    at: u64,
    end: u64,
}

impl Iterator for Cover<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        if self.at >= self.end {
            return None;
        }
        let start = self.at;
        let run = self.next.take().or_else(|| self.runs.next());
        let (until, found) = match run {
            Some(run) if run.start <= start => {
                let part = run.clip(start, self.end);
                (part.end(), Some(part.place))
            }
            Some(run) => {
                self.next = Some(run);
                (run.start.min(self.end), None)
            }
            None => (self.end, None),
        };
        self.at = until;
        Some(Span {
            start,
            blocks: until - start,
            found,
        })
    }
}

#[cfg(test)]
mod tests;

//! A volume's map: where each of its blocks lies.
//!
//! A tree of pages in the store, as of a checkpoint, and overlays in memory for what changed since.

mod diff;
#[cfg(test)]
mod measure;
mod overlay;
mod page;
mod relocate;
mod rewrite;
mod table;
mod tree;
mod view;

pub(crate) use diff::{changed, extents};
pub(crate) use overlay::{Overlay, Span};
pub(crate) use page::Page;
#[cfg(any(test, fuzzing))]
pub(crate) use page::span;
pub(crate) use relocate::{Moves, Relocator};
pub(crate) use rewrite::{PageSink, apply};
pub(crate) use table::{ObjectId, ObjectInfo, ObjectTable};
pub(crate) use tree::{PageStore, walk};
pub(crate) use view::{View, lookup, lookup_cached};

/// Blocks in the largest volume: 2^63 bytes.
pub(crate) const MOST_BLOCKS: u64 = 1 << 51;

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// The object.
    pub(crate) object: ObjectId,
    /// The block's number among those of the object.
    pub(crate) index: u32,
}

impl Place {
    /// The place of the block that comes `blocks` later in the same run.
    pub(crate) fn plus(self, blocks: u64) -> Place {
        // A run ends where its indexes do: see `Run`.
        let index = self.index.wrapping_add(blocks as u32);
        Place { index, ..self }
    }
}

/// Blocks in a row whose places follow one another, or which are holes. A mapped run never has an
/// index above `u32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first block.
    pub(crate) start: u64,
    /// Number of blocks, at least 1.
    pub(crate) blocks: u64,
    /// Where the first block lies; none for a hole.
    pub(crate) place: Option<Place>,
}

impl Run {
    /// The block after the last.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.blocks
    }

    /// The part between two blocks, which must not be empty.
    pub(crate) fn clip(&self, from: u64, to: u64) -> Run {
        let start = self.start.max(from);
        Run {
            start,
            blocks: self.end().min(to) - start,
            place: self.place.map(|place| place.plus(start - self.start)),
        }
    }

    /// Whether `next` begins where this ends, in the volume and in the object.
    pub(crate) fn continued_by(&self, next: &Run) -> bool {
        self.end() == next.start
            && match (self.place, next.place) {
                (None, None) => true,
                (Some(place), Some(after)) => {
                    place.object == after.object
                        && u64::from(place.index) + self.blocks == u64::from(after.index)
                }
                _ => false,
            }
    }
}

/// Appends `run`, as part of the last one where it continues that.
pub(crate) fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.continued_by(&run) => last.blocks += run.blocks,
        _ => runs.push(run),
    }
}

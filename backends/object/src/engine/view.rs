//! A volume's extents at one moment.

use std::sync::Arc;

use futures::stream::{Stream, StreamExt, TryStreamExt};
use volmux_core::{ByteRange, ExtentStream, Grade, Result};

use super::Engine;
use crate::map;
use crate::shared::Shared;
use crate::tip::BLOCK;

/// A volume's map at one moment.
#[derive(Debug)]
pub(crate) struct View {
    shared: Arc<Shared>,
    map: map::View,
}

impl Engine {
    /// The map as it is now, with what is not flushed.
    pub(crate) fn view(&self) -> View {
        let state = self.lock();
        let frozen = state
            .frozen
            .as_ref()
            .map(|frozen| frozen.overlay.as_ref().clone());
        View {
            shared: self.shared.clone(),
            map: map::View {
                overlays: [state.active.clone()].into_iter().chain(frozen).collect(),
                root: state.root,
            },
        }
    }
}

impl View {
    /// What holds data within `range`.
    pub(crate) fn allocated(self, range: ByteRange) -> ExtentStream {
        let View { shared, map } = self;
        let runs = map::extents(shared, map, first(range)..end(range));
        stream(
            Grade::Exact,
            runs.map_ok(|run| (run.start, run.end())),
            range,
        )
    }

    /// What was written since `since` within `range`, also where the same was written again.
    pub(crate) fn changed(self, since: View, range: ByteRange) -> ExtentStream {
        let View { shared, map } = self;
        let runs = map::changed(shared, since.map, map, first(range)..end(range));
        stream(
            Grade::Superset,
            runs.map_ok(|blocks| (blocks.start, blocks.end)),
            range,
        )
    }
}

fn first(range: ByteRange) -> u64 {
    range.offset / BLOCK
}

/// A range without bytes has no blocks, wherever it lies.
fn end(range: ByteRange) -> u64 {
    match range.is_empty() {
        true => first(range),
        false => range.end().div_ceil(BLOCK),
    }
}

/// Blocks as bytes, within `range`.
fn stream(
    grade: Grade,
    blocks: impl Stream<Item = Result<(u64, u64)>> + Send + 'static,
    range: ByteRange,
) -> ExtentStream {
    let bytes = blocks.map(move |blocks| {
        let (start, end) = blocks?;
        let from = (start * BLOCK).max(range.offset);
        Ok(ByteRange::from_to(from, (end * BLOCK).min(range.end())))
    });
    ExtentStream::new(grade, BLOCK, bytes)
}

//! What a map says where changes in memory lie on top of a tree.

use volmux_core::Result;

use super::tree::{Finder, PageStore};
use super::{Overlay, Run, Span};
use crate::tip::Root;

/// A map at one point in time: overlays, the newest first, and the tree below them.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The newest first.
    pub(crate) overlays: Vec<Overlay>,
    /// The tree.
    pub(crate) root: Root,
}

impl View {
    /// Of a map in which nothing is mapped.
    pub(crate) const EMPTY: View = View {
        overlays: Vec::new(),
        root: Root::EMPTY,
    };

    /// Whether an overlay says anything of the blocks from `start` to before `end`.
    pub(super) fn touches(&self, start: u64, end: u64) -> bool {
        self.overlays
            .iter()
            .any(|overlay| overlay.touches(start, end))
    }

    /// What the overlays say of the blocks from `start` to before `end`: spans that cover exactly
    /// that range. Where no one says anything, a span has nothing.
    pub(super) fn over(&self, start: u64, end: u64) -> Vec<Span> {
        let mut out = Vec::new();
        fill(&self.overlays, start, end, &mut out);
        out
    }
}

fn fill(overlays: &[Overlay], start: u64, end: u64, out: &mut Vec<Span>) {
    let Some((newest, older)) = overlays.split_first() else {
        if start < end {
            out.push(Span {
                start,
                blocks: end - start,
                found: None,
            });
        }
        return;
    };
    for span in newest.cover(start, end) {
        match span.found {
            Some(_) => out.push(span),
            None => fill(older, span.start, span.end(), out),
        }
    }
}

/// The runs that cover the blocks from `start` to before `end` in a tree. None if that takes a
/// page that is not in memory.
pub(crate) fn lookup_cached(
    pages: &dyn PageStore,
    root: &Root,
    start: u64,
    end: u64,
) -> Result<Option<Vec<Run>>> {
    let mut runs = Vec::new();
    let mut finder = Finder::new(pages);
    finder.find(root, start, end, &mut runs)?;
    Ok(finder.complete().then_some(runs))
}

/// The same, loading the pages that are needed: those of one level at once.
pub(crate) async fn lookup(
    pages: &dyn PageStore,
    root: &Root,
    start: u64,
    end: u64,
) -> Result<Vec<Run>> {
    let mut finder = Finder::new(pages);
    loop {
        let mut runs = Vec::new();
        finder.find(root, start, end, &mut runs)?;
        if finder.complete() {
            return Ok(runs);
        }
        finder.load().await?;
    }
}

//! What a map says where changes in memory lie on top of a tree.

use volmux_core::Result;

use super::tree::{Finder, PageStore};
use super::{Overlay, Run, Span, push};
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

    /// What the overlays say of the blocks from `start` to before `end`.
    pub(super) fn over(&self, start: u64, end: u64) -> Vec<Span> {
        let overlays: Vec<&Overlay> = self.overlays.iter().collect();
        over(&overlays, start, end)
    }
}

/// What overlays, the newest first, say of the blocks from `start` to before `end`; where no one
/// says anything, a span has nothing. The spans cover exactly that range.
pub(crate) fn over(overlays: &[&Overlay], start: u64, end: u64) -> Vec<Span> {
    let mut out = Vec::new();
    fill(overlays, start, end, &mut out);
    out
}

fn fill(overlays: &[&Overlay], start: u64, end: u64, out: &mut Vec<Span>) {
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

/// Completes what [`over`] found with what the tree says: runs that cover the same range. None if
/// that takes a page that is not in memory.
pub(crate) fn settle_cached(
    pages: &dyn PageStore,
    root: &Root,
    spans: &[Span],
) -> Result<Option<Vec<Run>>> {
    let mut finder = Finder::new(pages);
    let runs = settled(&mut finder, root, spans)?;
    Ok(finder.complete().then_some(runs))
}

/// The same, loading the pages that are needed: those of one level at once.
pub(crate) async fn settle(pages: &dyn PageStore, root: &Root, spans: &[Span]) -> Result<Vec<Run>> {
    let mut finder = Finder::new(pages);
    loop {
        let runs = settled(&mut finder, root, spans)?;
        if finder.complete() {
            return Ok(runs);
        }
        finder.load().await?;
    }
}

fn settled(finder: &mut Finder<'_>, root: &Root, spans: &[Span]) -> Result<Vec<Run>> {
    let mut out = Vec::with_capacity(spans.len());
    for span in spans {
        match span.found {
            None => finder.find(root, span.start, span.end(), &mut out)?,
            Some(place) => push(
                &mut out,
                Run {
                    start: span.start,
                    blocks: span.blocks,
                    place,
                },
            ),
        }
    }
    Ok(out)
}

/// The runs that cover the blocks from `start` to before `end` in a tree. None if that takes a
/// page that is not in memory.
pub(crate) fn lookup_cached(
    pages: &dyn PageStore,
    root: &Root,
    start: u64,
    end: u64,
) -> Result<Option<Vec<Run>>> {
    settle_cached(pages, root, &over(&[], start, end))
}

/// The runs that cover the blocks from `start` to before `end` in a tree.
pub(crate) async fn lookup(
    pages: &dyn PageStore,
    root: &Root,
    start: u64,
    end: u64,
) -> Result<Vec<Run>> {
    settle(pages, root, &over(&[], start, end)).await
}

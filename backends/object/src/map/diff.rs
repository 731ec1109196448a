//! What is mapped, and what differs between two maps: streams over ranges of any size.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use volmux_core::{Error, ErrorKind, Result};

use super::page::{Page, TOP, span};
use super::tree::{AHEAD, PageStore, Sub, below};
use super::view::View;
use super::{MOST_BLOCKS, Place, Run, push};

/// The mapped runs among the blocks of `range`, in order, those that continue one another joined.
pub(crate) fn extents(
    pages: Arc<dyn PageStore>,
    view: View,
    range: Range<u64>,
) -> BoxStream<'static, Result<Run>> {
    let found = |segment: Segment| {
        let [runs, _] = segment.runs;
        runs.into_iter().filter(|run| run.place.is_some()).collect()
    };
    joined(Walk::new(pages, [view, View::EMPTY], range), found)
}

/// The blocks of `range` that do not lie at the same place in both maps, in order. Pages that both
/// maps have, and on which no overlay lies, are not read.
pub(crate) fn changed(
    pages: Arc<dyn PageStore>,
    before: View,
    after: View,
    range: Range<u64>,
) -> BoxStream<'static, Result<Range<u64>>> {
    let runs = joined(Walk::new(pages, [before, after], range), different);
    runs.map_ok(|run| run.start..run.end()).boxed()
}

/// Makes runs of segments, and joins those that continue one another.
fn joined(
    walk: Walk,
    runs_of: impl Fn(Segment) -> VecDeque<Run> + Send + 'static,
) -> BoxStream<'static, Result<Run>> {
    let state = (walk, VecDeque::<Run>::new(), runs_of);
    stream::try_unfold(state, |(mut walk, mut ready, runs_of)| async move {
        loop {
            // The last one may go on in the next segment.
            if ready.len() > 1 {
                let run = ready.pop_front();
                return Ok(run.map(|run| (run, (walk, ready, runs_of))));
            }
            let Some(segment) = walk.next().await? else {
                let run = ready.pop_front();
                return Ok(run.map(|run| (run, (walk, ready, runs_of))));
            };
            for run in runs_of(segment) {
                match ready.back_mut() {
                    Some(last) if last.continued_by(&run) => last.blocks += run.blocks,
                    _ => ready.push_back(run),
                }
            }
        }
    })
    .boxed()
}

/// Where the two sides of a segment differ, as holes.
fn different(segment: Segment) -> VecDeque<Run> {
    let mut out = Vec::new();
    let [a, b] = segment.runs;
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    let mut at = segment.start;
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        let (x_end, y_end) = (x.end(), y.end());
        let end = x_end.min(y_end);
        let place = |run: &Run| run.place.map(|place: Place| place.plus(at - run.start));
        if place(x) != place(y) {
            let run = Run {
                start: at,
                blocks: end - at,
                place: None,
            };
            push(&mut out, run);
        }
        at = end;
        a.next_if(|_| x_end == end);
        b.next_if(|_| y_end == end);
    }
    out.into()
}

/// Two maps' runs that cover the same blocks.
struct Segment {
    start: u64,
    runs: [Vec<Run>; 2],
}

/// Blocks of which the maps may differ, with the pages that tell of all of them. A page of a
/// lower level, where one tree is not as high as the other, tells of its own blocks.
#[derive(Clone, Debug)]
struct Part {
    start: u64,
    end: u64,
    level: u8,
    subs: [Option<Sub>; 2],
    pages: [Option<Arc<Page>>; 2],
}

/// Goes through two maps side by side and leaves out what is the same in both trees.
struct Walk {
    pages: Arc<dyn PageStore>,
    views: [View; 2],
    /// Parts of each level on the way down; the pages of some are being loaded.
    stack: Vec<BoxStream<'static, Result<Part>>>,
    /// Blocks of which only the overlays tell.
    bare: Range<u64>,
}

/// Entries of an overlay in a segment, about.
const MOST_SPANS: usize = 4096;

impl Walk {
    fn new(pages: Arc<dyn PageStore>, views: [View; 2], range: Range<u64>) -> Self {
        let end = range.end.min(MOST_BLOCKS);
        let subs = [Sub::root(&views[0].root), Sub::root(&views[1].root)];
        let level = subs.iter().flatten().map(|sub| sub.level).max();
        let mut walk = Walk {
            pages,
            views,
            stack: Vec::new(),
            bare: 0..0,
        };
        let top = level.map_or(0, span).clamp(range.start.min(end), end);
        let mut parts = Vec::new();
        let level = level.unwrap_or(TOP);
        walk.add(&mut parts, range.start..top, level, subs);
        walk.add(&mut parts, top.max(range.start)..end, level, [None, None]);
        walk.descend(parts);
        walk
    }

    /// Adds a part, unless both maps are the same there.
    fn add(&self, parts: &mut Vec<Part>, range: Range<u64>, level: u8, subs: [Option<Sub>; 2]) {
        let (start, end) = (range.start, range.end);
        let touched = || self.views.iter().any(|view| view.touches(start, end));
        let same = subs[0].map(|sub| sub.page) == subs[1].map(|sub| sub.page);
        if start >= end || (same && !touched()) {
            return;
        }
        // What an overlay covers needs no page.
        let hidden = |view: &View| {
            let spans = |overlay: &super::Overlay| overlay.cover(start, end).next();
            let first = view.overlays.first().and_then(spans);
            first.is_some_and(|span| span.found.is_some() && span.end() == end)
        };
        let mut subs = subs;
        for (sub, view) in subs.iter_mut().zip(&self.views) {
            if hidden(view) {
                *sub = None;
            }
        }
        parts.push(Part {
            start,
            end,
            level,
            subs,
            pages: [None, None],
        });
    }

    /// Goes on with parts, whose pages are loaded some ahead.
    fn descend(&mut self, parts: Vec<Part>) {
        let pages = self.pages.clone();
        let loaded = move |mut part: Part| {
            let pages = pages.clone();
            async move {
                let side = async |sub: Option<Sub>| match sub {
                    Some(sub) if sub.level == part.level => load(&pages, sub).await.map(Some),
                    _ => Ok(None),
                };
                let [a, b] = part.subs;
                let (a, b) = futures::try_join!(side(a), side(b))?;
                part.pages = [a, b];
                Ok(part)
            }
        };
        let parts = stream::iter(parts).map(loaded).buffered(AHEAD / 2);
        self.stack.push(parts.boxed());
    }

    async fn next(&mut self) -> Result<Option<Segment>> {
        loop {
            if !self.bare.is_empty() {
                return Ok(Some(self.bare_segment()));
            }
            let Some(parts) = self.stack.last_mut() else {
                return Ok(None);
            };
            match parts.try_next().await? {
                None => drop(self.stack.pop()),
                Some(part) if part.subs == [None, None] => self.bare = part.start..part.end,
                Some(part) if part.level == 0 => {
                    let runs = [0, 1].map(|side| {
                        let page = part.pages[side].as_deref();
                        cover(&self.views[side], page, part.start, part.end)
                    });
                    let start = part.start;
                    return Ok(Some(Segment { start, runs }));
                }
                Some(part) => {
                    let parts = self.parts(&part);
                    self.descend(parts);
                }
            }
        }
    }

    /// The parts that a part above the leaves consists of.
    fn parts(&self, part: &Part) -> Vec<Part> {
        let level = part.level - 1;
        let subs = [0, 1].map(|side| -> Vec<Sub> {
            match (&part.pages[side], part.subs[side]) {
                (Some(page), _) => below(page, part.start, part.end).collect(),
                (None, Some(lower)) if lower.end() > part.start => vec![lower],
                _ => Vec::new(),
            }
        });
        let [mut a, mut b] = subs.map(|subs| subs.into_iter().peekable());
        let mut parts = Vec::new();
        let mut at = part.start;
        // Those of a tree that is lower lie in the first child of every level.
        let width = span(level);
        let place = |sub: &Sub| sub.start() / width;
        while let Some(next) = a.peek().into_iter().chain(b.peek()).map(place).min() {
            let (start, end) = (next * width, (next + 1) * width);
            let (start, end) = (start.max(part.start), end.min(part.end));
            self.add(&mut parts, at..start, level, [None, None]);
            let subs = [
                a.next_if(|sub| place(sub) == next),
                b.next_if(|sub| place(sub) == next),
            ];
            self.add(&mut parts, start..end, level, subs);
            at = end;
        }
        self.add(&mut parts, at..part.end, level, [None, None]);
        parts
    }

    /// The beginning of what only the overlays tell of: as much as takes little memory.
    fn bare_segment(&mut self) -> Segment {
        let Range { start, end } = self.bare;
        let overlays = self.views.iter().flat_map(|view| &view.overlays);
        let ends = overlays.filter_map(|overlay| {
            let span = overlay.cover(start, end).nth(MOST_SPANS)?;
            Some(span.start)
        });
        let until = ends.min().unwrap_or(end);
        self.bare.start = until;
        Segment {
            start,
            runs: [0, 1].map(|side| cover(&self.views[side], None, start, until)),
        }
    }
}

/// A page, loaded by a task of its own: whoever has a stream may read the volume before going on
/// with the stream, and would wait for ever for a page whose load only the stream drives.
async fn load(pages: &Arc<dyn PageStore>, sub: Sub) -> Result<Arc<Page>> {
    if pages.cached(&sub.page).is_some() {
        return sub.load(&**pages).await;
    }
    let pages = pages.clone();
    let mut task = JoinSet::new();
    task.spawn(async move { sub.load(&*pages).await });
    match task.join_next().await {
        Some(Ok(page)) => page,
        Some(Err(error)) => Err(Error::new(ErrorKind::Internal, "read_map").with_source(error)),
        None => Err(Error::new(ErrorKind::Internal, "read_map").reason("a task got lost")),
    }
}

/// The runs that cover the blocks from `start` to before `end`, with what a leaf says of them.
fn cover(view: &View, leaf: Option<&Page>, start: u64, end: u64) -> Vec<Run> {
    let mut out = Vec::new();
    let hole = |start, end| Run {
        start,
        blocks: end - start,
        place: None,
    };
    for span in view.over(start, end) {
        let (mut at, end) = (span.start, span.end());
        if let Some(place) = span.found {
            let blocks = span.blocks;
            push(
                &mut out,
                Run {
                    start: at,
                    blocks,
                    place,
                },
            );
            continue;
        }
        for run in leaf.iter().flat_map(|leaf| leaf.runs(span.start, end)) {
            if at < run.start {
                push(&mut out, hole(at, run.start));
            }
            at = run.end();
            push(&mut out, run);
        }
        if at < end {
            push(&mut out, hole(at, end));
        }
    }
    out
}

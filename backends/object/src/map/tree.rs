//! Reading a map's tree.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use volmux_core::Result;

use super::page::{Child, Page, TOP, span};
use super::{Run, push};
use crate::tip::{PagePtr, Root};

/// Pages that are asked for at once.
pub(super) const AHEAD: usize = 32;

/// Where pages come from.
#[async_trait]
pub(crate) trait PageStore: Debug + Send + Sync + 'static {
    /// A page, verified and decoded.
    async fn load(&self, at: &PagePtr) -> Result<Arc<Page>>;

    /// A page, if it is in memory.
    fn cached(&self, at: &PagePtr) -> Option<Arc<Page>>;
}

/// A page of a tree, that need not be in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sub {
    pub(super) page: PagePtr,
    pub(super) level: u8,
    pub(super) number: u64,
    pub(super) mapped: u64,
}

impl Sub {
    pub(super) fn root(root: &Root) -> Option<Sub> {
        Some(Sub {
            page: root.page?,
            level: root.level.min(TOP),
            number: 0,
            mapped: root.mapped,
        })
    }

    /// The page below `parent` that `child` speaks of.
    pub(super) fn child(parent: &Page, child: &Child) -> Sub {
        Sub {
            page: child.page,
            level: parent.level() - 1,
            number: (parent.number() * 512) + u64::from(child.slot),
            mapped: child.mapped,
        }
    }

    pub(super) fn start(&self) -> u64 {
        self.number * span(self.level)
    }

    pub(super) fn end(&self) -> u64 {
        self.start() + span(self.level)
    }

    pub(super) async fn load(&self, pages: &dyn PageStore) -> Result<Arc<Page>> {
        let page = match pages.cached(&self.page) {
            Some(page) => page,
            None => pages.load(&self.page).await?,
        };
        page.check(&self.page, self.level, self.number)?;
        Ok(page)
    }
}

/// The pages below `page` that have blocks between two blocks, in order.
pub(super) fn below(page: &Page, from: u64, to: u64) -> impl Iterator<Item = Sub> + '_ {
    let width = span(page.level().saturating_sub(1));
    let slot = from.saturating_sub(page.base()) / width;
    page.children_from(slot)
        .map(|child| Sub::child(page, &child))
        .take_while(move |sub| sub.start() < to)
}

/// What the pages in memory say of some blocks.
pub(super) struct Finder<'a> {
    pages: &'a dyn PageStore,
    /// Pages that were loaded on the way, which a cache may have dropped again.
    loaded: BTreeMap<PagePtr, Arc<Page>>,
    missing: Vec<Sub>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(pages: &'a dyn PageStore) -> Self {
        Finder {
            pages,
            loaded: BTreeMap::new(),
            missing: Vec::new(),
        }
    }

    /// Appends the runs that cover the blocks from `start` to before `end`. They are only right
    /// if nothing is [`missing`](Self::complete).
    pub(super) fn find(
        &mut self,
        root: &Root,
        start: u64,
        end: u64,
        out: &mut Vec<Run>,
    ) -> Result<()> {
        let mut at = start;
        if let Some(sub) = Sub::root(root)
            && start < sub.end()
        {
            self.descend(sub, start, end, &mut at, out)?;
        }
        hole(&mut at, end, out);
        Ok(())
    }

    fn descend(
        &mut self,
        sub: Sub,
        start: u64,
        end: u64,
        at: &mut u64,
        out: &mut Vec<Run>,
    ) -> Result<()> {
        let loaded = self.loaded.get(&sub.page).cloned();
        let Some(page) = loaded.or_else(|| self.pages.cached(&sub.page)) else {
            self.missing.push(sub);
            return Ok(());
        };
        page.check(&sub.page, sub.level, sub.number)?;
        for run in page.runs(start, end) {
            hole(at, run.start, out);
            *at = run.end();
            push(out, run);
        }
        for child in below(&page, start, end) {
            self.descend(child, start, end, at, out)?;
        }
        Ok(())
    }

    /// Whether all pages that were needed were there.
    pub(super) fn complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Loads what is missing.
    pub(super) async fn load(&mut self) -> Result<()> {
        let pages = self.pages;
        let missing = std::mem::take(&mut self.missing);
        let load = |sub: Sub| async move { Ok((sub.page, sub.load(pages).await?)) };
        let mut loads = stream::iter(missing).map(load).buffered(AHEAD);
        while let Some((at, page)) = loads.try_next().await? {
            self.loaded.insert(at, page);
        }
        Ok(())
    }
}

/// Blocks up to `to` are holes.
fn hole(at: &mut u64, to: u64, out: &mut Vec<Run>) {
    if *at < to {
        let run = Run {
            start: *at,
            blocks: to - *at,
            place: None,
        };
        push(out, run);
        *at = to;
    }
}

/// Shows each page of a tree once, for garbage collection. `enter` gets a page before it is loaded
/// and says whether to go on below it; `leaf` gets the leaves among those, in order.
pub(crate) async fn walk(
    pages: &dyn PageStore,
    root: &Root,
    enter: &mut (dyn FnMut(&PagePtr) -> bool + Send),
    leaf: &mut (dyn FnMut(&Page) + Send),
) -> Result<()> {
    let mut stack = Vec::new();
    let wanted = Sub::root(root).into_iter();
    stack.push(Batches::new(wanted.filter(|sub| enter(&sub.page))));
    while let Some(batches) = stack.last_mut() {
        let Some(page) = batches.next(pages).await? else {
            stack.pop();
            continue;
        };
        if page.level() == 0 {
            leaf(&page);
        } else {
            let wanted = below(&page, 0, u64::MAX);
            stack.push(Batches::new(wanted.filter(|sub| enter(&sub.page))));
        }
    }
    Ok(())
}

/// How many pages of a level are read at once.
pub(super) fn batch(level: u8) -> usize {
    if level == 0 { AHEAD } else { AHEAD / 4 }
}

/// Pages of a level, some of which are read at once. A load is never left alone half done: someone
/// else who wants that page too would have to wait until this reader comes back to it.
struct Batches {
    rest: VecDeque<Sub>,
    ready: VecDeque<Arc<Page>>,
}

impl Batches {
    fn new(wanted: impl Iterator<Item = Sub>) -> Self {
        Batches {
            rest: wanted.collect(),
            ready: VecDeque::new(),
        }
    }

    async fn next(&mut self, pages: &dyn PageStore) -> Result<Option<Arc<Page>>> {
        if self.ready.is_empty() {
            let count = self.rest.front().map_or(0, |sub| batch(sub.level));
            let batch: Vec<Sub> = self.rest.drain(..count.min(self.rest.len())).collect();
            let loads = batch.iter().map(|sub| sub.load(pages));
            self.ready = try_join_all(loads).await?.into();
        }
        Ok(self.ready.pop_front())
    }
}

#[cfg(test)]
pub(super) mod tests;

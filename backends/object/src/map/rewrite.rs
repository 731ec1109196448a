//! Writing changes into a map's tree: only pages that change are written again.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, try_join_all};
use volmux_core::Result;

use super::page::{Child, Page, TOP, span};
use super::tree::{PageStore, Sub, batch, below};
use super::{MOST_BLOCKS, ObjectTable, Run, push};
use crate::tip::{PagePtr, Root};

/// Where new pages go.
#[async_trait]
pub(crate) trait PageSink: Send {
    /// Takes a page, and says where it will be.
    async fn place(&mut self, body: Vec<u8>) -> Result<PagePtr>;
}

/// Writes changes, which must be in order and must not overlap, into the tree `root`, and returns
/// the new tree's root; `root` stays as it is. A hole may be as long as a volume.
///
/// Some dozens of pages are in memory at once, however many changes there are. The changes are
/// read twice at each level of the tree, to ask for pages ahead.
///
/// # Errors
/// Those of loading and placing pages; `Internal` for an object that is not complete.
pub(crate) async fn apply<I>(
    pages: &dyn PageStore,
    table: &ObjectTable,
    root: &Root,
    changes: I,
    sink: &mut dyn PageSink,
) -> Result<Root>
where
    I: Iterator<Item = Run> + Clone + Send,
{
    let mut rewriter = Rewriter {
        pages,
        table,
        sink,
        changes: Changes::new(changes),
    };
    let mut level = root.level.min(TOP);
    let mut top = Sub::root(root);
    if let Some(sub) = top
        && rewriter.changes.before(sub.end()).is_some()
    {
        let page = sub.load(pages).await?;
        top = rewriter.node(level, 0, Some((sub, page))).await?;
    }
    while let Some(change) = rewriter.changes.mapped() {
        let mut page = None;
        match top {
            None => level = 0,
            Some(sub) => {
                level = sub.level + 1;
                let child = Child {
                    slot: 0,
                    page: sub.page,
                    mapped: sub.mapped,
                };
                page = Some(Arc::new(Page::inner(level, 0, &[child])));
            }
        }
        while top.is_none() && change.start >= span(level) && level < TOP {
            level += 1;
        }
        top = rewriter.grown(level, page).await?;
    }
    Ok(top.map_or(Root::EMPTY, |sub| Root {
        page: Some(sub.page),
        level: sub.level,
        mapped: sub.mapped,
    }))
}

struct Rewriter<'a, I> {
    pages: &'a dyn PageStore,
    table: &'a ObjectTable,
    sink: &'a mut dyn PageSink,
    changes: Changes<I>,
}

/// What is to be done with a page below another.
enum Step {
    /// Nothing is mapped there any more.
    Drop,
    /// Changes are to be written to it, or to an empty one.
    Change(Option<(Sub, Arc<Page>)>),
}

impl<I: Iterator<Item = Run> + Clone + Send> Rewriter<'_, I> {
    /// Writes the changes that are due below a page that has content, or below an empty one.
    fn node(
        &mut self,
        level: u8,
        number: u64,
        old: Option<(Sub, Arc<Page>)>,
    ) -> BoxFuture<'_, Result<Option<Sub>>> {
        Box::pin(async move {
            if level == 0 {
                return self.leaf(number, old).await;
            }
            let page = old.as_ref().map(|(_, page)| page.clone());
            let page = page.unwrap_or_else(|| Arc::new(Page::inner(level, number, &[])));
            self.inner(&page, old.map(|(sub, _)| sub)).await
        })
    }

    /// The same for a new topmost page, above that which was it so far.
    async fn grown(&mut self, level: u8, page: Option<Arc<Page>>) -> Result<Option<Sub>> {
        match page {
            Some(page) => self.inner(&page, None).await,
            None => self.node(level, 0, None).await,
        }
    }

    async fn leaf(&mut self, number: u64, old: Option<(Sub, Arc<Page>)>) -> Result<Option<Sub>> {
        let (start, end) = (number * span(0), (number + 1) * span(0));
        let page = old.as_ref().map(|(_, page)| page);
        let before: Vec<Run> = page.iter().flat_map(|page| page.runs(start, end)).collect();
        let mut changes = Vec::new();
        while let Some(change) = self.changes.take_before(end) {
            changes.push(change);
        }
        let after = merged(&before, &changes);
        match old {
            _ if after.is_empty() => Ok(None),
            Some((sub, _)) if after == before => Ok(Some(sub)),
            _ => self.put(&Page::leaf(number, &after)).await.map(Some),
        }
    }

    /// Writes the changes below `page`, which lies at `old` unless it is new.
    async fn inner(&mut self, page: &Arc<Page>, old: Option<Sub>) -> Result<Option<Sub>> {
        let (level, number) = (page.level(), page.number());
        let width = span(level - 1);
        let mut kept = below(page, 0, u64::MAX).peekable();
        let mut children: Vec<Child> = Vec::new();
        let mut ahead = Ahead::new(self.pages, page.clone(), self.changes.clone());
        let mut same = true;
        let child = |sub: &Sub| Child {
            slot: (sub.number % 512) as u16,
            page: sub.page,
            mapped: sub.mapped,
        };
        while let Some((at, step)) = ahead.next().await? {
            while let Some(sub) = kept.next_if(|sub| sub.number < at) {
                children.push(child(&sub));
            }
            let before = kept.next_if(|sub| sub.number == at);
            self.changes.skip_to(at * width);
            let after = match step {
                Step::Drop => None,
                Step::Change(old) => self.node(level - 1, at, old).await?,
            };
            self.changes.skip_to((at + 1) * width);
            same &= before == after;
            children.extend(after.as_ref().map(child));
        }
        self.changes.skip_to((number + 1) * span(level));
        children.extend(kept.map(|sub| child(&sub)));
        match old {
            _ if children.is_empty() => Ok(None),
            Some(old) if same => Ok(Some(old)),
            _ => {
                let page = Page::inner(level, number, &children);
                self.put(&page).await.map(Some)
            }
        }
    }

    async fn put(&mut self, page: &Page) -> Result<Sub> {
        Ok(Sub {
            page: self.sink.place(page.encode(self.table)?).await?,
            level: page.level(),
            number: page.number(),
            mapped: page.mapped(),
        })
    }
}

/// The mapped runs that are left of `before`, and those of `changes`. Both are in order.
fn merged(before: &[Run], changes: &[Run]) -> Vec<Run> {
    let mut out = Vec::with_capacity(before.len() + 2 * changes.len());
    let mut rest = before.iter().copied();
    let mut next = rest.next();
    for change in changes {
        while let Some(run) = next.filter(|run| run.start < change.end()) {
            if run.start < change.start {
                push(&mut out, run.clip(0, change.start));
            }
            next = if run.end() > change.end() {
                Some(run.clip(change.end(), u64::MAX))
            } else {
                rest.next()
            };
        }
        if change.place.is_some() {
            push(&mut out, *change);
        }
    }
    next.into_iter()
        .chain(rest)
        .for_each(|run| push(&mut out, run));
    out
}

/// The pages below one page that changes are due to, in order, each with what it takes. Some are
/// read at once, and all of those are there before the first is changed: while pages are placed,
/// no load is left half done.
struct Ahead<'a, I> {
    pages: &'a dyn PageStore,
    page: Arc<Page>,
    changes: Changes<I>,
    ready: VecDeque<(u64, Step)>,
}

impl<'a, I: Iterator<Item = Run> + Clone + Send> Ahead<'a, I> {
    fn new(pages: &'a dyn PageStore, page: Arc<Page>, changes: Changes<I>) -> Self {
        Ahead {
            pages,
            page,
            changes,
            ready: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<(u64, Step)>> {
        if self.ready.is_empty() {
            let mut due = Vec::new();
            while due.len() < batch(self.page.level() - 1)
                && let Some(next) = self.due()
            {
                due.push(next);
            }
            let pages = self.pages;
            let steps = due.into_iter().map(|(number, due)| async move {
                let step = match due {
                    Due::Drop => Step::Drop,
                    Due::New => Step::Change(None),
                    Due::Old(sub) => Step::Change(Some((sub, sub.load(pages).await?))),
                };
                Ok((number, step))
            });
            self.ready = try_join_all(steps).await?.into();
        }
        Ok(self.ready.pop_front())
    }

    /// The next page below that a change is due to.
    fn due(&mut self) -> Option<(u64, Due)> {
        let width = span(self.page.level() - 1);
        let end = (self.page.number() + 1) * span(self.page.level());
        loop {
            let change = self.changes.before(end)?;
            let number = change.start / width;
            let (from, to) = (number * width, (number + 1) * width);
            let old = below(&self.page, from, to).next();
            let whole = change.start == from && change.end() >= to;
            if change.place.is_none() && old.is_none() && change.end() >= to {
                // Nothing is there, and it stays so up to the next page that is.
                let next = below(&self.page, to, u64::MAX).next();
                let next = next.map_or(end, |sub| sub.start());
                self.changes.skip_to(next.min(change.end()));
                continue;
            }
            self.changes.skip_to(to);
            let due = match old {
                Some(_) if whole && change.place.is_none() => Due::Drop,
                Some(sub) if !whole => Due::Old(sub),
                _ => Due::New,
            };
            return Some((number, due));
        }
    }
}

enum Due {
    Drop,
    New,
    Old(Sub),
}

/// Changes that are not written yet.
#[derive(Clone)]
struct Changes<I> {
    rest: I,
    /// The first of them, or what is left of it.
    first: Option<Run>,
}

impl<I: Iterator<Item = Run>> Changes<I> {
    fn new(rest: I) -> Self {
        Changes { rest, first: None }
    }

    fn first(&mut self) -> Option<Run> {
        while self.first.is_none() {
            let run = self.rest.next()?;
            if run.start >= MOST_BLOCKS {
                return None;
            }
            self.first = (run.blocks > 0).then(|| run.clip(0, MOST_BLOCKS));
        }
        self.first
    }

    /// The first, if it begins before `end`.
    fn before(&mut self, end: u64) -> Option<Run> {
        self.first().filter(|run| run.start < end)
    }

    /// Takes the first, or what of it is before `end`.
    fn take_before(&mut self, end: u64) -> Option<Run> {
        let run = self.before(end)?;
        self.first = (run.end() > end).then(|| run.clip(end, u64::MAX));
        Some(run.clip(0, end))
    }

    /// Drops what is before `block`.
    fn skip_to(&mut self, block: u64) {
        while self.take_before(block).is_some() {}
    }

    /// The first that maps something, having dropped the holes before it.
    fn mapped(&mut self) -> Option<Run> {
        loop {
            let run = self.first()?;
            if run.place.is_some() {
                return Some(run);
            }
            self.first = None;
        }
    }
}

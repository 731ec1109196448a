//! Writing trees anew whose blocks lie elsewhere by now.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};
use volmux_core::Result;

use super::page::{Child, Page};
use super::tree::{AHEAD, PageStore, Sub, below};
use super::{ObjectId, ObjectTable, PageSink, Run};
use crate::tip::{PagePtr, Root};

/// Where blocks lie by now.
pub(crate) trait Moves: Debug + Send + Sync {
    /// Appends the run as it is now, which may be several, and says whether that is a change.
    fn moved(&self, run: Run, out: &mut Vec<Run>) -> bool;
}

/// Writes any number of trees anew. What trees share, they share afterwards too: each page is
/// read only once, and written at most once.
#[derive(Debug)]
pub(crate) struct Relocator<'a> {
    pages: &'a dyn PageStore,
    table: &'a ObjectTable,
    moves: &'a dyn Moves,
    /// What became of each page that was looked at; none where it stays as it is.
    done: HashMap<(ObjectId, u32), Option<Box<PagePtr>>>,
}

impl<'a> Relocator<'a> {
    /// `table` is the one that the pages' objects are known in.
    pub(crate) fn new(
        pages: &'a dyn PageStore,
        table: &'a ObjectTable,
        moves: &'a dyn Moves,
    ) -> Self {
        Relocator {
            pages,
            table,
            moves,
            done: HashMap::new(),
        }
    }

    /// The tree in which everything lies where it is by now: itself if nothing of it has moved.
    ///
    /// # Errors
    /// Those of loading and placing pages. What was done is remembered all the same.
    pub(crate) async fn tree(&mut self, root: &Root, sink: &mut dyn PageSink) -> Result<Root> {
        let Some(top) = Sub::root(root) else {
            return Ok(*root);
        };
        if self.known(&top.page)?.is_none() {
            let page = top.load(self.pages).await?;
            self.node(&top, &page, sink).await?;
        }
        Ok(Root {
            page: Some(self.now(&top.page)?),
            ..*root
        })
    }

    fn node<'s>(
        &'s mut self,
        sub: &'s Sub,
        page: &'s Arc<Page>,
        sink: &'s mut dyn PageSink,
    ) -> BoxFuture<'s, Result<()>> {
        Box::pin(async move {
            let new = match page.level() {
                0 => self.leaf(page),
                _ => self.inner(page, sink).await?,
            };
            let placed = match new {
                Some(new) => Some(Box::new(sink.place(new.encode(self.table)?).await?)),
                None => None,
            };
            let key = self.key(&sub.page)?;
            self.done.insert(key, placed);
            Ok(())
        })
    }

    fn leaf(&self, page: &Page) -> Option<Page> {
        let mut after = Vec::new();
        let mut changed = false;
        for run in page.runs(0, u64::MAX) {
            changed |= self.moves.moved(run, &mut after);
        }
        changed.then(|| Page::leaf(page.number(), &after))
    }

    async fn inner(&mut self, page: &Page, sink: &mut dyn PageSink) -> Result<Option<Page>> {
        let mut unknown = Vec::new();
        for sub in below(page, 0, u64::MAX) {
            if self.known(&sub.page)?.is_none() {
                unknown.push(sub);
            }
        }
        let pages = self.pages;
        let load =
            |sub: Sub| async move { Ok::<_, volmux_core::Error>((sub, sub.load(pages).await?)) };
        let mut loads = stream::iter(unknown).map(load).buffered(AHEAD);
        while let Some((sub, page)) = loads.try_next().await? {
            self.node(&sub, &page, sink).await?;
        }
        let (mut children, mut changed) = (Vec::new(), false);
        for child in page.children_from(0) {
            let now = self.now(&child.page)?;
            changed |= now != child.page;
            children.push(Child { page: now, ..child });
        }
        Ok(changed.then(|| Page::inner(page.level(), page.number(), &children)))
    }

    fn key(&self, page: &PagePtr) -> Result<(ObjectId, u32)> {
        Ok((self.table.reserve(&page.object)?, page.offset))
    }

    fn known(&self, page: &PagePtr) -> Result<Option<&Option<Box<PagePtr>>>> {
        Ok(self.done.get(&self.key(page)?))
    }

    /// What is in the place of a page that was looked at.
    fn now(&self, page: &PagePtr) -> Result<PagePtr> {
        let new = self.known(page)?.and_then(|done| done.as_deref());
        Ok(*new.unwrap_or(page))
    }
}

#[cfg(test)]
mod tests;

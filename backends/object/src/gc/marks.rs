//! Which objects are referred to.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use volmux_core::{Error, Result};

use super::blocks::Blocks;
use crate::keys::ObjectKey;
use crate::map::{self, ObjectId, ObjectInfo, ObjectTable, Page, PageStore};
use crate::shared::Shared;
use crate::tip::{PagePtr, TailItem, Tip};

/// Reads pages for a collection alone: neither the cache nor the pool's table, which never
/// shrinks, shall be full of what nobody reads.
#[derive(Debug)]
pub(super) struct Pages {
    pub shared: Arc<Shared>,
    pub table: ObjectTable,
}

#[async_trait]
impl PageStore for Pages {
    async fn load(&self, at: &PagePtr) -> Result<Arc<Page>> {
        let page = self.shared.read_page(at, &self.table).await;
        page.map(Arc::new)
    }

    fn cached(&self, _: &PagePtr) -> Option<Arc<Page>> {
        None
    }
}

/// Everything that the tips which were [followed](Self::follow) refer to.
#[derive(Debug)]
pub(super) struct Marks {
    pages: Arc<Pages>,
    tips: HashSet<Arc<Tip>>,
    /// Pages that were seen, and so everything below them: object and offset.
    seen: HashSet<(ObjectId, u32)>,
    /// By number of the object.
    used: Vec<Used>,
}

/// What of an object is referred to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    id: Option<ObjectId>,
    /// It holds pages that are.
    pub pages: bool,
    /// It is in a tail.
    pub tail: bool,
    /// Its blocks that are.
    pub blocks: Blocks,
}

impl Used {
    fn is_used(&self) -> bool {
        self.pages || self.tail || !self.blocks.is_empty()
    }
}

impl Marks {
    pub fn new(shared: Arc<Shared>) -> Self {
        let table = ObjectTable::new();
        Marks {
            pages: Arc::new(Pages { shared, table }),
            tips: HashSet::new(),
            seen: HashSet::new(),
            used: Vec::new(),
        }
    }

    /// Whether anything refers to an object.
    pub fn is_used(&self, key: &ObjectKey) -> bool {
        // The table is this collection's own, so it may get to know more objects.
        let id = self.pages.table.reserve(key).ok();
        let used = id.and_then(|id| self.used.get(id.number() as usize));
        used.is_some_and(Used::is_used)
    }

    /// Follows all references of a tip. Each page is read only once, whoever shares it.
    pub async fn follow(&mut self, tip: &Arc<Tip>) -> Result<()> {
        if !self.tips.insert(tip.clone()) {
            return Ok(());
        }
        let pages = self.pages.clone();
        for item in &tip.tail {
            if let TailItem::Object { key, .. } = item {
                let id = pages.table.reserve(key)?;
                at(&mut self.used, id).tail = true;
            }
        }
        let mut holding: Vec<ObjectId> = Vec::new();
        let mut failed: Option<Error> = None;
        let seen = &mut self.seen;
        let mut enter = |page: &PagePtr| match pages.table.reserve(&page.object) {
            Ok(id) => {
                if holding.last() != Some(&id) {
                    holding.push(id);
                }
                seen.insert((id, page.offset))
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        };
        let used = &mut self.used;
        let mut leaf = |page: &Page| {
            for run in page.runs(0, u64::MAX) {
                if let Some(place) = run.place {
                    at(used, place.object).blocks.add(place.index, run.blocks);
                }
            }
        };
        map::walk(&*pages, &tip.root, &mut enter, &mut leaf).await?;
        for id in holding {
            at(&mut self.used, id).pages = true;
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Where pages were read from, and what their objects are called.
    pub fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// Every object that holds blocks which are referred to.
    pub fn data(&self) -> impl Iterator<Item = (ObjectId, ObjectInfo, &Used)> {
        let with_blocks = self.used.iter().filter(|used| !used.blocks.is_empty());
        with_blocks.filter_map(|used| Some((used.id?, self.pages.table.info(used.id?)?, used)))
    }
}

fn at(used: &mut Vec<Used>, id: ObjectId) -> &mut Used {
    let number = id.number() as usize;
    if used.len() <= number {
        used.resize(number + 1, Used::default());
    }
    let used = &mut used[number];
    used.id = Some(id);
    used
}

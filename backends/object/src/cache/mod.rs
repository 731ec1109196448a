//! What was read from the store and verified, in memory, within a budget of bytes.
//!
//! Everything in it is immutable for ever, so nothing is ever invalidated; what no volume refers
//! to any more can be forgotten early. Why it is made as it is: docs/decisions/0010-object-cache.md.

mod disk;
mod flights;
mod slots;
mod tables;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache as QuickCache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use rustc_hash::FxBuildHasher;
use volmux_core::{Error, ErrorKind, Result};

pub(crate) use disk::DiskCache;
pub(crate) use flights::{Flights, Follow, Lead, Turn};
use slots::{SLOT, Slots};
pub(crate) use tables::Tables;

use crate::tip::PagePtr;

/// What an entry costs beside its content: the owner of its slot, the entry and its place in the
/// hash table, the keys that were evicted last. As measured, rounded up.
const ENTRY: u64 = 256;
/// Slots beyond those of the blocks in the cache: held by readers while the cache goes on.
const SPARE: usize = 1024;
/// The part of the budget that pages have.
const PAGES: u64 = 4;
/// Bytes a shard has at least: a shard is what one lock guards, and no page may outgrow it.
const SHARD: u64 = 4 << 20;

/// Which block: the object's number in this process, and the block's place in the object.
pub(crate) type BlockKey = (u32, u32);

type Quick<K, V> = QuickCache<K, V, Weight, FxBuildHasher, DefaultLifecycle<K, V>>;

/// A pool's cache; `P` is a page of the map.
pub(crate) struct Cache<P> {
    blocks: Quick<BlockKey, Bytes>,
    slots: Arc<Slots>,
    pages: Quick<PagePtr, Weighed<P>>,
    block_flights: Flights<BlockKey, Bytes>,
    page_flights: Flights<PagePtr, Arc<P>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What a cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    /// Blocks and pages that were there, or that somebody was loading already.
    pub(crate) hits: u64,
    /// Loads begun.
    pub(crate) misses: u64,
    /// Bytes occupied, all overhead included.
    pub(crate) bytes: u64,
}

/// A block, or how to come by it.
#[derive(Debug)]
pub(crate) enum Fetch {
    /// It was there.
    Found(Bytes),
    /// The caller loads it: one GET for all that want it. Put it into the cache, then land it.
    Lead(Lead<BlockKey, Bytes>),
    /// Somebody loads it. Wait only after landing everything that this caller leads.
    Follow(Follow<Bytes>),
}

struct Weighed<P> {
    page: Arc<P>,
    bytes: u32,
}

impl<P> Clone for Weighed<P> {
    fn clone(&self) -> Self {
        Weighed {
            page: Arc::clone(&self.page),
            bytes: self.bytes,
        }
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<BlockKey, Bytes> for Weight {
    fn weight(&self, _: &BlockKey, _: &Bytes) -> u64 {
        SLOT as u64 + ENTRY
    }
}

impl<P> Weighter<PagePtr, Weighed<P>> for Weight {
    fn weight(&self, _: &PagePtr, page: &Weighed<P>) -> u64 {
        // Pages come in all sizes, and the allocator's holes between them count too.
        u64::from(page.bytes) * 5 / 4 + ENTRY
    }
}

impl<P> Cache<P> {
    /// A cache that occupies at most `budget` bytes, and 4 MiB for blocks that readers hold.
    pub(crate) fn new(budget: u64) -> Result<Self> {
        let pages = budget / PAGES;
        let blocks = budget - pages;
        let count = usize::try_from(blocks / (SLOT as u64 + ENTRY)).map_err(too_much)?;
        Ok(Cache {
            blocks: quick(blocks, count)?,
            slots: Slots::new(count + SPARE),
            pages: quick(
                pages,
                usize::try_from(pages / SLOT as u64).map_err(too_much)?,
            )?,
            block_flights: Flights::new(),
            page_flights: Flights::new(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// A block, if it is there.
    pub(crate) fn block(&self, object: u32, index: u32) -> Option<Bytes> {
        let found = self.blocks.get(&(object, index))?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    /// A block, or whose turn it is to load it.
    pub(crate) fn fetch(&self, object: u32, index: u32) -> Fetch {
        if let Some(found) = self.block(object, index) {
            return Fetch::Found(found);
        }
        match self.block_flights.join((object, index)) {
            Turn::Follow(follow) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                Fetch::Follow(follow)
            }
            // Another load may have landed between the look and the join.
            Turn::Lead(lead) => match self.block(object, index) {
                Some(found) => {
                    lead.land(found.clone());
                    Fetch::Found(found)
                }
                None => {
                    self.misses.fetch_add(1, Ordering::Relaxed);
                    Fetch::Lead(lead)
                }
            },
        }
    }

    /// A block, if it is there or somebody loads it already; for who will not keep it.
    pub(crate) fn look(&self, object: u32, index: u32) -> Option<Fetch> {
        if let Some(found) = self.block(object, index) {
            return Some(Fetch::Found(found));
        }
        let follow = self.block_flights.follow((object, index));
        let counter = match follow {
            Some(_) => &self.hits,
            None => &self.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        follow.map(Fetch::Follow)
    }

    /// Keeps copies of the blocks of `object` from number `first` on; `data` is a whole number
    /// of blocks.
    pub(crate) fn put_blocks(&self, object: u32, first: u32, data: &[u8]) {
        for (index, block) in (first..).zip(data.chunks_exact(SLOT)) {
            if let Some(copy) = self.slots.copy(block) {
                self.blocks.insert((object, index), copy);
            }
        }
    }

    /// Keeps a copy of one block and gives that copy, which does not hold on to the memory that
    /// the block was a part of. Gives the block itself where there is no room.
    pub(crate) fn put_block(&self, object: u32, index: u32, block: &Bytes) -> Bytes {
        let Some(copy) = (block.len() == SLOT)
            .then(|| self.slots.copy(block))
            .flatten()
        else {
            return block.clone();
        };
        self.blocks.insert((object, index), copy.clone());
        copy
    }

    /// A page, if it is there.
    pub(crate) fn page(&self, at: &PagePtr) -> Option<Arc<P>> {
        let found = self.pages.get(at)?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(found.page)
    }

    /// Keeps a page that occupies `bytes` of memory, and counts it as a quarter more.
    pub(crate) fn put_page(&self, at: PagePtr, page: Arc<P>, bytes: u32) {
        self.pages.insert(at, Weighed { page, bytes });
    }

    /// A page, from the cache or by `load`, which gives it and the bytes of memory it occupies.
    /// Whoever wants it meanwhile waits for the one load. An error goes to all of them.
    pub(crate) async fn page_or_load(
        &self,
        at: PagePtr,
        load: impl Future<Output = Result<(Arc<P>, u32)>> + Send,
    ) -> Result<Arc<P>> {
        let lead = loop {
            if let Some(found) = self.page(&at) {
                return Ok(found);
            }
            match self.page_flights.join(at) {
                Turn::Lead(lead) => break lead,
                Turn::Follow(follow) => {
                    if let Some(outcome) = follow.wait().await {
                        self.hits.fetch_add(1, Ordering::Relaxed);
                        return outcome;
                    }
                }
            }
        };
        if let Some(found) = self.page(&at) {
            lead.land(Arc::clone(&found));
            return Ok(found);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        match load.await {
            Ok((page, bytes)) => {
                self.put_page(at, Arc::clone(&page), bytes);
                lead.land(Arc::clone(&page));
                Ok(page)
            }
            Err(error) => {
                lead.fail(&error);
                Err(error)
            }
        }
    }

    /// Forgets all blocks of the objects that are `gone`. Looks at every block once: ask for many
    /// objects at a time.
    #[cfg(test)]
    pub(crate) fn forget_objects(&self, gone: impl Fn(u32) -> bool) {
        self.blocks.retain(|(object, _), _| !gone(*object));
    }

    /// Forgets all pages that are `gone`.
    #[cfg(test)]
    pub(crate) fn forget_pages(&self, gone: impl Fn(&PagePtr) -> bool) {
        self.pages.retain(|at, _| !gone(at));
    }

    /// What it did, and what it occupies.
    pub(crate) fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            bytes: self.blocks.weight() + self.pages.weight(),
        }
    }
}

fn quick<K, V>(budget: u64, items: usize) -> Result<Quick<K, V>>
where
    K: Eq + std::hash::Hash + Clone,
    V: Clone,
    Weight: Weighter<K, V>,
{
    let options = OptionsBuilder::new()
        // A fixed number, since what is evicted depends on it and a simulation must not depend
        // on the machine that it runs on.
        .shards((budget / SHARD).clamp(1, 32) as usize)
        .estimated_items_capacity(items)
        .weight_capacity(budget)
        .build()
        .map_err(too_much)?;
    Ok(QuickCache::with_options(
        options,
        Weight,
        FxBuildHasher,
        DefaultLifecycle::default(),
    ))
}

fn too_much(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open_pool")
        .reason("this machine cannot have a cache of that size")
        .help("set a smaller cache_size")
        .with_source(error)
}

impl<P> fmt::Debug for Cache<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({:?})", self.stats())
    }
}

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

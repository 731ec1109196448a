//! What is simulated: pools of some kind, over the store.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use volmux_core::memory::MemoryPool;
use volmux_core::{Pool, Result};

use crate::view::HostStore;

/// Makes pools. Several are open at once, each on a host of its own.
pub trait World: Debug {
    /// Opens the pool for a host. `seed` differs each time.
    fn open(&self, store: HostStore, seed: u64) -> BoxFuture<'static, Result<Arc<dyn Pool>>>;

    /// Collects what nobody needs any more.
    fn collect(&self, pool: Arc<dyn Pool>) -> BoxFuture<'static, Result<()>>;
}

/// The reference backend, to try the simulation itself: it loses nothing, whatever happens.
#[derive(Debug)]
pub struct MemoryWorld {
    pool: Arc<dyn Pool>,
}

impl MemoryWorld {
    /// With an empty pool.
    pub fn new() -> Self {
        MemoryWorld {
            pool: MemoryPool::unlimited(),
        }
    }

    /// With a pool that is wrapped in something.
    pub fn of(pool: Arc<dyn Pool>) -> Self {
        MemoryWorld { pool }
    }
}

impl Default for MemoryWorld {
    fn default() -> Self {
        MemoryWorld::new()
    }
}

impl World for MemoryWorld {
    fn open(&self, _: HostStore, _: u64) -> BoxFuture<'static, Result<Arc<dyn Pool>>> {
        Box::pin(std::future::ready(Ok(self.pool.clone())))
    }

    fn collect(&self, _: Arc<dyn Pool>) -> BoxFuture<'static, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

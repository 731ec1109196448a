//! What is simulated: pools of some kind, over the store.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use volmux_core::memory::MemoryPool;
use volmux_core::{ByteSize, Pool, Result};
use volmux_object::{Compression, Encryption, Location, ObjectConfig, ObjectPool, PoolKey};

use crate::rng::Rng;
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

/// Pools of the object backend.
#[derive(Debug)]
pub struct ObjectWorld {
    config: ObjectConfig,
}

impl ObjectWorld {
    /// With a configuration that the seed decides.
    pub fn by_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork(3);
        let object = *rng.pick(&[
            16 << 10,
            16 << 10,
            32 << 10,
            64 << 10,
            64 << 10,
            256 << 10,
            1 << 20,
            8 << 20,
        ]);
        let mut config = ObjectConfig {
            object_size: Some(ByteSize::new(object)),
            cache: Some(ByteSize::new(*rng.pick(&[
                16 << 10,
                64 << 10,
                1 << 20,
                32 << 20,
            ]))),
            ..ObjectConfig::new(Location::Memory)
        };
        if rng.chance(300) {
            config.encryption = Some(Encryption::Aes256Gcm);
            config.key = Some(PoolKey::new([7; 32]));
        }
        let compressions = [Compression::None, Compression::Lz4, Compression::Zstd];
        config.compression = Some(*rng.pick(&compressions));
        ObjectWorld { config }
    }
}

impl World for ObjectWorld {
    fn open(&self, store: HostStore, seed: u64) -> BoxFuture<'static, Result<Arc<dyn Pool>>> {
        let config = self.config.clone();
        Box::pin(async move {
            let pool = ObjectPool::over(Arc::new(store), config, seed).await?;
            Ok(pool as Arc<dyn Pool>)
        })
    }

    fn collect(&self, pool: Arc<dyn Pool>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { pool.collect_garbage().await.map(drop) })
    }
}

//! Pools in object stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use object_store::memory::InMemory;
use tempfile::TempDir;
use volmux::object::{Compression, Encryption, Flush, Location, ObjectConfig, ObjectPool, PoolKey};
use volmux::{ByteSize, Pool};

use crate::fixture::{Fixture, PoolSettings, Storage};
use crate::servers::{Credentials, Server};

/// What a pool of the tests is said to hold.
const CAPACITY: ByteSize = ByteSize::mib(512);

/// Where the stores are.
#[derive(Debug)]
enum Place {
    Memory,
    Directory { root: TempDir, next: AtomicU64 },
    Server(&'static Server, Credentials),
}

/// Object pools, each in a store of its own.
#[derive(Debug)]
pub struct ObjectStorage {
    place: Place,
    journals: Option<TempDir>,
    encrypted: bool,
    compression: Compression,
}

impl ObjectStorage {
    /// Stores in memory.
    pub fn in_memory() -> Self {
        ObjectStorage::new(Place::Memory)
    }

    /// Prefixes of a bucket or container on a server.
    pub fn on(server: &'static Server, credentials: Credentials) -> Self {
        ObjectStorage::new(Place::Server(server, credentials))
    }

    /// Stores in directories.
    pub fn in_directory() -> Self {
        let next = AtomicU64::new(0);
        let root = directory();
        ObjectStorage::new(Place::Directory { root, next })
    }

    fn new(place: Place) -> Self {
        ObjectStorage {
            place,
            journals: None,
            encrypted: false,
            compression: Compression::None,
        }
    }

    /// Flushes end in a journal.
    #[must_use]
    pub fn journaled(mut self) -> Self {
        self.journals = Some(directory());
        self
    }

    /// Nothing can be read without the key.
    #[must_use]
    pub fn encrypted(mut self) -> Self {
        self.encrypted = true;
        self
    }

    /// Data is compressed.
    #[must_use]
    pub fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory for the test")
}

#[async_trait]
impl Storage for ObjectStorage {
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture> {
        let mut store = None;
        let mut config = match &self.place {
            Place::Memory => {
                store = Some(Arc::new(InMemory::new()));
                ObjectConfig::new(Location::Memory)
            }
            Place::Directory { root, next } => {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let path = root.path().join(format!("pool-{number}"));
                std::fs::create_dir(&path).expect("a directory for one store");
                ObjectConfig::new(Location::Directory(path))
            }
            Place::Server(server, credentials) => {
                let url = server.place(*credentials).parse().expect("a URL");
                ObjectConfig::from_url(&url).expect("a configuration")
            }
        };
        config.capacity = Some(CAPACITY);
        config.overcommit_limit = settings.overcommit_limit;
        config.warn_percent = settings.warn_percent;
        config.refuse_percent = settings.refuse_percent;
        if let Some(journals) = &self.journals {
            config.flush = Flush::Journal;
            config.journal = Some(journals.path().to_owned());
            config.journal_size = Some(ByteSize::mib(32));
        }
        config.compression = Some(self.compression);
        if self.encrypted {
            config.encryption = Some(Encryption::Aes256Gcm);
            config.key = Some(PoolKey::new([7; 32]));
        }
        let fixture = ObjectFixture {
            pool: open(store.clone(), &config).await,
            store,
            config,
        };
        Box::new(fixture)
    }
}

struct ObjectFixture {
    pool: Arc<ObjectPool>,
    store: Option<Arc<InMemory>>,
    config: ObjectConfig,
}

async fn open(store: Option<Arc<InMemory>>, config: &ObjectConfig) -> Arc<ObjectPool> {
    static SEED: AtomicU64 = AtomicU64::new(0);
    let opened = match store {
        None => ObjectPool::open(config.clone()).await,
        Some(store) => {
            let seed = SEED.fetch_add(1, Ordering::Relaxed);
            ObjectPool::over(store, config.clone(), seed).await
        }
    };
    opened.expect("an object pool opens")
}

#[async_trait]
impl Fixture for ObjectFixture {
    fn pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    async fn reopen(&self) -> Option<Arc<dyn Pool>> {
        if self.config.flush == Flush::Journal {
            return None;
        }
        Some(open(self.store.clone(), &self.config).await)
    }

    async fn place_foreign(&self, _data: &[u8]) -> String {
        "foreign".into()
    }

    async fn settle(&self) {
        self.pool
            .collect_garbage()
            .await
            .expect("the garbage is collected");
    }
}

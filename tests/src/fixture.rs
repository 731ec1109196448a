//! Where a backend's pools come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use volmux::Pool;
use volmux::nfs::{DirConfig, DirPool};

use crate::chains::Chains;
use crate::scratch::LoopFs;

/// Settings that every backend's configuration has.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolSettings {
    /// See [`ThinPolicy::overcommit_limit`](volmux::ThinPolicy::overcommit_limit).
    pub overcommit_limit: Option<f64>,
    /// See [`ThinPolicy::warn_percent`](volmux::ThinPolicy::warn_percent).
    pub warn_percent: Option<f64>,
    /// See [`ThinPolicy::refuse_percent`](volmux::ThinPolicy::refuse_percent).
    pub refuse_percent: Option<f64>,
}

/// A place that one test has to itself, and that can hold any number of pools, one after the
/// other. Dropping it takes everything away.
#[async_trait]
pub trait Storage: Send + Sync {
    /// A new and empty pool.
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture>;
}

/// One pool under test.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The pool.
    fn pool(&self) -> Arc<dyn Pool>;

    /// A second, independent pool on the same storage, as another process would have; `None`
    /// where there can be none.
    async fn reopen(&self) -> Option<Arc<dyn Pool>>;

    /// Puts a raw image of `data` into the pool's place, as somebody other than volmux would, and
    /// returns how `adopt_volume` is told of it. Any text where nothing can be adopted.
    async fn place_foreign(&self, data: &[u8]) -> String;

    /// Makes the store do now what it does in the background, such as giving freed space back.
    async fn settle(&self);

    /// Has the tools that others use look at what the store holds, once nobody has it open.
    ///
    /// # Panics
    /// If they find damage.
    fn check(&self) {}
}

/// Pools of the reference backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryStorage;

#[derive(Debug)]
struct MemoryFixture(Arc<dyn Pool>);

#[async_trait]
impl Storage for MemoryStorage {
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture> {
        let mut options = Vec::new();
        for (key, value) in [
            ("overcommit_limit", settings.overcommit_limit),
            ("warn_percent", settings.warn_percent),
            ("refuse_percent", settings.refuse_percent),
        ] {
            options.extend(value.map(|value| format!("{key}={value}")));
        }
        let url = format!("memory:?{}", options.join("&"));
        let pool = volmux::registry().open(&url).await;
        Box::new(MemoryFixture(pool.expect("a memory pool opens")))
    }
}

#[async_trait]
impl Fixture for MemoryFixture {
    fn pool(&self) -> Arc<dyn Pool> {
        self.0.clone()
    }

    async fn reopen(&self) -> Option<Arc<dyn Pool>> {
        None
    }

    async fn place_foreign(&self, _data: &[u8]) -> String {
        "foreign".into()
    }

    async fn settle(&self) {}
}

/// Directory pools, each in its own directory of a file system.
#[derive(Debug)]
pub struct DirStorage {
    fs: LoopFs,
    next: AtomicU64,
}

impl DirStorage {
    /// Pools on `fs`.
    pub fn new(fs: LoopFs) -> Self {
        DirStorage {
            fs,
            next: AtomicU64::new(0),
        }
    }

    /// A new empty directory on the file system.
    pub fn new_dir(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.fs.path().join(format!("pool-{number}"));
        std::fs::create_dir(&path).expect("a directory on the scratch file system");
        path
    }

    /// The file system.
    pub fn fs(&self) -> &LoopFs {
        &self.fs
    }
}

struct DirFixture {
    config: DirConfig,
    pool: Arc<dyn Pool>,
    next: AtomicU64,
}

#[async_trait]
impl Storage for DirStorage {
    async fn make_pool(&self, settings: PoolSettings) -> Box<dyn Fixture> {
        let mut config = DirConfig::new(self.new_dir());
        // Foreign files may be there before the first volume.
        config.init = true;
        config.overcommit_limit = settings.overcommit_limit;
        config.warn_percent = settings.warn_percent;
        config.refuse_percent = settings.refuse_percent;
        let pool = DirPool::open(config.clone()).await;
        Box::new(DirFixture {
            pool: pool.expect("a directory pool opens"),
            config,
            next: AtomicU64::new(0),
        })
    }
}

#[async_trait]
impl Fixture for DirFixture {
    fn pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    async fn reopen(&self) -> Option<Arc<dyn Pool>> {
        let pool = DirPool::open(self.config.clone()).await;
        Some(pool.expect("the directory pool opens a second time"))
    }

    async fn place_foreign(&self, data: &[u8]) -> String {
        let name = format!("foreign-{}.img", self.next.fetch_add(1, Ordering::Relaxed));
        let path: &Path = &self.config.path;
        std::fs::write(path.join(&name), data).expect("a foreign file");
        name
    }

    async fn settle(&self) {
        let root = std::fs::File::open(&self.config.path).expect("the pool's root");
        rustix::fs::syncfs(root).expect("syncfs");
    }

    fn check(&self) {
        Chains::closed(&self.config.path).check();
    }
}

//! Broken pools as the suite takes them.

use std::sync::Arc;

use async_trait::async_trait;
use volmux::Pool;
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{DirStorage, Expect, Fixture, MemoryStorage, PoolSettings, Storage};

use crate::flaw::Flaw;
use crate::pool::{Broken, RESERVED};
use crate::state::State;

/// The pool that is broken.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    Memory,
    Directory,
}

impl Base {
    pub fn expect(self) -> Expect {
        let expect = match self {
            Base::Memory => Expect::MEMORY,
            Base::Directory => Expect::DIR_CHAIN,
        };
        Expect {
            reserved_names: &[RESERVED],
            ..expect
        }
    }
}

pub struct BrokenStorage {
    inner: Box<dyn Storage>,
    flaw: Flaw,
}

impl BrokenStorage {
    pub fn new(base: Base, flaw: Flaw) -> Self {
        let inner: Box<dyn Storage> = match base {
            Base::Memory => Box::new(MemoryStorage),
            Base::Directory => Box::new(DirStorage::new(LoopFs::ext4(512 << 20))),
        };
        BrokenStorage { inner, flaw }
    }
}

struct BrokenFixture {
    inner: Box<dyn Fixture>,
    pool: Arc<dyn Pool>,
    state: Arc<State>,
}

#[async_trait]
impl Storage for BrokenStorage {
    async fn make_pool(&self, mut settings: PoolSettings) -> Box<dyn Fixture> {
        match self.flaw {
            Flaw::IgnoresPolicy => settings = PoolSettings::default(),
            Flaw::OverdoesPolicy => settings.overcommit_limit = Some(1.0),
            _ => {}
        }
        let inner = self.inner.make_pool(settings).await;
        let state = State::new(self.flaw);
        Box::new(BrokenFixture {
            pool: Arc::new(Broken::new(inner.pool(), state.clone(), false)),
            inner,
            state,
        })
    }
}

#[async_trait]
impl Fixture for BrokenFixture {
    fn pool(&self) -> Arc<dyn Pool> {
        self.pool.clone()
    }

    async fn reopen(&self) -> Option<Arc<dyn Pool>> {
        let inner = self.inner.reopen().await?;
        Some(Arc::new(Broken::new(inner, self.state.clone(), true)))
    }

    async fn place_foreign(&self, data: &[u8]) -> String {
        self.inner.place_foreign(data).await
    }

    async fn settle(&self) {
        self.inner.settle().await;
    }

    fn check(&self) {
        self.inner.check();
    }
}

//! The pool.
use std::sync::Arc;

use async_trait::async_trait;
use volmux_core::{Backend, Pool, PoolUrl, Result};

use crate::DirConfig;

/// A directory pool.
#[derive(Debug)]
pub struct DirPool;

impl DirPool {
    /// Opens it.
    pub async fn open(_config: DirConfig) -> Result<Arc<dyn Pool>> {
        todo!()
    }
}

/// Backend of `dir:` URLs.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirBackend;

#[async_trait]
impl Backend for DirBackend {
    fn schemes(&self) -> &'static [&'static str] {
        &["dir"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        DirPool::open(DirConfig::from_url(url)?).await
    }
}

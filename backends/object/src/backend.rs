//! The backend: from a URL to a pool.

use std::sync::Arc;

use async_trait::async_trait;
use volmux_core::{Backend, Pool, PoolUrl, Result};

use crate::config::ObjectConfig;
use crate::pool::ObjectPool;

/// Backend of `s3:`, `az:`, `gs:`, `file+object:` and `memory+object:` URLs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ObjectBackend;

#[async_trait]
impl Backend for ObjectBackend {
    fn schemes(&self) -> &'static [&'static str] {
        &["s3", "az", "gs", "file+object", "memory+object"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        Ok(ObjectPool::open(ObjectConfig::from_url(url)?).await?)
    }
}

//! The reference backend: volumes in memory, gone with the pool.
//!
//! It defines what every other backend does, and it is for tests. Each open makes a new, empty
//! pool. Snapshot, clone and revert take constant time, whatever the volume's size and data; a
//! volume costs memory only for what is written to it. Space is counted in blocks of 4096 bytes.
//!
//! A thick volume has its whole size set aside, and so has a copy of it; its snapshots and clones
//! are thin. A block that it shares with a snapshot or a clone
//! is counted once more when it is overwritten, and that can fail for lack of space, as it can on
//! every backend.

mod copy;
mod device;
mod pool;
mod space;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize, de};

pub use pool::MemoryPool;

use crate::{Backend, ByteSize, Pool, PoolUrl, Result, ThinPolicy};

/// Configuration of a memory pool. As a URL: `memory:?total=10GiB&refuse_percent=90`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// What the pool can hold; 1 TiB if not given. As bytes or with a unit. No memory is taken for
    /// it beforehand.
    #[serde(default = "default_total", deserialize_with = "size_or_text")]
    pub total: ByteSize,
    /// See [`ThinPolicy::overcommit_limit`].
    pub overcommit_limit: Option<f64>,
    /// See [`ThinPolicy::warn_percent`].
    pub warn_percent: Option<f64>,
    /// See [`ThinPolicy::refuse_percent`].
    pub refuse_percent: Option<f64>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig {
            total: default_total(),
            overcommit_limit: None,
            warn_percent: None,
            refuse_percent: None,
        }
    }
}

impl MemoryConfig {
    /// A pool of `total` bytes with every other setting at its default.
    pub fn with_total(total: ByteSize) -> Self {
        MemoryConfig {
            total,
            ..MemoryConfig::default()
        }
    }

    /// From a `memory:` URL.
    ///
    /// # Errors
    /// `InvalidConfig` for a host or a path, or an unknown option.
    pub fn from_url(url: &PoolUrl) -> Result<Self> {
        if url.host().is_some() || url.port().is_some() || !url.path().is_empty() {
            return Err(url
                .wrong("a memory pool has no host and no path")
                .help("write memory: or memory:?total=10GiB"));
        }
        url.options()
    }

    /// The thin policy.
    ///
    /// # Errors
    /// `InvalidConfig` for marks out of range.
    pub fn policy(&self) -> Result<ThinPolicy> {
        ThinPolicy::from_settings(
            self.overcommit_limit,
            self.warn_percent,
            self.refuse_percent,
        )
    }
}

fn default_total() -> ByteSize {
    ByteSize::gib(1024)
}

fn size_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    struct Size;

    impl de::Visitor<'_> for Size {
        type Value = ByteSize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as 1048576 or 10GiB")
        }

        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
            Ok(ByteSize::new(bytes))
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
            let wrong = || E::invalid_value(de::Unexpected::Signed(bytes), &self);
            u64::try_from(bytes).map(ByteSize::new).map_err(|_| wrong())
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Size)
}

/// Backend of `memory:` URLs. Each open makes a new, empty pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryBackend;

#[async_trait]
impl Backend for MemoryBackend {
    fn schemes(&self) -> &'static [&'static str] {
        &["memory"]
    }

    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        let pool = MemoryPool::new(MemoryConfig::from_url(url)?)?;
        Ok(pool)
    }
}

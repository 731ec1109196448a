//! Configuration of a directory pool.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use volmux_core::{PoolUrl, Result, ThinPolicy};

/// Configuration of a directory pool. As a URL: `dir:///path?init=true&refuse_percent=90`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirConfig {
    /// The pool's root: an existing directory, as an absolute path.
    #[serde(default)]
    pub path: PathBuf,
    /// Let the first volume turn a directory that is not empty, and not yet a pool, into one. An
    /// empty directory needs no such leave.
    #[serde(default)]
    pub init: bool,
    /// Refuse everything that would change the pool.
    #[serde(default)]
    pub read_only: bool,
    /// See [`ThinPolicy::overcommit_limit`].
    pub overcommit_limit: Option<f64>,
    /// See [`ThinPolicy::warn_percent`].
    pub warn_percent: Option<f64>,
    /// See [`ThinPolicy::refuse_percent`].
    pub refuse_percent: Option<f64>,
}

impl DirConfig {
    /// A pool at `path` with every setting at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DirConfig {
            path: path.into(),
            init: false,
            read_only: false,
            overcommit_limit: None,
            warn_percent: None,
            refuse_percent: None,
        }
    }

    /// From a `dir:` URL.
    ///
    /// # Errors
    /// `InvalidConfig` for a host, a relative path, a path given as an option, or an unknown option.
    pub fn from_url(url: &PoolUrl) -> Result<Self> {
        let mut config: DirConfig = url.options()?;
        if !config.path.as_os_str().is_empty() {
            return Err(url.wrong("the path belongs before the ?, not into an option"));
        }
        if url.host().is_some() || url.port().is_some() || !url.path().starts_with('/') {
            return Err(url
                .wrong("a directory pool needs an absolute path and no host")
                .help("write dir:///srv/volumes, with three slashes"));
        }
        config.path = PathBuf::from(url.path());
        Ok(config)
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

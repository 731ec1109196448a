//! From a URL or a configuration to an open pool.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use crate::{Error, ErrorKind, Pool, Result};

const OP: &str = "open_pool";

/// A parsed pool URL: `scheme://host:port/path?key=value`. What its parts mean is the backend's.
///
/// Never holds a secret: a user name or a password in a URL is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUrl {
    scheme: String,
    host: Option<String>,
    port: Option<u16>,
    path: String,
    options: BTreeMap<String, String>,
}

impl PoolUrl {
    /// Before the first colon, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Host or first component, where there is one.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Port, where there is one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Path, percent-decoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Adds an option, as a configuration file does.
    ///
    /// # Errors
    /// `InvalidConfig` if the URL has it already.
    pub fn set_option(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<()> {
        let key = key.into();
        if self.options.contains_key(&key) {
            return Err(self.wrong(format!("option {key:?} is given twice")));
        }
        self.options.insert(key, value.into());
        Ok(())
    }

    /// The options as a backend's typed configuration, which must deny unknown fields.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T> {
        serde_urlencoded::to_string(&self.options)
            .map_err(|error| {
                self.wrong("the options can't be encoded")
                    .with_source(error)
            })
            .and_then(|query| serde_urlencoded::from_str(&query).map_err(|error| self.wrong(error)))
    }

    /// `InvalidConfig` about this URL, for backends.
    pub fn wrong(&self, reason: impl fmt::Display) -> Error {
        Error::new(ErrorKind::InvalidConfig, OP)
            .with("url", self)
            .reason(reason)
    }
}

impl fmt::Display for PoolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if self.host.is_some() || self.path.starts_with('/') {
            write!(f, "//{}", self.host.as_deref().unwrap_or(""))?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

impl FromStr for PoolUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text itself is not shown before it is known to hold no password.
        let wrong = |reason: String| {
            Error::new(ErrorKind::InvalidConfig, OP)
                .reason(reason)
                .help("a pool URL looks like dir:///srv/volumes?option=value")
        };
        let url = url::Url::parse(text).map_err(|e| wrong(format!("not a URL: {e}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a URL must not hold a user name or password".into())
                .help("give credentials in a file or in the environment"));
        }
        if url.fragment().is_some() {
            return Err(
                wrong("a pool URL has no part after #".into()).help("write %23 for a # in a path")
            );
        }
        let path = percent_decode_str(url.path())
            .decode_utf8()
            .map_err(|_| wrong("the path is not UTF-8".into()))?
            .into_owned();
        if path.contains('\0') {
            return Err(wrong("the path holds a NUL byte".into()));
        }
        let mut parsed = PoolUrl {
            scheme: url.scheme().to_owned(),
            host: url.host_str().filter(|h| !h.is_empty()).map(str::to_owned),
            port: url.port(),
            path,
            options: BTreeMap::new(),
        };
        for (key, value) in url.query_pairs() {
            parsed.set_option(key, value)?;
        }
        Ok(parsed)
    }
}

/// The code for one kind of storage, as the [`Registry`] knows it.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The URL schemes that it serves.
    fn schemes(&self) -> &'static [&'static str];

    /// Opens a pool. Changes nothing in it.
    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>>;
}

/// The backends of a program. There is no global one: who makes it decides what is in it.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    backends: Vec<Arc<dyn Backend>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Registry::default()
    }

    /// Adds a backend.
    ///
    /// # Panics
    /// If one of its schemes is taken: that is a mistake in the program.
    #[must_use]
    pub fn with(mut self, backend: impl Backend) -> Self {
        for scheme in backend.schemes() {
            assert!(
                !self.schemes().any(|s| s == *scheme),
                "scheme {scheme} is registered twice"
            );
        }
        self.backends.push(Arc::new(backend));
        self
    }

    /// Every known scheme.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.backends
            .iter()
            .flat_map(|b| b.schemes().iter().copied())
    }

    /// Opens the pool at `url`.
    ///
    /// # Errors
    /// `InvalidConfig` for a wrong URL, an unknown scheme (with a list of those known) or option;
    /// otherwise those of the backend.
    pub async fn open(&self, url: &str) -> Result<Arc<dyn Pool>> {
        self.open_url(&url.parse()?).await
    }

    /// Opens the pool at a parsed URL.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_url(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        let backend = self
            .backends
            .iter()
            .find(|b| b.schemes().contains(&url.scheme()));
        match backend {
            Some(backend) => backend.open(url).await,
            None => {
                let mut known: Vec<&str> = self.schemes().collect();
                known.sort_unstable();
                Err(url
                    .wrong(format!("scheme {:?} is not known", url.scheme()))
                    .help(format!("known schemes: {}", known.join(", "))))
            }
        }
    }
}

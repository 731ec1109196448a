//! Configuration of an object pool.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use volmux_core::{ByteSize, Error, ErrorKind, PoolUrl, Result, ThinPolicy};

use crate::journal::JournalConfig;
use crate::secret::PoolKey;
use crate::setting;

/// Where the objects of a pool are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Location {
    /// `s3://bucket/prefix`: Amazon S3 or what speaks its protocol.
    S3 {
        /// The bucket.
        bucket: String,
        /// Names of all objects begin with this; may be empty.
        prefix: String,
    },
    /// `az://container/prefix`: Azure Blob Storage.
    Azure {
        /// The container.
        container: String,
        /// Names of all objects begin with this; may be empty.
        prefix: String,
    },
    /// `gs://bucket/prefix`: Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
        /// Names of all objects begin with this; may be empty.
        prefix: String,
    },
    /// `file+object:///dir`: an existing directory on any file system.
    Directory(PathBuf),
    /// `memory+object:`: a new, empty store in this process's memory.
    #[default]
    Memory,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket, prefix) = match self {
            Location::S3 { bucket, prefix } => ("s3", bucket, prefix),
            Location::Azure { container, prefix } => ("az", container, prefix),
            Location::Gcs { bucket, prefix } => ("gs", bucket, prefix),
            Location::Directory(path) => return write!(f, "file+object://{}", path.display()),
            Location::Memory => return f.write_str("memory+object:"),
        };
        let slash = if prefix.is_empty() { "" } else { "/" };
        write!(f, "{scheme}://{bucket}{slash}{prefix}")
    }
}

/// When a flush has done its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// When everything before it is in the store.
    #[default]
    Store,
    /// When everything before it is in the local journal. Should the host be lost, the volume is
    /// what it was at an earlier moment.
    Journal,
}

/// How data is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4: fast.
    Lz4,
    /// Zstandard: smaller.
    Zstd,
}

/// How data and metadata are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
pub enum Encryption {
    /// AES-256 in Galois/counter mode.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// Configuration of an object pool. As a URL: `s3://bucket/prefix?region=eu-west-1&cache=1GiB`.
/// Sizes are written as volmux writes them everywhere (`8MiB`), times as `30s` or `2min`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectConfig {
    /// Where the objects are; not an option, but the URL itself.
    #[serde(skip)]
    pub location: Location,
    /// Address of the store, where it is not the provider's own.
    pub endpoint: Option<String>,
    /// Allow an endpoint without TLS that is not on this machine.
    #[serde(default)]
    pub allow_http: bool,
    /// S3: the bucket's region.
    pub region: Option<String>,
    /// Azure: the storage account.
    pub account: Option<String>,
    /// S3: whether the bucket is part of the path or of the host name. Default: of the path where
    /// an endpoint is given.
    pub path_style: Option<bool>,
    /// S3: sign what is put, not only the request. Always done where it travels without TLS; with
    /// TLS it protects nothing, costs a quarter of a processor for each 100 MB/s, and some buckets'
    /// policies demand it.
    #[serde(default)]
    pub sign_payload: bool,
    /// A file of lines such as `AWS_SECRET_ACCESS_KEY=…`, which others may not read. Without it,
    /// credentials come from the environment (`AWS_*`, `AZURE_*`, `GOOGLE_*`).
    pub credentials_file: Option<PathBuf>,
    /// When a flush has done its work.
    #[serde(default)]
    pub flush: Flush,
    /// Directory of the journal, for `flush=journal`: on a disk of this machine, one a pool.
    pub journal: Option<PathBuf>,
    /// Most that the journal occupies. Default: 1 GiB; at least 16 MiB.
    #[serde(default, deserialize_with = "setting::size")]
    pub journal_size: Option<ByteSize>,
    /// Memory for caches and for writes under way. Default: 256 MiB; at least 32 MiB.
    #[serde(default, deserialize_with = "setting::size")]
    pub cache: Option<ByteSize>,
    /// Directory of a cache on a disk of this machine.
    pub disk_cache: Option<PathBuf>,
    /// Most that the disk cache occupies. Default: 10 GiB; at least 64 MiB.
    #[serde(default, deserialize_with = "setting::size")]
    pub disk_cache_size: Option<ByteSize>,
    /// Size of data objects, 4 to 16 MiB. Default: 8 MiB.
    #[serde(default, deserialize_with = "setting::size")]
    pub object_size: Option<ByteSize>,
    /// How data is compressed: chosen when the pool is made. Default: not at all.
    pub compression: Option<Compression>,
    /// How the pool is encrypted: chosen when it is made. Default: not at all. Needs a key.
    pub encryption: Option<Encryption>,
    /// File that holds the key, as 64 hexadecimal digits or base64; others may not read it.
    pub key_file: Option<PathBuf>,
    /// Name of the environment variable that holds the key.
    pub key_env: Option<String>,
    /// The key itself; not an option of a URL.
    #[serde(skip)]
    pub key: Option<PoolKey>,
    /// Let a prefix that holds other objects become a pool.
    #[serde(default)]
    pub init: bool,
    /// Refuse everything that would change the pool.
    #[serde(default)]
    pub read_only: bool,
    /// How long a failing store is tried before a write or commit fails; half of it for reads.
    /// Default: 2 minutes.
    #[serde(default, deserialize_with = "setting::time")]
    pub timeout: Option<Duration>,
    /// How long a single request may take. Default: 30 seconds.
    #[serde(default, deserialize_with = "setting::time")]
    pub request_timeout: Option<Duration>,
    /// Time between two collections of garbage in the background; 0 for none, the default.
    #[serde(default, deserialize_with = "setting::time")]
    pub gc: Option<Duration>,
    /// What the pool is to hold at most: the total that usage shows and the policy works with.
    /// Default: what the file system holds; without bounds in a cloud.
    #[serde(default, deserialize_with = "setting::size")]
    pub capacity: Option<ByteSize>,
    /// See [`ThinPolicy::overcommit_limit`].
    pub overcommit_limit: Option<f64>,
    /// See [`ThinPolicy::warn_percent`].
    pub warn_percent: Option<f64>,
    /// See [`ThinPolicy::refuse_percent`].
    pub refuse_percent: Option<f64>,
}

impl ObjectConfig {
    /// A pool at `location` with every setting at its default.
    pub fn new(location: Location) -> Self {
        ObjectConfig {
            location,
            ..ObjectConfig::default()
        }
    }

    /// From a URL of one of this backend's schemes.
    ///
    /// # Errors
    /// `InvalidConfig` that names what is wrong.
    pub fn from_url(url: &PoolUrl) -> Result<Self> {
        let mut config: ObjectConfig = url.options()?;
        config.location = location(url)?;
        config.check()?;
        Ok(config)
    }

    /// Checks what a type cannot: ranges, and settings that need or exclude each other.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option.
    pub fn check(&self) -> Result<()> {
        self.policy()?;
        self.check_sizes()?;
        self.check_journal()?;
        self.check_key()?;
        self.check_place()?;
        let longest = Duration::from_secs(24 * 3600);
        for (option, time) in [
            ("timeout", self.timeout),
            ("request_timeout", self.request_timeout),
        ] {
            if time.is_some_and(|time| time < Duration::from_millis(100) || time > longest) {
                return Err(self.wrong(option, "it must be from 100 ms to 24 hours"));
            }
        }
        Ok(())
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

    /// Memory for caches and for writes under way, in bytes.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.unwrap_or(ByteSize::mib(256)).bytes()
    }

    /// Size of data objects, in bytes.
    pub fn object_bytes(&self) -> u64 {
        self.object_size.unwrap_or(ByteSize::mib(8)).bytes()
    }

    /// Most that the journal occupies, in bytes.
    pub fn journal_bytes(&self) -> u64 {
        self.journal_size.unwrap_or(ByteSize::gib(1)).bytes()
    }

    /// Most that the disk cache occupies, in bytes.
    pub fn disk_cache_bytes(&self) -> u64 {
        self.disk_cache_size.unwrap_or(ByteSize::gib(10)).bytes()
    }

    /// Time between two collections of garbage in the background.
    pub fn gc_interval(&self) -> Option<Duration> {
        self.gc.filter(|time| !time.is_zero())
    }

    /// `InvalidConfig` about one option.
    /// The journals, where flushes end in one.
    pub(crate) fn journal_config(&self) -> Result<Option<JournalConfig>> {
        match &self.journal {
            Some(dir) if self.flush == Flush::Journal => {
                JournalConfig::new(dir.clone(), self.journal_bytes()).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn wrong(&self, option: &'static str, reason: impl fmt::Display) -> Error {
        Error::new(ErrorKind::InvalidConfig, "open_pool")
            .with("pool", &self.location)
            .with("option", option)
            .reason(reason)
    }

    fn check_sizes(&self) -> Result<()> {
        let mib = |n: u64| ByteSize::mib(n).bytes();
        let most = u64::MAX / 2;
        for (option, size, smallest, largest) in [
            ("cache", self.cache, mib(32), most),
            ("journal_size", self.journal_size, mib(16), most),
            ("disk_cache_size", self.disk_cache_size, mib(64), most),
            ("object_size", self.object_size, mib(4), mib(16)),
            ("capacity", self.capacity, mib(1), most),
        ] {
            let Some(size) = size else { continue };
            if !(smallest..=largest).contains(&size.bytes()) {
                let (least, most) = (ByteSize::new(smallest), ByteSize::new(largest));
                return Err(self.wrong(option, format!("it must be from {least} to {most}")));
            }
        }
        Ok(())
    }

    fn check_journal(&self) -> Result<()> {
        match (self.flush, &self.journal) {
            (Flush::Journal, None) => {
                return Err(self
                    .wrong("flush", "flush=journal needs a directory for the journal")
                    .help("add journal=/var/lib/volmux/journal, on a disk of this machine"));
            }
            (Flush::Store, Some(_)) => {
                let reason = "there is a journal with flush=journal only";
                return Err(self.wrong("journal", reason));
            }
            (Flush::Store, None) if self.journal_size.is_some() => {
                let reason = "there is a journal with flush=journal only";
                return Err(self.wrong("journal_size", reason));
            }
            _ => {}
        }
        if self.disk_cache_size.is_some() && self.disk_cache.is_none() {
            return Err(self.wrong("disk_cache_size", "there is no disk_cache=/dir"));
        }
        for (option, path) in [
            ("journal", &self.journal),
            ("disk_cache", &self.disk_cache),
            ("key_file", &self.key_file),
            ("credentials_file", &self.credentials_file),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(self.wrong(option, "it must be an absolute path"));
            }
        }
        Ok(())
    }

    fn check_key(&self) -> Result<()> {
        let keys = [
            self.key_file.is_some(),
            self.key_env.is_some(),
            self.key.is_some(),
        ];
        let keys = keys.into_iter().filter(|given| *given).count();
        if keys > 1 {
            return Err(self.wrong("key_file", "give one of key_file and key_env, not both"));
        }
        if self.encryption.is_some() && keys == 0 {
            return Err(self
                .wrong("encryption", "there is no key")
                .help("add key_file=/path or key_env=NAME"));
        }
        Ok(())
    }

    fn check_place(&self) -> Result<()> {
        let (s3, azure, cloud) = match &self.location {
            Location::S3 { .. } => (true, false, true),
            Location::Azure { .. } => (false, true, true),
            Location::Gcs { .. } => (false, false, true),
            Location::Directory(_) | Location::Memory => (false, false, false),
        };
        for (option, given, fits) in [
            ("endpoint", self.endpoint.is_some(), cloud),
            ("allow_http", self.allow_http, cloud),
            ("credentials_file", self.credentials_file.is_some(), cloud),
            ("region", self.region.is_some(), s3),
            ("path_style", self.path_style.is_some(), s3),
            ("account", self.account.is_some(), azure),
        ] {
            if given && !fits {
                return Err(self.wrong(option, "this kind of store has no such setting"));
            }
        }
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        setting::endpoint(endpoint, self.allow_http)
            .map_err(|(reason, help)| self.wrong("endpoint", reason).help(help))
    }
}

/// The place that a URL names.
fn location(url: &PoolUrl) -> Result<Location> {
    let path = url.path();
    match url.scheme() {
        "memory+object" => {
            if url.host().is_some() || !path.trim_matches('/').is_empty() {
                return Err(url
                    .wrong("a pool in memory has no place")
                    .help("memory+object:"));
            }
            return Ok(Location::Memory);
        }
        "file+object" => {
            if url.host().is_some() || url.port().is_some() || !path.starts_with('/') {
                return Err(url
                    .wrong("this needs an absolute path and no host")
                    .help("write file+object:///srv/pool, with three slashes"));
            }
            return Ok(Location::Directory(PathBuf::from(path)));
        }
        _ => {}
    }
    let Some(bucket) = url.host().map(str::to_owned) else {
        return Err(url
            .wrong("the bucket or container is missing")
            .help(format!("write {}://bucket/prefix", url.scheme())));
    };
    if url.port().is_some() {
        return Err(url
            .wrong("what follows // is a bucket, which has no port")
            .help("write the store's address as endpoint=https://host:port"));
    }
    let prefix = path.trim_matches('/').to_owned();
    let fits = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+=@,:".contains(c);
        !part.is_empty() && part != "." && part != ".." && part.chars().all(plain)
    };
    if !prefix.is_empty() && !prefix.split('/').all(fits) || prefix.len() > 512 {
        return Err(url
            .wrong("the prefix is not usable")
            .help("use letters, digits and -_.+=@,: between single slashes, 512 at most"));
    }
    Ok(match url.scheme() {
        "s3" => Location::S3 { bucket, prefix },
        "gs" => Location::Gcs { bucket, prefix },
        "az" => {
            let container = bucket;
            Location::Azure { container, prefix }
        }
        other => return Err(url.wrong(format!("{other} is not an object store"))),
    })
}

#[cfg(test)]
mod tests;

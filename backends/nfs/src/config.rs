//! Configuration of directory pools, and of pools in NFS exports.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use volmux_core::{Error, ErrorKind, PoolUrl, Result, ThinPolicy};

use crate::identity::Identity;

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

/// Configuration of a pool in an NFS export. As a URL: `nfs://host:port/export?vers=4.2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NfsConfig {
    /// The server: a name, or an address (IPv6 in brackets).
    #[serde(default)]
    pub host: String,
    /// The server's port; 2049, or what its portmapper says, if none is given.
    #[serde(default)]
    pub port: Option<u16>,
    /// The exported directory, as an absolute path on the server.
    #[serde(default)]
    pub export: String,
    /// The protocol's version: 3, 4, 4.0, 4.1 or 4.2. The highest that both sides know if none is
    /// given.
    pub vers: Option<String>,
    /// The security flavour: sys, krb5, krb5i or krb5p (`man 5 nfs`).
    pub sec: Option<String>,
    /// The transport: tcp, tcp6, rdma or rdma6.
    pub proto: Option<String>,
    /// Connections to the server, 1 to 16.
    pub nconnect: Option<u32>,
    /// Bytes in a read request.
    pub rsize: Option<u32>,
    /// Bytes in a write request.
    pub wsize: Option<u32>,
    /// Tenths of a second before the client asks again.
    pub timeo: Option<u32>,
    /// How often it asks again before it says so.
    pub retrans: Option<u32>,
    /// Mount so that requests fail after `retrans` tries. What was written may then be lost without
    /// a trace, so it takes `read_only` or `force`.
    #[serde(default)]
    pub soft: bool,
    /// Mount without locks, so that nothing keeps two hosts from writing one volume: takes
    /// `read_only` or `force`.
    #[serde(default)]
    pub nolock: bool,
    /// Write even where a mount is soft or without locks.
    #[serde(default)]
    pub force: bool,
    /// Seconds after which a server that does not answer makes a call fail; 120 if none is given.
    pub timeout: Option<u64>,
    /// The user that the pool's files belong to, for a server that takes root for nobody. Only root
    /// may act as another user. Goes together with `gid`.
    pub uid: Option<u32>,
    /// The group that the pool's files belong to.
    pub gid: Option<u32>,
    /// See [`DirConfig::init`].
    #[serde(default)]
    pub init: bool,
    /// See [`DirConfig::read_only`].
    #[serde(default)]
    pub read_only: bool,
    /// See [`ThinPolicy::overcommit_limit`].
    pub overcommit_limit: Option<f64>,
    /// See [`ThinPolicy::warn_percent`].
    pub warn_percent: Option<f64>,
    /// See [`ThinPolicy::refuse_percent`].
    pub refuse_percent: Option<f64>,
}

impl NfsConfig {
    /// The pool in `export` of `host`, with every setting at its default.
    pub fn new(host: impl Into<String>, export: impl Into<String>) -> Self {
        NfsConfig {
            host: host.into(),
            port: None,
            export: export.into(),
            vers: None,
            sec: None,
            proto: None,
            nconnect: None,
            rsize: None,
            wsize: None,
            timeo: None,
            retrans: None,
            soft: false,
            nolock: false,
            force: false,
            timeout: None,
            uid: None,
            gid: None,
            init: false,
            read_only: false,
            overcommit_limit: None,
            warn_percent: None,
            refuse_percent: None,
        }
    }

    /// From an `nfs:` URL.
    ///
    /// # Errors
    /// `InvalidConfig` without a host or an absolute path, for either given as an option, or for an
    /// unknown option.
    pub fn from_url(url: &PoolUrl) -> Result<Self> {
        let mut config: NfsConfig = url.options()?;
        if !config.host.is_empty() || !config.export.is_empty() || config.port.is_some() {
            return Err(url.wrong("host, port and export belong before the ?, not into options"));
        }
        let Some(host) = url.host().filter(|_| url.path().starts_with('/')) else {
            return Err(url
                .wrong("an NFS pool needs a host and an absolute path")
                .help("write nfs://host/export"));
        };
        config.host = host.to_owned();
        config.port = url.port();
        config.export = url.path().to_owned();
        config.check()?;
        Ok(config)
    }

    /// Refuses what mount.nfs(8) must not be told: it takes its options as one text.
    ///
    /// # Errors
    /// `InvalidConfig` that says what is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong = |option: &str, value: &str, wanted: &str| {
            Err(Error::new(ErrorKind::InvalidConfig, "open_pool")
                .with("option", format!("{option}={value}"))
                .reason(format!("it has to be {wanted}")))
        };
        let host = |c: char| c.is_ascii_alphanumeric() || ".-_:[]%".contains(c);
        if self.host.is_empty() || self.host.starts_with('-') || !self.host.chars().all(host) {
            return wrong("host", &self.host, "a name or an address");
        }
        let export = &self.export;
        if !export.starts_with('/') || export.chars().any(|c| c.is_control()) {
            return wrong("export", export, "an absolute path of printable characters");
        }
        if export.split('/').any(|part| part == "..") {
            return wrong("export", export, "a path without ..");
        }
        let one_of = |option, value: &Option<String>, known: &[&str]| match value {
            Some(value) if !known.contains(&value.as_str()) => {
                wrong(option, value, &format!("one of {}", known.join(", ")))
            }
            _ => Ok(()),
        };
        one_of("vers", &self.vers, &["3", "4", "4.0", "4.1", "4.2"])?;
        one_of("sec", &self.sec, &["sys", "krb5", "krb5i", "krb5p"])?;
        one_of("proto", &self.proto, &["tcp", "tcp6", "rdma", "rdma6"])?;
        let within = |option, value: Option<u32>, least, most| match value {
            Some(value) if !(least..=most).contains(&value) => wrong(
                option,
                &value.to_string(),
                &format!("between {least} and {most}"),
            ),
            _ => Ok(()),
        };
        within("nconnect", self.nconnect, 1, 16)?;
        within("rsize", self.rsize, 1024, 1 << 20)?;
        within("wsize", self.wsize, 1024, 1 << 20)?;
        within("timeo", self.timeo, 1, 6000)?;
        within("retrans", self.retrans, 1, 100)?;
        if self.uid.is_some() != self.gid.is_some() {
            return wrong("uid", "", "given together with gid");
        }
        if self.timeout == Some(0) {
            return wrong("timeout", "0", "at least 1");
        }
        for (option, set) in [("soft", self.soft), ("nolock", self.nolock)] {
            if set && !self.read_only && !self.force {
                return wrong(
                    option,
                    "true",
                    "with read_only=true, or with force=true by who knows what may be lost",
                );
            }
        }
        if self.nolock && self.vers.as_deref() != Some("3") {
            return wrong("nolock", "true", "with vers=3: version 4 always locks");
        }
        Ok(())
    }

    /// Who the pool's files belong to, unless to who runs this.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let (uid, gid) = (self.uid?, self.gid?);
        Some(Identity { uid, gid })
    }

    /// The directory pool that is in the export, mounted at `path`.
    pub(crate) fn directory(&self, path: PathBuf) -> DirConfig {
        DirConfig {
            path,
            init: self.init,
            read_only: self.read_only,
            overcommit_limit: self.overcommit_limit,
            warn_percent: self.warn_percent,
            refuse_percent: self.refuse_percent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<NfsConfig> {
        NfsConfig::from_url(&url.parse()?)
    }

    #[test]
    fn urls_are_read() {
        let read = config("nfs://nas.example:20049/srv/vms?vers=4.2&nconnect=4&read_only=true");
        let read = read.expect("it is right");
        let mut wanted = NfsConfig::new("nas.example", "/srv/vms");
        wanted.port = Some(20049);
        wanted.vers = Some("4.2".into());
        wanted.nconnect = Some(4);
        wanted.read_only = true;
        assert_eq!(read, wanted);
        let owned = config("nfs://h/a?uid=36&gid=37").expect("it is right");
        assert_eq!(owned.identity(), Some(Identity { uid: 36, gid: 37 }));
        let six = config("nfs://[fe80::1]/a").expect("it is right");
        assert_eq!(six.host, "[fe80::1]");
        config("nfs://h/a?soft=true&read_only=true").expect("nothing can be lost");
        config("nfs://h/a?soft=true&force=true").expect("somebody wants it so");
        config("nfs://h/a?vers=3&nolock=true&force=true").expect("somebody wants it so");
    }

    #[test]
    fn wrong_urls_are_refused_and_tell_what() {
        for (url, what) in [
            ("nfs:///a", "host"),
            ("nfs://h/a/../b%2f..%2f..", "without .."),
            ("nfs://h/a%0ab", "printable"),
            ("nfs://h/a?vers=5", "4.2"),
            ("nfs://h/a?vers=4.2,soft", "4.2"),
            ("nfs://h/a?sec=none", "krb5"),
            ("nfs://h/a?nconnect=17", "between 1 and 16"),
            ("nfs://h/a?rsize=1", "between"),
            ("nfs://h/a?timeout=0", "at least 1"),
            ("nfs://h/a?uid=36", "together with gid"),
            ("nfs://h/a?gid=36", "together with gid"),
            ("nfs://h/a?soft=true", "read_only=true"),
            ("nfs://h/a?vers=3&nolock=true", "read_only=true"),
            ("nfs://h/a?nolock=true&force=true", "vers=3"),
            ("nfs://h/a?host=b", "before the ?"),
            ("nfs://h/a?options=soft", "unknown field"),
        ] {
            let error = config(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(
                error.get("reason").is_some_and(|r| r.contains(what)),
                "{url}: {error}"
            );
        }
    }
}

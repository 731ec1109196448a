//! Configuration of an iSCSI pool.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use volmux_core::{ByteSize, Error, ErrorKind, PoolUrl, Result};
use volmux_iscsi_initiator::Digest;

use crate::credentials::{Chap, Sessions};
use crate::remote::RemoteConfig;
use crate::targetd::TargetdConfig;

const OP: &str = "open_pool";

/// Who makes the volumes of the pool logical units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlKind {
    /// Nobody: the pool is the logical units that the target has.
    #[default]
    None,
    /// tgtd, on the host of the store.
    Tgt,
    /// LIO, in the kernel of the host of the store.
    Lio,
    /// targetd, which has a store of its own.
    Targetd,
}

/// Configuration of an iSCSI pool. As a URL: `iscsi://portal:3260/iqn.2026-11.org.example:array?…`.
///
/// Without `control` the pool is the logical units of that target. With it the name is what the
/// names of the volumes' targets begin with: each volume has a target of its own, `NAME:ID`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct IscsiConfig {
    /// Where the target listens, as those who attach volumes reach it: a name or an address.
    #[serde(default)]
    pub host: String,
    /// The portal's port; 3260 if none is given.
    pub port: Option<u16>,
    /// Name of the target, or what the names of the volumes' targets begin with (IQN).
    #[serde(default)]
    pub target: String,
    /// Who makes volumes logical units.
    #[serde(default)]
    pub control: ControlKind,
    /// URL of the pool that holds the volumes, on the target's host. With `control=tgt` and `lio`.
    pub store: Option<String>,
    /// The target's host, if it is another one: `user@host` or `user@host:port` for SSH. The program
    /// `volmux` does there what is to be done.
    pub ssh: Option<String>,
    /// File with the private key for SSH.
    pub ssh_key: Option<PathBuf>,
    /// File with the keys of known hosts, instead of SSH's own.
    pub ssh_known_hosts: Option<PathBuf>,
    /// The program on the target's host; `volmux` if not said.
    pub ssh_program: Option<String>,
    /// The unix socket of tgtd's control interface; `/var/run/tgtd/socket.0` if not said.
    pub tgt_socket: Option<PathBuf>,
    /// URL of targetd, such as `https://array:18700`.
    pub targetd_url: Option<String>,
    /// The pool in targetd.
    pub targetd_pool: Option<String>,
    /// The user's name for targetd; `admin` if not said.
    pub targetd_user: Option<String>,
    /// File with that user's password.
    pub targetd_password_file: Option<PathBuf>,
    /// File with the certificates of who signs targetd's, instead of the system's.
    pub targetd_ca: Option<PathBuf>,
    /// What targetd's `vol_copy` makes can be exported: see
    /// [`TargetdConfig::clones`](crate::targetd::TargetdConfig::clones).
    #[serde(default)]
    pub targetd_clones: bool,
    /// From this number on, logical units are for reading: see
    /// [`TargetdConfig::readers_from`](crate::targetd::TargetdConfig::readers_from).
    pub targetd_readers_from: Option<u8>,
    /// To a multiple of so many bytes the array rounds sizes up; 4 MiB if not said.
    pub targetd_granularity: Option<u64>,
    /// The name by which initiators prove who they are (CHAP). Together with `chap_file`.
    pub chap_user: Option<String>,
    /// File with the secret that goes with it: 12 to 16 characters.
    pub chap_file: Option<PathBuf>,
    /// The name by which the target proves who it is (mutual CHAP). Together with `mutual_file`.
    pub mutual_user: Option<String>,
    /// File with the secret that goes with it.
    pub mutual_file: Option<PathBuf>,
    /// Checksums over headers.
    #[serde(default)]
    pub header_digest: bool,
    /// Checksums over data.
    #[serde(default)]
    pub data_digest: bool,
    /// The transport; `native` if not said.
    pub transport: Option<String>,
    /// Name of this initiator, without `control`; made from the host's name if not said.
    pub initiator: Option<String>,
    /// Seconds within which a request is answered, reconnecting included; 60 if not said.
    pub timeout: Option<u64>,
    /// Where the locks are that keep several processes on the target's host in order.
    pub locks: Option<PathBuf>,
}

impl IscsiConfig {
    /// The target `target` at `host`, with every setting at its default.
    pub fn new(host: impl Into<String>, target: impl Into<String>) -> Self {
        IscsiConfig {
            host: host.into(),
            port: None,
            target: target.into(),
            control: ControlKind::None,
            store: None,
            ssh: None,
            ssh_key: None,
            ssh_known_hosts: None,
            ssh_program: None,
            tgt_socket: None,
            targetd_url: None,
            targetd_pool: None,
            targetd_user: None,
            targetd_password_file: None,
            targetd_ca: None,
            targetd_clones: false,
            targetd_readers_from: None,
            targetd_granularity: None,
            chap_user: None,
            chap_file: None,
            mutual_user: None,
            mutual_file: None,
            header_digest: false,
            data_digest: false,
            transport: None,
            initiator: None,
            timeout: None,
            locks: None,
        }
    }

    /// From an `iscsi:` URL.
    ///
    /// # Errors
    /// `InvalidConfig` without a portal or a target, for either given as an option, for options that
    /// don't go together, or for an unknown one.
    pub fn from_url(url: &PoolUrl) -> Result<Self> {
        const HELP: &str =
            "write iscsi://portal:3260/iqn.2026-11.org.example:array?control=tgt&store=URL";
        let mut config: IscsiConfig = url.options()?;
        if !config.host.is_empty() || !config.target.is_empty() || config.port.is_some() {
            return Err(url.wrong("portal and target belong before the ?, not into options"));
        }
        let Some(host) = url.host() else {
            return Err(url.wrong("the portal is missing").help(HELP));
        };
        host.clone_into(&mut config.host);
        config.port = url.port();
        url.path()
            .trim_start_matches('/')
            .clone_into(&mut config.target);
        config
            .check()
            .map_err(|reason| url.wrong(reason).help(HELP))?;
        Ok(config)
    }

    /// What is wrong with the settings, in a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        let target = &self.target;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
        let kinds = ["iqn.", "eui.", "naa."];
        if !kinds.iter().any(|kind| target.starts_with(kind)) || !target.chars().all(allowed) {
            return Err(format!(
                "{target:?} is not the name of a target, such as iqn.2026-11.org.example:array"
            ));
        }
        // An id and `.ro` come after it, and names have 223 bytes.
        if target.len() > 180 {
            return Err("the target's name is longer than 180 characters".into());
        }
        let stored = matches!(self.control, ControlKind::Tgt | ControlKind::Lio);
        if stored != self.store.is_some() {
            return Err(match stored {
                true => "control needs store, the URL of the pool on the target's host".into(),
                false => "store goes together with control=tgt or control=lio".into(),
            });
        }
        let targetd = self.control == ControlKind::Targetd;
        let of_targetd = [
            ("targetd_url", self.targetd_url.is_some(), true),
            ("targetd_pool", self.targetd_pool.is_some(), true),
            ("targetd_user", self.targetd_user.is_some(), false),
            (
                "targetd_password_file",
                self.targetd_password_file.is_some(),
                true,
            ),
            ("targetd_ca", self.targetd_ca.is_some(), false),
            ("targetd_clones", self.targetd_clones, false),
            (
                "targetd_readers_from",
                self.targetd_readers_from.is_some(),
                false,
            ),
            (
                "targetd_granularity",
                self.targetd_granularity.is_some(),
                false,
            ),
        ];
        for (key, given, needed) in of_targetd {
            if given && !targetd {
                return Err(format!("{key} goes together with control=targetd"));
            }
            if targetd && needed && !given {
                return Err(format!("control=targetd needs {key}"));
            }
        }
        let of_ssh = [
            ("ssh_key", self.ssh_key.is_some()),
            ("ssh_known_hosts", self.ssh_known_hosts.is_some()),
            ("ssh_program", self.ssh_program.is_some()),
        ];
        for (key, given) in of_ssh {
            if given && self.ssh.is_none() {
                return Err(format!("{key} goes together with ssh"));
            }
        }
        if self.ssh.is_some() && !stored {
            return Err("ssh goes together with control=tgt or control=lio".into());
        }
        if self.tgt_socket.is_some() && self.control != ControlKind::Tgt {
            return Err("tgt_socket goes together with control=tgt".into());
        }
        if self.initiator.is_some() && self.control != ControlKind::None {
            return Err("initiator is for pools without control: with it each opening has a name of its own".into());
        }
        if self.chap_user.is_some() != self.chap_file.is_some() {
            return Err("chap_user and chap_file go together".into());
        }
        if self.mutual_user.is_some() != self.mutual_file.is_some() {
            return Err("mutual_user and mutual_file go together".into());
        }
        if self.mutual_user.is_some() && self.chap_user.is_none() {
            return Err(
                "mutual_user needs chap_user: a target proves who it is only to those who do"
                    .into(),
            );
        }
        if self.timeout == Some(0) {
            return Err("timeout is at least 1 second".into());
        }
        Ok(())
    }

    /// `host:port`.
    pub fn portal(&self) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(3260))
    }

    /// The pool in targetd.
    ///
    /// # Errors
    /// `InvalidConfig` for what is missing.
    pub(crate) fn targetd(&self) -> Result<TargetdConfig> {
        let missing =
            || Error::new(ErrorKind::InvalidConfig, OP).reason("targetd is not described");
        let (Some(url), Some(pool), Some(password)) = (
            &self.targetd_url,
            &self.targetd_pool,
            &self.targetd_password_file,
        ) else {
            return Err(missing());
        };
        let mut config = TargetdConfig::new(url, pool, password, self.portal(), &self.target);
        if let Some(user) = &self.targetd_user {
            config.user.clone_from(user);
        }
        config.ca_file.clone_from(&self.targetd_ca);
        config.chap_user.clone_from(&self.chap_user);
        config.chap_secret_file.clone_from(&self.chap_file);
        config.mutual_chap_user.clone_from(&self.mutual_user);
        config.mutual_chap_secret_file.clone_from(&self.mutual_file);
        config.clones = self.targetd_clones;
        config.readers_from = self.targetd_readers_from;
        config.granularity = self.targetd_granularity.map(ByteSize::new);
        config.timeout = self.timeout;
        Ok(config)
    }

    /// The pool on the target's host, as it is opened there.
    ///
    /// # Errors
    /// `InvalidConfig` for what is not a host.
    pub(crate) fn remote(&self, chap: &Chap) -> Result<RemoteConfig> {
        let place = self.ssh.as_deref().unwrap_or_default();
        let wrong = || {
            Error::new(ErrorKind::InvalidConfig, OP)
                .with("option", format!("ssh={place}"))
                .reason("it is not user@host or user@host:port")
        };
        let (user, host) = place.split_once('@').ok_or_else(wrong)?;
        let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match host.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host, None),
            },
        };
        let mut config = RemoteConfig::new(user, host, self.there());
        if let Some(port) = port {
            config.port = port.parse().map_err(|_| wrong())?;
        }
        config.key.clone_from(&self.ssh_key);
        config.known_hosts.clone_from(&self.ssh_known_hosts);
        if let Some(program) = &self.ssh_program {
            config.program.clone_from(program);
        }
        config.chap = chap.chap_reference();
        config.mutual_chap = chap.mutual_reference();
        Ok(config)
    }

    /// The URL by which the target's host itself opens the pool.
    fn there(&self) -> String {
        let mut url = format!("iscsi://{}/{}?control=", self.portal(), self.target);
        url.push_str(match self.control {
            ControlKind::Lio => "lio",
            _ => "tgt",
        });
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let options = [
            ("store", self.store.clone()),
            ("tgt_socket", path(&self.tgt_socket)),
            ("chap_user", self.chap_user.clone()),
            ("chap_file", path(&self.chap_file)),
            ("mutual_user", self.mutual_user.clone()),
            ("mutual_file", path(&self.mutual_file)),
            ("locks", path(&self.locks)),
        ];
        for (key, value) in options {
            if let Some(value) = value {
                let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
                url.push_str(&format!("&{key}={value}"));
            }
        }
        url
    }

    /// How sessions are to be, with the secrets read.
    ///
    /// # Errors
    /// `InvalidConfig` and `PermissionDenied` for a file that holds no secret, or can't be read.
    pub fn sessions(&self) -> Result<Sessions> {
        let digest = |wanted| match wanted {
            true => Digest::Required,
            false => Digest::Off,
        };
        Ok(Sessions {
            array: self.target.clone(),
            chap: Chap::read(
                (&self.chap_user, &self.chap_file),
                (&self.mutual_user, &self.mutual_file),
            )?,
            header_digest: digest(self.header_digest),
            data_digest: digest(self.data_digest),
            timeout: Duration::from_secs(self.timeout.unwrap_or(60)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<IscsiConfig> {
        IscsiConfig::from_url(&url.parse()?)
    }

    #[test]
    fn urls_are_read() {
        let read = config(
            "iscsi://array.example:3261/iqn.2026-11.org.example:a?control=tgt&store=dir%3A%2F%2F%2Fsrv%2Fx%3Finit%3Dtrue\
             &chap_user=me&chap_file=/etc/chap&data_digest=true&timeout=5",
        );
        let read = read.expect("it is right");
        let mut wanted = IscsiConfig::new("array.example", "iqn.2026-11.org.example:a");
        wanted.port = Some(3261);
        wanted.control = ControlKind::Tgt;
        wanted.store = Some("dir:///srv/x?init=true".into());
        wanted.chap_user = Some("me".into());
        wanted.chap_file = Some("/etc/chap".into());
        wanted.data_digest = true;
        wanted.timeout = Some(5);
        assert_eq!(read, wanted);
        assert_eq!(read.portal(), "array.example:3261");
        let six = config("iscsi://[::1]/iqn.2026-11.org.example:a").expect("it is right");
        assert_eq!(
            (six.portal().as_str(), six.control),
            ("[::1]:3260", ControlKind::None)
        );
    }

    #[test]
    fn wrong_urls_are_refused_and_tell_what() {
        let long = format!("iscsi://h/iqn.{}", "a".repeat(190));
        for (url, what) in [
            ("iscsi:///iqn.2026-11.a:b", "portal is missing"),
            ("iscsi://h", "not the name of a target"),
            ("iscsi://h/disk", "not the name of a target"),
            ("iscsi://h/iqn.A", "not the name of a target"),
            ("iscsi://h/iqn.a,1", "not the name of a target"),
            (&long, "longer than 180"),
            ("iscsi://h/iqn.a?control=tgt", "control needs store"),
            ("iscsi://h/iqn.a?store=dir:///x", "store goes together"),
            (
                "iscsi://h/iqn.a?control=scst&store=dir:///x",
                "unknown variant",
            ),
            ("iscsi://h/iqn.a?control=targetd", "needs targetd_url"),
            (
                "iscsi://h/iqn.a?targetd_clones=true",
                "together with control=targetd",
            ),
            (
                "iscsi://h/iqn.a?targetd_ca=/x",
                "together with control=targetd",
            ),
            ("iscsi://h/iqn.a?ssh=a@b", "ssh goes together"),
            (
                "iscsi://h/iqn.a?control=tgt&store=dir:///x&ssh_key=/k",
                "together with ssh",
            ),
            (
                "iscsi://h/iqn.a?control=lio&store=dir:///x&tgt_socket=/k",
                "together with control=tgt",
            ),
            (
                "iscsi://h/iqn.a?control=lio&store=dir:///x&initiator=iqn.b",
                "without control",
            ),
            ("iscsi://h/iqn.a?chap_user=me", "go together"),
            ("iscsi://h/iqn.a?mutual_file=/x", "go together"),
            (
                "iscsi://h/iqn.a?mutual_user=a&mutual_file=/x",
                "needs chap_user",
            ),
            ("iscsi://h/iqn.a?timeout=0", "at least 1"),
            ("iscsi://h/iqn.a?chap_secret=x", "unknown field"),
            ("iscsi://h/iqn.a?target=iqn.b", "before the ?"),
        ] {
            let error = config(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            let reason = error.get("reason").expect("a reason");
            assert!(reason.contains(what), "{url}: {reason}");
        }
    }

    #[test]
    fn another_host_opens_the_same_pool() {
        let read = config(
            "iscsi://10.0.0.5/iqn.2026-11.a:b?control=lio&store=lvm%3A%2F%2Fvg%2Fthin%3Frefuse_percent%3D90\
             &ssh=root@array:2222&ssh_program=/opt/volmux&chap_user=me&chap_file=/etc/chap%20file",
        )
        .expect("it is right");
        let remote = read.remote(&Chap::default()).expect("a host");
        assert_eq!(
            (remote.user.as_str(), remote.host.as_str(), remote.port),
            ("root", "array", 2222)
        );
        assert_eq!(remote.program, "/opt/volmux");
        let there = config(&remote.pool).expect("a URL");
        let wanted = IscsiConfig {
            port: Some(3260),
            ssh: None,
            ssh_program: None,
            ..read.clone()
        };
        assert_eq!(there, wanted);
        let six = IscsiConfig {
            ssh: Some("a@[fe80::1]:7".into()),
            ..read.clone()
        };
        let remote = six.remote(&Chap::default()).expect("a host");
        assert_eq!((remote.host.as_str(), remote.port), ("fe80::1", 7));
        for bad in ["host", "a@b:c", "a@b:70000"] {
            let wrong = IscsiConfig {
                ssh: Some(bad.into()),
                ..read.clone()
            };
            let error = wrong.remote(&Chap::default()).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad}");
        }
    }
}

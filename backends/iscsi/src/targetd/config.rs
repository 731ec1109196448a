//! Configuration of a pool of an array that targetd controls.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use volmux_core::{ByteSize, ChapReference, Error, ErrorKind, Result, ThinPolicy};
use volmux_iscsi_initiator::Credentials;
use zeroize::Zeroizing;

const OP: &str = "open_pool";
/// Longest file of a secret that is read.
const LONGEST_SECRET: u64 = 4096;
/// What LVM rounds up to unless its group was made with other extents.
const GRANULARITY: ByteSize = ByteSize::mib(4);

/// Configuration of a pool of an array that targetd controls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TargetdConfig {
    /// Where targetd listens: `https://host`, with `:port` if it is not 18700, and the path if it
    /// is not `/targetrpc`. `http:` is for services of this machine alone.
    pub url: String,
    /// The pool, as targetd's `pool_list` calls it: `vg/thinpool`, `vg`, or a ZFS dataset.
    pub pool: String,
    /// The user that targetd's configuration names.
    #[serde(default = "admin")]
    pub user: String,
    /// The file with that user's password, which only its owner may read.
    pub password_file: PathBuf,
    /// The authorities that may have signed the service's certificate, or that certificate itself,
    /// in PEM; the authorities of the system if not said.
    pub ca_file: Option<PathBuf>,
    /// Where the array's iSCSI target listens: `host:port`.
    pub portal: String,
    /// The name of its target: `target_name` in targetd's configuration.
    pub target: String,
    /// The name by which initiators prove who they are. Without it they need not, and what targetd
    /// has for an initiator already stays as it is. See the module on what targetd makes of this.
    pub chap_user: Option<String>,
    /// The file with the secret that goes with it; 12 to 255 bytes (RFC 7143 section 9.2.1).
    pub chap_secret_file: Option<PathBuf>,
    /// The name by which the target proves who it is.
    pub mutual_chap_user: Option<String>,
    /// The file with the secret that goes with it.
    pub mutual_chap_secret_file: Option<PathBuf>,
    /// The array's lvm.conf says `activation/auto_set_activation_skip = 0`: what targetd's
    /// `vol_copy` makes can be exported. By LVM's default it can't. Clones and copies need it.
    #[serde(default)]
    pub clones: bool,
    /// From this number on, logical units are for reading, and a writer is let in beside them;
    /// nobody else may export volumes of the pool with such numbers. If not said, every export is a
    /// writer's.
    pub readers_from: Option<u8>,
    /// To a multiple of this the array rounds sizes up: the extent size of an LVM group; 4 MiB if
    /// not said.
    pub granularity: Option<ByteSize>,
    /// How long a call may take, in seconds; 60 if not said.
    pub timeout: Option<u64>,
    /// See [`ThinPolicy::overcommit_limit`].
    pub overcommit_limit: Option<f64>,
    /// See [`ThinPolicy::warn_percent`].
    pub warn_percent: Option<f64>,
    /// See [`ThinPolicy::refuse_percent`].
    pub refuse_percent: Option<f64>,
}

fn admin() -> String {
    "admin".into()
}

impl TargetdConfig {
    /// The pool `pool` of the targetd at `url`, whose units are found at `portal` below `target`,
    /// with every other setting at its default.
    pub fn new(
        url: impl Into<String>,
        pool: impl Into<String>,
        password_file: impl Into<PathBuf>,
        portal: impl Into<String>,
        target: impl Into<String>,
    ) -> Self {
        TargetdConfig {
            url: url.into(),
            pool: pool.into(),
            user: admin(),
            password_file: password_file.into(),
            ca_file: None,
            portal: portal.into(),
            target: target.into(),
            chap_user: None,
            chap_secret_file: None,
            mutual_chap_user: None,
            mutual_chap_secret_file: None,
            clones: false,
            readers_from: None,
            granularity: None,
            timeout: None,
            overcommit_limit: None,
            warn_percent: None,
            refuse_percent: None,
        }
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

    pub(super) fn granularity(&self) -> ByteSize {
        self.granularity.unwrap_or(GRANULARITY)
    }

    /// `InvalidConfig` for what can't work, except for the URL, which its client reads.
    pub(super) fn check(&self) -> Result<()> {
        if self.pool.is_empty() || self.pool.chars().any(char::is_control) {
            return Err(self.wrong("pool", "the name of a pool is missing"));
        }
        if self.user.is_empty() || self.user.contains(':') || has_controls(&self.user) {
            return Err(self.wrong("user", "a user's name is not empty and has no colon"));
        }
        if !is_portal(&self.portal) {
            let error = self.wrong("portal", "this is not host:port");
            return Err(error.help("an IPv6 address stands in brackets: [::1]:3260"));
        }
        if !super::names::is_iscsi_name(&self.target) {
            return Err(self.wrong("target", "a target's name is iqn.…, eui.… or naa.…"));
        }
        if self.readers_from == Some(0) {
            return Err(self.wrong("readers_from", "it leaves no number to writers"));
        }
        let granularity = self.granularity().bytes();
        if granularity == 0 || !granularity.is_multiple_of(512) {
            return Err(self.wrong("granularity", "it is a multiple of 512 bytes, and not 0"));
        }
        if self.timeout == Some(0) {
            return Err(self.wrong("timeout", "no call is done in 0 seconds"));
        }
        Ok(())
    }

    /// The password.
    pub(super) fn password(&self) -> Result<Zeroizing<String>> {
        let password = self.read_secret("password_file", &self.password_file)?;
        if password.contains(':') {
            let error = self.wrong("password_file", "targetd can't take passwords with a colon");
            return Err(error.help("choose another password in targetd's configuration"));
        }
        Ok(password)
    }

    /// What initiators prove who they are with, and what the target does.
    pub(super) fn chap(&self) -> Result<(Option<Chap>, Option<Chap>)> {
        let chap = self.chap_of(
            ["chap_user", "chap_secret_file"],
            self.chap_user.as_ref(),
            self.chap_secret_file.as_ref(),
        )?;
        let mutual = self.chap_of(
            ["mutual_chap_user", "mutual_chap_secret_file"],
            self.mutual_chap_user.as_ref(),
            self.mutual_chap_secret_file.as_ref(),
        )?;
        match (&chap, &mutual) {
            (None, Some(_)) => Err(self.wrong("mutual_chap_user", "it needs chap_user")),
            // RFC 7143 section 9.2.1: or whoever is asked can answer with what he was answered.
            (Some(own), Some(other)) if own.credentials.secret == other.credentials.secret => {
                Err(self.wrong("mutual_chap_secret_file", "the two secrets must differ"))
            }
            _ => Ok((chap, mutual)),
        }
    }

    fn chap_of(
        &self,
        [user_option, file_option]: [&'static str; 2],
        user: Option<&String>,
        file: Option<&PathBuf>,
    ) -> Result<Option<Chap>> {
        let (user, file) = match (user, file) {
            (None, None) => return Ok(None),
            (Some(user), Some(file)) => (user, file),
            (Some(_), None) => return Err(self.wrong(file_option, "it is missing")),
            (None, Some(_)) => return Err(self.wrong(user_option, "it is missing")),
        };
        if user.is_empty() || user.len() > 255 || has_controls(user) {
            return Err(self.wrong(user_option, "a CHAP name has 1 to 255 bytes of text"));
        }
        if !file.is_absolute() {
            return Err(self.wrong(file_option, "attachments tell of it: its path is absolute"));
        }
        let secret = self.read_secret(file_option, file)?;
        if !(12..=255).contains(&secret.len()) {
            return Err(self.wrong(file_option, "a CHAP secret has 12 to 255 bytes"));
        }
        Ok(Some(Chap {
            credentials: Credentials::new(user, secret.as_bytes()),
            reference: ChapReference {
                user: user.clone(),
                secret: file.clone(),
            },
        }))
    }

    /// The text of a file that only its owner may read, without the end of its line.
    fn read_secret(&self, option: &'static str, path: &Path) -> Result<Zeroizing<String>> {
        let failed = |error: io::Error| {
            let kind = match ErrorKind::of_io(&error) {
                kind @ (ErrorKind::NotFound | ErrorKind::PermissionDenied) => kind,
                _ => ErrorKind::InvalidConfig,
            };
            self.wrong(option, error)
                .with_kind(kind)
                .with("path", path.display())
                .help("name a file that this user may read")
        };
        // A pipe would be waited for.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            let error = self.wrong(option, "this is not a file");
            return Err(error.with("path", path.display()));
        }
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(self
                .wrong(option, "others than its owner may read or change the file")
                .help(format!("run: chmod 600 {}", path.display())));
        }
        let mut text = Zeroizing::new(String::new());
        let read = file.take(LONGEST_SECRET + 1).read_to_string(&mut text);
        read.map_err(failed)?;
        let secret = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
        if secret.is_empty() || text.len() as u64 > LONGEST_SECRET || has_controls(&secret) {
            let reason = "it does not hold one line with a secret";
            return Err(self.wrong(option, reason).with("path", path.display()));
        }
        Ok(secret)
    }

    pub(super) fn wrong(&self, option: &'static str, reason: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::InvalidConfig, OP)
            .with("pool", &self.pool)
            .with("option", option)
            .reason(reason)
    }
}

/// A CHAP name with its secret, and how attachments tell of it.
#[derive(Clone, Debug)]
pub(super) struct Chap {
    pub credentials: Credentials,
    pub reference: ChapReference,
}

fn has_controls(text: &str) -> bool {
    text.chars().any(char::is_control)
}

fn is_portal(portal: &str) -> bool {
    let Some((host, port)) = portal.rsplit_once(':') else {
        return false;
    };
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let plain = |h: &str| !h.is_empty() && !h.chars().any(|c| c.is_whitespace() || c.is_control());
    let host = match inner {
        Some(inner) => plain(inner),
        None => plain(host) && !host.contains([':', '[', ']', '/', '@']),
    };
    host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const CANARY: &str = "canary-5f1d-secret";

    fn config(dir: &Path, text: &str, mode: u32) -> TargetdConfig {
        let path = dir.join("secret");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
        let target = "iqn.2026-01.org.example:array";
        TargetdConfig::new("https://array", "vg/pool", path, "10.0.0.1:3260", target)
    }

    #[test]
    fn settings_are_read_and_unknown_ones_refused() {
        let text = r#"{"url":"https://a","pool":"vg/p","password_file":"/p","portal":"a:3260",
                       "target":"iqn.2026-01.org.example:a","clones":true,"readers_from":128}"#;
        let config: TargetdConfig = serde_json::from_str(text).expect("right");
        assert_eq!((config.user.as_str(), config.clones), ("admin", true));
        config.check().expect("right");
        let unknown = text.replace("clones", "clowns");
        serde_json::from_str::<TargetdConfig>(&unknown).expect_err("unknown");
        let missing = text.replace(r#""pool":"vg/p","#, "");
        serde_json::from_str::<TargetdConfig>(&missing).expect_err("missing");
    }

    #[test]
    fn wrong_settings_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let right = config(dir.path(), CANARY, 0o600);
        right.check().expect("right");
        let wrong: [fn(&mut TargetdConfig); 12] = [
            |c| c.pool.clear(),
            |c| c.user = "a:b".into(),
            |c| c.user.clear(),
            |c| c.portal = "10.0.0.1".into(),
            |c| c.portal = "::1:3260".into(),
            |c| c.portal = "a:0".into(),
            |c| c.portal = ":3260".into(),
            |c| c.target = "target".into(),
            |c| c.readers_from = Some(0),
            |c| c.granularity = Some(ByteSize::new(1000)),
            |c| c.granularity = Some(ByteSize::ZERO),
            |c| c.timeout = Some(0),
        ];
        for (i, spoil) in wrong.iter().enumerate() {
            let mut config = right.clone();
            spoil(&mut config);
            let error = config.check().expect_err("wrong");
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{i}");
        }
        let mut v6 = right.clone();
        v6.portal = "[fd00::1]:3260".into();
        v6.check().expect("right");
    }

    #[test]
    fn secrets_are_read_and_wrong_ones_refused_without_showing_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let right = config(dir.path(), &format!("{CANARY}\n"), 0o600);
        assert_eq!(right.password().expect("a password").as_str(), CANARY);
        for (text, mode) in [
            ("", 0o600),
            ("\n", 0o600),
            ("canary:colon", 0o600),
            ("canary\nof two lines", 0o600),
            (CANARY, 0o640),
            (&"canary".repeat(1000), 0o600),
        ] {
            let error = config(dir.path(), text, mode).password().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        let mut missing = config(dir.path(), CANARY, 0o600);
        missing.password_file = dir.path().join("missing");
        let error = missing.password().expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        missing.password_file = dir.path().to_owned();
        let error = missing.password().expect_err("a directory");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }

    #[test]
    fn chap_needs_both_halves_and_two_secrets() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = config(dir.path(), CANARY, 0o600);
        assert!(config.chap().expect("none").0.is_none());
        let wrong = |config: &TargetdConfig| {
            let error = config.chap().expect_err("wrong");
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(!format!("{error:?}").contains(CANARY), "{error:?}");
        };
        config.chap_user = Some("user".into());
        wrong(&config);
        config.chap_secret_file = Some(config.password_file.clone());
        let (chap, mutual) = config.chap().expect("right");
        let chap = chap.expect("CHAP");
        assert_eq!(chap.credentials.secret.as_slice(), CANARY.as_bytes());
        assert_eq!(chap.reference.secret, config.password_file);
        assert!(mutual.is_none() && !format!("{chap:?}").contains(CANARY));
        config.mutual_chap_user = Some("target".into());
        config.mutual_chap_secret_file = Some(config.password_file.clone());
        wrong(&config);
        config.chap_user = None;
        config.chap_secret_file = None;
        wrong(&config);
        fs::write(&config.password_file, "short").expect("written");
        config.chap_user = config.mutual_chap_user.take();
        config.chap_secret_file = config.mutual_chap_secret_file.take();
        wrong(&config);
    }
}

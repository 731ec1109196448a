//! How sessions are, and what both sides prove who they are with.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use volmux_core::{ChapReference, Error, ErrorKind, Result};
use volmux_iscsi_initiator::{Credentials, Digest, Options};
use zeroize::Zeroizing;

const OP: &str = "open_pool";
/// A longer file holds no CHAP secret.
const LONGEST_SECRET: u64 = 1024;

/// How sessions are to be.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// The target's name, or what the names of the volumes' targets begin with.
    pub array: String,
    /// What both sides prove who they are with.
    pub chap: Chap,
    /// Checksums over headers.
    pub header_digest: Digest,
    /// Checksums over data.
    pub data_digest: Digest,
    /// Within which a request is answered.
    pub timeout: Duration,
}

impl Sessions {
    /// The options of a session of `initiator` with a target.
    pub fn options(&self, portal: &str, target: &str, initiator: &str) -> Options {
        let mut options = Options::new(portal, initiator);
        options.target = Some(target.to_owned());
        options.chap = self.chap.initiator().cloned();
        options.mutual_chap = self.chap.target().cloned();
        options.header_digest = self.header_digest;
        options.data_digest = self.data_digest;
        options.command_timeout = self.timeout;
        options
    }
}

/// What both sides prove who they are with.
#[derive(Clone, Debug, Default)]
pub struct Chap {
    initiator: Option<(Credentials, PathBuf)>,
    target: Option<(Credentials, PathBuf)>,
}

impl Chap {
    /// With names, and the files that hold their secrets: of initiators, and of the target.
    ///
    /// # Errors
    /// `InvalidConfig` and `PermissionDenied` for a file that holds no secret, or can't be read.
    pub(crate) fn read(
        (chap_user, chap_file): (&Option<String>, &Option<PathBuf>),
        (mutual_user, mutual_file): (&Option<String>, &Option<PathBuf>),
    ) -> Result<Chap> {
        Ok(Chap {
            initiator: read_credentials("chap_file", chap_user, chap_file)?,
            target: read_credentials("mutual_file", mutual_user, mutual_file)?,
        })
    }

    /// What initiators do.
    pub fn initiator(&self) -> Option<&Credentials> {
        self.initiator.as_ref().map(|(credentials, _)| credentials)
    }

    /// What the target does.
    pub fn target(&self) -> Option<&Credentials> {
        self.target.as_ref().map(|(credentials, _)| credentials)
    }

    /// Where the initiators' secret is.
    pub fn chap_reference(&self) -> Option<ChapReference> {
        self.initiator.as_ref().map(reference)
    }

    /// Where the target's is.
    pub fn mutual_reference(&self) -> Option<ChapReference> {
        self.target.as_ref().map(reference)
    }
}

fn reference((credentials, path): &(Credentials, PathBuf)) -> ChapReference {
    ChapReference {
        user: credentials.name.clone(),
        secret: std::path::absolute(path).unwrap_or_else(|_| path.clone()),
    }
}

fn read_credentials(
    option: &str,
    user: &Option<String>,
    file: &Option<PathBuf>,
) -> Result<Option<(Credentials, PathBuf)>> {
    let (Some(user), Some(path)) = (user, file) else {
        return Ok(None);
    };
    let secret = read_secret(option, path)?;
    Ok(Some((
        Credentials::new(user, secret.to_vec()),
        path.clone(),
    )))
}

/// The first line of a file.
fn read_secret(option: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let named = |error: Error| error.with("option", format!("{option}={}", path.display()));
    let mut text = Zeroizing::new(Vec::with_capacity(LONGEST_SECRET as usize + 1));
    let file = File::open(path).map_err(|error| named(Error::from_io(OP, error)))?;
    file.take(LONGEST_SECRET + 1)
        .read_to_end(&mut text)
        .map_err(|error| named(Error::from_io(OP, error)))?;
    let end = text
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(text.len());
    let rest_is_empty = text[end..].iter().all(u8::is_ascii_whitespace);
    let mut secret = Zeroizing::new(text[..end].to_vec());
    while secret.last() == Some(&b'\r') {
        secret.pop();
    }
    if secret.is_empty() || secret.len() > 255 || !rest_is_empty {
        return Err(named(Error::new(ErrorKind::InvalidConfig, OP))
            .reason("the file has to hold one line with a secret of 1 to 255 bytes"));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IscsiConfig;

    #[test]
    fn secrets_come_from_files_and_are_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        let mut wanted = IscsiConfig::new("h", "iqn.a");
        wanted.chap_user = Some("me".into());
        wanted.chap_file = Some(path.clone());
        let error = wanted.sessions().expect_err("not there");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        for bad in [
            "",
            "\n",
            "two\nlines\n",
            &"x".repeat(256),
            &"x".repeat(2000),
        ] {
            std::fs::write(&path, bad).expect("write");
            let error = wanted.sessions().expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        }
        for good in ["canary-of-chap", "canary-of-chap\n", "canary-of-chap\r\n\n"] {
            std::fs::write(&path, good).expect("write");
            let sessions = wanted.sessions().expect(good);
            let credentials = sessions.chap.initiator().expect("credentials");
            assert_eq!(credentials.secret.as_slice(), b"canary-of-chap");
            let reference = sessions.chap.chap_reference().expect("a reference");
            assert_eq!((reference.user.as_str(), &reference.secret), ("me", &path));
            let options = sessions.options("h:3260", "iqn.a", "iqn.b");
            let shown = format!("{sessions:?} {options:?} {wanted:?}");
            assert!(!shown.contains("canary"), "{shown}");
        }
    }
}

//! The secrets a pool is opened with: its key, and the credentials for the store.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

use crate::config::ObjectConfig;
use crate::seal::{DataKey, TAG};

/// Longest file of secrets that is read.
const FILE_LIMIT: u64 = 64 << 10;
const SAYS: &[u8] = b"volmux data key\0";

/// A pool's key of 256 bits, with which the key that its data is encrypted with is wrapped. Wiped
/// when dropped; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PoolKey(Zeroizing<[u8; 32]>);

impl PoolKey {
    /// From its bytes, which must be random.
    pub fn new(bytes: [u8; 32]) -> Self {
        PoolKey(Zeroizing::new(bytes))
    }

    /// From 64 hexadecimal digits or base64; white space around it does not count.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut key = Zeroizing::new([0; 32]);
        if text.len() == 64 {
            for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                let digit = |c: u8| char::from(c).to_digit(16);
                *byte = (digit(digits[0])? * 16 + digit(digits[1])?) as u8;
            }
            return Some(PoolKey(key));
        }
        let decoded = STANDARD
            .decode(text)
            .or_else(|_| STANDARD_NO_PAD.decode(text));
        let decoded = Zeroizing::new(decoded.ok()?);
        if decoded.len() != key.len() {
            return None;
        }
        key.copy_from_slice(&decoded);
        Some(PoolKey(key))
    }

    /// The key that `config` names, where it names one.
    ///
    /// # Errors
    /// `NotFound` or `PermissionDenied` for a file that cannot be read; `InvalidConfig` where it
    /// holds no key, others may read it, or the variable is not set.
    pub(crate) fn load(config: &ObjectConfig) -> Result<Option<PoolKey>> {
        const FORM: &str = "a key is 32 random bytes, as 64 hexadecimal digits or in base64: \
                            make one with `openssl rand -hex 32`";
        if let Some(key) = &config.key {
            return Ok(Some(key.clone()));
        }
        if let Some(path) = &config.key_file {
            let text = read_secret(config, "key_file", path)?;
            let key = PoolKey::parse(&text).map(Some);
            return key.ok_or_else(|| config.wrong("key_file", "it holds no key").help(FORM));
        }
        let Some(name) = &config.key_env else {
            return Ok(None);
        };
        let Some(text) = std::env::var(name).ok().map(Zeroizing::new) else {
            let reason = format!("there is no environment variable {name:?}");
            return Err(config.wrong("key_env", reason));
        };
        let key = PoolKey::parse(&text).map(Some);
        key.ok_or_else(|| config.wrong("key_env", "it holds no key").help(FORM))
    }

    /// A new data key, and how it is stored.
    pub(crate) fn wrap_new(&self, pool: Uuid) -> Result<(DataKey, String), Unspecified> {
        let (mut key, mut nonce) = (Zeroizing::new([0; 32]), [0; NONCE_LEN]);
        aws_lc_rs::rand::fill(&mut key[..])?;
        aws_lc_rs::rand::fill(&mut nonce)?;
        let data_key = DataKey::new(*key);
        let tag = self.cipher()?.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            said(pool),
            &mut key[..],
        )?;
        let wrapped = [&nonce[..], &key[..], tag.as_ref()].concat();
        Ok((data_key, STANDARD.encode(wrapped)))
    }

    /// The data key out of what is stored; none if it was wrapped with another key.
    pub(crate) fn unwrap(&self, pool: Uuid, wrapped: &str) -> Option<DataKey> {
        let wrapped = STANDARD.decode(wrapped).ok()?;
        if wrapped.len() != WRAPPED {
            return None;
        }
        let (nonce, rest) = wrapped.split_at(NONCE_LEN);
        let (stored, tag) = rest.split_at(32);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut key = Zeroizing::new([0; 32]);
        let cipher = self.cipher().ok()?;
        cipher
            .open_separate_gather(nonce, said(pool), stored, tag, &mut key[..])
            .ok()?;
        Some(DataKey::new(*key))
    }

    fn cipher(&self) -> Result<LessSafeKey, Unspecified> {
        Ok(LessSafeKey::new(UnboundKey::new(
            &AES_256_GCM,
            &self.0[..],
        )?))
    }
}

/// Length of a wrapped key.
const WRAPPED: usize = NONCE_LEN + 32 + TAG;

/// Whether this has the form of a wrapped key.
pub(crate) fn is_wrapped_key(text: &str) -> bool {
    STANDARD.decode(text).is_ok_and(|key| key.len() == WRAPPED)
}

fn said(pool: Uuid) -> Aad<Vec<u8>> {
    Aad::from([SAYS, pool.as_bytes()].concat())
}

impl fmt::Debug for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolKey(secret)")
    }
}

/// Credentials for a store, as their environment variables would be. Never shown.
#[derive(Default)]
pub(crate) struct Credentials(pub BTreeMap<String, Zeroizing<String>>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Credentials {
    /// From `config`'s file.
    ///
    /// # Errors
    /// As for a key.
    pub(crate) fn load(config: &ObjectConfig) -> Result<Option<Credentials>> {
        const OPTION: &str = "credentials_file";
        let Some(path) = &config.credentials_file else {
            return Ok(None);
        };
        let text = read_secret(config, OPTION, path)?;
        let found = Credentials::parse(&text);
        let found = found.map_err(|number| {
            let reason = format!("line {number} is not NAME=value");
            config.wrong(OPTION, reason)
        });
        found.map(Some)
    }

    /// From lines `NAME=value`; lines that begin with # are for people. The error is the number
    /// of a line that is something else.
    fn parse(text: &str) -> Result<Credentials, usize> {
        let mut found = Credentials::default();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once('=').ok_or(number + 1)?;
            let value = Zeroizing::new(value.trim().to_owned());
            found.0.insert(name.trim().to_owned(), value);
        }
        Ok(found)
    }
}

/// The text of a file that only its owner may read.
fn read_secret(
    config: &ObjectConfig,
    option: &'static str,
    path: &Path,
) -> Result<Zeroizing<String>> {
    let failed = |error: io::Error| {
        let kind = match ErrorKind::of_io(&error) {
            kind @ (ErrorKind::NotFound | ErrorKind::PermissionDenied) => kind,
            _ => ErrorKind::InvalidConfig,
        };
        Error::new(kind, "open_pool")
            .with("pool", &config.location)
            .with("option", option)
            .with("path", path.display())
            .reason(error)
            .help("name a file that this user may read")
    };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(config.wrong(option, "this is not a file"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(config
            .wrong(option, "others than its owner may read or change the file")
            .help(format!("run: chmod 600 {}", path.display())));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_LIMIT)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(path: &Path) -> ObjectConfig {
        ObjectConfig {
            key_file: Some(path.to_owned()),
            credentials_file: Some(path.to_owned()),
            ..ObjectConfig::default()
        }
    }

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, ObjectConfig) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
        let config = config(&path);
        (dir, config)
    }

    #[test]
    fn a_key_is_read_in_both_forms() {
        let expected = PoolKey::new(std::array::from_fn(|i| i as u8));
        let hex = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
        for text in [
            hex.to_owned(),
            format!("  {hex}\n"),
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n".to_owned(),
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8".to_owned(),
        ] {
            let (_dir, config) = written(&text, 0o600);
            let key = PoolKey::load(&config).expect("a key");
            assert!(key == Some(expected.clone()), "{text}");
        }
        assert!(
            PoolKey::load(&ObjectConfig::default())
                .expect("none")
                .is_none()
        );
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_shown() {
        for (text, mode) in [
            ("", 0o600),
            ("canary", 0o600),
            (
                "canary01canary01canary01canary01canary01canary01canary01canary01",
                0o600,
            ),
            (
                "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e",
                0o600,
            ),
            (
                "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
                0o640,
            ),
        ] {
            let (_dir, config) = written(text, mode);
            let error = PoolKey::load(&config).expect_err("no key");
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            assert!(!format!("{error:?}").contains("canary"));
            assert!(error.get("help").is_some());
        }
        let error = PoolKey::load(&config(Path::new("/nowhere/x"))).expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let config = ObjectConfig {
            key_env: Some("VOLMUX_TEST_NO_SUCH_VARIABLE".into()),
            ..ObjectConfig::default()
        };
        let error = PoolKey::load(&config).expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }

    #[test]
    fn a_wrapped_key_opens_with_its_key_and_in_its_pool_only() {
        let (key, pool) = (PoolKey::new([1; 32]), Uuid::from_u128(7));
        let (data, wrapped) = key.wrap_new(pool).expect("wrapped");
        let opened = key.unwrap(pool, &wrapped).expect("opened");
        assert_eq!(opened.bytes(), data.bytes());
        assert!(is_wrapped_key(&wrapped) && !is_wrapped_key(&wrapped[4..]));
        assert!(PoolKey::new([2; 32]).unwrap(pool, &wrapped).is_none());
        assert!(key.unwrap(Uuid::nil(), &wrapped).is_none());
        assert!(key.unwrap(pool, &wrapped[4..]).is_none());
        assert!(key.unwrap(pool, "?").is_none());
        let (other, again) = key.wrap_new(pool).expect("wrapped");
        assert!(other.bytes() != data.bytes() && again != wrapped);
        assert_eq!(format!("{key:?}"), "PoolKey(secret)");
    }

    #[test]
    fn credentials_are_lines_of_names_and_values() {
        let text = "# for the test store\nAWS_ACCESS_KEY_ID = a\n\nAWS_SECRET_ACCESS_KEY=b=c\n";
        let (_dir, config) = written(text, 0o600);
        let found = Credentials::load(&config).expect("read").expect("some");
        assert_eq!(found.0["AWS_ACCESS_KEY_ID"].as_str(), "a");
        assert_eq!(found.0["AWS_SECRET_ACCESS_KEY"].as_str(), "b=c");
        assert!(!format!("{found:?}").contains("b=c"));
        let (_dir, config) = written("canary\n", 0o600);
        let error = Credentials::load(&config).expect_err("no name");
        assert!(!format!("{error:?}").contains("canary"), "{error}");
    }
}

//! The pool's own description, `pool.json`: what makes a prefix a pool.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use volmux_core::{ErrorKind, Result};

use crate::config::{Compression, Encryption, ObjectConfig};
use crate::envelope::FORMAT;
use crate::ids::Ids;
use crate::keys::POOL;
use crate::probe::PROBES;
use crate::seal::Seal;
use crate::secret::{PoolKey, is_wrapped_key};
use crate::store::{Patience, Put, Store};
use crate::tip::BLOCK;

/// What the first field says, so that nothing else passes for a description.
const WHAT: &str = "volmux object pool";
const LENGTH_LIMIT: usize = 64 << 10;
const UPDATE: &str = "update volmux";

/// A pool, as its description and its key tell it.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    /// The pool's id.
    pub id: Uuid,
    /// How new data is compressed.
    pub compression: Compression,
    /// How all is protected.
    pub seal: Seal,
}

/// The description as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    what: String,
    version: u16,
    id: Uuid,
    block_size: u64,
    compression: Compression,
    encryption: Option<Wrapped>,
    /// CRC-32C of the compact form of the fields above, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
}

/// The data key, wrapped with the pool's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    algorithm: Encryption,
    /// Nonce, encrypted key and tag, in base64.
    key: String,
}

/// Fails as fast as a person at a terminal expects, rather than as slowly as a guest needs.
fn at_opening(store: &Store) -> Store {
    const SHORT: Duration = Duration::from_secs(10);
    let patience = store.patience();
    store.with_patience(Patience {
        request: patience.request.min(SHORT),
        read: patience.read.min(SHORT),
        write: patience.write,
    })
}

/// Looks for a pool; `None` where one may be made. Changes nothing.
///
/// # Errors
/// `NotFound` if there is nothing and the pool is to be read only, or no bucket; `InvalidConfig`
/// if other objects are there, the format is newer or the options contradict it;
/// `Unauthenticated` for a missing or wrong key; `Corrupt`.
pub(crate) async fn read(
    op: &'static str,
    store: &Store,
    config: &ObjectConfig,
) -> Result<Option<Format>> {
    let store = &at_opening(store);
    if let Some(bytes) = store.get(op, POOL).await? {
        return Format::read(store, config, op, &bytes).map(Some);
    }
    let mut others = store.list(op, "", None).try_filter(|listed| {
        // What a probe that was cut short has left is nobody's.
        let other = !listed.name.starts_with(PROBES);
        std::future::ready(other)
    });
    let other = others.try_next().await?;
    // Somebody may have made it, and gone on, between the two requests.
    if other.is_some()
        && let Some(bytes) = store.get(op, POOL).await?
    {
        return Format::read(store, config, op, &bytes).map(Some);
    }
    match other {
        Some(other) if !config.init => Err(store
            .error(ErrorKind::InvalidConfig, op, &other.name)
            .reason("there is no pool here, but there are other objects")
            .help("choose another prefix, or add init=true to make a pool beside them")),
        _ if config.read_only => Err(store
            .error(ErrorKind::NotFound, op, POOL)
            .reason("there is no pool here")
            .help("open it without read_only=true to make one")),
        _ => Ok(None),
    }
}

/// Makes a pool where [`read`] found none, in a store that was found fit for it. Where somebody
/// else was faster, theirs is it.
///
/// # Errors
/// Those of [`read`].
pub(crate) async fn create(
    op: &'static str,
    store: &Store,
    config: &ObjectConfig,
    ids: &Ids,
) -> Result<Format> {
    let (format, bytes) = Format::new(store, config, op, ids.uuid())?;
    match store.put_new(op, POOL, bytes).await? {
        Put::Created => Ok(format),
        Put::Taken => read(op, store, config).await?.ok_or_else(|| {
            store
                .error(ErrorKind::Unavailable, op, POOL)
                .reason("somebody made a pool here and removed it again")
        }),
    }
}

impl Format {
    fn new(
        store: &Store,
        config: &ObjectConfig,
        op: &'static str,
        id: Uuid,
    ) -> Result<(Format, Bytes)> {
        let compression = config.compression.unwrap_or_default();
        let failed = |reason: &str| store.error(ErrorKind::Internal, op, POOL).reason(reason);
        let (seal, encryption) = match config.encryption {
            None => {
                no_key(config)?;
                (Seal::plain(id), None)
            }
            Some(algorithm) => {
                let key = PoolKey::load(config)?;
                let key = key.ok_or_else(|| config.wrong("encryption", "there is no key"))?;
                let wrapped = key.wrap_new(id);
                let (data, key) = wrapped.map_err(|_| failed("no key can be made"))?;
                (Seal::encrypted(id, data), Some(Wrapped { algorithm, key }))
            }
        };
        let mut description = Description {
            what: WHAT.to_owned(),
            version: FORMAT,
            id,
            block_size: BLOCK,
            compression,
            encryption,
            crc32c: None,
        };
        description.crc32c = description.checksum();
        let mut text = serde_json::to_vec_pretty(&description)
            .map_err(|_| failed("the description cannot be written"))?;
        text.push(b'\n');
        let format = Format {
            id,
            compression,
            seal,
        };
        Ok((format, text.into()))
    }

    fn read(store: &Store, config: &ObjectConfig, op: &'static str, bytes: &[u8]) -> Result<Self> {
        let Description {
            id,
            compression,
            encryption,
            ..
        } = parse(bytes).map_err(|wrong| {
            let error = store.error(wrong.0, op, POOL).reason(wrong.1);
            error.help(match wrong.0 {
                ErrorKind::InvalidConfig => UPDATE,
                _ => "restore this object from a backup; the others cannot be read without it",
            })
        })?;
        let contradicts = |option, is: &str| {
            config
                .wrong(option, format!("the pool was made with {is}"))
                .help("leave the option out, or make another pool")
        };
        if config.compression.is_some_and(|asked| asked != compression) {
            let is = format!("{compression:?}").to_lowercase();
            return Err(contradicts("compression", &format!("compression={is}")));
        }
        let seal = match encryption {
            None if config.encryption.is_some() => {
                return Err(contradicts("encryption", "no encryption"));
            }
            None => {
                no_key(config)?;
                Seal::plain(id)
            }
            Some(wrapped) => {
                let refused = |reason: &str| {
                    let error = store.error(ErrorKind::Unauthenticated, op, POOL);
                    error.reason(reason)
                };
                let key = PoolKey::load(config)?.ok_or_else(|| {
                    refused("the pool is encrypted, and no key was given")
                        .help("add key_file=/path or key_env=NAME")
                })?;
                let data = key.unwrap(id, &wrapped.key).ok_or_else(|| {
                    refused("the pool is encrypted with another key")
                        .help("give the key that the pool was made with")
                })?;
                Seal::encrypted(id, data)
            }
        };
        Ok(Format {
            id,
            compression,
            seal,
        })
    }
}

/// Refuses a key that would go unused: whoever gives one believes that the pool is encrypted.
fn no_key(config: &ObjectConfig) -> Result<()> {
    let option = if config.key_file.is_some() {
        "key_file"
    } else if config.key_env.is_some() {
        "key_env"
    } else if config.key.is_some() {
        "key"
    } else {
        return Ok(());
    };
    Err(config
        .wrong(option, "the pool is not encrypted, or is not to be")
        .help("leave the key out, or make a pool with encryption=aes-256-gcm"))
}

impl Description {
    fn checksum(&self) -> Option<String> {
        let fields = Description {
            crc32c: None,
            ..self.clone()
        };
        let text = serde_json::to_vec(&fields).ok()?;
        Some(format!("{:08x}", crc32c::crc32c(&text)))
    }
}

/// The description, if it is intact and of this format.
fn parse(bytes: &[u8]) -> Result<Description, (ErrorKind, String)> {
    let damaged = |reason: String| (ErrorKind::Corrupt, reason);
    if bytes.len() > LENGTH_LIMIT {
        return Err(damaged("the description is too long".to_owned()));
    }
    let value: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|error| damaged(format!("the description is not JSON: {error}")))?;
    if value.get("what").and_then(|what| what.as_str()) != Some(WHAT) {
        return Err(damaged("this is not the description of a pool".to_owned()));
    }
    // First of all: what else a later version says is not known here.
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if let Some(version) = version.filter(|version| *version > u64::from(FORMAT)) {
        let reason = format!("the pool has format version {version}; known is {FORMAT}");
        return Err((ErrorKind::InvalidConfig, reason));
    }
    let description: Description = serde_json::from_value(value)
        .map_err(|error| damaged(format!("the description is wrong: {error}")))?;
    if description.crc32c.is_none() || description.checksum() != description.crc32c {
        let reason = "the description does not fit its checksum";
        return Err(damaged(reason.to_owned()));
    }
    let wrapped = description.encryption.as_ref();
    if description.version == 0
        || description.block_size != BLOCK
        || wrapped.is_some_and(|wrapped| !is_wrapped_key(&wrapped.key))
    {
        return Err(damaged("the description says what cannot be".to_owned()));
    }
    Ok(description)
}

#[cfg(test)]
mod tests;

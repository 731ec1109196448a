//! The array as the operations see it: its volumes, exports and space, and what was not heard of.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use volmux_core::{
    BlockDevice, ByteSize, Error, ErrorKind, Names, OpenOptions, Pool, Pressure, Provisioning,
    Result, SpaceRequest, ThinPolicy, Usage, Volume, VolumeName,
};
use zeroize::Zeroizing;

use super::OpenArray;
use super::calls::{ListedExport, ListedPool, ListedVolume};
use super::client::{Client, code};
use super::config::{Chap, TargetdConfig};
use super::names::{self, Store};
use super::{TargetdPool, exports};

/// So long a call that nobody heard of any more may still be waiting in targetd, which does one
/// call at a time, and not in order.
const MAY_STILL_BE_DONE: Duration = Duration::from_secs(600);

/// What the operations work on.
#[derive(Debug)]
pub(super) struct Array {
    pub client: Client,
    pub config: TargetdConfig,
    pub store: Store,
    pub chap: Option<Chap>,
    pub mutual: Option<Chap>,
    pub policy: ThinPolicy,
    pub names: Names,
    /// Who looks for a free number of a logical unit.
    pub attaching: tokio::sync::Mutex<()>,
    /// Of which volumes something may yet be taken away, and since when.
    unheard: Mutex<HashMap<String, Instant>>,
    opener: Arc<dyn OpenArray>,
}

impl Array {
    /// Looks whether the pool is there.
    pub async fn connect(config: TargetdConfig, opener: Arc<dyn OpenArray>) -> Result<Array> {
        const OP: &str = "open_pool";
        config.check()?;
        let policy = config.policy()?;
        let (chap, mutual) = config.chap()?;
        let secret = |chap: &Chap| {
            let text = String::from_utf8_lossy(&chap.credentials.secret);
            Zeroizing::new(text.into_owned())
        };
        let secrets = [&chap, &mutual].into_iter().flatten().map(secret).collect();
        let client = Client::new(&config, secrets)?;
        let listed = client.pool_list().await;
        let listed = listed.map_err(|e| e.into_error(OP).with("pool", &config.pool))?;
        let store = find_pool(OP, &config, &client, &listed)?.store();
        Ok(Array {
            client,
            config,
            store,
            chap,
            mutual,
            policy,
            names: Names::default(),
            attaching: tokio::sync::Mutex::default(),
            unheard: Mutex::default(),
            opener,
        })
    }

    pub fn name_in(&self, mut error: Error, name: Option<&VolumeName>) -> Error {
        if let Some(name) = name.filter(|_| error.get("volume").is_none()) {
            error = error.with("volume", name);
        }
        match error.get("pool") {
            None => error.with("pool", self),
            Some(_) => error,
        }
    }

    /// Every volume of the pool, and what copies need meanwhile.
    pub async fn list(&self, op: &'static str) -> Result<Vec<ListedVolume>> {
        let listed = self.client.vol_list(&self.config.pool).await;
        listed.map_err(|error| error.into_error(op))
    }

    pub async fn find(&self, op: &'static str, name: &str) -> Result<Option<ListedVolume>> {
        let listed = self.list(op).await?;
        Ok(listed.into_iter().find(|volume| volume.name == name))
    }

    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, op: &'static str, name: &VolumeName) -> Result<ListedVolume> {
        self.find(op, name.as_str()).await?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, op)
                .with("volume", name)
                .reason("the pool has no volume of that name")
        })
    }

    pub async fn exports(&self, op: &'static str) -> Result<Vec<ListedExport>> {
        let listed = self.client.export_list().await;
        listed.map_err(|error| match error.code() {
            Some(code::INVALID) => error.into_error(op).help(
                "targetd lists no exports at all while the volume of one is gone or broken: \
                 look for that with targetcli on the array",
            ),
            _ => error.into_error(op),
        })
    }

    /// What is told of a volume.
    pub fn describe(&self, name: VolumeName, found: &ListedVolume, all: &[ListedExport]) -> Volume {
        let size = ByteSize::new(found.size);
        let mut volume = Volume::new(name, names::volume_id(&found.uuid), size);
        volume.provisioning = match self.store {
            Store::LvmThin => Provisioning::Thin,
            Store::LvmLinear | Store::Zfs => Provisioning::Thick,
        };
        // targetd does not tell.
        volume.created = SystemTime::UNIX_EPOCH;
        volume.attachments = exports::attachments(self, &found.uuid, all);
        volume
    }

    /// A volume as it is now.
    pub async fn volume(&self, op: &'static str, name: &VolumeName) -> Result<Volume> {
        let found = self.get(op, name).await?;
        let exports = self.exports(op).await?;
        Ok(self.describe(name.clone(), &found, &exports))
    }

    pub async fn usage(&self, op: &'static str) -> Result<Usage> {
        let listed = self.client.pool_list().await;
        let listed = listed.map_err(|error| error.into_error(op))?;
        let pool = find_pool(op, &self.config, &self.client, &listed)?;
        let (total, used) = pool.size_and_used();
        let volumes = self.list(op).await?;
        let provisioned = volumes
            .iter()
            .fold(0u64, |sum, volume| sum.saturating_add(volume.size));
        Ok(Usage {
            total,
            used,
            free: ByteSize::new(total.bytes().saturating_sub(used.bytes())),
            provisioned: ByteSize::new(provisioned),
            ..Usage::default()
        })
    }

    /// Fails if the policy does not want so much more.
    pub async fn admit(&self, op: &'static str, name: &VolumeName, more: u64) -> Result<()> {
        let thick = self.store != Store::LvmThin;
        let request = SpaceRequest {
            provisioned: ByteSize::new(more),
            reserved: ByteSize::new(if thick { more } else { 0 }),
        };
        let pressure = self.policy.admit(&self.usage(op).await?, &request, op)?;
        if pressure > Pressure::Normal {
            tracing::warn!(pool = %self, volume = %name, op, %pressure, "the pool is filling up");
        }
        Ok(())
    }

    pub fn check_name(&self, op: &'static str, name: &VolumeName) -> Result<()> {
        self.store.check_name(op, &self.config.pool, name)
    }

    /// Remembers that something may yet be taken away from a volume: a call that was not answered
    /// may be done later, and then by the name alone. Returns whether that is the only such call.
    pub fn not_heard(&self, name: &str) -> bool {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        unheard.retain(|_, since| since.elapsed() < MAY_STILL_BE_DONE);
        unheard.insert(name.to_owned(), Instant::now()).is_none()
    }

    /// # Errors
    /// `Busy` if something may yet be taken away from what is made under this name.
    pub fn check_heard(&self, op: &'static str, name: &str) -> Result<()> {
        let unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        let since = unheard.get(name).map(Instant::elapsed);
        match since.and_then(|since| MAY_STILL_BE_DONE.checked_sub(since)) {
            None => Ok(()),
            Some(left) => Err(Error::new(ErrorKind::Busy, op)
                .reason(
                    "targetd did not answer when the volume was to be deleted or detached, and \
                     may do that yet",
                )
                .help(format!("try again in {} seconds", left.as_secs() + 1))),
        }
    }

    /// Forgets what [`not_heard`](Self::not_heard) remembered: it was done.
    pub fn heard(&self, name: &str) {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        unheard.remove(name);
    }

    pub async fn open(
        self: &Arc<Self>,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        let array: Arc<dyn Pool> = Arc::new(TargetdPool::of(self.clone()));
        self.opener.open(array, name, options).await
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "targetd://{}/{}",
            self.client.service(),
            self.config.pool
        )
    }
}

/// The pool that is meant.
fn find_pool<'a>(
    op: &'static str,
    config: &TargetdConfig,
    client: &Client,
    listed: &'a [ListedPool],
) -> Result<&'a ListedPool> {
    let wrong = |kind, reason: &str| {
        let blocks = listed.iter().filter(|pool| pool.kind == "block");
        let known: Vec<&str> = blocks.map(|pool| pool.name.as_str()).take(20).collect();
        Error::new(kind, op)
            .with("pool", &config.pool)
            .with("service", client.service())
            .reason(reason)
            .help(format!("its pools for volumes: {}", known.join(", ")))
    };
    match listed.iter().find(|pool| pool.name == config.pool) {
        Some(pool) if pool.kind == "block" => Ok(pool),
        Some(_) => Err(wrong(
            ErrorKind::InvalidConfig,
            "this pool is for file systems, not for volumes",
        )),
        None => Err(wrong(ErrorKind::NotFound, "targetd has no such pool")),
    }
}

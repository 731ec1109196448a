//! How full a pool is.

use futures::TryStreamExt;
use tokio::task::spawn_blocking;
use volmux_core::{ByteSize, Error, ErrorKind, Result, Usage};

use crate::config::ObjectConfig;
use crate::local::LocalStore;
use crate::store::Store;

/// What a store without a limit of its own is said to hold.
const UNLIMITED: u64 = 15 << 60;

/// Where a pool's space comes from.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    capacity: Option<u64>,
    local: Option<LocalStore>,
}

impl Space {
    /// As configured; a directory has what its file system has.
    pub(crate) fn new(config: &ObjectConfig, local: Option<LocalStore>) -> Self {
        Space {
            capacity: config.capacity.map(|capacity| capacity.bytes()),
            local,
        }
    }

    /// Whether it can run out.
    pub(crate) fn is_limited(&self) -> bool {
        self.capacity.is_some() || self.local.is_some()
    }

    /// How full it is, by a listing of everything below the prefix: one request for every
    /// thousand objects; or by a look at the file system.
    pub(crate) async fn usage(
        &self,
        op: &'static str,
        store: &Store,
        provisioned: u128,
    ) -> Result<Usage> {
        if let (None, Some(local)) = (self.capacity, &self.local) {
            let space = local.space().map_err(|error| Error::from_io(op, error))?;
            return Ok(Usage {
                total: ByteSize::new(space.total),
                used: ByteSize::new(space.used),
                free: ByteSize::new(space.free),
                ..Space::unlimited(provisioned)
            });
        }
        let used = store
            .list(op, "", None)
            .try_fold(0u64, |sum, object| async move {
                Ok(sum.saturating_add(object.bytes))
            })
            .await?;
        let total = self.capacity.unwrap_or(UNLIMITED);
        Ok(Usage {
            total: ByteSize::new(total),
            used: ByteSize::new(used),
            free: ByteSize::new(total.saturating_sub(used)),
            ..Space::unlimited(provisioned)
        })
    }

    /// Files that a crash left in the making, where the store is a directory.
    pub(crate) async fn leftovers(
        &self,
        op: &'static str,
        remove: bool,
    ) -> Result<Vec<(String, u64)>> {
        let Some(local) = self.local.clone() else {
            return Ok(Vec::new());
        };
        let found = spawn_blocking(move || local.leftovers(remove)).await;
        let found =
            found.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?;
        found.map_err(|error| Error::from_io(op, error))
    }

    /// Of a pool that can't be full.
    pub(crate) fn unlimited(provisioned: u128) -> Usage {
        Usage {
            total: ByteSize::new(UNLIMITED),
            used: ByteSize::ZERO,
            free: ByteSize::new(UNLIMITED),
            provisioned: ByteSize::new(provisioned.try_into().unwrap_or(u64::MAX)),
            ..Usage::default()
        }
    }
}

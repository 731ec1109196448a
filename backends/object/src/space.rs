//! How full a pool is.

use futures::TryStreamExt;
use volmux_core::{ByteSize, Result, Usage};

use crate::config::ObjectConfig;
use crate::store::Store;

/// What a store without a limit of its own is said to hold.
const UNLIMITED: u64 = 15 << 60;

/// Bytes of everything below the pool's prefix: one request for every thousand objects.
pub(crate) async fn used(op: &'static str, store: &Store) -> Result<u64> {
    store
        .list(op, "", None)
        .try_fold(0u64, |sum, object| async move { Ok(sum.saturating_add(object.bytes)) })
        .await
}

/// What `usage()` says where so much is used and promised.
pub(crate) fn usage(config: &ObjectConfig, used: u64, provisioned: u128) -> Usage {
    let total = config.capacity_bytes().unwrap_or(UNLIMITED);
    Usage {
        total: ByteSize::new(total),
        used: ByteSize::new(used),
        free: ByteSize::new(total.saturating_sub(used)),
        provisioned: ByteSize::new(provisioned.try_into().unwrap_or(u64::MAX)),
        metadata: None,
    }
}

//! What lvm2 had yet to tell the kernel's thin pool when it, or the machine, came to a sudden end.
//!
//! To make or remove a thin device, lvm2 writes that into its own metadata, with the number of the
//! pool's next transaction; has the kernel do it and count the transaction; and strikes it off. When
//! it is cut short in between, its next command that makes or removes something makes up for it.
//! Until then what was to be made can't be used. And if the kernel had made the device and not yet
//! counted, each such command fails: lvm2 wants to make it once more.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use volmux_core::{Error, ErrorKind, Result, VolumeId};

use crate::dm::{self, PoolStatus};
use crate::group::GroupClient;
use crate::metadata::ThinMetadata;
use crate::names::Hidden;
use crate::report::Lv;

/// What lvm2 says when the kernel has the device that it wants to make.
const MADE_ALREADY: &str = "already contain thin device with device_id ";
/// What device-mapper says of a thin device that the pool does not have.
const NOT_THERE: &str = "No data available";

/// Whether an error may come from what lvm2 had yet to tell the thin pool.
pub fn may_be_behind(error: &Error) -> bool {
    let reason = error.get("reason").unwrap_or_default();
    [MADE_ALREADY, NOT_THERE]
        .iter()
        .any(|said| reason.contains(said))
}

/// The number of the thin device that lvm2 could not make.
fn made_already(error: &Error) -> Option<u32> {
    let (_, rest) = error.get("reason")?.split_once(MADE_ALREADY)?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

impl GroupClient {
    /// Has the next turn look whether the thin pool is behind.
    pub fn doubt(&self) {
        self.caught_up.store(false, Ordering::Relaxed);
    }

    /// Has the thin pool do what lvm2 had yet to tell it, and returns whether there was something.
    /// For whoever has the turn, with its lock.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn catch_up(self: &Arc<Self>, op: &'static str, turn: &File) -> Result<bool> {
        let Some(pool) = self.config.pool.clone() else {
            return Ok(false);
        };
        if self.transaction(op, &pool)?.is_none() {
            // Only the kernel knows how far it came.
            self.activate(op, &pool).await?;
        }
        let Some(kernel) = self.transaction(op, &pool)? else {
            return Ok(false);
        };
        let known = |view: &crate::view::View| view.pool.as_ref().and_then(|p| p.transaction_id);
        if known(&*self.look(op).await?) == Some(kernel) {
            return Ok(false);
        }
        self.forget().await;
        let view = self.look(op).await?;
        if known(&view) != Some(kernel + 1) {
            return Ok(false);
        }
        tracing::warn!(
            group = self.config.group,
            pool,
            "an lvm2 command was cut short"
        );
        let name = Hidden::Nothing.name(VolumeId::random());
        let (path, size) = (
            format!("{}/{pool}", self.config.group),
            format!("{}b", view.group().extent_size),
        );
        let make = [
            "lvcreate", "-y", "-T", &path, "-V", &size, "-n", &name, "-ky", "-an",
        ];
        if let Err(error) = self.commands.lvm_in_turn(op, &make, turn).await {
            self.forget().await;
            let Some(id) = made_already(&error) else {
                return Err(error);
            };
            self.count(op, &pool, &view.report.lvs, (id, kernel))
                .await?;
            self.commands.lvm_in_turn(op, &make, turn).await?;
        }
        self.forget().await;
        let made = format!("{}/{name}", self.config.group);
        self.commands
            .lvm_in_turn(op, &["lvremove", "-f", "-y", &made], turn)
            .await?;
        self.forget().await;
        self.make_durable(op, &*self.look(op).await?).await?;
        Ok(true)
    }

    /// The last transaction of the kernel's thin pool.
    fn transaction(&self, op: &'static str, pool: &str) -> Result<Option<u64>> {
        let status = dm::pool_status(&self.config.group, pool);
        let status = status.map_err(|error| Error::from_io(op, error))?;
        Ok(match status {
            Some((_, PoolStatus::Ok(state))) => Some(state.transaction_id),
            _ => None,
        })
    }

    /// Counts the transaction in which the thin device `id` was made, the one after `kernel`.
    ///
    /// # Errors
    /// `Corrupt` if it was made in another one: then it is not what lvm2 wanted to make.
    async fn count(
        &self,
        op: &'static str,
        pool: &str,
        lvs: &[Arc<Lv>],
        (id, kernel): (u32, u64),
    ) -> Result<()> {
        let lock = self.run_file(op, &format!("{pool}.metadata.lock"))?;
        let metadata = ThinMetadata::new(&self.config.group, pool, lock);
        let made_in = metadata.made_in(op, id).await?;
        let wanted = lvs
            .iter()
            .any(|lv| lv.pool == pool && lv.thin_id == Some(id.into()));
        if made_in != Some(kernel) || !wanted {
            return Err(Error::new(ErrorKind::Corrupt, op)
                .with("thin_pool", format!("{}/{pool}", self.config.group))
                .with("device", id)
                .reason("lvm2 wants to make a thin device that is there, from another time")
                .help(
                    "see what it is (thin_dump), and delete it: dmsetup message POOL 0 'delete ID'",
                ));
        }
        let Some((target, _)) =
            dm::pool_status(&self.config.group, pool).map_err(|error| Error::from_io(op, error))?
        else {
            return Ok(());
        };
        let message = format!("set_transaction_id {kernel} {}", kernel + 1);
        dm::message(&target, &message).map_err(|error| {
            Error::from_io(op, error)
                .with("thin_pool", &target)
                .reason("the kernel does not count the transaction")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lvm2_could_not_make_is_read() {
        let error = |reason: &str| Error::new(ErrorKind::Unavailable, "test").reason(reason);
        let said = error(
            "Failed to process message \"create_snap 3 1\".; Thin pool vg-pool-tpool (253:2) \
             already contain thin device with device_id 3.; Manual intervention may be required",
        );
        assert_eq!(made_already(&said), Some(3));
        assert!(may_be_behind(&said));
        let missing = error("device-mapper: reload ioctl on  (253:3) failed: No data available");
        assert_eq!(made_already(&missing), None);
        assert!(may_be_behind(&missing));
        assert!(!may_be_behind(&error("Failed to find logical volume")));
    }
}

//! How full a pool is, and what follows: warnings, refusals, extension.

use std::time::{Duration, UNIX_EPOCH};

use volmux_core::{
    ByteSize, Error, ErrorKind, MetadataUsage, Pressure, Result, SpaceRequest, Usage,
};

use crate::change::Change;
use crate::config::ExtendPolicy;
use crate::dm::{self, PoolMode, PoolState, PoolStatus};
use crate::growth::{self, Look};
use crate::pool::Inner;
use crate::report::Lv;
use crate::trouble;
use crate::view::{Entry, View};

/// The kernel's blocks of thin metadata.
const METADATA_BLOCK: u64 = 4096;

impl Inner {
    /// How full the pool is, as the kernel says at this moment.
    pub async fn usage_of(&self, op: &'static str, view: &View) -> Result<Usage> {
        let provisioned = view.provisioned();
        let Some(pool) = &view.pool else {
            let (total, free) = view.group().space.unwrap_or_default();
            return Ok(Usage {
                total,
                used: ByteSize::new(total.bytes().saturating_sub(free.bytes())),
                free,
                provisioned,
                ..Usage::default()
            });
        };
        let state = self.pool_state(op, pool).await?;
        let mut usage = thin_usage(pool, &state, provisioned);
        usage.time_to_full = self.time_to_full(op, &pool.name, &usage);
        Ok(usage)
    }

    fn time_to_full(&self, op: &'static str, pool: &str, usage: &Usage) -> Option<Duration> {
        // Without a place for notes nothing is known, and that is no failure.
        let path = self.client.run_file(op, &format!("{pool}.growth")).ok()?;
        let now = Look {
            at: UNIX_EPOCH.elapsed().ok()?.as_secs(),
            data: usage.used_percent() / 100.0,
            metadata: usage.metadata_percent() / 100.0,
        };
        growth::note(&path, now)
    }

    /// What the kernel says of the thin pool, which is activated for that if need be.
    pub async fn pool_state(&self, op: &'static str, pool: &Lv) -> Result<PoolState> {
        let group = &self.client.config.group;
        let mut asked = false;
        loop {
            let status = dm::pool_status(group, &pool.name);
            let status = status.map_err(|error| Error::from_io(op, error))?;
            match status {
                Some((_, PoolStatus::Ok(state))) => return Ok(state),
                Some((_, status @ PoolStatus::Failed)) => {
                    let trouble = trouble::of(group, &pool.name, status);
                    return Err(trouble.map_or_else(
                        || Error::new(ErrorKind::Corrupt, op),
                        |trouble| trouble.error(op),
                    ));
                }
                None if asked => {
                    return Err(Error::new(ErrorKind::Unavailable, op)
                        .with("thin_pool", format!("{group}/{}", pool.name))
                        .reason("the thin pool can't be activated")
                        .help("see lvs -a, and the kernel's log"));
                }
                None => {
                    let path = format!("{group}/{}", pool.name);
                    self.client
                        .commands
                        .lvm(op, &["lvchange", "-ay", &path])
                        .await?;
                }
            }
            asked = true;
        }
    }

    /// Refuses what a pool in this state can't take, and what the policy does not allow; extends
    /// the thin pool first where that is wanted.
    pub async fn admit(
        &self,
        op: &'static str,
        change: &mut Change,
        request: SpaceRequest,
    ) -> Result<()> {
        if let Some(pool) = change.view().pool.clone() {
            let state = self.pool_state(op, &pool).await?;
            self.check_health(op, &pool, &state)?;
            if let Some(policy) = self.client.config.extend() {
                extend(op, change, &pool, &state, policy).await;
            }
        }
        let usage = self.usage_of(op, change.view()).await?;
        if self.policy.admit(&usage, &request, op)? == Pressure::Warn {
            tracing::warn!(
                group = %self.client.config.group,
                used_percent = usage.used_percent(),
                metadata_percent = usage.metadata_percent(),
                "the pool is filling up"
            );
        }
        Ok(())
    }

    fn check_health(&self, op: &'static str, pool: &Lv, state: &PoolState) -> Result<()> {
        let group = &self.client.config.group;
        if let Some(trouble) = trouble::of(group, &pool.name, PoolStatus::Ok(*state)) {
            return Err(trouble.error(op));
        }
        let wants_more = self.client.config.extend().is_some();
        if state.mode == PoolMode::OutOfDataSpace && !wants_more {
            return Err(trouble::out_of_space(group, &pool.name).error(op));
        }
        Ok(())
    }

    /// What a copy of a volume occupies at once.
    pub async fn bytes_to_copy(
        &self,
        op: &'static str,
        view: &View,
        from: &Entry,
    ) -> Result<ByteSize> {
        if view.pool.is_none() {
            return Ok(from.size());
        }
        Ok(self
            .allocated(op, view, from)
            .await?
            .map_or(ByteSize::ZERO, |(mapped, _)| mapped))
    }
}

fn thin_usage(pool: &Lv, state: &PoolState, provisioned: ByteSize) -> Usage {
    let chunk = pool.chunk_size.unwrap_or_default();
    let bytes = |chunks: u64| ByteSize::new(chunks.saturating_mul(chunk));
    Usage {
        total: bytes(state.data.total),
        used: bytes(state.data.used),
        free: bytes(state.data.total.saturating_sub(state.data.used)),
        provisioned,
        metadata: Some(MetadataUsage {
            total: state.metadata.total * METADATA_BLOCK,
            used: state.metadata.used * METADATA_BLOCK,
        }),
        ..Usage::default()
    }
}

/// By how much something of this size is extended. lvm2 refuses bytes that are no whole sectors.
fn more(bytes: u64, policy: ExtendPolicy) -> u64 {
    const SECTOR: u64 = 512;
    let more = (bytes as f64 * policy.by / 100.0).ceil() as u64;
    more.checked_next_multiple_of(SECTOR).unwrap_or(more)
}

/// Extends data or metadata of a thin pool that is at its mark. That it can't be is no failure of
/// what is to be done: that may still fit.
async fn extend(
    op: &'static str,
    change: &mut Change,
    pool: &Lv,
    state: &PoolState,
    policy: ExtendPolicy,
) {
    let full = |part: dm::Used| part.used as f64 * 100.0 >= policy.at * part.total as f64;
    let more = |bytes: u64| more(bytes, policy);
    let mut wanted = Vec::new();
    if full(state.data) {
        wanted.push(("-L", more(pool.size.bytes())));
    }
    if full(state.metadata) {
        let size = state.metadata.total * METADATA_BLOCK;
        wanted.push(("--poolmetadatasize", more(size)));
    }
    for (what, bytes) in wanted {
        match change.extend_pool(&pool.name, what, bytes).await {
            Ok(()) => tracing::info!(pool = %pool.name, what, bytes, "the thin pool was extended"),
            Err(error) => {
                tracing::warn!(pool = %pool.name, %error, operation = op, "the thin pool can't be extended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_extended_by_whole_sectors() {
        let policy = |by| ExtendPolicy { at: 80.0, by };
        assert_eq!(more(1 << 30, policy(20.0)), 214_748_672);
        assert_eq!(more(1 << 30, policy(25.0)), 1 << 28);
        assert_eq!(more(4 << 20, policy(33.3)) % 512, 0);
    }
}

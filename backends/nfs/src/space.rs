//! How full the file system is, and whether there is room for more.

use volmux_core::{ByteSize, MetadataUsage, Pressure, Result, SpaceRequest, Usage};

use crate::inner::Inner;
use crate::layout::{NameLock, PoolDirs, file_error};

impl Inner {
    /// Occupancy without the sum of virtual sizes, which takes a look at every record.
    pub fn space(&self, op: &'static str) -> Result<Usage> {
        let stat = rustix::fs::fstatvfs(self.layout.root())
            .map_err(|errno| file_error(op, self.layout.path(), errno))?;
        let bytes = |blocks: u64| ByteSize::new(blocks.saturating_mul(stat.f_frsize));
        Ok(Usage {
            total: bytes(stat.f_blocks),
            used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
            free: bytes(stat.f_bavail),
            // Zero where inodes are not a resource of their own (btrfs).
            metadata: (stat.f_files > 0).then(|| MetadataUsage {
                total: stat.f_files,
                used: stat.f_files.saturating_sub(stat.f_ffree),
            }),
            ..Usage::default()
        })
    }

    /// Applies the thin policy. The lock, where the policy needs the sum of all volumes, keeps other
    /// processes from adding to it until the caller has published its own.
    pub fn admit(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        request: SpaceRequest,
    ) -> Result<Option<NameLock>> {
        let mut usage = self.space(op)?;
        let mut lock = None;
        if self.policy.overcommit_limit.is_some() {
            lock = Some(pool.lock_admission(op)?);
            usage.provisioned = self.provisioned(op, pool)?;
        }
        let pressure = self.policy.admit(&usage, &request, op)?;
        if pressure != Pressure::Normal {
            tracing::warn!(
                pool = %self.layout.path().display(),
                used_percent = usage.used_percent(),
                metadata_percent = usage.metadata_percent(),
                "the pool is filling up"
            );
        }
        Ok(lock)
    }

    /// Applies the over-commit limit once more where long work lies between
    /// [`admit`](Self::admit) and the moment at which the volume counts.
    pub fn admit_growth(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        provisioned: ByteSize,
    ) -> Result<Option<NameLock>> {
        if self.policy.overcommit_limit.is_none() {
            return Ok(None);
        }
        let reserved = ByteSize::ZERO;
        self.admit(
            op,
            pool,
            SpaceRequest {
                provisioned,
                reserved,
            },
        )
    }
}

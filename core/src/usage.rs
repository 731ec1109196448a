//! How full a pool is, and the policy that keeps a thin pool from running dry.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::{ByteSize, Error, ErrorKind, Result};

/// How full a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What the pool can hold.
    pub total: ByteSize,
    /// What is occupied, by volumes and by anything else that shares the space.
    pub used: ByteSize,
    /// What can still be written. `used + free` may be less than `total` where the store keeps a
    /// reserve.
    pub free: ByteSize,
    /// The sum of the virtual sizes of all volumes, snapshots included.
    pub provisioned: ByteSize,
    /// Occupancy of the store's metadata, where that can run out by itself.
    pub metadata: Option<MetadataUsage>,
    /// When data or metadata will be full if they go on growing as they did of late. `None` where
    /// the backend does not watch that, has not watched for long enough, or nothing grows.
    pub time_to_full: Option<Duration>,
}

/// Occupancy of a store's metadata, in the store's own unit (inodes of a file system, bytes of an
/// LVM metadata volume).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataUsage {
    /// Units in all.
    pub total: u64,
    /// Units in use.
    pub used: u64,
}

impl Usage {
    /// Occupied share of what can be occupied, in percent (as `df` counts it: a reserve that
    /// nobody may write to counts as neither).
    pub fn used_percent(&self) -> f64 {
        percent(
            self.used.bytes(),
            self.used.bytes().saturating_add(self.free.bytes()),
        )
    }

    /// Occupied share of the metadata, in percent; 0 where the store has no separate metadata.
    pub fn metadata_percent(&self) -> f64 {
        self.metadata.map_or(0.0, |m| percent(m.used, m.total))
    }

    /// Virtual sizes promised over what the pool holds.
    pub fn overcommit(&self) -> f64 {
        percent(self.provisioned.bytes(), self.total.bytes()) / 100.0
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

/// How near to its limits a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pressure {
    /// Below every mark.
    #[default]
    Normal,
    /// At or past the warn mark.
    Warn,
    /// At or past the refuse mark: nothing new is made.
    Refuse,
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Pressure::Normal => "normal",
            Pressure::Warn => "warn",
            Pressure::Refuse => "refuse",
        })
    }
}

/// What an operation would add to a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceRequest {
    /// Growth of the sum of virtual sizes.
    pub provisioned: ByteSize,
    /// Bytes that are occupied at once: a thick volume, or data that an emulation copies.
    pub reserved: ByteSize,
}

/// When to warn of a filling pool and when to refuse. Applied at create, grow, clone, snapshot,
/// copy and revert; never to writes of existing volumes or to anything that frees space.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThinPolicy {
    /// Largest sum of virtual sizes, as a multiple of the pool's total; `None` for no limit.
    pub overcommit_limit: Option<f64>,
    /// From this occupancy on, in percent, of data or metadata, operations warn.
    pub warn_percent: f64,
    /// An operation that starts at or would pass this occupancy, in percent, is refused.
    /// 100 switches the refusal off.
    pub refuse_percent: f64,
}

impl Default for ThinPolicy {
    /// No over-commit limit, warn at 80 %, refuse at 95 %.
    fn default() -> Self {
        ThinPolicy {
            overcommit_limit: None,
            warn_percent: 80.0,
            refuse_percent: 95.0,
        }
    }
}

impl ThinPolicy {
    /// A policy from optional settings; those left out have the defaults.
    ///
    /// # Errors
    /// `InvalidConfig` if a mark is not within 0 to 100, or the limit is not a number above 0.
    pub fn from_settings(
        overcommit_limit: Option<f64>,
        warn_percent: Option<f64>,
        refuse_percent: Option<f64>,
    ) -> Result<Self> {
        let default = ThinPolicy::default();
        let policy = ThinPolicy {
            overcommit_limit,
            refuse_percent: refuse_percent.unwrap_or(default.refuse_percent),
            warn_percent: warn_percent.unwrap_or(default.warn_percent),
        };
        let wrong = |key, value: f64, reason| {
            Err(Error::new(ErrorKind::InvalidConfig, "thin_policy")
                .with(key, value)
                .reason(reason))
        };
        for (key, value) in [
            ("warn_percent", policy.warn_percent),
            ("refuse_percent", policy.refuse_percent),
        ] {
            if !(0.0..=100.0).contains(&value) {
                return wrong(key, value, "a mark is a percentage from 0 to 100");
            }
        }
        match policy.overcommit_limit {
            Some(limit) if !(limit.is_finite() && limit > 0.0) => wrong(
                "overcommit_limit",
                limit,
                "the limit is a multiple above 0, such as 2.5",
            ),
            _ => Ok(policy),
        }
    }

    /// How near to its limits a pool with `usage` is.
    pub fn pressure(&self, usage: &Usage) -> Pressure {
        let occupancy = usage.used_percent().max(usage.metadata_percent());
        if self.refuse_percent < 100.0 && occupancy >= self.refuse_percent {
            Pressure::Refuse
        } else if occupancy >= self.warn_percent {
            Pressure::Warn
        } else {
            Pressure::Normal
        }
    }

    /// Decides whether an operation may go ahead, and returns the pressure that it leaves.
    ///
    /// # Errors
    /// `NoSpace` that names the limit, the occupancy and what can be done.
    pub fn admit(
        &self,
        usage: &Usage,
        request: &SpaceRequest,
        op: &'static str,
    ) -> Result<Pressure> {
        let refuse = |reason: String, help: &str| {
            Err(Error::new(ErrorKind::NoSpace, op).reason(reason).help(help))
        };
        if request.reserved > usage.free {
            return refuse(
                format!(
                    "it needs {} at once and {} are free",
                    request.reserved, usage.free
                ),
                "free space in the pool, add space to it, or ask for less",
            );
        }
        let reserved = request.reserved.bytes();
        let after = Usage {
            used: ByteSize::new(usage.used.bytes().saturating_add(reserved)),
            free: ByteSize::new(usage.free.bytes() - reserved),
            provisioned: ByteSize::new(
                usage
                    .provisioned
                    .bytes()
                    .saturating_add(request.provisioned.bytes()),
            ),
            ..*usage
        };
        let pressure = self.pressure(&after);
        if pressure == Pressure::Refuse {
            return refuse(
                format!(
                    "the pool is or would be {:.1} % full (metadata {:.1} %) and its refuse mark is {} %",
                    after.used_percent(),
                    after.metadata_percent(),
                    self.refuse_percent
                ),
                "free or add space, or raise refuse_percent",
            );
        }
        if let Some(limit) = self.overcommit_limit {
            let grows = request.provisioned > ByteSize::ZERO;
            if grows && after.provisioned.bytes() as f64 > limit * after.total.bytes() as f64 {
                return refuse(
                    format!(
                        "{} would be provisioned on {}, and the over-commit limit is {limit}",
                        after.provisioned, after.total
                    ),
                    "delete volumes, add space, or raise overcommit_limit",
                );
            }
        }
        Ok(pressure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(used: u64, free: u64, provisioned: u64) -> Usage {
        Usage {
            total: ByteSize::new(used + free),
            used: ByteSize::new(used),
            free: ByteSize::new(free),
            provisioned: ByteSize::new(provisioned),
            ..Usage::default()
        }
    }

    #[test]
    fn marks_warn_and_refuse() {
        let policy = ThinPolicy::default();
        let ask = SpaceRequest::default();
        assert_eq!(
            policy.admit(&usage(79, 21, 0), &ask, "t").expect("below"),
            Pressure::Normal
        );
        assert_eq!(
            policy.admit(&usage(80, 20, 0), &ask, "t").expect("warn"),
            Pressure::Warn
        );
        assert_eq!(
            policy
                .admit(&usage(95, 5, 0), &ask, "t")
                .expect_err("full")
                .kind(),
            ErrorKind::NoSpace
        );
        let off = ThinPolicy {
            refuse_percent: 100.0,
            ..policy
        };
        assert_eq!(
            off.admit(&usage(100, 0, 0), &ask, "t").expect("off"),
            Pressure::Warn
        );
    }

    #[test]
    fn reserved_bytes_count_before_they_are_taken() {
        let policy = ThinPolicy::default();
        let ask = |n| SpaceRequest {
            provisioned: ByteSize::new(n),
            reserved: ByteSize::new(n),
        };
        assert!(policy.admit(&usage(50, 50, 0), &ask(20), "t").is_ok());
        assert!(policy.admit(&usage(50, 50, 0), &ask(46), "t").is_err());
        assert!(policy.admit(&usage(50, 50, 0), &ask(51), "t").is_err());
    }

    #[test]
    fn overcommit_is_limited_only_for_what_grows() {
        let policy = ThinPolicy {
            overcommit_limit: Some(2.0),
            ..ThinPolicy::default()
        };
        let ask = |n| SpaceRequest {
            provisioned: ByteSize::new(n),
            reserved: ByteSize::ZERO,
        };
        assert!(policy.admit(&usage(10, 90, 150), &ask(50), "t").is_ok());
        assert!(policy.admit(&usage(10, 90, 150), &ask(51), "t").is_err());
        assert!(policy.admit(&usage(10, 90, 999), &ask(0), "t").is_ok());
    }

    #[test]
    fn metadata_counts_too() {
        let full = Usage {
            metadata: Some(MetadataUsage {
                total: 100,
                used: 96,
            }),
            ..usage(1, 99, 0)
        };
        assert!(
            ThinPolicy::default()
                .admit(&full, &SpaceRequest::default(), "t")
                .is_err()
        );
    }

    #[test]
    fn wrong_settings_are_refused() {
        for (limit, warn, refuse) in [
            (Some(0.0), None, None),
            (Some(f64::NAN), None, None),
            (None, Some(-1.0), None),
            (None, None, Some(101.0)),
        ] {
            let error = ThinPolicy::from_settings(limit, warn, refuse).expect_err("wrong");
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        }
    }
}

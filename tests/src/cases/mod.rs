//! The cases, one file a clause of the contract (or a few small ones together).

pub(crate) mod concurrent;
pub(crate) mod cost;
pub(crate) mod crash;
pub(crate) mod device;
pub(crate) mod dropped;
pub(crate) mod errors;
pub(crate) mod extents;
pub(crate) mod flatten;
pub(crate) mod idempotent;
pub(crate) mod in_use;
pub(crate) mod independent;
pub(crate) mod long_work;
pub(crate) mod names;
pub(crate) mod policy;
pub(crate) mod pool;
pub(crate) mod retried;
pub(crate) mod revert;
pub(crate) mod sizes;
pub(crate) mod unsupported;
pub(crate) mod writers;
pub(crate) mod zeros;

pub(crate) use crate::content::{assert_same, assert_zeros, pattern, read_all, read_device};
pub(crate) use crate::ctx::{Ctx, State, assert_error, checked_name as n};

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const MIB: u64 = 1 << 20;

//! What a pool can do, how full it is, and when it refuses.

use std::mem::MaybeUninit;

use crate::enums::{vmx_pressure, vmx_support};
use crate::error::vmx_error;
use crate::guard;
use crate::plain::{Plain, VMX_NONE};
use crate::pool::vmx_pool;
use crate::status::vmx_status;

/// What a pool can do. Everything else works on every pool.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_capabilities {
    /// Read-only snapshots.
    pub snapshot: vmx_support,
    /// Linked, writable clones.
    pub clone: vmx_support,
    /// Putting a volume back to one of its snapshots.
    pub revert: vmx_support,
    /// Space taken on write.
    pub thin: vmx_support,
    /// Space reserved at creation.
    pub thick: vmx_support,
    /// Making a volume smaller.
    pub shrink: vmx_support,
    /// Giving back the space of discarded ranges.
    pub discard: vmx_support,
    /// Extents that changed since a snapshot (their grade says how exactly).
    pub changed_extents: vmx_support,
    /// Handing a volume to a host by itself, without an export.
    pub attach: vmx_support,
    /// Taking over something that already exists.
    pub adopt: vmx_support,
    /// Several writers of one volume at once, when asked for.
    pub shared_writers: vmx_support,
    /// Taking a volume away from a live writer.
    pub fencing: vmx_support,
}

// SAFETY: twelve enumerations of 4 bytes, never read from the caller.
unsafe impl Plain for vmx_capabilities {
    const FIRST_SIZE: usize = 48;
}

/// What a pool can do. Does not change while it is open. `capabilities_size` is the structure's
/// size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_get_capabilities(
    pool: Option<&vmx_pool>,
    capabilities: *mut vmx_capabilities,
    capabilities_size: usize,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("capabilities", err, |call| {
        let can = vmx_pool::of(call, pool)?.capabilities();
        let can = vmx_capabilities {
            snapshot: can.snapshot.into(),
            clone: can.clone.into(),
            revert: can.revert.into(),
            thin: can.thin.into(),
            thick: can.thick.into(),
            shrink: can.shrink.into(),
            discard: can.discard.into(),
            changed_extents: can.changed_extents.into(),
            attach: can.attach.into(),
            adopt: can.adopt.into(),
            shared_writers: can.shared_writers.into(),
            fencing: can.fencing.into(),
        };
        // SAFETY: structures have the size that callers say.
        unsafe { call.output(can, capabilities, capabilities_size, "capabilities") }
    })
}

/// When a pool warns of filling up, and when it refuses.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_policy {
    /// Largest sum of virtual sizes, as a multiple of the pool's total; 0 for no limit.
    pub overcommit_limit: f64,
    /// From this occupancy on, in percent, of data or metadata, the pressure is a warning.
    pub warn_percent: f64,
    /// What starts at or would pass this occupancy, in percent, is refused. 100: nothing is.
    pub refuse_percent: f64,
}

// SAFETY: three numbers of 8 bytes.
unsafe impl Plain for vmx_policy {
    const FIRST_SIZE: usize = 24;
}

/// The marks and limits that a pool applies. `policy_size` is the structure's size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_get_policy(
    pool: Option<&vmx_pool>,
    policy: *mut vmx_policy,
    policy_size: usize,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("policy", err, |call| {
        let applied = vmx_pool::of(call, pool)?.policy();
        let applied = vmx_policy {
            overcommit_limit: applied.overcommit_limit.unwrap_or(0.0),
            warn_percent: applied.warn_percent,
            refuse_percent: applied.refuse_percent,
        };
        // SAFETY: structures have the size that callers say.
        unsafe { call.output(applied, policy, policy_size, "policy") }
    })
}

/// How full a pool is. Sizes are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_usage {
    /// What the pool can hold.
    pub total: u64,
    /// What is occupied, by volumes and by anything else that shares the space.
    pub used: u64,
    /// What can still be written. `used + free` may be less than `total` where the store keeps a
    /// reserve.
    pub free: u64,
    /// The sum of the virtual sizes of all volumes, snapshots included.
    pub provisioned: u64,
    /// Units of the store's metadata in all (inodes, say), where that can run out by itself;
    /// otherwise `VMX_NONE`.
    pub metadata_total: u64,
    /// Units in use; or `VMX_NONE`.
    pub metadata_used: u64,
    /// In how many seconds data or metadata will be full if they go on growing as they did of late;
    /// `VMX_NONE` where that is not known or nothing grows.
    pub time_to_full: u64,
    /// Occupied share of what can be occupied, in percent.
    pub used_percent: f64,
    /// Occupied share of the metadata, in percent; 0 where there is none.
    pub metadata_percent: f64,
    /// Virtual sizes promised over what the pool holds.
    pub overcommit: f64,
    /// How near to the limits of its policy the pool is.
    pub pressure: vmx_pressure,
    /// 0.
    pub reserved: u32,
}

// SAFETY: ten numbers of 8 bytes and two of 4, never read from the caller.
unsafe impl Plain for vmx_usage {
    const FIRST_SIZE: usize = 88;
}

/// How full a pool is. `usage_size` is the structure's size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_get_usage(
    pool: Option<&vmx_pool>,
    usage: *mut vmx_usage,
    usage_size: usize,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("usage", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        call.check_output(usage, usage_size, "usage")?;
        let now = pool.usage()?;
        let now = vmx_usage {
            total: now.total.bytes(),
            used: now.used.bytes(),
            free: now.free.bytes(),
            provisioned: now.provisioned.bytes(),
            metadata_total: now.metadata.map_or(VMX_NONE, |m| m.total),
            metadata_used: now.metadata.map_or(VMX_NONE, |m| m.used),
            time_to_full: now.time_to_full.map_or(VMX_NONE, |t| t.as_secs()),
            used_percent: now.used_percent(),
            metadata_percent: now.metadata_percent(),
            overcommit: now.overcommit(),
            pressure: pool.policy().pressure(&now).into(),
            reserved: 0,
        };
        // SAFETY: structures have the size that callers say.
        unsafe { call.output(now, usage, usage_size, "usage") }
    })
}

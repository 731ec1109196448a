//! Snapshots of several volumes of one moment.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::time::Duration;

use volmux::blocking::{Freezer, Member, snapshot_group};
use volmux::group::GroupOptions;
use volmux::{Error, ErrorKind, Result};

use crate::args::Call;
use crate::control::{Running, vmx_control};
use crate::error::vmx_error;
use crate::guard;
use crate::pool::vmx_pool;
use crate::status::vmx_status;
use crate::volume::vmx_volume;

/// A volume that belongs to a group, and its snapshot's name. Unlike other structures this one, as
/// an element of an array, never grows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_group_member {
    /// Where it is. A machine's disks may be in several pools.
    pub pool: *const vmx_pool,
    /// The volume.
    pub volume: *const c_char,
    /// The snapshot to be made, in the same pool.
    pub snapshot: *const c_char,
}

/// Makes what writes the volumes stand still, or lets it go on: a guest's file systems by its agent, a
/// data base, the program itself. It returns 0 if it has done so.
///
/// Called from a thread of its own, in which calls that wait may be made; not any more once the
/// operation has returned. It must return: no exception, no longjmp, no pthread_exit.
pub type vmx_hold = Option<unsafe extern "C" fn(data: *mut c_void) -> c_int>;

/// Both functions with their data.
struct Held {
    freeze: unsafe extern "C" fn(*mut c_void) -> c_int,
    thaw: unsafe extern "C" fn(*mut c_void) -> c_int,
    data: *mut c_void,
    op: &'static str,
}

// SAFETY: that the data may be used from any thread is what callers owe.
unsafe impl Send for Held {}
// SAFETY: as above; `thaw` may be called while `freeze` still runs.
unsafe impl Sync for Held {}

impl Held {
    fn call(&self, function: unsafe extern "C" fn(*mut c_void) -> c_int, name: &str) -> Result<()> {
        // SAFETY: the caller vouches for the function and its data while the operation runs.
        match unsafe { function(self.data) } {
            0 => Ok(()),
            code => Err(Error::new(ErrorKind::Unavailable, self.op)
                .with("returned", code)
                .reason(format!("{name} failed"))),
        }
    }
}

impl Freezer for Held {
    fn freeze(&self) -> Result<()> {
        self.call(self.freeze, "freeze")
    }

    fn thaw(&self) -> Result<()> {
        self.call(self.thaw, "thaw")
    }
}

/// Calls `freeze`, takes a snapshot of each of `count` members, all at once, and calls `thaw`. So
/// the snapshots are of one moment. `volumes` is NULL, or gets as many volumes, in the same order.
///
/// Writing stands still for `deadline_milliseconds` at most (0: for 10000) from when `freeze` is
/// called; then `thaw` is called whatever the pools do, and the call fails with `VMX_TIMED_OUT`. It
/// is called after every `freeze`, also one that failed or still runs, again if it fails, and once
/// more after a `freeze` that returns late. What can be found wrong before is found before `freeze`
/// is called. If anything fails, no snapshot is left that was made here (`vmx_error_get(err,
/// "left_behind")` names those that could not be removed). The snapshots' names must be this call's
/// alone. `control` may be NULL; it cancels, and tells of no progress.
///
/// Fails with `VMX_INVALID_INPUT` for no member or a snapshot that is named twice,
/// `VMX_ALREADY_EXISTS` if one is there, `VMX_UNAVAILABLE` if `freeze` or `thaw` does not return 0, and
/// as `vmx_snapshot_volume`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_snapshot_group(
    members: *const vmx_group_member,
    count: usize,
    freeze: vmx_hold,
    thaw: vmx_hold,
    data: *mut c_void,
    deadline_milliseconds: u64,
    control: Option<&vmx_control>,
    volumes: *mut *mut vmx_volume,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("snapshot_group", err, |call| {
        // SAFETY: there are `count` members, and texts end with NUL.
        let members = unsafe { given(call, members, count)? };
        let held = Held {
            freeze: call.given(freeze, "freeze")?,
            thaw: call.given(thaw, "thaw")?,
            data,
            op: call.op,
        };
        let running = Running::new(control);
        let mut options = GroupOptions {
            control: running.control(),
            ..GroupOptions::default()
        };
        if deadline_milliseconds > 0 {
            options.deadline = Duration::from_millis(deadline_milliseconds);
        }
        let taken = snapshot_group(&members, held, options)?;
        if !volumes.is_null() {
            for (i, volume) in taken.into_iter().enumerate() {
                let volume = Box::into_raw(Box::new(vmx_volume::new(volume)));
                // SAFETY: the caller has room for as many as there are members.
                unsafe { volumes.add(i).write(volume) };
            }
        }
        Ok(())
    })
}

/// # Safety
/// `first` points to `count` members, or is NULL; what they point to is there.
unsafe fn given(call: Call, first: *const vmx_group_member, count: usize) -> Result<Vec<Member>> {
    // SAFETY: the caller vouches for it.
    let members = unsafe { call.array(first, count, "members")? };
    let member = |given: &vmx_group_member| {
        // SAFETY: the caller vouches for it.
        let (pool, volume, snapshot) = unsafe {
            (
                given.pool.as_ref(),
                call.name(given.volume, "members")?,
                call.name(given.snapshot, "members")?,
            )
        };
        Ok(Member {
            pool: vmx_pool::named(call, pool, "members")?.clone(),
            volume,
            snapshot,
        })
    };
    members.iter().map(member).collect()
}

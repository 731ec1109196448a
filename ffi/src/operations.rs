//! What is done with the volumes of a pool.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr;

use volmux::{
    ByteSize, CloneOptions, CopyOptions, CreateOptions, FlattenOptions, ResizeOptions,
    RevertOptions, SnapshotOptions,
};

use crate::control::{Running, vmx_control};
use crate::enums::PROVISIONING;
use crate::error::vmx_error;
use crate::guard;
use crate::plain::Plain;
use crate::pool::vmx_pool;
use crate::status::vmx_status;
use crate::volume::vmx_volume;

/// How to create a volume.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_create_options {
    /// What the guest will see, in bytes. A pool may round up, and returns what it made.
    pub size: u64,
    /// A `vmx_provisioning`.
    pub provisioning: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: numbers of 8, 4 and 4 bytes.
unsafe impl Plain for vmx_create_options {
    const FIRST_SIZE: usize = 16;
}

/// Makes a volume that reads as zeros. If it exists and was made with the same options, it is
/// returned as it is. `options_size` is the size of the options; `volume` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_create_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    options: *const vmx_create_options,
    options_size: usize,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("create_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL, and structures have the size that callers say.
        let (name, given) = unsafe {
            let name = call.name(name, "name")?;
            (name, call.input(options, options_size, "options")?)
        };
        let options = CreateOptions {
            size: ByteSize::new(given.size),
            provisioning: call.one_of(&PROVISIONING, given.provisioning, "provisioning")?,
        };
        call.one_of(&[()], given.reserved, "reserved")?;
        vmx_volume::give(volume, pool.create_volume(&name, options)?);
        Ok(())
    })
}

/// Looks a volume up, with everything that is known of it. `VMX_NOT_FOUND` if it does not exist.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_get_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let name = unsafe { call.name(name, "name")? };
        let out = call.out(volume, "volume")?;
        vmx_volume::give(Some(out), pool.volume(&name)?);
        Ok(())
    })
}

/// Looks a volume up; `*volume` is NULL if it does not exist, and the status `VMX_OK`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_find_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let name = unsafe { call.name(name, "name")? };
        let out = call.out(volume, "volume")?;
        match pool.find_volume(&name)? {
            Some(volume) => vmx_volume::give(Some(out), volume),
            None => _ = out.write(ptr::null_mut()),
        }
        Ok(())
    })
}

/// How to resize a volume.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_resize_options {
    /// The new virtual size, in bytes. A pool may round up.
    pub size: u64,
    /// 1: allow a smaller size, which throws away what lies past it.
    pub allow_shrink: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: numbers of 8, 4 and 4 bytes.
unsafe impl Plain for vmx_resize_options {
    const FIRST_SIZE: usize = 16;
}

/// Changes the virtual size. Growing works while the volume is in use; the new part reads as zeros.
/// `options_size` is the size of the options; `volume` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_resize_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    options: *const vmx_resize_options,
    options_size: usize,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("resize_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL, and structures have the size that callers say.
        let (name, given) = unsafe {
            let name = call.name(name, "name")?;
            (name, call.input(options, options_size, "options")?)
        };
        let options = ResizeOptions {
            size: ByteSize::new(given.size),
            allow_shrink: call.flag(given.allow_shrink, "allow_shrink")?,
        };
        call.one_of(&[()], given.reserved, "reserved")?;
        vmx_volume::give(volume, pool.resize_volume(&name, options)?);
        Ok(())
    })
}

/// Gives a volume another name. Works while it is in use. `volume` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_rename_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    to: *const c_char,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("rename_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let (name, to) = unsafe { (call.name(name, "name")?, call.name(to, "to")?) };
        vmx_volume::give(volume, pool.rename_volume(&name, &to)?);
        Ok(())
    })
}

/// Deletes a volume; its snapshots and clones stay as they are. Succeeds if it does not exist.
/// Fails with `VMX_BUSY` while it is open or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_delete_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("delete_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let name = unsafe { call.name(name, "name")? };
        pool.delete_volume(&name)
    })
}

/// Makes `name`, a read-only image of `source` at this moment. It holds every write that was flushed
/// before the call. `control` and `volume` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_snapshot_volume(
    pool: Option<&vmx_pool>,
    source: *const c_char,
    name: *const c_char,
    control: Option<&vmx_control>,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("snapshot_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let (source, name) = unsafe { (call.name(source, "source")?, call.name(name, "name")?) };
        let running = Running::new(control);
        let control = running.control();
        let made = pool.snapshot_volume(&source, &name, SnapshotOptions { control })?;
        vmx_volume::give(volume, made);
        Ok(())
    })
}

/// Makes `name`, a writable volume that starts with the content of `source` at this moment and
/// shares its blocks. `source` may be a volume or a snapshot. `control` and `volume` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_clone_volume(
    pool: Option<&vmx_pool>,
    source: *const c_char,
    name: *const c_char,
    control: Option<&vmx_control>,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("clone_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let (source, name) = unsafe { (call.name(source, "source")?, call.name(name, "name")?) };
        let running = Running::new(control);
        let control = running.control();
        let made = pool.clone_volume(&source, &name, CloneOptions { control })?;
        vmx_volume::give(volume, made);
        Ok(())
    })
}

/// Makes `name`, a full and independent duplicate of `source` that shares no block with it. Moves
/// only the data, not the holes. `control` and `volume` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_copy_volume(
    pool: Option<&vmx_pool>,
    source: *const c_char,
    name: *const c_char,
    control: Option<&vmx_control>,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("copy_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let (source, name) = unsafe { (call.name(source, "source")?, call.name(name, "name")?) };
        let running = Running::new(control);
        let control = running.control();
        let made = pool.copy_volume(&source, &name, CopyOptions { control })?;
        vmx_volume::give(volume, made);
        Ok(())
    })
}

/// Copies `source` into the pool `target`, of any kind, as `name`. It is made thin, or thick in a
/// pool that has no thin volumes, and removed again if the copy fails. `VMX_ALREADY_EXISTS` whenever
/// `name` is taken there. `control` and `volume` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_copy_volume_to(
    pool: Option<&vmx_pool>,
    source: *const c_char,
    target: Option<&vmx_pool>,
    name: *const c_char,
    control: Option<&vmx_control>,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("copy_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        let target = vmx_pool::named(call, target, "target")?;
        // SAFETY: texts end with NUL.
        let (source, name) = unsafe { (call.name(source, "source")?, call.name(name, "name")?) };
        let running = Running::new(control);
        let control = running.control();
        let made = pool.copy_volume_to(&source, target, &name, CopyOptions { control })?;
        vmx_volume::give(volume, made);
        Ok(())
    })
}

/// Puts a volume's content and size back to those of `snapshot`, one of its own snapshots. It keeps
/// its name and identity. Fails with `VMX_BUSY` while it is open or attached. `control` and `volume`
/// may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_revert_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    snapshot: *const c_char,
    control: Option<&vmx_control>,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("revert_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let (name, snapshot) = unsafe {
            let name = call.name(name, "name")?;
            (name, call.name(snapshot, "snapshot")?)
        };
        let running = Running::new(control);
        let control = running.control();
        let reverted = pool.revert_volume(&name, &snapshot, RevertOptions { control })?;
        vmx_volume::give(volume, reverted);
        Ok(())
    })
}

/// Makes a volume independent of the data files of others, with the same content, where reads may
/// have to look through a chain of them. Elsewhere there is nothing to do. `control` and `volume`
/// may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_flatten_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    control: Option<&vmx_control>,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("flatten_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let name = unsafe { call.name(name, "name")? };
        let running = Running::new(control);
        let control = running.control();
        let flat = pool.flatten_volume(&name, FlattenOptions { control })?;
        vmx_volume::give(volume, flat);
        Ok(())
    })
}

/// Takes over something that exists in the pool's place and is not yet a volume. `what` is in the
/// pool's own terms: a path below the root of a directory pool, an LV of a volume group. `volume`
/// may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_adopt_volume(
    pool: Option<&vmx_pool>,
    what: *const c_char,
    name: *const c_char,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("adopt_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let (what, name) = unsafe { (call.text(what, "what")?, call.name(name, "name")?) };
        vmx_volume::give(volume, pool.adopt_volume(what, &name)?);
        Ok(())
    })
}

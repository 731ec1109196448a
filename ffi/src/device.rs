//! The data path: an open volume.

use std::ffi::{CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use bytes::Bytes;
use volmux::blocking::Device;
use volmux::{Buffer, ByteRange, Error, ErrorKind, OpenOptions, Result, ZeroOptions};

use crate::args::Call;
use crate::enums::{ACCESS, SHARING, vmx_access};
use crate::error::vmx_error;
use crate::guard::{self, free, quiet};
use crate::plain::Plain;
use crate::pool::vmx_pool;
use crate::status::vmx_status;
use crate::text::{shown, text};

/// An open volume. Any number of threads may use it at once, and many requests may be under way;
/// requests that overlap and are under way together have no order.
///
/// A request that was answered has taken effect; it is durable once a later flush was answered.
#[derive(Debug)]
pub struct vmx_device {
    device: Device,
    name: CString,
}

impl vmx_device {
    pub(crate) fn new(device: Device) -> Self {
        let name = text(device.name().as_str());
        vmx_device { device, name }
    }

    /// The device of an argument, in the process that has it.
    pub(crate) fn of(call: Call, device: Option<&vmx_device>) -> Result<&Device> {
        let device = &call.given(device, "device")?.device;
        call.at_home(device.threads())?;
        Ok(device)
    }
}

/// How to open a volume. All zeros: for reading only, together with a writer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_open_options {
    /// A `vmx_access`.
    pub access: u32,
    /// A `vmx_sharing`.
    pub sharing: u32,
    /// 1: take the volume away from a writer that holds it, whose next request fails with
    /// `VMX_FENCED`. Needs the capability `fencing`.
    pub take_over: u32,
}

// SAFETY: three numbers of 4 bytes.
unsafe impl Plain for vmx_open_options {
    const FIRST_SIZE: usize = 12;
}

/// Opens a volume's data path. `options` may be NULL, for reading only; `options_size` is its size.
/// Fails with `VMX_BUSY` if another writer holds it, `VMX_INVALID_INPUT` for writing to a snapshot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_open_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    options: *const vmx_open_options,
    options_size: usize,
    device: Option<&mut MaybeUninit<*mut vmx_device>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("open_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let name = unsafe { call.name(name, "name")? };
        let options = match options.is_null() {
            true => OpenOptions::read_only(),
            false => {
                // SAFETY: structures have the size that callers say.
                let given = unsafe { call.input(options, options_size, "options")? };
                OpenOptions {
                    access: call.one_of(&ACCESS, given.access, "access")?,
                    sharing: call.one_of(&SHARING, given.sharing, "sharing")?,
                    take_over: call.flag(given.take_over, "take_over")?,
                }
            }
        };
        let out = call.out(device, "device")?;
        let opened = vmx_device::new(pool.open_volume(&name, options)?);
        out.write(Box::into_raw(Box::new(opened)));
        Ok(())
    })
}

/// The volume's name when it was opened.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_device_name(device: Option<&vmx_device>) -> *const c_char {
    shown(device.map(|device| &device.name))
}

/// The size as far as it is known here, in bytes: grows when the volume is resized through the same
/// pool, and by `vmx_refresh_device`. 0 for NULL, and in a child of the process that opened it.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_device_size(device: Option<&vmx_device>) -> u64 {
    let call = Call { op: "size" };
    quiet(0, || {
        vmx_device::of(call, device).map_or(0, |device| device.size())
    })
}

/// For reading only, or for writing too.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_device_access(device: Option<&vmx_device>) -> vmx_access {
    let call = Call { op: "access" };
    let none = vmx_access::VMX_READ_ONLY;
    quiet(none, || {
        vmx_device::of(call, device).map_or(none, |device| device.access().into())
    })
}

/// Looks the size up in the store, so that a resize by another process or host is seen. `size` may
/// be NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_refresh_device(
    device: Option<&vmx_device>,
    size: Option<&mut MaybeUninit<u64>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("refresh", err, |call| {
        let now = vmx_device::of(call, device)?.refresh()?;
        if let Some(size) = size {
            size.write(now);
        }
        Ok(())
    })
}

/// Reads `length` bytes from `offset` into `buffer`. What was never written, or was discarded, is
/// zeros. On failure the buffer is as it was. It may be NULL for no bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_read(
    device: Option<&vmx_device>,
    offset: u64,
    buffer: *mut c_void,
    length: usize,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("read_at", err, |call| {
        let device = vmx_device::of(call, device)?;
        check_buffer(call, buffer, length)?;
        let data = device.read_at(offset, length)?;
        // SAFETY: the caller's buffer has `length` bytes.
        unsafe { fill(call, &data, buffer, length) }
    })
}

/// Writes `length` bytes of `buffer` at `offset`. It may be NULL for no bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_write(
    device: Option<&vmx_device>,
    offset: u64,
    buffer: *const c_void,
    length: usize,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("write_at", err, |call| {
        let device = vmx_device::of(call, device)?;
        // SAFETY: the caller's buffer has `length` bytes.
        device.write_at(offset, unsafe { copied(call, buffer, length)? })
    })
}

/// Makes every write that was answered before this call durable.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_flush(
    device: Option<&vmx_device>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("flush", err, |call| vmx_device::of(call, device)?.flush())
}

/// Gives back the space of a range, which reads as zeros afterwards.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_discard(
    device: Option<&vmx_device>,
    offset: u64,
    length: u64,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("discard", err, |call| {
        vmx_device::of(call, device)?.discard(ByteRange::new(offset, length))
    })
}

/// How zeros are written. All zeros: the space stays taken, and zeros are written out if need be.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_zero_options {
    /// 1: space may be given back.
    pub may_discard: u32,
    /// 1: fail with `VMX_UNSUPPORTED`, with nothing changed, where the store would have to write
    /// zeros out.
    pub fast_only: u32,
}

// SAFETY: two numbers of 4 bytes.
unsafe impl Plain for vmx_zero_options {
    const FIRST_SIZE: usize = 8;
}

/// # Safety
/// `options` is NULL or points to `size` readable bytes.
pub(crate) unsafe fn zero_options(
    call: Call,
    options: *const vmx_zero_options,
    size: usize,
) -> Result<ZeroOptions> {
    if options.is_null() {
        return Ok(ZeroOptions::default());
    }
    // SAFETY: the caller vouches for it.
    let given = unsafe { call.input(options, size, "options")? };
    Ok(ZeroOptions {
        may_discard: call.flag(given.may_discard, "may_discard")?,
        fast_only: call.flag(given.fast_only, "fast_only")?,
    })
}

/// Makes a range read as zeros. `options` may be NULL; `options_size` is its size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_write_zeroes(
    device: Option<&vmx_device>,
    offset: u64,
    length: u64,
    options: *const vmx_zero_options,
    options_size: usize,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("write_zeroes", err, |call| {
        let device = vmx_device::of(call, device)?;
        // SAFETY: structures have the size that callers say.
        let options = unsafe { zero_options(call, options, options_size)? };
        device.write_zeroes(ByteRange::new(offset, length), options)
    })
}

/// Closes a volume once its last request is answered; does not flush. NULL is fine. Requests that
/// are under way go on.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_device_free(device: Option<Box<vmx_device>>) {
    free(device);
}

/// Checks a caller's buffer: not NULL for what has bytes, and no longer than memory can be.
pub(crate) fn check_buffer<T>(call: Call, buffer: *const T, length: usize) -> Result<()> {
    if buffer.is_null() && length > 0 {
        return call.given(None, "buffer");
    }
    if isize::try_from(length).is_err() {
        return Err(call.wrong("length", "no buffer is that long"));
    }
    Ok(())
}

/// What the caller wants written. It is copied: a store may keep what it is given for longer than a
/// call takes.
///
/// # Safety
/// `buffer` has `length` readable bytes, or it is NULL.
pub(crate) unsafe fn copied(call: Call, buffer: *const c_void, length: usize) -> Result<Bytes> {
    check_buffer(call, buffer, length)?;
    if length == 0 {
        return Ok(Bytes::new());
    }
    let mut room = Buffer::new(length).map_err(|error| {
        Error::new(ErrorKind::InvalidInput, call.op)
            .with("length", length)
            .reason("there is not so much memory")
            .with_source(error)
    })?;
    // SAFETY: it is not NULL, its length fits, and the caller vouches for the rest.
    let data = unsafe { std::slice::from_raw_parts(buffer.cast(), length) };
    room.room().extend_from_slice(data);
    Ok(room.into_bytes())
}

/// Puts what was read where the caller wants it.
///
/// # Safety
/// `buffer` has `length` writable bytes, or it is NULL.
pub(crate) unsafe fn fill(
    call: Call,
    data: &Bytes,
    buffer: *mut c_void,
    length: usize,
) -> Result<()> {
    if data.len() != length {
        return Err(Error::new(ErrorKind::Internal, call.op)
            .with("length", length)
            .with("read", data.len())
            .reason("the store returned another number of bytes"));
    }
    if length > 0 {
        // SAFETY: both have `length` bytes, and the data is not the caller's memory.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), buffer.cast(), length) };
    }
    Ok(())
}

//! The data path without waiting: a call starts a request, and a callback tells of its end.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::panic::AssertUnwindSafe;
use std::ptr;
use std::sync::Arc;

use futures::FutureExt;
use volmux::{BlockDevice, ByteRange, Error, ErrorKind, Result};

use crate::args::Call;
use crate::device::{check_buffer, copied, fill, vmx_device, vmx_zero_options, zero_options};
use crate::error::vmx_error;
use crate::guard::{self, panicked};
use crate::status::vmx_status;

/// Told of the end of a request: its status, and the error (which is the callback's to free) or
/// NULL. Called exactly once for each request that was started with `VMX_OK`, and never for another,
/// from a thread of the library, possibly before the call that started it has returned.
///
/// It must be quick and must return: no exception, no longjmp. It may start further requests and
/// free any handle. Calls that wait are refused there with `VMX_INVALID_INPUT`.
pub type vmx_completion =
    Option<unsafe extern "C" fn(data: *mut c_void, status: vmx_status, error: *mut vmx_error)>;

/// A callback that has to be called.
struct Completion {
    callback: unsafe extern "C" fn(*mut c_void, vmx_status, *mut vmx_error),
    data: *mut c_void,
    op: &'static str,
    /// Whether the request has begun and was not told of yet.
    due: bool,
}

// SAFETY: that the data may be used from any thread is what callers owe.
unsafe impl Send for Completion {}

impl Completion {
    fn new(call: Call, callback: vmx_completion, data: *mut c_void) -> Result<Self> {
        let callback = call.given(callback, "callback")?;
        Ok(Completion {
            callback,
            data,
            op: call.op,
            due: false,
        })
    }

    fn tell(&mut self, result: Result<()>) {
        self.due = false;
        let (status, error) = guard::outcome(self.op, || result);
        let error = error.map_or(ptr::null_mut(), Box::into_raw);
        // SAFETY: the caller vouches for the function, and for its data until now.
        unsafe { (self.callback)(self.data, status, error) };
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.due {
            let lost = Error::new(ErrorKind::Internal, self.op).reason("the request was dropped");
            self.tell(Err(lost));
        }
    }
}

/// Where to read to, for another thread.
struct Target(*mut c_void);

// SAFETY: the caller lends the buffer to the library until the callback.
unsafe impl Send for Target {}

impl Target {
    fn pointer(&self) -> *mut c_void {
        self.0
    }
}

/// Starts `work` on a device.
fn start<F: Future<Output = Result<()>> + Send + 'static>(
    call: Call,
    device: Option<&vmx_device>,
    mut completion: Completion,
    work: impl FnOnce(Arc<dyn BlockDevice>) -> F,
) -> Result<()> {
    let device = vmx_device::of(call, device)?.clone();
    let threads = device.threads().clone();
    let work = work(device.inner().clone());
    let request = async move {
        completion.due = true;
        let done = AssertUnwindSafe(work).catch_unwind().await;
        let result = done.unwrap_or_else(|payload| Err(panicked(call.op, &*payload)));
        // Whoever has freed the device finds the volume closed once the last callback was called.
        let threads = device.threads().clone();
        drop(device);
        completion.tell(result);
        // The last one of them ends the threads, this one too.
        drop(threads);
    };
    threads.spawn(call.op, request).map(drop)
}

/// `vmx_read`, without waiting. `buffer` is the library's until the callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_read_async(
    device: Option<&vmx_device>,
    offset: u64,
    buffer: *mut c_void,
    length: usize,
    callback: vmx_completion,
    data: *mut c_void,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("read_at", err, |call| {
        let completion = Completion::new(call, callback, data)?;
        check_buffer(call, buffer, length)?;
        let target = Target(buffer);
        start(call, device, completion, |device| async move {
            let data = device.read_at(offset, length).await?;
            // SAFETY: the buffer has `length` bytes and is lent until the callback.
            unsafe { fill(call, &data, target.pointer(), length) }
        })
    })
}

/// `vmx_write`, without waiting. `buffer` must stay as it is until the callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_write_async(
    device: Option<&vmx_device>,
    offset: u64,
    buffer: *const c_void,
    length: usize,
    callback: vmx_completion,
    data: *mut c_void,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("write_at", err, |call| {
        let completion = Completion::new(call, callback, data)?;
        // SAFETY: the caller's buffer has `length` bytes.
        let bytes = unsafe { copied(call, buffer, length)? };
        start(call, device, completion, |device| async move {
            device.write_at(offset, bytes).await
        })
    })
}

/// `vmx_flush`, without waiting: covers the writes that were answered before it is started.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_flush_async(
    device: Option<&vmx_device>,
    callback: vmx_completion,
    data: *mut c_void,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("flush", err, |call| {
        let completion = Completion::new(call, callback, data)?;
        start(call, device, completion, |device| async move {
            device.flush().await
        })
    })
}

/// `vmx_discard`, without waiting.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_discard_async(
    device: Option<&vmx_device>,
    offset: u64,
    length: u64,
    callback: vmx_completion,
    data: *mut c_void,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("discard", err, |call| {
        let completion = Completion::new(call, callback, data)?;
        let range = ByteRange::new(offset, length);
        start(call, device, completion, |device| async move {
            device.discard(range).await
        })
    })
}

/// `vmx_write_zeroes`, without waiting.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_write_zeroes_async(
    device: Option<&vmx_device>,
    offset: u64,
    length: u64,
    options: *const vmx_zero_options,
    options_size: usize,
    callback: vmx_completion,
    data: *mut c_void,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("write_zeroes", err, |call| {
        let completion = Completion::new(call, callback, data)?;
        // SAFETY: structures have the size that callers say.
        let options = unsafe { zero_options(call, options, options_size)? };
        let range = ByteRange::new(offset, length);
        start(call, device, completion, |device| async move {
            device.write_zeroes(range, options).await
        })
    })
}

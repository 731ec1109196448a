//! Watching and stopping long work.

use std::ffi::c_void;
use std::fmt;
use std::mem::MaybeUninit;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use volmux::Control;

use crate::error::vmx_error;
use crate::guard::{self, free, quiet};
use crate::status::vmx_status;

/// Told how far a long operation is, in bytes of data to move (holes don't count). Called from the
/// thread that works, which may be the caller's or the library's, never by two at once for one
/// control, and not any more once the operation has returned. It must be quick, must not make calls
/// that wait, and must return: no exception, no longjmp. It may call `vmx_cancel`.
pub type vmx_progress = Option<unsafe extern "C" fn(data: *mut c_void, done: u64, total: u64)>;

/// Watches and stops the operations that it is given to; one may be given to several. Any number
/// of threads may use it at once.
#[derive(Debug)]
pub struct vmx_control {
    cancellation: CancellationToken,
    watch: Option<Arc<Watch>>,
    process: u32,
}

/// A callback with its data.
struct Watch {
    callback: unsafe extern "C" fn(*mut c_void, u64, u64),
    data: *mut c_void,
    /// Some pools move data in several threads.
    turn: Mutex<()>,
}

// SAFETY: that the data may be used from any thread is what the caller of `vmx_new_control` owes.
unsafe impl Send for Watch {}
// SAFETY: as above.
unsafe impl Sync for Watch {}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Tells of an operation, as long as it has not returned.
    fn tell(&self, returned: &Mutex<bool>, done: u64, total: u64) {
        let _turn = lock(&self.turn);
        let returned = lock(returned);
        if !*returned {
            // SAFETY: the caller vouches for the function and its data while the operation runs.
            unsafe { (self.callback)(self.data, done, total) };
        }
    }
}

/// An operation that is under way. Once this is dropped nothing is told of it any more, whatever
/// still runs in the background: the caller may free the callback's data then.
pub(crate) struct Running {
    control: Control,
    returned: Arc<Mutex<bool>>,
}

impl Running {
    pub(crate) fn new(control: Option<&vmx_control>) -> Self {
        let returned = Arc::new(Mutex::new(false));
        let mut inner = Control::new();
        if let Some(control) = control {
            inner = inner.with_cancel(control.cancellation.clone());
            if let Some(watch) = control.watch.clone() {
                let returned = returned.clone();
                inner = inner.with_progress(move |p| watch.tell(&returned, p.done, p.total));
            }
        }
        Running {
            control: inner,
            returned,
        }
    }

    /// What the core takes.
    pub(crate) fn control(&self) -> Control {
        self.control.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.returned) = true;
    }
}

/// Makes a control. `progress` may be NULL; `data` is passed to it, and must stay valid as long as
/// an operation with this control runs.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_new_control(
    progress: vmx_progress,
    data: *mut c_void,
    control: Option<&mut MaybeUninit<*mut vmx_control>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("new_control", err, |call| {
        let out = call.out(control, "control")?;
        let watch = |callback| {
            Arc::new(Watch {
                callback,
                data,
                turn: Mutex::default(),
            })
        };
        let control = vmx_control {
            cancellation: CancellationToken::new(),
            watch: progress.map(watch),
            process: process::id(),
        };
        out.write(Box::into_raw(Box::new(control)));
        Ok(())
    })
}

/// Asks every operation that has this control to stop, now and later ones too. They return
/// `VMX_TIMED_OUT` soon, and remove what they had made. May be called from any thread and any
/// callback. NULL is fine, and a control that a fork took along does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_cancel(control: Option<&vmx_control>) {
    quiet((), || {
        if let Some(control) = control.filter(|control| control.process == process::id()) {
            control.cancellation.cancel();
        }
    });
}

/// Whether `vmx_cancel` was called.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_control_is_cancelled(control: Option<&vmx_control>) -> bool {
    quiet(false, || {
        let control = control.filter(|control| control.process == process::id());
        control.is_some_and(|control| control.cancellation.is_cancelled())
    })
}

/// Frees a control. NULL is fine. Operations that have it go on, and go on telling of progress.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_control_free(control: Option<Box<vmx_control>>) {
    free(control);
}

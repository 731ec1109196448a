//! Errors as handles.

use std::error::Error as _;
use std::ffi::{CStr, CString, c_char};
use std::ptr;

use volmux::Error;

use crate::guard::{free, quiet};
use crate::status::vmx_status;
use crate::text::{shown, text};

/// Why a call failed: what sort of failure, in which operation, about which objects, and what
/// caused it. Belongs to who got it; any number of threads may read it at once.
///
/// All accessors take NULL, as the error of a call that did not fail.
#[derive(Debug)]
pub struct vmx_error {
    status: vmx_status,
    retryable: bool,
    op: CString,
    message: CString,
    context: Vec<(CString, CString)>,
    causes: Vec<CString>,
}

impl vmx_error {
    pub(crate) fn new(error: &Error) -> Self {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(text(error.to_string()));
            cause = error.source();
        }
        vmx_error {
            status: error.kind().into(),
            retryable: error.is_retryable(),
            op: text(error.op()),
            message: text(error.to_string()),
            context: error.context().map(|(k, v)| (text(k), text(v))).collect(),
            causes,
        }
    }

    pub(crate) fn status(&self) -> vmx_status {
        self.status
    }
}

/// What sort of failure it is: what the call returned. `VMX_OK` for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_status(error: Option<&vmx_error>) -> vmx_status {
    error.map_or(vmx_status::VMX_OK, |error| error.status)
}

/// The operation that failed, such as `create_volume`. NULL for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_op(error: Option<&vmx_error>) -> *const c_char {
    shown(error.map(|error| &error.op))
}

/// Operation, sort and context in one line, for people. The causes are not in it. NULL for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_message(error: Option<&vmx_error>) -> *const c_char {
    shown(error.map(|error| &error.message))
}

/// Whether the same call may succeed later without the caller changing anything.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_is_retryable(error: Option<&vmx_error>) -> bool {
    error.is_some_and(|error| error.retryable)
}

/// How many pairs of key and value tell of the circumstances.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_context_count(error: Option<&vmx_error>) -> usize {
    error.map_or(0, |error| error.context.len())
}

/// The key of a pair, counted from 0. Usual keys: `pool`, `volume`, `path`, `argument` (of the C
/// function), `reason` (what is wrong, in a sentence), `help` (what can be done). NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_context_key(error: Option<&vmx_error>, index: usize) -> *const c_char {
    shown(pair(error, index).map(|pair| &pair.0))
}

/// The value of a pair, counted from 0. NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_context_value(
    error: Option<&vmx_error>,
    index: usize,
) -> *const c_char {
    shown(pair(error, index).map(|pair| &pair.1))
}

fn pair(error: Option<&vmx_error>, index: usize) -> Option<&(CString, CString)> {
    error.and_then(|error| error.context.get(index))
}

/// The first value under `key`, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_error_get(
    error: Option<&vmx_error>,
    key: *const c_char,
) -> *const c_char {
    quiet(ptr::null(), || {
        let Some(error) = error.filter(|_| !key.is_null()) else {
            return ptr::null();
        };
        // SAFETY: it is not NULL, and callers give texts that end with NUL.
        let key = unsafe { CStr::from_ptr(key) };
        let found = error.context.iter().find(|(k, _)| k.as_c_str() == key);
        shown(found.map(|(_, value)| value))
    })
}

/// How many causes there are, each the cause of the one before it.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_cause_count(error: Option<&vmx_error>) -> usize {
    error.map_or(0, |error| error.causes.len())
}

/// A cause as text, counted from 0, the nearest first. NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_cause(error: Option<&vmx_error>, index: usize) -> *const c_char {
    shown(error.and_then(|error| error.causes.get(index)))
}

/// Frees an error. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_error_free(error: Option<Box<vmx_error>>) {
    free(error);
}

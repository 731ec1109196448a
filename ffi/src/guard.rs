//! What every export has around it: no panic leaves the library, and errors become handles.

use std::any::Any;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use volmux::{Error, ErrorKind, Result};

use crate::args::Call;
use crate::error::vmx_error;
use crate::status::vmx_status;

/// Does `body` as operation `op`. On failure `err` gets the error, if the caller wants it.
pub(crate) fn call(
    op: &'static str,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
    body: impl FnOnce(Call) -> Result<()>,
) -> vmx_status {
    let (status, error) = outcome(op, || body(Call { op }));
    if let (Some(error), Some(err)) = (error, err) {
        err.write(Box::into_raw(error));
    }
    status
}

/// What came of `work`, as C programs are told.
pub(crate) fn outcome(
    op: &'static str,
    work: impl FnOnce() -> Result<()>,
) -> (vmx_status, Option<Box<vmx_error>>) {
    let done = catch_unwind(AssertUnwindSafe(work));
    let error = match done {
        Ok(Ok(())) => return (vmx_status::VMX_OK, None),
        Ok(Err(error)) => error,
        Err(payload) => panicked(op, &*payload),
    };
    // An error that cannot even be shown is the same fault once more.
    let made = catch_unwind(AssertUnwindSafe(|| vmx_error::new(&error)));
    let made = made.unwrap_or_else(|payload| vmx_error::new(&panicked(op, &*payload)));
    (made.status(), Some(Box::new(made)))
}

/// What a panic with `payload` is to the caller.
pub(crate) fn panicked(op: &'static str, payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Error::new(ErrorKind::Internal, op)
        .with("panic", text.unwrap_or("of an unknown sort"))
        .reason("volmux has a fault")
        .help("report this, with what was called")
}

/// For exports that return a value and no status: `otherwise` where there is nothing to tell.
pub(crate) fn quiet<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

/// Ends a handle.
pub(crate) fn free<T>(handle: Option<Box<T>>) {
    quiet((), || drop(handle));
}

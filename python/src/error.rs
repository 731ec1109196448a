//! From errors of volmux to Python's exceptions.

use std::error::Error as StdError;
use std::io;

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};
use volmux::{Error, ErrorKind};

/// Why a call fails before or after its work: for a reason of volmux's, or with an exception that
/// Python raised.
#[derive(Debug)]
pub enum Failure {
    Volmux(Error),
    Python(PyErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Volmux(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Failure::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        match failure {
            Failure::Volmux(error) => Python::attach(|py| raise(py, &error)),
            Failure::Python(error) => error,
        }
    }
}

/// `InvalidInput` with this reason.
pub fn wrong(op: &'static str, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, op).reason(reason)
}

/// The exception for `error`, its cause in `__cause__`, and so on.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let exception = exception(py, error).unwrap_or_else(|failed| failed);
    if let Some(source) = error.source() {
        exception.set_cause(py, Some(cause(py, source)));
    }
    exception
}

fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    static CLASSES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let classes = CLASSES.import(py, "volmux._errors", "BY_CODE")?;
    let class = classes.get_item(error.kind().code())?;
    let context = PyList::new(py, error.context())?;
    let details = PyDict::new(py);
    details.set_item("op", error.op())?;
    details.set_item("context", context)?;
    let made = class.call((error.to_string(),), Some(&details))?;
    Ok(PyErr::from_value(made))
}

fn cause(py: Python<'_>, source: &(dyn StdError + 'static)) -> PyErr {
    if let Some(error) = source.downcast_ref::<Error>() {
        return raise(py, error);
    }
    if let Some(raised) = source.downcast_ref::<PyErr>() {
        return raised.clone_ref(py);
    }
    let made = match source.downcast_ref::<io::Error>() {
        Some(error) => match error.raw_os_error() {
            Some(code) => PyOSError::new_err((code, strerror(error))),
            None => PyOSError::new_err(error.to_string()),
        },
        None => PyRuntimeError::new_err(source.to_string()),
    };
    if let Some(next) = source.source() {
        made.set_cause(py, Some(cause(py, next)));
    }
    made
}

/// Without the number, which Python adds.
fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

//! The Python module of volmux: `volmux._volmux`, which the package in `lib/volmux` shows as `volmux`.

#![allow(
    clippy::redundant_closure_call,
    reason = "in one, a body can return early"
)]
#![allow(clippy::too_many_arguments, reason = "each keyword of a method is one")]

mod args;
mod buffer;
mod call;
mod control;
mod courier;
mod device;
mod error;
mod group;
mod handle;
mod iterators;
mod logging;
mod pool;
mod render;
mod server;
mod values;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use volmux::blocking::Threads;
use volmux::{ByteSize, PoolUrl};

use crate::args::{Number, Size};
use crate::call::Call;
use crate::error::Failure;
use crate::pool::Pool;

/// The work of `open_pool`.
fn opening(
    source: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> Result<Call, Failure> {
    static CONFIGURATION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let configuration = CONFIGURATION.import(source.py(), "volmux._config", "as_json")?;
    let json: String = configuration.call1((source, options))?.extract()?;
    let url = PoolUrl::from_json(&json)?;
    let threads = Threads::shared()?;
    Ok(Call::new("open_pool", &threads.clone(), async move {
        let pool = volmux::registry().open_url(&url).await?;
        Ok(Pool::new(pool, &threads))
    }))
}

/// Opens a pool: at a URL (`"dir:///srv/volumes"`, `"lvm://group/pool"`), in a directory (a `pathlib.Path`),
/// or from a configuration: a mapping, or JSON, with the URL under `url` and options beside it. Options
/// may be given as arguments too: `open_pool("memory:", total="10GiB")`.
///
/// Raises `InvalidConfig` for a wrong URL, an unknown scheme (with a list of those known) or option, and
/// what opening raises.
#[pyfunction]
#[pyo3(signature = (source, **options))]
fn open_pool(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<PyAny>> {
    opening(source, options)?.wait(py)
}

/// As `open_pool`, to be awaited.
#[pyfunction]
#[pyo3(signature = (source, **options))]
fn open_pool_async(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<PyAny>> {
    opening(source, options)?.begin(py)
}

/// The URL schemes of the pools that this build knows.
#[pyfunction]
fn schemes() -> Vec<&'static str> {
    let mut schemes: Vec<_> = volmux::registry().schemes().collect();
    schemes.sort_unstable();
    schemes
}

/// The bytes of a size such as `"10GiB"`, `"1.5TiB"`, `"500MB"`. Raises `InvalidInput`.
#[pyfunction]
fn parse_size(size: Size) -> u64 {
    size.0.bytes()
}

/// A number of bytes in the largest unit, rounded to two digits: `"1.50 KiB"`.
#[pyfunction]
fn format_size(size: Number) -> String {
    ByteSize::new(size.0).to_string()
}

/// For `volmux` alone: the interpreter is about to end.
#[pyfunction]
fn _end(py: Python<'_>) {
    courier::end(py);
}

/// For `volmux` alone: this process was forked.
#[pyfunction]
fn _after_fork() {
    courier::after_fork();
}

/// What `volmux` shows, without what is written in Python.
#[pymodule(gil_used = false)]
fn _volmux(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Another one is there if the module is made once more in this process: that is this one too.
    let _ = tracing::subscriber::set_global_default(logging::Logging);
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<control::Control>()?;
    module.add_class::<device::Device>()?;
    module.add_class::<iterators::ExtentIterator>()?;
    module.add_class::<Pool>()?;
    module.add_class::<server::Server>()?;
    module.add_class::<iterators::VolumeIterator>()?;
    module.add_function(wrap_pyfunction!(open_pool, module)?)?;
    module.add_function(wrap_pyfunction!(open_pool_async, module)?)?;
    module.add_function(wrap_pyfunction!(schemes, module)?)?;
    module.add_function(wrap_pyfunction!(group::snapshot_group, module)?)?;
    module.add_function(wrap_pyfunction!(group::snapshot_group_async, module)?)?;
    module.add_function(wrap_pyfunction!(parse_size, module)?)?;
    module.add_function(wrap_pyfunction!(format_size, module)?)?;
    module.add_function(wrap_pyfunction!(render::render, module)?)?;
    module.add_function(wrap_pyfunction!(_end, module)?)?;
    module.add_function(wrap_pyfunction!(_after_fork, module)?)
}

//! Open volumes.

use std::sync::Arc;

use bytes::Bytes;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use volmux::blocking::Threads;
use volmux::{Access, BlockDevice, ByteRange, ZeroOptions};

use crate::args::Number;
use crate::buffer::{self, Lent};
use crate::call::{self, Call, both_ways};
use crate::error::Failure;
use crate::handle::Handle;
use crate::iterators::ExtentIterator;
use crate::values::{self, ToPython};

/// An open volume; `Pool.open_volume` makes it.
///
/// Any number of threads and tasks may call at once, and many requests may be in flight. A request is
/// done when its call returns, and durable once a later `flush` has returned. A request that was
/// cancelled may or may not have taken effect, but none that is started later is overtaken by it.
///
/// `close` flushes what was written. As a context manager (`with`, `async with`) a device is closed at
/// the end. One that is merely forgotten is closed without a flush.
///
/// Each call raises `InvalidInput` for a range past the end and for a write to what was opened
/// read-only, `Fenced` once another writer took over, `NoSpace`, `Unavailable`, `Corrupt`.
#[pyclass(frozen, module = "volmux")]
pub(crate) struct Device {
    handle: Handle<Arc<dyn BlockDevice>>,
}

/// What was read into a Python object, which is given back with the interpreter.
struct Filled(Lent);

impl ToPython for Filled {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        (self.0.len() as u64).to_python(py)
    }
}

/// What was read, to be looked at where it is.
struct View(Bytes);

impl ToPython for View {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        buffer::view(py, self.0)
    }
}

impl ToPython for Device {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(Bound::new(py, self)?.into_any().unbind())
    }
}

impl Device {
    pub fn new(device: Arc<dyn BlockDevice>, threads: &Threads) -> Self {
        Device {
            handle: Handle::new(device, threads),
        }
    }

    /// Work on the open device.
    fn call<T, F>(
        &self,
        op: &'static str,
        work: impl FnOnce(Arc<dyn BlockDevice>) -> F,
    ) -> Result<Call, Failure>
    where
        T: ToPython + Send + 'static,
        F: Future<Output = volmux::Result<T>> + Send + 'static,
    {
        let work = work(self.handle.get(op)?);
        Ok(Call::new(op, self.handle.threads(), work))
    }
}

both_ways! {
impl Device {
    /// Reads `length` bytes from `offset`. What was never written, or was discarded, is zeros.
    #[args(offset, length)]
    fn read_at | read_at_async(&self, py: Python, offset: Number, length: Number) {
        self.call("read_at", |device| async move {
            device.read_at(offset.0, length.length()).await
        })
    }

    /// As `read_at`, but without a copy: a read-only `memoryview` of what was read.
    #[args(offset, length)]
    fn read_view | read_view_async(&self, py: Python, offset: Number, length: Number) {
        self.call("read_at", |device| async move {
            device.read_at(offset.0, length.length()).await.map(View)
        })
    }

    /// Fills `buffer` with what is read from `offset`, and returns its length in bytes. `buffer` is any
    /// writable object with contiguous memory: `bytearray`, `memoryview`, `array`, `mmap`. Until the
    /// call is done it can't be resized.
    #[args(offset, buffer)]
    fn read_into | read_into_async(&self, py: Python, offset: Number, buffer: Bound<'_, PyAny>) {
        let mut lent = Lent::to_write(&buffer)?;
        self.call("read_at", |device| async move {
            let data = device.read_at(offset.0, lent.len()).await?;
            lent.fill(&data);
            Ok(Filled(lent))
        })
    }

    /// Writes all of `data`, any object with contiguous memory, at `offset`. `bytes` are written without
    /// a copy; other objects are copied when the call is made, so that they may change at once.
    #[args(offset, data)]
    fn write_at | write_at_async(&self, py: Python, offset: Number, data: Bound<'_, PyAny>) {
        let data = buffer::content(&data)?;
        self.call("write_at", |device| async move { device.write_at(offset.0, data).await })
    }

    /// Makes every write that was done before this call durable.
    #[args()]
    fn flush | flush_async(&self, py: Python) {
        self.call("flush", |device| async move { device.flush().await })
    }

    /// Gives back the space of `length` bytes from `offset`, which read as zeros afterwards.
    #[args(offset, length)]
    fn discard | discard_async(&self, py: Python, offset: Number, length: Number) {
        let range = ByteRange::new(offset.0, length.0);
        self.call("discard", |device| async move { device.discard(range).await })
    }

    /// Makes `length` bytes from `offset` read as zeros. With `may_discard` space may be given back;
    /// with `fast_only` it raises `Unsupported` where the store would have to write zeros out.
    #[args(offset, length, *, may_discard = false, fast_only = false)]
    fn write_zeroes | write_zeroes_async(
        &self, py: Python, offset: Number, length: Number, may_discard: bool, fast_only: bool,
    ) {
        let range = ByteRange::new(offset.0, length.0);
        let options = ZeroOptions { may_discard, fast_only };
        self.call("write_zeroes", |device| async move {
            device.write_zeroes(range, options).await
        })
    }

    /// The extents that hold data, within `length` bytes from `offset`.
    #[args(offset = Number(0), length = None)]
    fn extents | extents_async(&self, py: Python, offset: Number, length: Option<Number>) {
        let threads = self.handle.threads().clone();
        self.call("extents", |device| async move {
            let rest = || device.size().saturating_sub(offset.0);
            let length = length.map_or_else(rest, |length| length.0);
            let extents = device.extents(ByteRange::new(offset.0, length)).await?;
            Ok(ExtentIterator::new(extents, &threads))
        })
    }

    /// Looks the size up in the store, so that a resize by another process is seen, and returns it.
    /// Raises `NotFound` if the volume is gone.
    #[args()]
    fn refresh | refresh_async(&self, py: Python) {
        self.call("refresh", |device| async move { device.refresh().await })
    }

    /// Flushes, if it was opened for writing, and closes the volume, even if the flush raises. Closing
    /// again does nothing.
    #[args()]
    fn close | close_async(&self, py: Python) {
        let threads = self.handle.threads();
        let device = self.handle.close();
        Ok(Call::new("close", threads, async move {
            match device {
                Some(device) if device.access() == Access::ReadWrite => device.flush().await,
                _ => Ok(()),
            }
        }))
    }
}

    /// The volume's name when it was opened.
    #[getter]
    fn name(&self, py: Python<'_>) -> PyResult<String> {
        let look = |device: &Arc<dyn BlockDevice>| device.name().to_string();
        Ok(self.handle.with(py, "name", look)?)
    }

    /// The size in bytes, as far as it is known here: see `refresh`.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        let look = |device: &Arc<dyn BlockDevice>| device.size();
        Ok(self.handle.with(py, "size", look)?)
    }

    /// For reading only, or for writing too.
    #[getter]
    fn access(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let look = |device: &Arc<dyn BlockDevice>| device.access();
        values::access(py, self.handle.with(py, "access", look)?)
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.handle.is_closed()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*exception))]
    fn __exit__(&self, py: Python<'_>, exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        let failed = exception.get_item(0).is_ok_and(|kind| !kind.is_none());
        match self.close(py) {
            // What went wrong first is what has to be seen, but for Ctrl-C.
            Err(error) if failed && error.is_instance_of::<PyException>(py) => Ok(()),
            closed => closed.map(drop),
        }
    }

    fn __aenter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        call::ready(py, slf.into_any())
    }

    #[pyo3(signature = (*exception))]
    fn __aexit__(&self, py: Python<'_>, exception: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        let closing = self.close_async(py)?;
        let failed = exception.get_item(0).is_ok_and(|kind| !kind.is_none());
        if failed {
            closing.bind(py).call_method0("_forgive")?;
        }
        Ok(closing)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.name(py) {
            Ok(name) => format!("<volmux.Device {name}>"),
            Err(_) => "<volmux.Device closed>".to_owned(),
        }
    }
}

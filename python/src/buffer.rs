//! Memory of Python objects, and Python objects with memory of volmux's.
//!
//! The functions of the buffer protocol are in the stable ABI from CPython 3.11 on. CPython 3.10 has
//! them all the same, with the same layout, and will not change any more; so they are declared here.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use bytes::Bytes;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use crate::courier;
use crate::error::{Failure, wrong};

#[repr(C)]
struct RawBuffer {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: ffi::Py_ssize_t,
    itemsize: ffi::Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut ffi::Py_ssize_t,
    strides: *mut ffi::Py_ssize_t,
    suboffsets: *mut ffi::Py_ssize_t,
    internal: *mut c_void,
}

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut RawBuffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut RawBuffer);
    fn PyBuffer_FillInfo(
        view: *mut RawBuffer,
        object: *mut ffi::PyObject,
        buf: *mut c_void,
        len: ffi::Py_ssize_t,
        readonly: c_int,
        flags: c_int,
    ) -> c_int;
}

/// Bytes in one piece, of whatever shape and type.
const SIMPLE: c_int = 0;
const WRITABLE: c_int = 1;

/// The memory of a Python object, which can't be moved or resized as long as this is there.
pub struct Lent(Box<RawBuffer>);

// SAFETY: the memory stays where it is until it is released, whoever has this; and it is released
// with the interpreter.
unsafe impl Send for Lent {}

impl Lent {
    /// What `object` holds, to be read.
    pub fn to_read(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Lent::new(object, SIMPLE)
    }

    /// What `object` holds, to be written to.
    pub fn to_write(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Lent::new(object, WRITABLE)
    }

    fn new(object: &Bound<'_, PyAny>, flags: c_int) -> PyResult<Self> {
        // SAFETY: all zeros is a value of each of its fields.
        let mut view: Box<RawBuffer> = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: `view` is there to be filled in, and stays where it is.
        match unsafe { PyObject_GetBuffer(object.as_ptr(), &raw mut *view, flags) } {
            0 => Ok(Lent(view)),
            _ => Err(PyErr::fetch(object.py())),
        }
    }

    pub fn len(&self) -> usize {
        self.0.len.unsigned_abs()
    }

    /// Copies `data`, of at most this length, into it. Python may read and write there meanwhile, so
    /// no reference to it is made.
    pub fn fill(&mut self, data: &[u8]) {
        assert!(
            data.len() <= self.len(),
            "there is room for what was asked for"
        );
        // SAFETY: so many bytes are there, may be written, and stay; what `data` refers to is not
        // among them, for it is volmux's.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.0.buf.cast(), data.len()) }
    }

    /// A copy of it as it is now.
    fn copy(&self) -> Result<Bytes, Failure> {
        let length = self.len();
        let room = volmux::Buffer::new(length);
        let mut buffer = room.map_err(|error| wrong("write_at", error))?;
        let room = buffer.room();
        let start = room.len();
        // SAFETY: `buffer` has room for `length` more bytes, which are there to be read; who writes
        // to them meanwhile gets what was there before or after.
        unsafe {
            let target = room.as_mut_ptr().add(start);
            ptr::copy_nonoverlapping(self.0.buf.cast(), target, length);
            room.set_len(start + length);
        }
        Ok(buffer.into_bytes())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Where the interpreter ends, what it lent is never asked for again.
        courier::attach(|_| {
            // SAFETY: it was filled in by `PyObject_GetBuffer`, and is released once.
            unsafe { PyBuffer_Release(&raw mut *self.0) }
        });
    }
}

/// A `bytes` object, whose content never changes.
struct Kept {
    _object: Py<PyBytes>,
    start: *const u8,
    length: usize,
}

// SAFETY: what it points to never changes, and lasts as long as the object.
unsafe impl Send for Kept {}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

/// What `object` holds now: without a copy if it is `bytes`. A store may keep what it is given, so
/// what may change is copied.
pub fn content(object: &Bound<'_, PyAny>) -> Result<Bytes, Failure> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        let content = bytes.as_bytes();
        return Ok(Bytes::from_owner(Kept {
            start: content.as_ptr(),
            length: content.len(),
            _object: bytes.clone().unbind(),
        }));
    }
    let lent = Lent::to_read(object)?;
    let (copy, lent) = object.py().detach(move || (lent.copy(), lent));
    drop(lent);
    copy
}

/// From this length on others may run while it is copied.
const LONG: usize = 32 << 10;

/// A `bytes` object with a copy of `data`.
pub fn bytes<'py>(py: Python<'py>, data: &Bytes) -> PyResult<Bound<'py, PyBytes>> {
    if data.len() < LONG {
        return Ok(PyBytes::new(py, data));
    }
    let length = ffi::Py_ssize_t::try_from(data.len())?;
    // SAFETY: it returns a new object, or null with an exception set.
    let object = unsafe {
        let object = ffi::PyBytes_FromStringAndSize(ptr::null(), length);
        Bound::from_owned_ptr_or_err(py, object)?.cast_into_unchecked::<PyBytes>()
    };
    let target = object.as_bytes().as_ptr().addr();
    py.detach(|| {
        let target = ptr::with_exposed_provenance_mut::<u8>(target);
        // SAFETY: the object has room for `data`, and nobody else knows it yet.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) }
    });
    Ok(object)
}

/// A Python object that owns `data`, for memoryviews to refer to.
#[repr(C)]
struct Piece {
    head: ffi::PyObject,
    data: Bytes,
}

unsafe extern "C" fn piece_buffer(
    object: *mut ffi::PyObject,
    view: *mut RawBuffer,
    flags: c_int,
) -> c_int {
    // SAFETY: this is in the type of `Piece` alone.
    let data = unsafe { &(*object.cast::<Piece>()).data };
    let start = data.as_ptr().cast_mut().cast();
    // SAFETY: the data lasts as long as the object, which the view keeps, and can only be read.
    unsafe { PyBuffer_FillInfo(view, object, start, data.len().cast_signed(), 1, flags) }
}

unsafe extern "C" fn piece_dealloc(object: *mut ffi::PyObject) {
    // SAFETY: nobody refers to the object any more, and its data was written when it was made; the
    // type's own function gives its memory back, and the object's reference to its type ends.
    unsafe {
        ptr::drop_in_place(&raw mut (*object.cast::<Piece>()).data);
        let kind = ffi::Py_TYPE(object);
        let free = ffi::PyType_GetSlot(kind, ffi::Py_tp_free);
        let free: ffi::freefunc = std::mem::transmute(free);
        free(object.cast());
        ffi::Py_DECREF(kind.cast());
    }
}

fn piece_type(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static TYPE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let made = TYPE.get_or_try_init(py, || -> PyResult<Py<PyAny>> {
        let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
        let mut slots = [
            slot(ffi::Py_bf_getbuffer, piece_buffer as *mut c_void),
            slot(ffi::Py_tp_dealloc, piece_dealloc as *mut c_void),
            slot(0, ptr::null_mut()),
        ];
        let mut spec = ffi::PyType_Spec {
            name: c"volmux._Piece".as_ptr(),
            basicsize: c_int::try_from(size_of::<Piece>())?,
            itemsize: 0,
            flags: ffi::Py_TPFLAGS_DEFAULT as _,
            slots: slots.as_mut_ptr(),
        };
        // SAFETY: the slots hold functions of the types that belong there, and end with zero.
        let kind = unsafe { ffi::PyType_FromSpec(&raw mut spec) };
        // SAFETY: it is a new object, or null with an exception set.
        Ok(unsafe { Bound::from_owned_ptr_or_err(py, kind)? }.unbind())
    })?;
    Ok(made.bind(py))
}

/// A read-only `memoryview` of `data`, without a copy.
pub fn view(py: Python<'_>, data: Bytes) -> PyResult<Py<PyAny>> {
    let kind = piece_type(py)?.as_ptr().cast::<ffi::PyTypeObject>();
    // SAFETY: the type is that of `Piece`; a new object's data is written before anybody sees it.
    let piece = unsafe {
        let object = ffi::PyType_GenericAlloc(kind, 0);
        let piece = Bound::from_owned_ptr_or_err(py, object);
        if !object.is_null() {
            ptr::write(&raw mut (*object.cast::<Piece>()).data, data);
        }
        piece?
    };
    // SAFETY: it returns a new object, or null with an exception set.
    let view = unsafe {
        let view = ffi::PyMemoryView_FromObject(piece.as_ptr());
        Bound::from_owned_ptr_or_err(py, view)?
    };
    Ok(view.unbind())
}

//! Which byte ranges hold data, and which differ between two points in time.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use volmux::blocking::{Extents, Threads};
use volmux::{ByteRange, ExtentKind, ExtentQuery, Result};

use crate::args::Call;
use crate::device::vmx_device;
use crate::enums::vmx_grade;
use crate::error::vmx_error;
use crate::guard::{self, free, quiet};
use crate::plain::Plain;
use crate::pool::vmx_pool;
use crate::status::vmx_status;

/// A question for extents. All zeros asks for the allocated extents of the whole volume.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_extent_query {
    /// NULL for the ranges that hold data: everything outside reads as zeros. Or the name of a
    /// volume, usually an earlier snapshot, for the ranges whose content differs from its.
    pub changed_since: *const c_char,
    /// First byte that is asked for.
    pub offset: u64,
    /// Number of bytes that are asked for; 0, with offset 0, for the whole volume.
    pub length: u64,
}

// SAFETY: a pointer and two numbers of 8 bytes.
unsafe impl Plain for vmx_extent_query {
    const FIRST_SIZE: usize = 24;
}

/// Extents in ascending order, never empty, never overlapping. They begin and end on multiples of
/// the granularity, except where they are cut by the range asked for or by the volume's end.
/// Several threads may ask at once; each gets another extent.
#[derive(Debug)]
pub struct vmx_extents {
    grade: vmx_grade,
    granularity: u64,
    items: Mutex<Extents>,
    threads: Threads,
}

impl vmx_extents {
    fn give(out: &mut MaybeUninit<*mut vmx_extents>, extents: Extents, threads: &Threads) {
        out.write(Box::into_raw(Box::new(vmx_extents {
            grade: extents.grade().into(),
            granularity: extents.granularity(),
            items: Mutex::new(extents),
            threads: threads.clone(),
        })));
    }
}

/// Begins to list extents of a volume. `query` may be NULL, for the allocated ones; `query_size` is
/// its size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_list_extents(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    query: *const vmx_extent_query,
    query_size: usize,
    extents: Option<&mut MaybeUninit<*mut vmx_extents>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("extents", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL, and structures have the size that callers say.
        let (name, query) = unsafe { (call.name(name, "name")?, asked(call, query, query_size)?) };
        let out = call.out(extents, "extents")?;
        vmx_extents::give(out, pool.extents(&name, query)?, pool.threads());
        Ok(())
    })
}

/// # Safety
/// `query` is NULL or points to `size` readable bytes, and its text ends with NUL.
unsafe fn asked(call: Call, query: *const vmx_extent_query, size: usize) -> Result<ExtentQuery> {
    if query.is_null() {
        return Ok(ExtentQuery::allocated());
    }
    // SAFETY: the caller vouches for it.
    let query = unsafe { call.input(query, size, "query")? };
    let range = match (query.offset, query.length) {
        (0, 0) => None,
        (_, 0) => return Err(call.wrong("query", "a range from an offset needs a length")),
        (offset, length) => Some(ByteRange::new(offset, length)),
    };
    // SAFETY: the caller vouches for it.
    let since = unsafe { call.text_if_given(query.changed_since, "changed_since")? };
    let kind = match since {
        None => ExtentKind::Allocated,
        Some(name) => ExtentKind::ChangedSince(call.checked(name, "changed_since")?),
    };
    Ok(ExtentQuery { kind, range })
}

/// Begins to list the allocated extents within a range of an open volume.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_list_device_extents(
    device: Option<&vmx_device>,
    offset: u64,
    length: u64,
    extents: Option<&mut MaybeUninit<*mut vmx_extents>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("extents", err, |call| {
        let device = vmx_device::of(call, device)?;
        let out = call.out(extents, "extents")?;
        let found = device.extents(ByteRange::new(offset, length))?;
        vmx_extents::give(out, found, device.threads());
        Ok(())
    })
}

/// The next extent; `*length` is 0 after the last, and the status `VMX_OK`.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_next_extent(
    extents: Option<&vmx_extents>,
    offset: Option<&mut MaybeUninit<u64>>,
    length: Option<&mut MaybeUninit<u64>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("extents", err, |call| {
        let extents = call.given(extents, "extents")?;
        let (offset, length) = (call.out(offset, "offset")?, call.out(length, "length")?);
        call.may_wait(&extents.threads)?;
        let mut items = extents.items.lock().unwrap_or_else(PoisonError::into_inner);
        let next = items.next().transpose()?.unwrap_or(ByteRange::new(0, 0));
        offset.write(next.offset);
        length.write(next.length);
        Ok(())
    })
}

/// How much the extents can be relied on.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_extents_grade(extents: Option<&vmx_extents>) -> vmx_grade {
    let least = vmx_grade::VMX_GRADE_ALLOCATED_ONLY;
    quiet(least, || extents.map_or(least, |extents| extents.grade))
}

/// The unit, in bytes, in which the pool tells blocks apart.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_extents_granularity(extents: Option<&vmx_extents>) -> u64 {
    extents.map_or(0, |extents| extents.granularity)
}

/// Frees extents, at their end or before. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_extents_free(extents: Option<Box<vmx_extents>>) {
    free(extents);
}

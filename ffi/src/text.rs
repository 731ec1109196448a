//! Texts for C programs.

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use crate::guard::quiet;

/// `text` with a NUL at its end. One within it, which C would take for the end, is replaced.
pub(crate) fn text(text: impl Into<String>) -> CString {
    let text: String = text.into();
    let text = match text.contains('\0') {
        true => text.replace('\0', "\u{FFFD}"),
        false => text,
    };
    CString::new(text).expect("no NUL is left in it")
}

/// A path, as the system has it. The system has none with a NUL.
pub(crate) fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// A text that belongs to a handle, for an accessor; NULL for none.
pub(crate) fn shown(text: Option<&CString>) -> *const c_char {
    text.map_or(ptr::null(), |text| text.as_ptr())
}

/// Frees a text that the library gave away (`char **` of an output). NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_string_free(string: *mut c_char) {
    if string.is_null() {
        return;
    }
    quiet((), || {
        // SAFETY: it came from `CString::into_raw`, and is the caller's to give back.
        drop(unsafe { CString::from_raw(string) });
    });
}

/// `text`, given away.
pub(crate) fn given_away(text: &CStr) -> *mut c_char {
    text.to_owned().into_raw()
}

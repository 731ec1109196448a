//! Status codes and versions.

use std::ffi::{CStr, c_char};

use volmux::ErrorKind;

use crate::guard::quiet;

/// What the library was built as: rises with every change that a compiled program would notice.
/// Compare it with what `vmx_abi_version` returns.
pub const VMX_ABI_VERSION: u32 = 0;

/// What came of a call. The numbers are never given another meaning, but new ones may come: treat
/// one that you do not know as `VMX_INTERNAL`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_status {
    /// It was done.
    VMX_OK = 0,
    /// The named object does not exist. Check the name; create it first.
    VMX_NOT_FOUND = 1,
    /// The name is taken by an object made with other arguments. Choose another name.
    VMX_ALREADY_EXISTS = 2,
    /// This pool cannot do that, as its capabilities say. Use another pool or another way.
    VMX_UNSUPPORTED = 3,
    /// An argument is wrong. Correct the call; repeating it cannot help.
    VMX_INVALID_INPUT = 4,
    /// The pool's URL, configuration or stored configuration is wrong. Correct it.
    VMX_INVALID_CONFIG = 5,
    /// There is no room, or the pool's policy refuses. Free or add space.
    VMX_NO_SPACE = 6,
    /// Somebody else uses the object. Try again once they are done.
    VMX_BUSY = 7,
    /// Another writer took over; this handle is dead. Do not retry: find out who took over.
    VMX_FENCED = 8,
    /// The operating system or the store does not allow it. Grant the right, or change the user.
    VMX_PERMISSION_DENIED = 9,
    /// Credentials are missing or wrong. Correct them.
    VMX_UNAUTHENTICATED = 10,
    /// The store cannot be reached or answered with a passing fault. Try again later.
    VMX_UNAVAILABLE = 11,
    /// The operation was stopped before it finished: its deadline passed, or the caller cancelled
    /// it. Calling again converges.
    VMX_TIMED_OUT = 12,
    /// Stored data or metadata is damaged. Stop writing, run an audit, restore from a backup.
    VMX_CORRUPT = 13,
    /// A fault in volmux itself. Report it.
    VMX_INTERNAL = 14,
}

impl From<ErrorKind> for vmx_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => vmx_status::VMX_NOT_FOUND,
            ErrorKind::AlreadyExists => vmx_status::VMX_ALREADY_EXISTS,
            ErrorKind::Unsupported => vmx_status::VMX_UNSUPPORTED,
            ErrorKind::InvalidInput => vmx_status::VMX_INVALID_INPUT,
            ErrorKind::InvalidConfig => vmx_status::VMX_INVALID_CONFIG,
            ErrorKind::NoSpace => vmx_status::VMX_NO_SPACE,
            ErrorKind::Busy => vmx_status::VMX_BUSY,
            ErrorKind::Fenced => vmx_status::VMX_FENCED,
            ErrorKind::PermissionDenied => vmx_status::VMX_PERMISSION_DENIED,
            ErrorKind::Unauthenticated => vmx_status::VMX_UNAUTHENTICATED,
            ErrorKind::Unavailable => vmx_status::VMX_UNAVAILABLE,
            ErrorKind::TimedOut => vmx_status::VMX_TIMED_OUT,
            ErrorKind::Corrupt => vmx_status::VMX_CORRUPT,
            // `ErrorKind` may grow; a test holds that nothing of today's ends here by mistake.
            _ => vmx_status::VMX_INTERNAL,
        }
    }
}

/// The name of each status, by its number: that of `ErrorKind` in Rust and of the exception in
/// Python.
const NAMES: [&CStr; 15] = [
    c"Ok",
    c"NotFound",
    c"AlreadyExists",
    c"Unsupported",
    c"InvalidInput",
    c"InvalidConfig",
    c"NoSpace",
    c"Busy",
    c"Fenced",
    c"PermissionDenied",
    c"Unauthenticated",
    c"Unavailable",
    c"TimedOut",
    c"Corrupt",
    c"Internal",
];

/// The name of a status, such as `NotFound`: the same in every language that volmux speaks.
/// `Unknown` for a number that is none. Stays valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_status_name(status: i32) -> *const c_char {
    quiet(c"Unknown".as_ptr(), || {
        let name = usize::try_from(status).ok().and_then(|i| NAMES.get(i));
        name.unwrap_or(&c"Unknown").as_ptr()
    })
}

/// `VMX_ABI_VERSION` of the library that runs, which may be another than that of the header.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_abi_version() -> u32 {
    VMX_ABI_VERSION
}

/// The version of the library that runs, such as `0.1.0`. Stays valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_number_and_the_name_of_its_kind() {
        for kind in ErrorKind::ALL {
            let status = vmx_status::from(kind);
            assert_eq!(status as i32, kind.code());
            assert_eq!(NAMES[status as usize].to_str(), Ok(kind.name()));
        }
        assert_eq!(NAMES.len(), ErrorKind::ALL.len() + 1);
    }
}

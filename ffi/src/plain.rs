//! Structures that grow: the caller says how large its own are, as with openat2(2) and clone3(2).

use std::mem::MaybeUninit;
use std::ptr;

use volmux::Result;

use crate::args::Call;

/// Stands for a number that is not known or does not apply, wherever one is given as `uint64_t`.
pub const VMX_NONE: u64 = u64::MAX;

/// A structure that crosses the boundary as bytes.
///
/// # Safety
/// `repr(C)` without padding, and any bytes, zeros too, are one: numbers and pointers, and
/// enumerations only where it is never read from the caller.
pub(crate) unsafe trait Plain: Copy {
    /// The size that it had when it first came out. A caller's is at least that.
    const FIRST_SIZE: usize;
}

impl Call {
    /// The structure at `from`, of which the caller knows the first `size` bytes. What it does not
    /// know is zero; what this library does not know must be.
    ///
    /// # Safety
    /// `from` is NULL or points to `size` readable bytes.
    pub(crate) unsafe fn input<T: Plain>(
        self,
        from: *const T,
        size: usize,
        argument: &'static str,
    ) -> Result<T> {
        if from.is_null() {
            return self.given(None, argument);
        }
        self.check_size::<T>(size, argument)?;
        let known = size.min(size_of::<T>());
        for i in known..size {
            // SAFETY: it is one of the caller's `size` bytes.
            if unsafe { from.cast::<u8>().add(i).read() } != 0 {
                return Err(self
                    .wrong(argument, "it asks for what this library does not have yet")
                    .with("size", size)
                    .with("known", size_of::<T>()));
            }
        }
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: both are at least `known` bytes long; the caller's may be aligned in any way.
        unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), value.as_mut_ptr().cast(), known) };
        // SAFETY: any bytes are a `Plain`.
        Ok(unsafe { value.assume_init() })
    }

    /// Writes `value` to the structure at `to`, of which the caller knows the first `size` bytes.
    /// What this library does not know becomes zero.
    ///
    /// # Safety
    /// `to` is NULL or points to `size` writable bytes.
    pub(crate) unsafe fn output<T: Plain>(
        self,
        value: T,
        to: *mut T,
        size: usize,
        argument: &'static str,
    ) -> Result<()> {
        self.check_output(to, size, argument)?;
        let known = size.min(size_of::<T>());
        let from: *const T = &value;
        // SAFETY: both are at least `known` bytes long, and the rest up to `size` is the caller's.
        unsafe {
            ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast(), known);
            ptr::write_bytes(to.cast::<u8>().add(known), 0, size - known);
        }
        Ok(())
    }

    /// What [`output`](Self::output) checks, for before the work.
    pub(crate) fn check_output<T: Plain>(
        self,
        to: *const T,
        size: usize,
        argument: &'static str,
    ) -> Result<()> {
        if to.is_null() {
            return self.given(None, argument);
        }
        self.check_size::<T>(size, argument)
    }

    /// The largest is arbitrary: what is larger is not the size of a structure.
    fn check_size<T: Plain>(self, size: usize, argument: &'static str) -> Result<()> {
        if (T::FIRST_SIZE..=4096).contains(&size) {
            return Ok(());
        }
        Err(self
            .wrong(argument, "this is not its size")
            .with("size", size)
            .help("pass sizeof the structure"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    fn first<T: Plain>() {
        assert_eq!(size_of::<T>(), T::FIRST_SIZE);
    }

    /// Once one has grown, its first size stays and this goes from the list.
    #[test]
    fn structures_have_the_size_that_they_came_out_with() {
        first::<vmx_attach_options>();
        first::<vmx_audit_options>();
        first::<vmx_capabilities>();
        first::<vmx_collected>();
        first::<vmx_create_options>();
        first::<vmx_export_options>();
        first::<vmx_extent_query>();
        first::<vmx_open_options>();
        first::<vmx_policy>();
        first::<vmx_render_options>();
        first::<vmx_resize_options>();
        first::<vmx_usage>();
        first::<vmx_zero_options>();
    }
}

//! Arguments as C programs give them, checked.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::process;

use volmux::blocking::Threads;
use volmux::{Error, ErrorKind, Result, VolumeName};

/// A call that is under way, for the errors of its arguments.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) op: &'static str,
}

impl Call {
    /// `InvalidInput` about an argument.
    pub(crate) fn wrong(self, argument: &'static str, reason: &str) -> Error {
        Error::new(ErrorKind::InvalidInput, self.op)
            .with("argument", argument)
            .reason(reason)
    }

    /// What may not be NULL.
    pub(crate) fn given<T>(self, value: Option<T>, argument: &'static str) -> Result<T> {
        value.ok_or_else(|| self.wrong(argument, "this must not be NULL"))
    }

    /// An output. To be asked for first, so that a call without one does nothing.
    pub(crate) fn out<'a, T>(
        self,
        out: Option<&'a mut MaybeUninit<T>>,
        argument: &'static str,
    ) -> Result<&'a mut MaybeUninit<T>> {
        self.given(out, argument)
    }

    /// A text.
    ///
    /// # Safety
    /// `text` is NULL, or points to bytes that end with NUL and stay as they are for `'a`.
    pub(crate) unsafe fn text<'a>(
        self,
        text: *const c_char,
        argument: &'static str,
    ) -> Result<&'a str> {
        if text.is_null() {
            return self.given(None, argument);
        }
        // SAFETY: it is not NULL, and the caller vouches for the rest.
        let text = unsafe { CStr::from_ptr(text) };
        text.to_str().map_err(|error| {
            self.wrong(argument, "this is not UTF-8")
                .with("valid_up_to", error.valid_up_to())
        })
    }

    /// A text that may be left out.
    ///
    /// # Safety
    /// As [`text`](Self::text).
    pub(crate) unsafe fn text_if_given<'a>(
        self,
        text: *const c_char,
        argument: &'static str,
    ) -> Result<Option<&'a str>> {
        if text.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller vouches for it.
        unsafe { self.text(text, argument) }.map(Some)
    }

    /// A volume's name.
    ///
    /// # Safety
    /// As [`text`](Self::text).
    pub(crate) unsafe fn name(
        self,
        text: *const c_char,
        argument: &'static str,
    ) -> Result<VolumeName> {
        // SAFETY: the caller vouches for it.
        let name = unsafe { self.text(text, argument) }?;
        self.checked(name, argument)
    }

    /// The same of a text that was looked at already.
    pub(crate) fn checked(self, name: &str, argument: &'static str) -> Result<VolumeName> {
        VolumeName::new(name).map_err(|error| error.with_op(self.op).with("argument", argument))
    }

    /// Several of a kind.
    ///
    /// # Safety
    /// `first` is NULL, or points to `count` elements that stay as they are for `'a`.
    pub(crate) unsafe fn array<'a, T>(
        self,
        first: *const T,
        count: usize,
        argument: &'static str,
    ) -> Result<&'a [T]> {
        match (first.is_null(), count) {
            (_, 0) => Ok(&[]),
            (true, _) => self.given(None, argument),
            // More than anybody means, and few enough to be in memory.
            (false, 1..=65536) => {
                // SAFETY: it is not NULL, and the caller vouches for the rest.
                Ok(unsafe { std::slice::from_raw_parts(first, count) })
            }
            _ => Err(self
                .wrong(argument, "these are too many")
                .with("count", count)),
        }
    }

    /// One of the numbers of an enumeration.
    pub(crate) fn one_of<T: Copy>(
        self,
        values: &[T],
        number: u32,
        argument: &'static str,
    ) -> Result<T> {
        let value = usize::try_from(number).ok().and_then(|i| values.get(i));
        value.copied().ok_or_else(|| {
            self.wrong(argument, "this is none of the numbers that it can be")
                .with("value", number)
        })
    }

    /// A flag: 0 or 1.
    pub(crate) fn flag(self, number: u32, argument: &'static str) -> Result<bool> {
        self.one_of(&[false, true], number, argument)
    }

    /// Checks that this is the process that has `threads`, before anything is touched that one of
    /// its other threads may have left locked.
    pub(crate) fn at_home(self, threads: &Threads) -> Result<()> {
        if !threads.are_elsewhere() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidInput, self.op)
            .with("process", process::id())
            .reason("this was opened before the process forked")
            .help("open the pool in the process that uses it"))
    }

    /// Checks that a call may wait here, before it waits for another one: not in a callback, where
    /// the other might be waiting for this thread.
    pub(crate) fn may_wait(self, threads: &Threads) -> Result<()> {
        self.at_home(threads)?;
        threads.block_on(self.op, std::future::ready(()))
    }
}

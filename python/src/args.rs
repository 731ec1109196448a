//! What callers pass: names, numbers, sizes, enums.

use std::path::PathBuf;

use pyo3::Borrowed;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};
use volmux::{Access, ByteSize, Holder, Provisioning, Sharing, VolumeName};

use crate::error::{Failure, wrong};

/// A number that fits 64 bits and is not negative. Others are `InvalidInput`.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub u64);

impl<'a, 'py> FromPyObject<'a, 'py> for Number {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match value.extract::<u64>() {
            Ok(number) => Ok(Number(number)),
            Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
                let reason = "a number from 0 to 2**64 - 1 is needed";
                let error = wrong("argument", reason).with("value", &*value);
                Err(Failure::from(error).into())
            }
            Err(error) => Err(error),
        }
    }
}

impl Number {
    /// As a length in memory.
    pub fn length(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A size: a number of bytes, or a text with a unit.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub ByteSize);

impl<'a, 'py> FromPyObject<'a, 'py> for Size {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = value.cast::<PyString>() {
            let size = text.to_str()?.parse().map_err(Failure::from)?;
            return Ok(Size(size));
        }
        if !value.is_instance_of::<PyInt>() {
            let reason = "a size is an int (bytes) or a str such as '10GiB'";
            return Err(PyTypeError::new_err(reason));
        }
        let number: Number = value.extract()?;
        Ok(Size(ByteSize::new(number.0)))
    }
}

/// A checked volume name.
#[derive(Clone, Debug)]
pub struct Name(pub VolumeName);

impl<'a, 'py> FromPyObject<'a, 'py> for Name {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let text: String = value.extract()?;
        Ok(Name(VolumeName::new(text).map_err(Failure::from)?))
    }
}

/// A checked holder.
#[derive(Clone, Debug)]
pub struct HolderName(pub Holder);

impl<'a, 'py> FromPyObject<'a, 'py> for HolderName {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let text: String = value.extract()?;
        Ok(HolderName(Holder::new(text).map_err(Failure::from)?))
    }
}

/// A path, or a text.
#[derive(Clone, Debug)]
pub struct PathText(pub String);

impl<'a, 'py> FromPyObject<'a, 'py> for PathText {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let path: PathBuf = value.extract()?;
        let text = path.into_os_string().into_string();
        let text = text.map_err(|_| wrong("argument", "the path is not UTF-8"));
        Ok(PathText(text.map_err(Failure::from)?))
    }
}

/// One of an enum's members, or its value as a text.
macro_rules! member {
    ($kind:ident, $inner:ident { $($text:literal => $member:ident),+ }) => {
        #[doc = concat!("A `", stringify!($inner), "`, or its value as a text.")]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $kind(pub $inner);

        impl<'a, 'py> FromPyObject<'a, 'py> for $kind {
            type Error = PyErr;

            fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
                let text: String = value.extract()?;
                match text.as_str() {
                    $($text => Ok($kind($inner::$member)),)+
                    _ => {
                        let error = wrong("argument", concat!("this is no ", stringify!($inner)))
                            .with("value", text)
                            .help(concat!("one of:" $(, " ", $text)+));
                        Err(Failure::from(error).into())
                    }
                }
            }
        }
    };
}

member!(AccessArg, Access { "read-only" => ReadOnly, "read-write" => ReadWrite });
member!(SharingArg, Sharing { "exclusive" => Exclusive, "shared" => Shared });
member!(ProvisioningArg, Provisioning { "thin" => Thin, "thick" => Thick });

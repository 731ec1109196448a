//! Extents.

use std::sync::Arc;

use volmux_core::{ByteRange, Error, ErrorKind, ExtentQuery, ExtentStream, Result, VolumeName};

use crate::device::LvmDevice;
use crate::pool::Inner;

pub async fn extents(
    _inner: &Arc<Inner>,
    _name: &VolumeName,
    _query: ExtentQuery,
) -> Result<ExtentStream> {
    Err(Error::new(ErrorKind::Unsupported, "extents"))
}

pub async fn of_device(
    _device: &LvmDevice,
    op: &'static str,
    _range: ByteRange,
) -> Result<ExtentStream> {
    Err(Error::new(ErrorKind::Unsupported, op))
}

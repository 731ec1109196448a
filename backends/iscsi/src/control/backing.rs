//! What a logical unit shows: a file or a block device, as this host sees it.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use volmux_core::{Error, ErrorKind, Result};

use super::Export;

/// Within which a store tells what a path is.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Device,
}

/// Looks at the path of an export, which has to be there and as long as it says.
///
/// # Errors
/// `NotFound`; `InvalidInput` for another size, for what is no file or device, and for a name that
/// can't be told to target programs; `TimedOut` if the store does not answer.
pub(super) async fn look(op: &'static str, export: &Export, until: Instant) -> Result<Kind> {
    let path = export.path.clone();
    let wrong = |reason: String| {
        Error::new(ErrorKind::InvalidInput, op)
            .with("path", path.display())
            .reason(reason)
    };
    let bytes = path.as_os_str().as_bytes();
    let plain = |byte: &u8| *byte >= b' ' && *byte != 0x7f && *byte != b',';
    if !path.is_absolute() || !bytes.iter().all(plain) {
        return Err(wrong(
            "a path is absolute, and has no commas and control characters".into(),
        ));
    }
    let looked = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || look_now(&path))
    };
    let late = |_| {
        Error::new(ErrorKind::TimedOut, op)
            .with("path", path.display())
            .reason("the store does not answer")
    };
    let looked = timeout_at(until.min(Instant::now() + PATIENCE), looked).await;
    let looked = looked
        .map_err(late)?
        .map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?;
    match looked {
        Ok(Some((kind, size))) if size == export.size => Ok(kind),
        Ok(Some((_, size))) => Err(wrong(format!(
            "it has {size} bytes, and not {}",
            export.size
        ))),
        Ok(None) => Err(wrong("it is neither a file nor a block device".into())),
        Err(error) => Err(Error::from_io(op, error).with("path", path.display())),
    }
}

fn look_now(path: &Path) -> std::io::Result<Option<(Kind, u64)>> {
    let about = std::fs::metadata(path)?;
    if about.is_file() {
        return Ok(Some((Kind::File, about.len())));
    }
    if !about.file_type().is_block_device() {
        return Ok(None);
    }
    let size = File::open(path)?.seek(SeekFrom::End(0))?;
    Ok(Some((Kind::Device, size)))
}

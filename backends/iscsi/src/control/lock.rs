//! One at a time: processes that change what one target program shows.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::time::Instant;
use volmux_core::{Error, ErrorKind, Result};

/// Between two looks at a lock that another holds.
const PAUSE: Duration = Duration::from_millis(10);

/// A lock on a file; released when dropped, and when the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock. The file is made if need be, and stays; only its owner can open it.
    ///
    /// # Errors
    /// `Busy` if others hold it until then; `PermissionDenied` and the like.
    pub(super) async fn take(path: &Path, op: &'static str, until: Instant) -> Result<Lock> {
        let file = open(path, op)?;
        while !try_lock(&file, path, op, until)? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Lock { _file: file })
    }

    /// As [`take`](Self::take), in a thread that may wait.
    pub(super) fn take_blocking(path: &Path, op: &'static str, until: Instant) -> Result<Lock> {
        let file = open(path, op)?;
        while !try_lock(&file, path, op, until)? {
            std::thread::sleep(PAUSE);
        }
        Ok(Lock { _file: file })
    }
}

fn open(path: &Path, op: &'static str) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    file.map_err(|error| trouble(path, op, error))
}

fn try_lock(file: &File, path: &Path, op: &'static str, until: Instant) -> Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => {}
        Err(error) => return Err(trouble(path, op, error.into())),
    }
    if Instant::now() < until {
        return Ok(false);
    }
    Err(Error::new(ErrorKind::Busy, op)
        .with("path", path.display())
        .reason("other processes hold the lock")
        .help("try again; fuser tells who has the file open"))
}

fn trouble(path: &Path, op: &'static str, error: std::io::Error) -> Error {
    Error::from_io(op, error)
        .with("path", path.display())
        .reason("the lock against other processes can't be taken")
}

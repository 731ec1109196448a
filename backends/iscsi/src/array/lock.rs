//! One at a time, among the processes of the target's host.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind as Io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use volmux_core::{Error, ErrorKind, Result, VolumeId};

/// Where the locks are, unless told otherwise.
pub const DIRECTORY: &str = "/run/volmux/iscsi";
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The locks of one pool.
#[derive(Clone, Debug)]
pub struct Locks {
    directory: PathBuf,
    pool: String,
}

/// Held until it is dropped.
#[derive(Debug)]
pub struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing it is not enough: a child that is just being started has the file as well.
        let _ = self.0.unlock();
    }
}

impl Locks {
    /// Those of the pool whose targets begin with `prefix`.
    pub fn new(directory: &Path, prefix: &str) -> Self {
        let digest = Sha256::digest(prefix.as_bytes());
        let pool = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Locks {
            directory: directory.to_owned(),
            pool,
        }
    }

    /// Locks what is shown of one volume.
    ///
    /// # Errors
    /// `Busy` if another process has had it for a minute; `PermissionDenied`.
    pub async fn lock(&self, op: &'static str, id: VolumeId) -> Result<Locked> {
        // Few files for many volumes: those of one do not wait long for those of another.
        let path = self
            .directory
            .join(format!("{}-{}.lock", self.pool, &id.to_string()[..2]));
        let file = self
            .open(&path)
            .map_err(|error| Error::from_io(op, error).with("path", path.display()))?;
        let end = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Locked(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(ErrorKind::Busy, op)
                        .with("path", path.display())
                        .reason(
                            "another process changes what is shown of the volume, for a minute now",
                        )
                        .help("see who holds this lock, and whether he hangs"));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Error::from_io(op, error).with("path", path.display()));
                }
            }
        }
    }

    fn open(&self, path: &Path) -> std::io::Result<File> {
        let open = || {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(path)
        };
        match open() {
            Err(error) if error.kind() == Io::NotFound => {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.directory)?;
                open()
            }
            opened => opened,
        }
    }
}

//! The pool's reserved metadata snapshot: a state of the mappings that stands still while tools
//! read it.
//!
//! A pool has one at most, and the kernel does not say whose it is. So who wants it takes a lock on
//! a file first, and writes there that it has one: whoever finds that, with the lock free, knows
//! that its owner is gone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use volmux_core::{Error, ErrorKind, Result};

use crate::dm::{self, PoolStatus};
use crate::trouble;

/// A pool, and the file that is locked.
#[derive(Clone, Debug)]
pub struct Place {
    /// The volume group.
    pub group: String,
    /// The thin pool in it.
    pub pool: String,
    /// On this host, the same for all who use the pool.
    pub lock: PathBuf,
    /// How long to wait for others.
    pub patience: Duration,
}

/// The snapshot, released when this is dropped. That takes as long as a commit of the metadata.
#[derive(Debug)]
pub struct Reserved {
    device: String,
    lock: Lock,
}

/// How long to wait for a snapshot that is not ours, before it is taken for forgotten.
const STRANGER: Duration = Duration::from_secs(15);

impl Reserved {
    /// Waits for the lock and reserves the snapshot, which holds all writes that are complete.
    pub async fn new(op: &'static str, place: &Place) -> Result<Reserved> {
        let deadline = Instant::now() + place.patience;
        let mut lock = Lock::open(op, place)?;
        let mut pause = Duration::from_millis(2);
        while !lock.try_lock().map_err(|error| place.error(op, error))? {
            if Instant::now() >= deadline {
                return Err(lock.busy(op, place));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        let stranger = Instant::now() + STRANGER.min(place.patience / 2);
        loop {
            let last = Instant::now() >= stranger;
            let place = place.clone();
            let task = tokio::task::spawn_blocking(move || lock.reserve(op, &place, last));
            let tried = task.await;
            match tried
                .map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))??
            {
                Tried::Reserved(reserved) => return Ok(reserved),
                Tried::Strange(still) => lock = still,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Releases it on a thread that may block.
    pub async fn release(self) {
        // If the runtime ends meanwhile, it is released as the task is dropped.
        let _released = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        match dm::message(&self.device, RELEASE) {
            Ok(()) => self.lock.mark(false),
            // The next one tries again.
            Err(error) => {
                tracing::warn!(
                    device = self.device,
                    %error,
                    "the reserved metadata snapshot is not released: until it is, the pool does \
                     not get back the space of what is deleted"
                );
            }
        }
    }
}

const RESERVE: &str = "reserve_metadata_snap";
const RELEASE: &str = "release_metadata_snap";

enum Tried {
    Reserved(Reserved),
    /// There is one already, and nothing says that it is ours.
    Strange(Lock),
}

#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // A child that is just being started has the descriptor too, until it runs its program.
        let _unlocked = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Lock {
    fn open(op: &'static str, place: &Place) -> Result<Lock> {
        let open = || {
            if let Some(directory) = place.lock.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(directory)?;
            }
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&place.lock)
        };
        open().map(Lock).map_err(|error| place.error(op, error))
    }

    fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Says whether the pool's snapshot is one of ours.
    fn mark(&mut self, ours: bool) {
        let text = if ours {
            std::process::id().to_string()
        } else {
            String::new()
        };
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        };
        if let Err(error) = write(&mut self.0) {
            // Only who comes after a crash waits longer without it.
            tracing::debug!(%error, "the lock file of a pool's metadata is not written");
        }
    }

    /// Who wrote the mark.
    fn marked(&self) -> Option<String> {
        let mut text = String::new();
        let mut file = &self.0;
        file.rewind().ok()?;
        file.take(32).read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    }

    fn busy(&self, op: &'static str, place: &Place) -> Error {
        let by = self.marked().unwrap_or_else(|| "another process".into());
        Error::new(ErrorKind::Busy, op)
            .with("pool", format!("{}/{}", place.group, place.pool))
            .with("path", place.lock.display())
            .with("process", by)
            .reason("another process has been reading the pool's metadata all the time")
            .help("try again later, or end that process")
    }

    fn reserve(mut self, op: &'static str, place: &Place, take_strange: bool) -> Result<Tried> {
        let (device, held) = place.look(op)?;
        if held {
            let ours = self.marked().is_some();
            if !ours && !take_strange {
                return Ok(Tried::Strange(self));
            }
            tracing::warn!(
                device,
                "releasing a reserved metadata snapshot that was left behind"
            );
            dm::message(&device, RELEASE).map_err(|error| place.refused(op, error))?;
        }
        // Before, so that there is no moment in which a crash leaves one without a mark.
        self.mark(true);
        match dm::message(&device, RESERVE) {
            Ok(()) => Ok(Tried::Reserved(Reserved { device, lock: self })),
            Err(error) => {
                self.mark(false);
                Err(place.refused(op, error))
            }
        }
    }
}

impl Place {
    /// The device of the `thin-pool` target, and whether it has a reserved snapshot.
    fn look(&self, op: &'static str) -> Result<(String, bool)> {
        let found = dm::pool_status(&self.group, &self.pool);
        let (device, status) =
            found
                .map_err(|error| self.refused(op, error))?
                .ok_or_else(|| {
                    Error::new(ErrorKind::Unavailable, op)
                        .with("pool", format!("{}/{}", self.group, self.pool))
                        .reason("the thin pool is not active")
                        .help(format!(
                            "activate it: `lvchange -ay {}/{}`",
                            self.group, self.pool
                        ))
                })?;
        match (trouble::of(&self.group, &self.pool, status), status) {
            (None, PoolStatus::Ok(state)) => Ok((device, state.held_root.is_some())),
            (Some(trouble), _) => Err(trouble.error(op)),
            (None, PoolStatus::Failed) => unreachable!("that is trouble"),
        }
    }

    fn refused(&self, op: &'static str, error: io::Error) -> Error {
        Error::from_io(op, error)
            .with("pool", format!("{}/{}", self.group, self.pool))
            .reason("device-mapper does not let the pool's metadata be read")
            .help("see `dmsetup status` and the kernel's log; this needs root")
    }

    fn error(&self, op: &'static str, error: io::Error) -> Error {
        Error::from_io(op, error)
            .with("pool", format!("{}/{}", self.group, self.pool))
            .with("path", self.lock.display())
            .reason("the lock file of the pool's metadata can't be used")
    }

    /// Where the pool's metadata is read.
    pub fn metadata_device(&self) -> PathBuf {
        let name = dm::dm_name(&self.group, &format!("{}_tmeta", self.pool));
        Path::new("/dev/mapper").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(directory: &Path) -> Place {
        Place {
            group: "a-b".into(),
            pool: "no-such-pool".into(),
            lock: directory.join("locks/x.metadata"),
            patience: Duration::from_millis(50),
        }
    }

    #[test]
    fn names_of_devices() {
        let device = place(Path::new("/x")).metadata_device();
        assert_eq!(device, Path::new("/dev/mapper/a--b-no--such--pool_tmeta"));
    }

    #[tokio::test]
    async fn one_who_waits_in_vain_is_told_for_whom() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = place(directory.path());
        let mut other = Lock::open("extents", &place).expect("open");
        assert!(other.try_lock().expect("lock"));
        other.mark(true);
        let error = Reserved::new("extents", &place).await.expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::Busy);
        let pid = std::process::id().to_string();
        assert_eq!(error.get("process"), Some(pid.as_str()), "{error:?}");
        other.mark(false);
        assert_eq!(other.marked(), None);
    }

    #[tokio::test]
    async fn without_a_pool_the_lock_is_given_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = place(directory.path());
        let error = Reserved::new("extents", &place)
            .await
            .expect_err("no such pool");
        assert!(error.get("pool").is_some(), "{error:?}");
        let next = Lock::open("extents", &place).expect("open");
        assert!(next.try_lock().expect("free again"));
        assert_eq!(next.marked(), None);
    }
}

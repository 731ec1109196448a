//! Who uses a volume on this host: locks on files that all volmux processes share.
//!
//! Whoever has a volume open shares the first lock, and a writer has the second one besides, shared
//! or not. Who needs the volume for itself alone, so that it can be changed as a whole or its device
//! taken away, has the first one alone. Locks end with the process that holds them.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use volmux_core::{Access, Error, Result, Sharing, VolumeId};

use crate::group::GroupClient;

/// How long one waits for somebody who has a volume alone: that is over after a command or two.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long somebody may hold a lock only to find out that it is of no use.
const GLIMPSE: Duration = Duration::from_millis(10);

/// The locks of one volume.
#[derive(Clone, Debug)]
pub struct VolumeLocks {
    op: &'static str,
    using: PathBuf,
    writing: PathBuf,
}

/// Locks that are held; released when this is dropped.
#[derive(Debug)]
pub struct Use {
    // Before the other, so that nobody writes to a volume that somebody else has alone.
    writing: Option<File>,
    using: File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Shared,
    Alone,
}

impl VolumeLocks {
    /// Those of the volume `id`.
    ///
    /// # Errors
    /// If there is no place for them.
    pub fn of(client: &GroupClient, op: &'static str, id: VolumeId) -> Result<Self> {
        Ok(VolumeLocks {
            op,
            using: client.run_file(op, &format!("{id}.use"))?,
            writing: client.run_file(op, &format!("{id}.write"))?,
        })
    }

    /// For a handle. Waits for who has the volume alone. `Ok(None)` if another writer stands against
    /// it, or the volume stays taken.
    ///
    /// # Errors
    /// If the files can't be made or locked.
    pub async fn share(&self, access: Access, sharing: Sharing) -> Result<Option<Use>> {
        let end = Instant::now() + PATIENCE;
        let using = loop {
            match self.lock(&self.using, Mode::Shared)? {
                Some(using) => break using,
                None if Instant::now() > end => return Ok(None),
                None => tokio::time::sleep(GLIMPSE / 2).await,
            }
        };
        if access == Access::ReadOnly {
            let writing = None;
            return Ok(Some(Use { writing, using }));
        }
        let mode = match sharing {
            Sharing::Shared => Mode::Shared,
            Sharing::Exclusive => Mode::Alone,
        };
        let writing = self.lock(&self.writing, mode)?;
        Ok(writing.map(|file| Use {
            writing: Some(file),
            using,
        }))
    }

    /// The volume for oneself alone. Waits for others who have it alone. `Ok(None)` if it is open.
    ///
    /// # Errors
    /// If the files can't be made or locked.
    pub async fn alone(&self) -> Result<Option<Use>> {
        let end = Instant::now() + PATIENCE;
        let mut shared_since = None;
        loop {
            if let Some(alone) = self.alone_now()? {
                return Ok(Some(alone));
            }
            let now = Instant::now();
            // Given back at once: it only tells who stands against it.
            if self.lock(&self.using, Mode::Shared)?.is_some() {
                // Somebody else may look in the same way at the same time.
                if now - *shared_since.get_or_insert(now) > GLIMPSE {
                    return Ok(None);
                }
            } else {
                shared_since = None;
            }
            if now > end {
                return Ok(None);
            }
            tokio::time::sleep(GLIMPSE / 3).await;
        }
    }

    /// The volume for oneself alone, if nobody else has it now.
    ///
    /// # Errors
    /// If the files can't be made or locked.
    pub fn alone_now(&self) -> Result<Option<Use>> {
        let using = self.lock(&self.using, Mode::Alone)?;
        let writing = None;
        Ok(using.map(|using| Use { writing, using }))
    }

    /// How many handles share the volume, in all processes that can be seen.
    pub fn handles(&self) -> usize {
        let Ok(metadata) = std::fs::metadata(&self.using) else {
            return 0;
        };
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let (device, inode) = (metadata.dev(), metadata.ino());
        locks
            .lines()
            .filter(|line| is_shared(line, device, inode))
            .count()
    }

    /// The files, to see who has them open.
    pub fn files(&self) -> [&Path; 2] {
        [&self.using, &self.writing]
    }

    /// Removes the files of a volume that is gone.
    pub fn forget(&self, alone: Use) {
        for path in self.files() {
            // What stays is gone with the host's memory.
            let _ = std::fs::remove_file(path);
        }
        drop(alone);
    }

    fn lock(&self, path: &Path, mode: Mode) -> Result<Option<File>> {
        lock(path, mode).map_err(|error| {
            Error::from_io(self.op, error)
                .with("path", path.display())
                .reason("the volume's lock file can't be locked")
        })
    }
}

/// Locks the file that has this path, which may be another one from one moment to the next.
fn lock(path: &Path, mode: Mode) -> io::Result<Option<File>> {
    loop {
        let mut options = File::options();
        let file = options.create(true).append(true).mode(0o600).open(path)?;
        let locked = match mode {
            Mode::Shared => file.try_lock_shared(),
            Mode::Alone => file.try_lock(),
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let own = file.metadata()?;
        match std::fs::metadata(path) {
            Ok(now) if (now.dev(), now.ino()) == (own.dev(), own.ino()) => return Ok(Some(file)),
            // Forgotten meanwhile.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a line of /proc/locks (proc(5)) says that this file is locked, and shared.
fn is_shared(line: &str, device: u64, inode: u64) -> bool {
    let mut words = line.split_ascii_whitespace().skip(1);
    let kind = [words.next(), words.next(), words.next()];
    if kind != [Some("FLOCK"), Some("ADVISORY"), Some("READ")] {
        return false;
    }
    let place = words.nth(1).unwrap_or_default();
    let (major, minor) = (libc::major(device), libc::minor(device));
    place == format!("{major:02x}:{minor:02x}:{inode}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Access = Access::ReadOnly;
    const WRITE: Access = Access::ReadWrite;

    fn locks(directory: &tempfile::TempDir) -> VolumeLocks {
        VolumeLocks {
            op: "test",
            using: directory.path().join("a.use"),
            writing: directory.path().join("a.write"),
        }
    }

    async fn share(locks: &VolumeLocks, access: Access, sharing: Sharing) -> Option<Use> {
        locks.share(access, sharing).await.expect("no fault")
    }

    #[tokio::test]
    async fn readers_go_with_a_writer_and_a_second_writer_does_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        let reader = share(&locks, READ, Sharing::Exclusive).await;
        let writer = share(&locks, WRITE, Sharing::Exclusive).await;
        assert!(reader.is_some() && writer.is_some());
        for sharing in [Sharing::Exclusive, Sharing::Shared] {
            assert!(share(&locks, WRITE, sharing).await.is_none());
        }
        assert!(locks.alone().await.expect("no fault").is_none());
        drop(writer);
        let shared = share(&locks, WRITE, Sharing::Shared).await;
        assert!(shared.is_some());
        assert!(share(&locks, WRITE, Sharing::Shared).await.is_some());
        assert!(share(&locks, WRITE, Sharing::Exclusive).await.is_none());
        drop((shared, reader));
        assert!(locks.alone().await.expect("no fault").is_some());
        assert!(share(&locks, WRITE, Sharing::Exclusive).await.is_some());
    }

    #[tokio::test]
    async fn who_has_it_alone_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        let alone = locks.alone_now().expect("no fault");
        assert!(alone.is_some());
        let waiting = [
            tokio::spawn({
                let locks = locks.clone();
                async move { share(&locks, WRITE, Sharing::Exclusive).await.is_some() }
            }),
            tokio::spawn({
                let locks = locks.clone();
                // The writer may have been first.
                async move { locks.alone().await.is_ok() }
            }),
        ];
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        drop(alone);
        for task in waiting {
            assert!(task.await.expect("no panic"));
        }
    }

    #[tokio::test]
    async fn forgotten_files_keep_nobody_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        let writer = share(&locks, WRITE, Sharing::Exclusive).await;
        drop(writer);
        let alone = locks
            .alone()
            .await
            .expect("no fault")
            .expect("nobody is there");
        locks.forget(alone);
        let left = std::fs::read_dir(directory.path()).expect("list").count();
        assert_eq!(left, 0);
        let first = share(&locks, WRITE, Sharing::Exclusive).await;
        assert!(first.is_some());
        assert!(share(&locks, WRITE, Sharing::Exclusive).await.is_none());
    }

    #[test]
    fn a_lock_is_never_that_of_a_file_that_was_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let Some(alone) = locks.alone_now().expect("no fault") else {
                            continue;
                        };
                        let others = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(others, 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        locks.forget(alone);
                    }
                });
            }
        });
    }

    #[test]
    fn shared_locks_are_counted() {
        let line = "12: FLOCK  ADVISORY  READ  812 00:18:4711 0 EOF";
        assert!(is_shared(line, libc::makedev(0, 0x18), 4711));
        assert!(!is_shared(line, libc::makedev(0, 0x18), 4712));
        assert!(!is_shared(line, libc::makedev(1, 0x18), 4711));
        for other in [
            "12: FLOCK  ADVISORY  WRITE 812 00:18:4711 0 EOF",
            "12: POSIX  ADVISORY  READ  812 00:18:4711 0 EOF",
            "12: -> FLOCK  ADVISORY  READ  812 00:18:4711 0 EOF",
            "",
        ] {
            assert!(!is_shared(other, libc::makedev(0, 0x18), 4711), "{other}");
        }
    }
}

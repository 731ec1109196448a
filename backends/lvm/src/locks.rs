//! Who uses a volume on this host: locks on files that all volmux processes share.
//!
//! Whoever has a volume open shares the first lock, and a writer has the second one besides, shared
//! or not. Who needs the volume for itself alone, so that it can be changed as a whole or its device
//! taken away, has the first one alone, and nearly always has its turn to change the group too: so
//! only those who open a volume have to wait for that. Locks end with the process that holds them.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use volmux_core::{Access, Error, Result, Sharing, VolumeId};

use crate::group::GroupClient;

/// How long one waits for somebody who has a volume alone: that is over after a command or two.
const PATIENCE: Duration = Duration::from_secs(30);

/// Locks that are held; released when this is dropped.
#[derive(Debug)]
pub struct Use {
    // Before the other, so that nobody writes to a volume that somebody else has alone.
    _writing: Option<Locked>,
    _using: Locked,
}

#[derive(Debug)]
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing it is not enough: a child that is just being started has the file as well, until
        // it runs its program.
        let _ = self.0.unlock();
    }
}

/// The locks of one volume.
#[derive(Clone, Debug)]
pub struct VolumeLocks {
    op: &'static str,
    using: PathBuf,
    writing: PathBuf,
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
        loop {
            if let Some(using) = self.lock(&self.using, Mode::Shared)? {
                return self.also_write(using, access, sharing);
            }
            if Instant::now() > end {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As [`share`](Self::share), without waiting.
    ///
    /// # Errors
    /// If the files can't be made or locked.
    pub fn share_now(&self, access: Access, sharing: Sharing) -> Result<Option<Use>> {
        match self.lock(&self.using, Mode::Shared)? {
            Some(using) => self.also_write(using, access, sharing),
            None => Ok(None),
        }
    }

    /// The rest of what a handle needs.
    fn also_write(&self, using: Locked, access: Access, sharing: Sharing) -> Result<Option<Use>> {
        let mode = match (access, sharing) {
            (Access::ReadOnly, _) => {
                return Ok(Some(Use {
                    _writing: None,
                    _using: using,
                }));
            }
            (Access::ReadWrite, Sharing::Shared) => Mode::Shared,
            (Access::ReadWrite, Sharing::Exclusive) => Mode::Alone,
        };
        let writing = self.lock(&self.writing, mode)?;
        Ok(writing.map(|file| Use {
            _writing: Some(file),
            _using: using,
        }))
    }

    /// The volume for oneself alone. `Ok(None)` if it is open.
    ///
    /// # Errors
    /// If the files can't be made or locked.
    pub async fn alone(&self) -> Result<Option<Use>> {
        if let Some(alone) = self.alone_now()? {
            return Ok(Some(alone));
        }
        // An audit that only looks, without a turn, may have had it for a moment.
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.alone_now()
    }

    /// The volume for oneself alone, if nobody else has it now.
    ///
    /// # Errors
    /// If the files can't be made or locked.
    pub fn alone_now(&self) -> Result<Option<Use>> {
        let using = self.lock(&self.using, Mode::Alone)?;
        Ok(using.map(|using| Use {
            _writing: None,
            _using: using,
        }))
    }

    /// How many opens of its device the handles of a volume account for, in all processes that can
    /// be seen: one each, and another one for the writer that lets no other in, which claims it.
    pub fn opens(&self) -> u32 {
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let using = held(&locks, &self.using, Mode::Shared);
        let claimed = held(&locks, &self.writing, Mode::Alone);
        u32::try_from(using + claimed).unwrap_or(u32::MAX)
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

    fn lock(&self, path: &Path, mode: Mode) -> Result<Option<Locked>> {
        lock(path, mode).map_err(|error| {
            Error::from_io(self.op, error)
                .with("path", path.display())
                .reason("the volume's lock file can't be locked")
        })
    }
}

/// Locks the file that has this path, which may be another one from one moment to the next.
fn lock(path: &Path, mode: Mode) -> io::Result<Option<Locked>> {
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
        let file = Locked(file);
        let own = file.0.metadata()?;
        match std::fs::metadata(path) {
            Ok(now) if (now.dev(), now.ino()) == (own.dev(), own.ino()) => return Ok(Some(file)),
            // Forgotten meanwhile.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// How often a file is locked, as /proc/locks tells (proc(5)).
fn held(locks: &str, path: &Path, mode: Mode) -> usize {
    let Ok(metadata) = std::fs::metadata(path) else {
        return 0;
    };
    let (device, inode) = (metadata.dev(), metadata.ino());
    let lines = locks.lines();
    lines
        .filter(|line| is_held(line, device, inode, mode))
        .count()
}

fn is_held(line: &str, device: u64, inode: u64, mode: Mode) -> bool {
    let mode = match mode {
        Mode::Shared => "READ",
        Mode::Alone => "WRITE",
    };
    let mut words = line.split_ascii_whitespace().skip(1);
    let kind = [words.next(), words.next(), words.next()];
    if kind != [Some("FLOCK"), Some("ADVISORY"), Some(mode)] {
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

    fn share(locks: &VolumeLocks, access: Access, sharing: Sharing) -> Option<Use> {
        locks.share_now(access, sharing).expect("no fault")
    }

    #[test]
    fn readers_go_with_a_writer_and_a_second_writer_does_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        let reader = share(&locks, READ, Sharing::Exclusive);
        let writer = share(&locks, WRITE, Sharing::Exclusive);
        assert!(reader.is_some() && writer.is_some());
        for sharing in [Sharing::Exclusive, Sharing::Shared] {
            assert!(share(&locks, WRITE, sharing).is_none());
        }
        assert!(locks.alone_now().expect("no fault").is_none());
        drop(writer);
        let shared = share(&locks, WRITE, Sharing::Shared);
        assert!(shared.is_some());
        assert!(share(&locks, WRITE, Sharing::Shared).is_some());
        assert!(share(&locks, WRITE, Sharing::Exclusive).is_none());
        drop((shared, reader));
        let alone = locks.alone_now().expect("no fault");
        assert!(alone.is_some());
        assert!(share(&locks, READ, Sharing::Shared).is_none());
        drop(alone);
        assert!(share(&locks, WRITE, Sharing::Exclusive).is_some());
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

    #[tokio::test]
    async fn who_opens_a_volume_waits_for_who_has_it_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        let alone = locks.alone_now().expect("no fault");
        assert!(alone.is_some());
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.share(WRITE, Sharing::Exclusive).await }
        });
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert!(!waiting.is_finished());
        drop(alone);
        let writer = waiting.await.expect("no panic").expect("no fault");
        assert!(writer.is_some());
    }

    #[test]
    fn forgotten_files_keep_nobody_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        drop(share(&locks, WRITE, Sharing::Exclusive));
        let alone = locks.alone_now().expect("no fault").expect("nobody else");
        locks.forget(alone);
        let left = std::fs::read_dir(directory.path()).expect("list").count();
        assert_eq!(left, 0);
        let first = share(&locks, WRITE, Sharing::Exclusive);
        assert!(first.is_some());
        assert!(share(&locks, WRITE, Sharing::Exclusive).is_none());
    }

    #[test]
    fn locks_are_counted_by_what_they_are() {
        let device = libc::makedev(0, 0x18);
        let line = "12: FLOCK  ADVISORY  READ  812 00:18:4711 0 EOF";
        assert!(is_held(line, device, 4711, Mode::Shared));
        assert!(!is_held(line, device, 4712, Mode::Shared));
        assert!(!is_held(line, libc::makedev(1, 0x18), 4711, Mode::Shared));
        assert!(!is_held(line, device, 4711, Mode::Alone));
        let line = "12: FLOCK  ADVISORY  WRITE 812 00:18:4711 0 EOF";
        assert!(is_held(line, device, 4711, Mode::Alone));
        for other in [
            line,
            "12: POSIX  ADVISORY  READ  812 00:18:4711 0 EOF",
            "12: -> FLOCK  ADVISORY  READ  812 00:18:4711 0 EOF",
            "",
        ] {
            assert!(!is_held(other, device, 4711, Mode::Shared), "{other}");
        }
    }

    #[test]
    fn own_locks_are_seen() {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = locks(&directory);
        let _reader = share(&locks, READ, Sharing::Exclusive);
        let _writer = share(&locks, WRITE, Sharing::Exclusive);
        assert_eq!(locks.opens(), 3);
    }
}

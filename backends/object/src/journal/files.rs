//! The directory of a journal, its lock and its files.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result};

use crate::keys::LogId;
use crate::local_dir;

/// The operation that errors at opening name.
pub(super) const OPEN: &str = "open_volume";
/// How long somebody who is just going away is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const LOCK: &str = "lock";
const SUFFIX: &str = ".journal";

/// A journal's directory, locked.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    // Held until this is dropped.
    _lock: File,
}

impl Dir {
    /// Checks `dir` and locks the journal of `log` in it.
    pub(super) fn lock(dir: &Path, pool: Uuid, log: LogId) -> Result<Self> {
        local_dir::check(OPEN, dir)?;
        let pool = local_dir::of_pool(dir, pool);
        let path = pool.join(log.to_string());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let locked = local_dir::make(&pool)
                .and_then(|()| local_dir::make(&path))
                .and_then(|()| try_lock(&path));
            match locked {
                Ok(Some(lock)) => return Ok(Dir { path, _lock: lock }),
                Ok(None) if Instant::now() >= deadline => {
                    return Err(Error::new(ErrorKind::Busy, OPEN)
                        .with("path", path.display())
                        .reason("another process on this host has this volume's journal open"));
                }
                Ok(None) => {}
                // Whoever closed it, or another one of the pool, has just removed the directory.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {}
                Err(error) => return Err(cannot(&path, error)),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of the files that are there, in order.
    pub(super) fn files(&self) -> io::Result<Vec<u32>> {
        let mut files = Vec::new();
        for entry in self.path.read_dir()? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            files.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Opens file `number`.
    pub(super) fn open(&self, number: u32) -> io::Result<File> {
        local_dir::options().open(self.file(number))
    }

    /// Makes file `number`, of `size` bytes. Zeros are written, not only reserved: a sync of what
    /// is written over them later has nothing but data to write.
    pub(super) fn make(&self, number: u32, size: u64) -> io::Result<File> {
        let file = local_dir::options()
            .create_new(true)
            .open(self.file(number))?;
        let made = self.fill(&file, size);
        if let Err(error) = made {
            self.remove(number)?;
            return Err(error);
        }
        Ok(file)
    }

    fn fill(&self, file: &File, size: u64) -> io::Result<()> {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            reserved => reserved?,
        }
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let step = (size - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..step as usize], at)?;
            at += step;
        }
        file.sync_all()?;
        self.sync()
    }

    /// Removes file `number`.
    pub(super) fn remove(&self, number: u32) -> io::Result<()> {
        std::fs::remove_file(self.file(number))
    }

    /// Has the names of the files survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Removes the journal.
    pub(super) fn remove_all(&self) -> io::Result<()> {
        for number in self.files()? {
            self.remove(number)?;
        }
        std::fs::remove_file(self.path.join(LOCK))?;
        std::fs::remove_dir(&self.path)?;
        // The pool's other volumes may have journals there.
        let _kept = self.path.parent().map(std::fs::remove_dir);
        Ok(())
    }

    /// Where file `number` is.
    pub(super) fn file(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:06}{SUFFIX}"))
    }
}

/// The lock, unless somebody has it.
fn try_lock(dir: &Path) -> io::Result<Option<File>> {
    let path = dir.join(LOCK);
    let mut file = local_dir::options()
        .create(true)
        .truncate(false)
        .open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // It may have been removed by who had it before: then another one can be made and locked.
    let (mine, there) = (file.metadata()?, path.metadata()?);
    if (mine.ino(), mine.dev()) != (there.ino(), there.dev()) {
        return Ok(None);
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

/// The error where the files of a journal can't be worked with.
pub(super) fn cannot(path: &Path, error: io::Error) -> Error {
    let error = Error::from_io(OPEN, error).with("path", path.display());
    match error.kind() {
        ErrorKind::NoSpace => error
            .reason("the journal's disk is full")
            .help("free space there, or set a smaller journal_size"),
        _ => error.reason("the journal can't be opened"),
    }
}

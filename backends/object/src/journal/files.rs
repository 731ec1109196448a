//! The directory of a journal, its lock and its files.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result};

use crate::keys::LogId;

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
        check(dir)?;
        let pool = dir.join(pool.simple().to_string());
        let path = pool.join(log.to_string());
        let deadline = Instant::now() + PATIENCE;
        loop {
            make_dir(&pool)
                .and_then(|()| make_dir(&path))
                .map_err(|e| cannot(&path, e))?;
            match try_lock(&path) {
                Ok(Some(lock)) => return Ok(Dir { path, _lock: lock }),
                Ok(None) if Instant::now() >= deadline => {
                    return Err(Error::new(ErrorKind::Busy, OPEN)
                        .with("path", path.display())
                        .reason("another process on this host has this volume's journal open"));
                }
                Ok(None) => {}
                // Whoever closed it has just removed the directory.
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
        self.options().open(self.file(number))
    }

    /// Makes file `number`, of `size` bytes. Zeros are written, not only reserved: a sync of what
    /// is written over them later has nothing but data to write.
    pub(super) fn make(&self, number: u32, size: u64) -> io::Result<File> {
        let file = self.options().create_new(true).open(self.file(number))?;
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

    fn file(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:06}{SUFFIX}"))
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        options
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(flags.bits() as i32);
        options
    }
}

/// Whether a journal may be in `dir`: it has to exist, so that a file system that was not mounted
/// is noticed, and nobody else may be able to change what is in it.
fn check(dir: &Path) -> Result<()> {
    let wrong = |reason: &str| {
        Error::new(ErrorKind::InvalidConfig, OPEN)
            .with("path", dir.display())
            .reason(reason)
            .help("name a directory of your own on a local file system as the journal's")
    };
    let about = match dir.metadata() {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(wrong("the journal's directory does not exist").with_source(error));
        }
        Err(error) => return Err(cannot(dir, error)),
    };
    if !about.is_dir() {
        return Err(wrong("what is named as the journal's directory is none"));
    }
    let me = rustix::process::geteuid();
    if about.uid() != me.as_raw() && !me.is_root() {
        return Err(wrong("the journal's directory belongs to another user"));
    }
    // Sticky: others can make files in it, and not touch ours.
    if about.mode() & 0o022 != 0 && about.mode() & 0o1000 == 0 {
        return Err(wrong(
            "others may change what is in the journal's directory",
        ));
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let about = path.symlink_metadata()?;
            let mine = about.is_dir() && about.uid() == rustix::process::geteuid().as_raw();
            if mine { Ok(()) } else { Err(error) }
        }
        Err(error) => Err(error),
        // The name has to last as long as what is below it.
        Ok(()) => path
            .parent()
            .map_or(Ok(()), |parent| File::open(parent)?.sync_all()),
    }
}

/// The lock, unless somebody has it.
fn try_lock(dir: &Path) -> io::Result<Option<File>> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let mut file = options
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
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

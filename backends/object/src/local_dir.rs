//! Directories of this host that hold what belongs to a pool: its journals, its disk cache.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result};

/// Checks a directory that a configuration names. It has to exist, so that a file system that was
/// not mounted is noticed, and nobody else may be able to change what is in it.
///
/// # Errors
/// `InvalidConfig` that says what is wrong.
pub(crate) fn check(op: &'static str, dir: &Path) -> Result<()> {
    let wrong = |reason: &str| {
        Error::new(ErrorKind::InvalidConfig, op)
            .with("path", dir.display())
            .reason(reason)
            .help("name a directory of your own on a local file system")
    };
    let about = match dir.metadata() {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(wrong("the directory does not exist").with_source(error));
        }
        Err(error) => {
            return Err(Error::from_io(op, error)
                .with("path", dir.display())
                .reason("the directory can't be used"));
        }
    };
    if !about.is_dir() {
        return Err(wrong("this is not a directory"));
    }
    let me = rustix::process::geteuid();
    if about.uid() != me.as_raw() && !me.is_root() {
        return Err(wrong("the directory belongs to another user"));
    }
    // Sticky: others can make files in it, and not touch ours.
    if about.mode() & 0o022 != 0 && about.mode() & 0o1000 == 0 {
        return Err(wrong("others may change what is in the directory"));
    }
    Ok(())
}

/// The directory of a pool below `dir`, which may not exist yet.
pub(crate) fn of_pool(dir: &Path, pool: Uuid) -> PathBuf {
    dir.join(pool.simple().to_string())
}

/// Makes a directory that only this user may look into, unless it is there.
pub(crate) fn make(path: &Path) -> io::Result<()> {
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

/// How files in such a directory are opened: for this user alone, and never through a link.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(flags.bits() as i32);
    options
}

/// Opens the file of a pool's disk cache below `dir`.
pub(crate) fn open_cache(dir: &Path, pool: Uuid) -> Result<File> {
    let op = "open_pool";
    check(op, dir)?;
    let path = of_pool(dir, pool);
    let opened = make(&path).and_then(|()| options().create(true).open(path.join("blocks.cache")));
    opened.map_err(|error| {
        Error::from_io(op, error)
            .with("path", path.display())
            .reason("the disk cache can't be opened")
    })
}

//! What the file system under a pool can do, found by trying it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use volmux_core::{ByteRange, VolumeId};

use crate::staged::Staged;
use crate::sys;

/// What the name of a file that is tried on ends with.
const TRIAL: &str = ".trial";

const LENGTH: u64 = 64 << 10;

/// What a file system can do with a file. Where that can't be tried, because nothing may be written
/// there, what nearly every one can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Files share blocks (FICLONE; CLONE of NFS 4.2).
    pub clone: bool,
    /// Blocks are given back (FALLOC_FL_PUNCH_HOLE; DEALLOCATE).
    pub punch: bool,
    /// Blocks are reserved (fallocate; ALLOCATE).
    pub reserve: bool,
    /// It tells where on the disk blocks lie, and so which files share them (FIEMAP).
    pub map: bool,
    /// It is an NFS server.
    pub remote: bool,
}

impl Abilities {
    /// Tries what files in `dir` can do. Leaves nothing behind. Where files can't do without a name
    /// (NFS), nothing is tried unless they `may_have_names` for the moment; a process that is killed
    /// then leaves one for an audit to find.
    pub fn of(dir: &OwnedFd, may_have_names: bool) -> io::Result<Abilities> {
        let remote = sys::is_remote(dir)?;
        let untried = Abilities {
            clone: false,
            punch: true,
            reserve: true,
            map: !remote,
            remote,
        };
        let trial = || Trial::new(dir, may_have_names);
        let (Ok(from), Ok(to)) = (trial(), trial()) else {
            return Ok(untried);
        };
        // Not empty, for nothing of nothing is easily shared; and without data, for which there may be
        // no room.
        from.file().set_len(LENGTH)?;
        let (all, part) = (ByteRange::new(0, LENGTH), ByteRange::new(0, LENGTH / 2));
        let can = |done: io::Result<()>| match done {
            Err(error) if is_unsupported(&error) => Ok(false),
            // The file system can do it, and has no room.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                Ok(true)
            }
            done => done.map(|()| true),
        };
        Ok(Abilities {
            clone: sys::clone_file(from.file(), to.file()).is_ok(),
            map: can(sys::file_extents(from.file(), all, true).map(drop))?,
            punch: can(sys::punch_hole(from.file(), part))?,
            reserve: can(sys::reserve(from.file(), all))?,
            remote,
        })
    }
}

/// Whether a file was made to be tried on.
pub fn is_trial(name: &str) -> bool {
    let id = name.strip_suffix(TRIAL);
    id.is_some_and(|id| id.parse::<VolumeId>().is_ok())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL)
    )
}

/// A file to try things on. One with a name is locked, as all files in the making are.
enum Trial {
    Unnamed(File),
    Named(Staged),
}

impl Trial {
    fn new(dir: &OwnedFd, may_have_name: bool) -> io::Result<Trial> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::openat(dir, ".", flags, mode) {
            Ok(file) => Ok(Trial::Unnamed(file.into())),
            Err(_) if may_have_name => Ok(Trial::Named(Staged::create(dir, TRIAL)?.1)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn file(&self) -> &File {
        match self {
            Trial::Unnamed(file) => file,
            Trial::Named(staged) => &staged.file,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trying_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = File::open(dir.path()).expect("open it");
        let abilities = Abilities::of(&open.into(), false).expect("they are found");
        assert!(!abilities.remote && abilities.punch && abilities.reserve);
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_tried() {
        let proc = File::open("/proc").expect("it is there");
        let abilities = Abilities::of(&proc.into(), true).expect("they are found");
        assert!(!abilities.clone && abilities.punch && abilities.reserve);
    }
}

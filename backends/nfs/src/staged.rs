//! Files in the making: locked, so that an audit knows that somebody makes them, and removed again
//! unless they are published.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use volmux_core::{ByteRange, VolumeId};

use crate::layout::PoolDirs;
use crate::node::{Format, Node};
use crate::record;
use crate::sys::{self, Lock, Locked};

/// Held exclusively on a file in the making. QEMU locks bytes from 100 on, so this one is ours.
const MAKING: ByteRange = ByteRange::new(0, 1);

/// A file in the making: locked, and removed again unless it is published or kept.
#[derive(Debug)]
pub struct Staged {
    dir: OwnedFd,
    name: String,
    /// The open file.
    pub file: Locked,
    pub remove: bool,
}

/// A data file in the making.
#[derive(Debug)]
pub struct StagedData {
    /// Which.
    pub node: Node,
    pub staged: Staged,
}

impl StagedData {
    /// The open file.
    pub fn file(&self) -> &File {
        &self.staged.file
    }

    /// A new one, empty.
    pub fn create(dir: &OwnedFd, format: Format) -> io::Result<StagedData> {
        let (id, staged) = Staged::create(dir, &format!(".{}", format.name()))?;
        let node = Node { id, format };
        Ok(StagedData { node, staged })
    }

    /// A data file that is a second link to `file`, for adoption.
    pub fn link(pool: &PoolDirs, file: Locked) -> io::Result<StagedData> {
        use std::os::fd::AsRawFd;
        if !sys::try_lock(&file, Lock::Exclusive, MAKING)? {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let node = Node::raw(VolumeId::random());
        let dir = pool.data.try_clone()?;
        // Through the descriptor, so that it is this file whatever its path names by now.
        let fd_path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, fd_path, &dir, node.to_string(), flags)?;
        Ok(StagedData {
            node,
            staged: Staged {
                dir,
                name: node.to_string(),
                file,
                remove: true,
            },
        })
    }
}

impl Staged {
    /// A new file with a name of its own that ends with `suffix`.
    pub fn create(dir: &OwnedFd, suffix: &str) -> io::Result<(VolumeId, Staged)> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            // Another name each time: an audit that took the last one for a leftover is about to
            // remove it by its name.
            let id = VolumeId::random();
            let name = format!("{id}{suffix}");
            let mode = Mode::RUSR | Mode::WUSR;
            let file = File::from(rustix::fs::openat(dir, &name, flags, mode)?).into();
            let dir = dir.try_clone()?;
            let staged = Staged {
                dir,
                name,
                file,
                remove: true,
            };
            let locked = sys::try_lock(&staged.file, Lock::Exclusive, MAKING)?;
            if locked && rustix::fs::fstat(&*staged.file)?.st_nlink > 0 {
                return Ok((id, staged));
            }
        }
    }

    pub fn record<T: serde::Serialize>(dir: &OwnedFd, record: &T) -> io::Result<Staged> {
        let (_, staged) = Staged::create(dir, ".json")?;
        (&*staged.file).write_all(&record::encode(record))?;
        staged.file.sync_all()?;
        Ok(staged)
    }

    pub fn publish_new(mut self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        match rename_new(&self.dir, &self.name, dir, name) {
            // NFS has no such thing. The second name is removed when this is dropped.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => self.link_new(dir, name),
            renamed => {
                renamed?;
                self.remove = false;
                Ok(())
            }
        }
    }

    fn link_new(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        let linked = rustix::fs::linkat(&self.dir, &self.name, dir, name, AtFlags::empty());
        // A server that was asked again, because its answer was lost, has done it already.
        if linked == Err(Errno::EXIST) {
            let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let own = rustix::fs::fstat(&*self.file)?;
            if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino) {
                return Ok(());
            }
        }
        Ok(linked?)
    }

    pub fn publish_over(mut self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, &self.name, dir, name)?;
        self.remove = false;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty())
            && error != Errno::NOENT
        {
            tracing::warn!(file = self.name, %error, "left behind, for an audit to remove");
        }
    }
}

/// Renames, if the new name is free.
pub fn rename_new(from: &OwnedFd, name: &str, to: &OwnedFd, new: &str) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE)
}

/// Takes the lock of a file in the making; `Ok(false)` if a live process is making it.
pub fn lock_leftover(file: &File) -> io::Result<bool> {
    sys::try_lock(file, Lock::Exclusive, MAKING)
}

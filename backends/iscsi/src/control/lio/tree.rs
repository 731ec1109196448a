//! Directories of configfs: what is made there, the kernel makes.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use volmux_core::{Error, ErrorKind, Result};

/// An attribute has a page at most.
const PAGE: usize = 4096;

/// A directory, for one operation.
#[derive(Clone, Debug)]
pub struct Dir {
    pub path: PathBuf,
    pub op: &'static str,
}

impl Dir {
    /// A directory below this one.
    pub fn at(&self, name: &str) -> Dir {
        Dir {
            path: self.path.join(name),
            op: self.op,
        }
    }

    pub fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// The names in it; none if it is not there.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| self.trouble("", error))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.trouble("", error))?;
            // Others are none of ours, which are plain.
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// The directories in it.
    pub fn dirs(&self) -> Result<Vec<Dir>> {
        let dirs = self.names()?.into_iter().map(|name| self.at(&name));
        Ok(dirs
            .filter(|dir| {
                dir.path
                    .symlink_metadata()
                    .is_ok_and(|about| about.is_dir())
            })
            .collect())
    }

    pub fn name(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.unwrap_or_default()
    }

    /// Has it made, unless it is there. Whether it was made.
    pub fn make(&self) -> Result<bool> {
        match fs::create_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.trouble("", error)),
        }
    }

    /// Has it removed, if it is there.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.trouble("", error)),
            _ => Ok(()),
        }
    }

    /// Has it removed, unless somebody needs it. Whether it is gone.
    pub fn remove_unused(&self) -> Result<bool> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Ok(true),
                io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty => Ok(false),
                _ => Err(self.trouble("", error)),
            },
        }
    }

    /// What an attribute says, without the line break at its end; nothing if it is not there.
    pub fn get(&self, name: &str) -> Result<String> {
        let path = self.path.join(name);
        let mut text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            text => text.map_err(|error| self.trouble(name, error))?,
        };
        text.truncate(PAGE);
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_end_matches('\0');
        Ok(text.strip_suffix('\n').unwrap_or(text).to_owned())
    }

    pub fn set(&self, name: &str, value: &[u8]) -> Result<()> {
        // An attribute that is not there must not be made; in configfs it can't.
        let file = fs::OpenOptions::new()
            .write(true)
            .open(self.path.join(name));
        let written = file.and_then(|mut file| io::Write::write_all(&mut file, value));
        written.map_err(|error| self.trouble(name, error))
    }

    /// As [`set`](Self::set), unless it says that already.
    pub fn put(&self, name: &str, value: &str) -> Result<()> {
        match self.get(name)? == value {
            true => Ok(()),
            false => self.set(name, value.as_bytes()),
        }
    }

    /// What the link in it leads to.
    pub fn linked(&self) -> Result<Option<(PathBuf, PathBuf)>> {
        for name in self.names()? {
            let link = self.path.join(name);
            if link
                .symlink_metadata()
                .is_ok_and(|about| about.is_symlink())
            {
                let target = fs::canonicalize(&link).map_err(|error| self.trouble("", error))?;
                return Ok(Some((link, target)));
            }
        }
        Ok(None)
    }

    /// Links it to another one.
    pub fn link(&self, to: &Dir) -> Result<()> {
        symlink(&to.path, self.path.join("disk")).map_err(|error| self.trouble("disk", error))
    }

    /// Takes its link away. The kernel waits until no command needs it.
    pub fn unlink(&self) -> Result<()> {
        if let Some((link, _)) = self.linked()? {
            fs::remove_file(&link).map_err(|error| self.trouble("", error))?;
        }
        Ok(())
    }

    pub fn trouble(&self, name: &str, error: io::Error) -> Error {
        let path: &Path = &self.path.join(name);
        let refused = matches!(
            error
                .raw_os_error()
                .map(rustix::io::Errno::from_raw_os_error),
            Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS)
        );
        let kind = match refused {
            true => ErrorKind::PermissionDenied,
            false => ErrorKind::of_io(&error),
        };
        let help = match kind {
            ErrorKind::PermissionDenied => "only root may do that",
            _ => "the kernel's log says more",
        };
        Error::new(kind, self.op)
            .with("path", path.display())
            .help(help)
            .with_source(error)
    }
}

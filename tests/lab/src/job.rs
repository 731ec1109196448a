//! The directory of one run: what the guest reads, scratch disks, the kernel's log.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Error, Lab};

/// Removed when dropped, or else by whoever makes the next one.
#[derive(Debug)]
pub(crate) struct Job {
    directory: TempDir,
    /// Locked as long as this process lives.
    _lock: File,
}

impl Job {
    /// Makes one below `runs`, after removing those whose process was killed.
    pub(crate) fn new(runs: &Path) -> Result<Job, Error> {
        let failed = |error| Error::file(runs, &error);
        std::fs::create_dir_all(runs).map_err(failed)?;
        let all = File::create(runs.join("lock")).map_err(failed)?;
        all.lock().map_err(failed)?;
        remove_left(runs).map_err(failed)?;
        let directory = tempfile::Builder::new().prefix("run-").tempdir_in(runs);
        let directory = directory.map_err(failed)?;
        let lock = File::create(directory.path().join("lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        std::fs::create_dir(directory.path().join("job")).map_err(failed)?;
        Ok(Job {
            directory,
            _lock: lock,
        })
    }

    /// Where QEMU runs.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What the guest sees of it.
    pub(crate) fn shown(&self) -> PathBuf {
        self.directory.path().join("job")
    }

    /// All that the kernel printed.
    pub(crate) fn console(&self) -> PathBuf {
        self.directory.path().join("console")
    }

    /// Where scratch disk `number` is.
    pub(crate) fn scratch(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("disk{number}"))
    }

    /// Makes a link where QEMU runs.
    pub(crate) fn link(&self, name: &str, to: &Path) -> Result<(), Error> {
        let path = self.directory.path().join(name);
        std::os::unix::fs::symlink(to, &path).map_err(|error| Error::file(&path, &error))
    }

    /// Writes what the guest reads: its script, and scripts made for this run.
    pub(crate) fn write(
        &self,
        lab: &Lab,
        kernel: &Path,
        command: &[OsString],
    ) -> Result<(), Error> {
        let mut job = b"KERNEL=".to_vec();
        quote(kernel.as_os_str(), &mut job);
        for (number, path) in lab.shares.iter().enumerate() {
            job.extend_from_slice(format!("\nshare share{number} ").as_bytes());
            quote(path.as_os_str(), &mut job);
        }
        job.push(b'\n');

        let mut run = Vec::new();
        for (name, value) in &lab.environment {
            run.extend_from_slice(b"export ");
            run.extend_from_slice(name.as_bytes());
            run.push(b'=');
            quote(value, &mut run);
            run.push(b'\n');
        }
        let here = std::env::current_dir().map_err(|error| Error::file(Path::new("."), &error))?;
        run.extend_from_slice(b"cd ");
        quote(here.as_os_str(), &mut run);
        run.extend_from_slice(b" || exit 126\nexec");
        for word in command {
            run.push(b' ');
            quote(word, &mut run);
        }
        run.push(b'\n');

        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
        let script = std::fs::read(&script).map_err(|error| Error::file(&script, &error))?;
        for (name, content) in [("job", job), ("command", run), ("guest", script)] {
            let path = self.shown().join(name);
            std::fs::write(&path, content).map_err(|error| Error::file(&path, &error))?;
        }
        Ok(())
    }
}

fn remove_left(runs: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(runs)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let unused = match File::open(path.join("lock")) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if unused {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// One word of a shell's command line.
fn quote(word: &OsStr, out: &mut Vec<u8>) {
    out.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => out.extend_from_slice(br"'\''"),
            _ => out.push(byte),
        }
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted() {
        let quoted = |word| {
            let mut out = Vec::new();
            quote(OsStr::new(word), &mut out);
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $x"), r"'it'\''s $x'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let runs = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(runs.path().join("run-left")).expect("a directory");
        std::fs::write(runs.path().join("run-left/lock"), "").expect("a file");
        let first = Job::new(runs.path()).expect("a job");
        assert!(!runs.path().join("run-left").exists());
        let second = Job::new(runs.path()).expect("a job");
        assert!(first.shown().exists() && second.shown().exists());
        let shown = first.shown();
        drop(first);
        assert!(!shown.exists());
    }
}

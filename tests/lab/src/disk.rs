//! Disks of a lab.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::Error;

/// A disk of a lab: a raw file. The first is `/dev/vda` and `/dev/disk/by-id/virtio-lab0` inside,
/// the second `/dev/vdb` and `/dev/disk/by-id/virtio-lab1`, and so on.
///
/// A power cut kills QEMU. A write that the guest's kernel has been told is done is then in the
/// file, flushed or not, unless the disks are [volatile](crate::Lab::volatile); one that was
/// under way may be there in part; what the guest still had in its memory is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    file: Option<PathBuf>,
    bytes: Option<u64>,
}

impl Disk {
    /// A disk of `bytes` zeros that goes away with the lab.
    pub fn scratch(bytes: u64) -> Disk {
        Disk {
            file: None,
            bytes: Some(bytes),
        }
    }

    /// A file that holds the disk between runs. Made with `bytes` zeros if it is missing or
    /// empty; if it is not, its length must be that.
    pub fn file(path: impl Into<PathBuf>, bytes: u64) -> Disk {
        Disk {
            file: Some(path.into()),
            bytes: Some(bytes),
        }
    }

    /// A file that is there, with the length that it has.
    pub fn existing(path: impl Into<PathBuf>) -> Disk {
        Disk {
            file: Some(path.into()),
            bytes: None,
        }
    }

    /// Reads `SIZE`, `FILE:SIZE` or `FILE`. A size is a number of bytes, or has K, M, G or T
    /// after it for powers of 1024.
    ///
    /// # Errors
    /// If it is none of that.
    pub fn parse(text: &str) -> Result<Disk, Error> {
        if let Some(bytes) = size(text) {
            return Ok(Disk::scratch(bytes));
        }
        if let Some((path, tail)) = text.rsplit_once(':') {
            if let Some(bytes) = size(tail)
                && !path.is_empty()
            {
                return Ok(Disk::file(path, bytes));
            }
            if !Path::new(text).exists() {
                return Err(Error::new(format!(
                    "--disk {text}: {tail:?} is no size: write it like 64M"
                )));
            }
        }
        if !Path::new(text).is_file() {
            return Err(Error::new(format!(
                "--disk {text}: no size like 64M, and no file of that name: to make one, write \
                 {text}:SIZE"
            )));
        }
        Ok(Disk::existing(text))
    }

    /// The file, made if need be, and held against other labs; a scratch disk's is `scratch`.
    pub(crate) fn take(&self, scratch: PathBuf) -> Result<Taken, Error> {
        let path = self.file.clone().unwrap_or(scratch);
        let path = std::path::absolute(&path).map_err(|error| Error::file(&path, &error))?;
        let failed = |error| Error::file(&path, &error);
        let mut options = File::options();
        options.read(true).write(true).create(self.bytes.is_some());
        let file = options.open(&path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let shown = path.display();
        if !found.is_file() {
            return Err(Error::new(format!("{shown}: a disk must be a file")));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(format!("{shown}: another lab uses this disk")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let bytes = self.bytes.unwrap_or(found.len());
        if bytes == 0 || !bytes.is_multiple_of(512) {
            return Err(Error::new(format!(
                "{shown}: a disk of {bytes} bytes: the size must be a multiple of 512, and not 0"
            )));
        }
        match found.len() {
            0 => file.set_len(bytes).map_err(failed)?,
            length if length != bytes => {
                return Err(Error::new(format!(
                    "{shown}: has {length} bytes, not {bytes}: give the size it has, or remove it"
                )));
            }
            _ => {}
        }
        Ok(Taken { path, _lock: file })
    }
}

/// The file of a disk, of which no other lab makes a disk as long as this is kept.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) path: PathBuf,
    _lock: File,
}

/// Bytes of a text like `64M`.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        assert_eq!(Disk::parse("64M"), Ok(Disk::scratch(64 << 20)));
        assert_eq!(Disk::parse("4096"), Ok(Disk::scratch(4096)));
        assert_eq!(
            Disk::parse("/var/tmp/a:b:1G"),
            Ok(Disk::file("/var/tmp/a:b", 1 << 30))
        );
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert_eq!(Disk::parse(here), Ok(Disk::existing(here)));
        for wrong in [
            "",
            "M",
            "12X",
            ":4M",
            "/no/such",
            "/no/such:4x",
            "-1",
            "99999999T",
        ] {
            assert!(Disk::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_made_once_and_used_once_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let disk = Disk::file(&path, 1024);
        let taken = disk.take("/none".into()).expect("a disk");
        assert_eq!(taken.path, path);
        let refused = disk.take("/none".into()).expect_err("it is taken");
        assert!(refused.to_string().contains("another lab"), "{refused}");
        drop(taken);
        std::fs::write(&path, [7; 1024]).expect("write");
        disk.take("/none".into()).expect("a disk");
        assert_eq!(std::fs::read(&path).expect("read"), [7; 1024]);

        let scratch = directory.path().join("scratch");
        for (wrong, why) in [
            (Disk::file(&path, 2048), "has 1024 bytes"),
            (Disk::scratch(0), "multiple of 512"),
            (Disk::scratch(700), "multiple of 512"),
            (Disk::existing("/no/such"), "No such file"),
            (Disk::existing("/dev/null"), "must be a file"),
        ] {
            let refused = wrong.take(scratch.clone()).expect_err(why);
            assert!(refused.to_string().contains(why), "{refused}");
        }
    }
}

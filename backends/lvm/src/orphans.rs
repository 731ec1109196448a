//! Thin devices that no logical volume has. LVM numbers thin devices itself and would fail, or worse,
//! when it comes to a number that is taken.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use volmux_core::{Error, ErrorKind, Result};

use crate::dm;
use crate::pool::Inner;

const PATIENCE: Duration = Duration::from_secs(60);

/// A thin device that no logical volume has, and won't have as long as this is held.
#[derive(Debug)]
pub struct Orphan {
    /// Keeps lvm2 from making or removing anything in the group.
    _lock: File,
    target: String,
    id: u64,
}

/// Holds lvm2 back, and looks once more whether a thin device is an orphan; `None` if it is not.
///
/// # Errors
/// `Busy` if another lvm2 command does not give its lock up.
pub async fn lock(inner: &Inner, op: &'static str, id: u64) -> Result<Option<Orphan>> {
    let config = &inner.client.config;
    let Some(pool) = &config.pool else {
        return Ok(None);
    };
    let lvm = &inner.client.commands;
    let locks = lvm.lvm(op, &LOCKING_DIRECTORY).await?;
    let locks = directory(&locks).ok_or_else(|| strange(op, "lvmconfig", &locks))?;
    let lock = lock_group(op, &locks, &config.group).await?;
    // lvm2 takes no lock for that: this process has it. With -a, for a snapshot that is to be merged
    // into its origin is hidden.
    let select = format!("pool_lv={pool}");
    let args = [
        "lvs",
        "--readonly",
        "--noheadings",
        "-a",
        "-o",
        "thin_id",
        "-S",
        &select,
        &config.group,
    ];
    let printed = lvm.lvm(op, &args).await?;
    // One that is not understood would be lost.
    let known = numbers(&printed).ok_or_else(|| strange(op, "lvs", &printed))?;
    if known.contains(&id) {
        return Ok(None);
    }
    let status = dm::pool_status(&config.group, pool).map_err(|e| Error::from_io(op, e))?;
    let Some((target, _)) = status else {
        return Ok(None);
    };
    Ok(Some(Orphan {
        _lock: lock,
        target,
        id,
    }))
}

/// Where lvm2 has its locks.
const LOCKING_DIRECTORY: [&str; 4] = ["lvmconfig", "--type", "full", "global/locking_dir"];

/// `locking_dir="/run/lock/lvm"`, as lvmconfig prints it.
fn directory(printed: &[u8]) -> Option<PathBuf> {
    let text = std::str::from_utf8(printed).ok()?.trim();
    let path = text.strip_prefix("locking_dir=")?;
    let path = path.strip_prefix('"')?.strip_suffix('"')?;
    (path.starts_with('/') && !path.contains(['"', '\\', '\n'])).then(|| path.into())
}

/// Numbers and nothing else.
fn numbers(printed: &[u8]) -> Option<Vec<u64>> {
    let text = std::str::from_utf8(printed).ok()?;
    let numbers = text.split_whitespace().map(|word| word.parse().ok());
    numbers.collect()
}

fn strange(op: &'static str, command: &str, printed: &[u8]) -> Error {
    let printed = String::from_utf8_lossy(printed);
    Error::new(ErrorKind::Internal, op)
        .with(
            "printed",
            printed.trim().chars().take(200).collect::<String>(),
        )
        .reason(format!("what {command} printed can't be understood"))
}

impl Orphan {
    /// Deletes it.
    ///
    /// # Errors
    /// What the kernel says: `Busy` if somebody made a device of it by hand.
    pub fn delete(self, op: &'static str) -> Result<()> {
        dm::message(&self.target, &format!("delete {}", self.id)).map_err(|error| {
            Error::from_io(op, error)
                .with("thin_pool", &self.target)
                .with("device", self.id)
                .reason("the thin device can't be deleted")
        })
    }
}

/// Takes lvm2's own lock on a group, for writing.
async fn lock_group(op: &'static str, locks: &Path, group: &str) -> Result<File> {
    let path = locks.join(format!("V_{group}"));
    let failed = |error| Error::from_io(op, error).with("path", path.display());
    let end = Instant::now() + PATIENCE;
    loop {
        let mut options = File::options();
        let file = options
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            // lvm2 removes the file when it gives the lock up.
            Ok(()) if is_still(&file, &path) => return Ok(file),
            Ok(()) => continue,
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        if Instant::now() > end {
            return Err(Error::new(ErrorKind::Busy, op)
                .with("path", path.display())
                .reason("an lvm2 command has held the group's lock for a minute")
                .help("see what it waits for"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether an open file is the one that has this name.
fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same =
        |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => same(&open, &named),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_makes_no_orphans() {
        assert_eq!(numbers(b"\n      \n    1\n   12\n"), Some(vec![1, 12]));
        assert_eq!(numbers(b""), Some(vec![]));
        // report/prefixes in lvm.conf.
        assert_eq!(numbers(b"  LVM2_THIN_ID='1'\n"), None);
        assert_eq!(
            directory(b"locking_dir=\"/run/lock/lvm\"\n"),
            Some("/run/lock/lvm".into())
        );
        for wrong in [
            "",
            "locking_dir=/run",
            "locking_dir=\"run\"",
            "locking_dir=\"/a\"\n\"/b\"",
        ] {
            assert_eq!(directory(wrong.as_bytes()), None, "{wrong}");
        }
    }
}

//! Who has a device or a file open, in words.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Processes that have one of `files` or the device with this number open, mounts and swap on it,
/// and devices above it. For a message: what is not seen (another user's process, a mount in another
/// namespace) is left out. Looks at every process, so not for the thread of a runtime.
pub fn of(device: Option<u64>, files: &[&Path]) -> Vec<String> {
    let files = files.iter().filter_map(|path| std::fs::metadata(path).ok());
    let files: Vec<_> = files.map(|file| (file.dev(), file.ino())).collect();
    let mut users = device.map(above).unwrap_or_default();
    users.extend(processes(|found| {
        let same = device == Some(found.rdev()) && found.file_type().is_block_device();
        same || files.contains(&(found.dev(), found.ino()))
    }));
    users
}

/// Mounts, swap and devices that use a block device: what keeps it from being claimed.
pub fn above(device: u64) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let same = |path: &Path| device_at(path) == Some(device);
    let mut users = Vec::new();
    for mount in read("/proc/self/mountinfo")
        .lines()
        .filter_map(Mount::parse)
    {
        if mount.device == (libc::major(device), libc::minor(device)) || same(&mount.source) {
            users.push(format!("mounted on {}", mount.on.display()));
        }
    }
    let swaps = read("/proc/swaps");
    let swaps = swaps
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    if swaps
        .map(Path::new)
        .filter(|path| path.is_absolute())
        .any(same)
    {
        users.push("swap".into());
    }
    users.extend(holders(device));
    users
}

/// Devices that lie above this one.
fn holders(device: u64) -> Vec<String> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let directory = format!("/sys/dev/block/{major}:{minor}/holders");
    let found = std::fs::read_dir(directory).into_iter().flatten().flatten();
    found
        .map(|holder| {
            let device = holder.file_name().to_string_lossy().into_owned();
            match std::fs::read_to_string(holder.path().join("dm/name")) {
                Ok(name) => format!("{device} ({})", name.trim()),
                Err(_) => device,
            }
        })
        .collect()
}

/// The number of the block device at a path.
pub fn device_at(path: &Path) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok()?;
    let is_device = metadata.file_type().is_block_device();
    is_device.then(|| metadata.rdev())
}

/// The processes that have something open that `matters`.
fn processes(matters: impl Fn(&Metadata) -> bool) -> Vec<String> {
    let mut users = Vec::new();
    let own = std::process::id().to_string();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let is_number = |name: &&str| name.bytes().all(|b| b.is_ascii_digit());
        let Some(pid) = name.to_str().filter(is_number) else {
            continue;
        };
        let files = std::fs::read_dir(process.path().join("fd"));
        let mut files = files.into_iter().flatten().flatten();
        if !files.any(|file| std::fs::metadata(file.path()).is_ok_and(|found| matters(&found))) {
            continue;
        }
        let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let whose = if pid == own { "this process, " } else { "" };
        users.push(format!("{} ({whose}pid {pid})", command.trim()));
    }
    users
}

/// A line of /proc/self/mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    on: PathBuf,
    source: PathBuf,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (major, minor) = left.next()?.split_once(':')?;
        Some(Mount {
            device: (major.parse().ok()?, minor.parse().ok()?),
            on: unescaped(left.nth(1)?),
            source: unescaped(right.split(' ').nth(1)?),
        })
    }
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let code = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => bytes.push(*first),
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let line = r"36 35 253:7 / /srv/my\040disk rw,noatime shared:1 - ext4 /dev/mapper/vg-a rw";
        assert_eq!(
            Mount::parse(line),
            Some(Mount {
                device: (253, 7),
                on: "/srv/my disk".into(),
                source: "/dev/mapper/vg-a".into(),
            })
        );
        // Without optional fields, and without a device.
        let line = r"22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw";
        assert_eq!(
            Mount::parse(line).expect("a mount").source,
            Path::new("sysfs")
        );
        for wrong in ["", "1 2 3", "1 2 3:4 / /a rw", "1 2 x:4 / /a rw - a b"] {
            assert_eq!(Mount::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_octal_codes_are_replaced() {
        assert_eq!(unescaped(r"\040a\\134"), Path::new(r" a\\"));
        assert_eq!(unescaped(r"a\04"), Path::new(r"a\04"));
        assert_eq!(unescaped(r"a\999\"), Path::new(r"a\999\"));
    }

    #[test]
    fn who_has_a_file_open_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let users = of(None, &[file.path()]);
        let pid = format!("pid {}", std::process::id());
        assert!(users.iter().any(|user| user.contains(&pid)), "{users:?}");
        assert_eq!(of(None, &[Path::new("/nowhere")]), Vec::<String>::new());
    }
}

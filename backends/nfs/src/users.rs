//! Who on this host has a data file open, by /proc and /sys: for messages, since locks don't tell whose they
//! are, and for those who write without locks. Xen's qdisk does, QEMU with `locking=off`, and loop devices.
//!
//! Root sees all of them, others see their own. Nobody sees other hosts.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// How long one that is about to let go may take: a child that was just forked and has not begun its
/// own program, a loop device that is being detached.
const LEAVING: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// All that have `file` open, but for this descriptor, as text.
pub fn of(file: &File) -> String {
    let users = Wanted::new(file).map_or_else(Vec::new, |wanted| wanted.users());
    if users.is_empty() {
        "a process on another host or of another user".into()
    } else {
        users.join(", ")
    }
}

/// Whether anybody but this process has `file` open for writing, and does not let go of it soon.
pub fn write(file: &File) -> bool {
    let start = Instant::now();
    while Wanted::new(file).is_some_and(|wanted| wanted.has_writer()) {
        if start.elapsed() > LEAVING {
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    false
}

/// The file that is looked for.
struct Wanted {
    descriptor: String,
    /// What its links are called: only those are looked at further, as a file of another name may lie
    /// on a server that does not answer.
    name: OsString,
    /// Device and inode.
    id: (u64, u64),
}

impl Wanted {
    fn new(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        let descriptor = file.as_raw_fd().to_string();
        let link = fs::read_link(Path::new("/proc/self/fd").join(&descriptor)).ok()?;
        Some(Wanted {
            descriptor,
            name: link.file_name()?.to_owned(),
            id: (metadata.st_dev(), metadata.st_ino()),
        })
    }

    fn users(&self) -> Vec<String> {
        let of_process = |pid: String| {
            let own = pid == std::process::id().to_string();
            let mut descriptors = self.descriptors(&pid);
            descriptors
                .any(|descriptor| !own || descriptor != self.descriptor)
                .then(|| {
                    let command = fs::read_to_string(format!("/proc/{pid}/comm"));
                    format!("{} (pid {pid})", command.unwrap_or_default().trim())
                })
        };
        let mut users: Vec<String> = processes().filter_map(of_process).collect();
        let loops = entries("/sys/block").filter(|device| self.is_below(device));
        users.extend(loops.map(|device| format!("/dev/{device}")));
        users
    }

    fn has_writer(&self) -> bool {
        let own = std::process::id().to_string();
        let writes = |pid: String| {
            let mut descriptors = self.descriptors(&pid);
            descriptors.any(|fd| writes(Path::new(&format!("/proc/{pid}/fdinfo/{fd}"))))
        };
        processes().filter(|pid| *pid != own).any(writes)
            || entries("/sys/block").any(|device| {
                let read_only = || fs::read_to_string(format!("/sys/block/{device}/ro"));
                self.is_below(&device) && !read_only().is_ok_and(|text| text.trim() == "1")
            })
    }

    /// The descriptors of a process on it.
    fn descriptors(&self, pid: &str) -> impl Iterator<Item = String> {
        let directory = Path::new("/proc").join(pid).join("fd");
        entries(directory.clone()).filter(move |descriptor| {
            let path = directory.join(descriptor);
            let link = fs::read_link(&path);
            link.is_ok_and(|link| self.is_named(&link)) && self.is_at(&path)
        })
    }

    /// Whether it is what a loop device is on.
    fn is_below(&self, device: &str) -> bool {
        let file = fs::read(format!("/sys/block/{device}/loop/backing_file"));
        file.is_ok_and(|path| {
            let path = Path::new(OsStr::from_bytes(path.trim_ascii_end()));
            self.is_named(path) && self.is_at(path)
        })
    }

    fn is_named(&self, path: &Path) -> bool {
        path.file_name() == Some(&self.name)
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|m| (m.st_dev(), m.st_ino()) == self.id)
    }
}

fn processes() -> impl Iterator<Item = String> {
    entries("/proc").filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
}

/// The names in a directory, none if it can't be read.
fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Field `flags` of /proc/PID/fdinfo/FD, in octal: proc(5).
fn writes(info: &Path) -> bool {
    let info = fs::read_to_string(info).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    let access = OFlags::from_bits_retain(flags.unwrap_or(0)) & OFlags::ACCMODE;
    access == OFlags::RDWR || access == OFlags::WRONLY
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that has `path` open as its standard input, for as long as the test likes.
    fn user(path: &Path, options: &fs::OpenOptions) -> Child {
        let file = options.open(path).expect("open");
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::from(file));
        command.spawn().expect("sleep")
    }

    #[test]
    fn who_writes_is_told_from_who_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("data");
        let file = File::create(&path).expect("create");
        let own = fs::OpenOptions::new().write(true).open(&path);
        assert!(!write(&file), "this process does not count");
        let pid = format!("(pid {})", std::process::id());
        assert!(of(&file).contains(&pid), "but is told of");
        drop(own);
        let mut reader = user(&path, fs::OpenOptions::new().read(true));
        let pid = format!("(pid {})", reader.id());
        assert!(of(&file).contains(&pid), "{}", of(&file));
        assert!(!write(&file));
        reader.kill().and_then(|()| reader.wait()).expect("its end");
        for options in [
            fs::OpenOptions::new().write(true).to_owned(),
            fs::OpenOptions::new().read(true).write(true).to_owned(),
            fs::OpenOptions::new().append(true).to_owned(),
        ] {
            let mut writer = user(&path, &options);
            assert!(write(&file), "{options:?}");
            writer.kill().and_then(|()| writer.wait()).expect("its end");
            assert!(!write(&file), "{options:?}");
        }
        assert!(of(&file).contains("another host"), "{}", of(&file));
    }
}

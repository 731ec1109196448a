//! File systems that exist only for one test.

use std::cell::Cell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// A file system in a sparse image file, mounted where only the calling thread and the threads
/// and processes that it starts afterwards can see it.
///
/// Nothing can be left behind, not even by `kill -9`: the mounts end with the last thread that sees
/// them, the loop device with its mount, and the image has no name from the start. So make it
/// first, and a runtime with its threads afterwards.
///
/// Needs root, loop devices and the file system's mkfs.
#[derive(Debug)]
pub struct LoopFs {
    path: PathBuf,
}

thread_local! {
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
}

impl LoopFs {
    /// ext4, which can't share blocks between files.
    ///
    /// # Panics
    /// If it can't be made; the message says what is missing.
    pub fn ext4(bytes: u64) -> LoopFs {
        LoopFs::new(&std::env::temp_dir(), "ext4", bytes, EXT4_ARGS)
    }

    /// ext4 on a disk of `bytes` that loses writes once `really` bytes of it are written, as a thin
    /// disk does whose pool has run full.
    ///
    /// # Panics
    /// As [`ext4`](Self::ext4).
    pub fn ext4_on_a_failing_disk(bytes: u64, really: u64) -> LoopFs {
        enter_private_namespace();
        let below = unused_path("disk");
        std::fs::create_dir(&below).expect("a directory on a new tmpfs");
        mount_tmpfs(&below, really);
        LoopFs::new(&below, "ext4", bytes, EXT4_ARGS)
    }

    /// XFS with reflinks; at least 300 MiB.
    ///
    /// # Panics
    /// As [`ext4`](Self::ext4).
    pub fn xfs(bytes: u64) -> LoopFs {
        LoopFs::xfs_in(&std::env::temp_dir(), bytes)
    }

    /// XFS as [`xfs`](Self::xfs), with its image in `image_dir`: on the disk that this lies on.
    ///
    /// # Panics
    /// As [`ext4`](Self::ext4).
    pub fn xfs_in(image_dir: &Path, bytes: u64) -> LoopFs {
        LoopFs::new(image_dir, "xfs", bytes, XFS_ARGS)
    }

    /// XFS as [`xfs`](Self::xfs), in memory: what a flush costs is then small, and the same for
    /// everybody.
    ///
    /// # Panics
    /// As [`ext4`](Self::ext4).
    pub fn xfs_in_memory(bytes: u64) -> LoopFs {
        enter_private_namespace();
        LoopFs::xfs_in(Path::new("/mnt"), bytes)
    }

    /// btrfs; at least 128 MiB.
    ///
    /// # Panics
    /// As [`ext4`](Self::ext4).
    pub fn btrfs(bytes: u64) -> LoopFs {
        LoopFs::new(&std::env::temp_dir(), "btrfs", bytes, &["-q", "-K"])
    }

    /// A tmpfs, which can't reserve a range as zeros. No loop device, in spite of the name.
    ///
    /// # Panics
    /// As [`ext4`](Self::ext4).
    pub fn tmpfs(bytes: u64) -> LoopFs {
        enter_private_namespace();
        let path = unused_path("tmpfs");
        std::fs::create_dir(&path).expect("a directory on a new tmpfs");
        mount_tmpfs(&path, bytes);
        LoopFs { path }
    }

    fn new(image_dir: &Path, kind: &str, bytes: u64, mkfs_args: &[&str]) -> LoopFs {
        let image = tempfile::Builder::new()
            .prefix("volmux-scratch-")
            .tempfile_in(image_dir)
            .expect("a temporary file");
        image.as_file().set_len(bytes).expect("a sparse file");
        let mkfs = format!("/usr/sbin/mkfs.{kind}");
        run(
            Path::new(&mkfs),
            mkfs_args.iter().map(OsStr::new),
            image.path(),
        );
        enter_private_namespace();
        let path = unused_path(kind);
        std::fs::create_dir(&path).expect("a directory on a new tmpfs");
        let args = ["-t", kind, "-o", "loop"].map(OsStr::new);
        run(
            Path::new("/usr/bin/mount"),
            args.into_iter().chain([image.path().as_os_str()]),
            &path,
        );
        // Closing unlinks the image; the loop device keeps its content until the unmount.
        image.close().expect("unlink the image");
        LoopFs { path }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts it anew, read-only or not.
    ///
    /// # Panics
    /// If that fails.
    pub fn remount(&self, read_only: bool) {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, read_only);
        rustix::mount::mount_remount(&self.path, flags, "").expect("remount");
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // Detached, for a test that failed may still hold files open. A failure here needs no
        // care: the mount ends with the thread.
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.path);
    }
}

const XFS_ARGS: &[&str] = &["-q", "-K", "-m", "reflink=1"];
const EXT4_ARGS: &[&str] = &["-q", "-F", "-m", "0", "-E", "nodiscard"];

/// A path on the private tmpfs that nothing has yet.
fn unused_path(kind: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/mnt/{kind}-{}-{number}", std::process::id()))
}

/// Gives the calling thread mounts of its own, with an empty /mnt.
fn enter_private_namespace() {
    if PRIVATE.get() {
        return;
    }
    let help = "this test mounts file systems: run it as root, on a machine (or in a container) \
                that may mount and has loop devices";
    // SAFETY: only the table of descriptors must not be unshared behind the back of code that
    // relies on it (I/O safety); this unshares mounts and the current directory alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .unwrap_or_else(|error| panic!("unshare: {error}; {help}"));
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)
        .unwrap_or_else(|error| panic!("make / private: {error}; {help}"));
    rustix::mount::mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), None)
        .unwrap_or_else(|error| panic!("mount a tmpfs on /mnt: {error}; {help}"));
    PRIVATE.set(true);
}

fn mount_tmpfs(path: &Path, bytes: u64) {
    let options = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL");
    let flags = MountFlags::empty();
    rustix::mount::mount("tmpfs", path, "tmpfs", flags, options.as_c_str()).expect("mount a tmpfs");
}

fn run<'a>(program: &Path, args: impl Iterator<Item = &'a OsStr>, last: &Path) {
    let output = Command::new(program)
        .args(args)
        .arg("--")
        .arg(last)
        .env("LC_ALL", "C")
        .output();
    let program = program.display();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "{program}: {error}; install it: apt-get install mount e2fsprogs xfsprogs btrfs-progs"
        )
    });
    assert!(
        output.status.success(),
        "{program}: {}; it needs root, loop devices and the file system in the kernel",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_mounts_and_leaves_nothing_behind() {
        let paths = [
            LoopFs::ext4(16 << 20),
            LoopFs::xfs(300 << 20),
            LoopFs::btrfs(128 << 20),
        ]
        .map(|fs| {
            std::fs::write(fs.path().join("file"), b"data").expect("write");
            fs.path().to_owned()
        });
        for path in paths {
            assert!(!path.exists());
        }
    }

    #[test]
    fn threads_started_afterwards_see_the_mount() {
        let fs = LoopFs::ext4(16 << 20);
        let path = fs.path().join("from-a-thread");
        let wrote = std::thread::spawn({
            let path = path.clone();
            move || std::fs::write(path, b"data")
        });
        wrote.join().expect("thread").expect("write");
        assert!(path.exists());
    }

    #[test]
    fn a_remount_makes_it_read_only() {
        let fs = LoopFs::ext4(16 << 20);
        fs.remount(true);
        let error = std::fs::write(fs.path().join("file"), b"data").expect_err("read-only");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        fs.remount(false);
        std::fs::write(fs.path().join("file"), b"data").expect("write");
    }
}

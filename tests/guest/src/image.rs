//! What a guest is made of.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{here, run};

/// Kernel, initramfs and the image of a disk, which holds ext4 with busybox and what the guest does.
#[derive(Debug)]
pub struct Image {
    directory: TempDir,
    kernel: PathBuf,
}

impl Image {
    /// The length of the disk's image, in bytes. A power of two: what rounds sizes leaves it alone.
    pub const BYTES: u64 = 64 << 20;

    /// Makes the initramfs and the disk's image. Fetches the kernel if `.ci/setup` has not.
    ///
    /// # Panics
    /// If a program or a package is missing.
    pub fn new() -> Image {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let kernel = run(&mut Command::new(here("../lab/kernel")));
        let kernel = PathBuf::from(kernel.trim_end());
        run(Command::new(here("../lab/initramfs"))
            .args([&kernel, &here("initramfs-init")])
            .arg(directory.path().join("initramfs"))
            .args(["virtio_pci", "virtio_blk", "ext4", "virtio_net", "nbd"])
            .args(["button", "evdev"]));
        let image = Image { directory, kernel };
        image.make_disk();
        image
    }

    fn make_disk(&self) {
        let root = self.directory.path().join("root");
        for directory in ["bin", "dev", "pair", "proc", "sbin", "sys"] {
            std::fs::create_dir_all(root.join(directory)).expect("a directory");
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
        for applet in [
            "blkdiscard",
            "blockdev",
            "cat",
            "dd",
            "fsfreeze",
            "fstrim",
            "grep",
            "ifconfig",
            "mkdir",
            "mount",
            "mv",
            "poweroff",
            "rm",
            "sha256sum",
            "sleep",
            "stty",
            "sync",
            "tr",
            "umount",
            "wc",
        ] {
            let link = root.join("bin").join(applet);
            std::os::unix::fs::symlink("busybox", link).expect("a link");
        }
        install(Path::new("/usr/sbin/nbd-client"), &root);
        std::fs::copy(here("root-init"), root.join("sbin/init")).expect("the guest's init");
        std::fs::write(root.join("boots"), "0\n").expect("the counter of boots");
        run(Command::new("/usr/sbin/mke2fs")
            .args([
                "-q",
                "-t",
                "ext4",
                "-E",
                "lazy_itable_init=0,nodiscard",
                "-d",
            ])
            .args([&root, &self.disk()])
            .arg(format!("{}k", Self::BYTES >> 10)));
    }

    /// The disk's image, for the test to import.
    pub fn disk(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.kernel.join("vmlinux")
    }

    pub(crate) fn initramfs(&self) -> PathBuf {
        self.directory.path().join("initramfs")
    }

    /// Asserts that the image of a disk in `file`, whose guest powered off, holds a file system in
    /// order.
    ///
    /// # Panics
    /// If it does not.
    pub fn assert_in_order(file: &Path) {
        run(Command::new("/usr/sbin/e2fsck").arg("-fn").arg(file));
    }
}

/// Copies a program into /bin of `root`, and the libraries that it needs to where it looks for them.
fn install(program: &Path, root: &Path) {
    let name = program.file_name().expect("a file");
    std::fs::copy(program, root.join("bin").join(name)).expect("a program of .ci/setup");
    let needed = run(Command::new("ldd").arg(program));
    for library in needed.split_whitespace().filter(|w| w.starts_with('/')) {
        let target = root.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
        std::fs::copy(library, target).expect("a library");
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

//! Scratch file systems that nobody else sees and that are gone with the process.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

/// `Result` with any error.
pub type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const MARK: &str = "VOLMUX_BENCH_PRIVATE_MOUNTS";
/// Every Debian has it, and a mount over it is only seen in this namespace.
const PLACE: &str = "/mnt";

/// Starts this program over in a mount namespace of its own, once; returns in there.
///
/// What is mounted there is unmounted by the kernel when the last process in it ends, however.
///
/// # Errors
/// If `unshare` can't be run.
pub fn in_private_mounts() -> Result<()> {
    if env::var_os(MARK).is_some() {
        return run("mount", ["-t", "tmpfs", "-o", "mode=0700", "tmpfs", PLACE]);
    }
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(MARK, "1")
        .exec();
    Err(format!("unshare: {error}").into())
}

/// Runs a command to its end, with its output thrown away.
///
/// # Errors
/// If it can't be run or fails: with what it printed to standard error.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}: {}", output.status, said.trim()).into());
    }
    Ok(())
}

/// A fresh XFS with reflinks on a loop device. Needs [`in_private_mounts`] first, and root.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    /// `name`, on memory: what a flush costs is then the same for everybody, and small.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    pub fn xfs_on_memory(name: &str, size_bytes: u64) -> Result<Self> {
        Scratch::xfs(
            name,
            &Path::new(PLACE).join(format!("{name}.img")),
            size_bytes,
        )
    }

    /// `name`, on an image file in `directory`.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    pub fn xfs_on_disk(name: &str, directory: &Path, size_bytes: u64) -> Result<Self> {
        let image = directory.join(format!("volmux-bench-{name}-{}.img", std::process::id()));
        Scratch::xfs(name, &image, size_bytes)
    }

    fn xfs(name: &str, image: &Path, size_bytes: u64) -> Result<Self> {
        let root = Path::new(PLACE).join(name);
        fs::create_dir(&root)?;
        fs::File::create_new(image)?.set_len(size_bytes)?;
        let made = run(
            "mkfs.xfs",
            ["-q", "-m", "reflink=1"]
                .map(OsStr::new)
                .into_iter()
                .chain([image.as_os_str()]),
        )
        .and_then(|()| {
            run(
                "mount",
                [
                    OsStr::new("-o"),
                    OsStr::new("loop"),
                    image.as_os_str(),
                    root.as_os_str(),
                ],
            )
        });
        // Mounted or not, nobody needs the name any more: the space goes with the loop device.
        fs::remove_file(image)?;
        made.map(|()| Scratch { root })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Writes everything back, so that what was done so far does not slow what comes next.
    ///
    /// # Errors
    /// Those of syncfs.
    pub fn settle(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&self.root)?)?)
    }
}

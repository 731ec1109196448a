//! The `qemu-img` program.
//!
//! Formats are always given. Images go in as JSON node descriptions or with the `file:` prefix, so
//! that no file name is ever taken for a protocol, and backing files are switched off.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Resource, Rlimit, Signal};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use volmux::{ByteSize, Control, Error, ErrorKind, Result, VolumeName};

use crate::app::STOPPED;
use crate::args::Format;
use crate::image::ImageInfo;

/// Where it may be, beside VOLMUX_QEMU_IMG.
const PLACES: [&str; 4] = [
    "/usr/bin/qemu-img",
    "/usr/local/bin/qemu-img",
    "/usr/libexec/qemu-img",
    "/run/current-system/sw/bin/qemu-img",
];
/// More output than this is not kept.
const MAX_OUTPUT: usize = 1 << 20;
/// No more of the program's complaints goes into an error.
const MAX_COMPLAINT: usize = 2000;
/// What it may use while it looks at an untrusted image: address space and CPU time.
const INFO_LIMITS: Limits = Limits {
    bytes: 1 << 30,
    seconds: 30,
};
/// A check counts the references to each cluster of the file.
const CHECK_LIMITS: Limits = Limits {
    bytes: 4 << 30,
    seconds: 3600,
};

#[derive(Clone, Copy)]
struct Limits {
    bytes: u64,
    seconds: u64,
}

/// The program.
#[derive(Debug)]
pub struct QemuImg {
    path: PathBuf,
    cancel: CancellationToken,
}

/// How a run ended.
struct Finished {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

/// An image as an argument: its format, and nothing that is read from the name or followed.
///
/// # Errors
/// `InvalidInput` for a path that is not UTF-8, which JSON can't hold.
pub fn node(path: &Path, format: Format, block: bool) -> Result<OsString> {
    let driver = if block { "host_device" } else { "file" };
    let mut node = json!({
        "driver": format.name(),
        "file": {"driver": driver, "filename": utf_8(path)?},
    });
    if format == Format::Qcow2 {
        node["backing"] = serde_json::Value::Null;
    }
    Ok(format!("json:{node}").into())
}

/// The raw content of an NBD export at a Unix socket, as an argument.
///
/// # Errors
/// `InvalidInput` for a path that is not UTF-8.
pub fn nbd_node(socket: &Path, export: &VolumeName) -> Result<OsString> {
    let node = json!({
        "driver": "raw",
        "file": {
            "driver": "nbd",
            "server": {"type": "unix", "path": utf_8(socket)?},
            "export": export.as_str(),
        },
    });
    Ok(format!("json:{node}").into())
}

/// JSON holds no other text.
fn utf_8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "qemu_img")
            .with("path", path.display())
            .reason("the path is not UTF-8")
            .help("rename the file")
    })
}

/// A file that qemu-img is to create; `path` is absolute.
pub fn new_file(path: &Path) -> OsString {
    let mut argument = OsString::from("file:");
    argument.push(path);
    argument
}

impl QemuImg {
    /// Finds the program. `cancel` ends each of its runs.
    ///
    /// # Errors
    /// `Unsupported` if it is not installed; `InvalidConfig` for a wrong VOLMUX_QEMU_IMG.
    pub fn find(cancel: CancellationToken) -> Result<Self> {
        let path = match std::env::var_os("VOLMUX_QEMU_IMG") {
            Some(path) => {
                let path = PathBuf::from(path);
                if !path.is_absolute() || !path.is_file() {
                    return Err(Error::new(ErrorKind::InvalidConfig, "find_qemu_img")
                        .with("VOLMUX_QEMU_IMG", path.display())
                        .reason("it is not the absolute path of a file"));
                }
                path
            }
            None => PLACES
                .iter()
                .map(PathBuf::from)
                .find(|path| path.is_file())
                .ok_or_else(|| {
                    Error::new(ErrorKind::Unsupported, "find_qemu_img")
                        .reason("formats other than raw need qemu-img, which is not installed")
                        .help("install qemu-utils (Debian) or qemu-img (Fedora), or set VOLMUX_QEMU_IMG")
                })?,
        };
        Ok(QemuImg { path, cancel })
    }

    /// Asks about an image, without reading any other file.
    ///
    /// # Errors
    /// `InvalidInput` if it is no such image; `TimedOut` when cancelled.
    pub async fn info(&self, image: OsString, format: Format) -> Result<ImageInfo> {
        let mut args = words(&["info", "--output=json", "-f", format.name()]);
        args.push(image);
        let done = self
            .run("qemu_img_info", args, Some(INFO_LIMITS), &mut |_| ())
            .await?;
        if !done.status.success() {
            return Err(failure("qemu_img_info", &done));
        }
        serde_json::from_slice(&done.stdout).map_err(|e| {
            Error::new(ErrorKind::Internal, "qemu_img_info")
                .reason("its output can't be understood")
                .with_source(e)
        })
    }

    /// Checks an image's own bookkeeping, where its format has such. Without it a qcow2 image that
    /// was cut off reads as zeros where its data is missing.
    ///
    /// # Errors
    /// `Corrupt`; as [`info`](Self::info).
    pub async fn check(&self, image: OsString, format: Format) -> Result<()> {
        const OP: &str = "qemu_img_check";
        // Its exit codes: damaged; only wasted space; nothing to check in this format.
        const DAMAGED: i32 = 2;
        const WASTE: i32 = 3;
        const NOT_SUPPORTED: i32 = 63;
        let mut args = words(&["check", "--output=json", "-f", format.name()]);
        args.push(image);
        let done = self.run(OP, args, Some(CHECK_LIMITS), &mut |_| ()).await?;
        match done.status.code() {
            Some(0 | WASTE | NOT_SUPPORTED) => Ok(()),
            Some(DAMAGED) => Err(failure(OP, &done)
                .with_kind(ErrorKind::Corrupt)
                .help("get the image again, or try qemu-img check -r all on a copy")),
            _ => Err(failure(OP, &done)),
        }
    }

    /// Converts into an image that exists and reads as zeros.
    ///
    /// # Errors
    /// `NoSpace`, `Busy`, `InvalidInput`, `Unavailable`; `TimedOut` when cancelled.
    pub async fn convert_into(
        &self,
        (source, format): (OsString, Format),
        target: OsString,
        control: &Control,
        size: ByteSize,
    ) -> Result<()> {
        // Its default cache mode for targets never flushes.
        let fixed = [
            "convert",
            "-p",
            "-n",
            "--target-is-zero",
            "-t",
            "writeback",
            "-O",
            "raw",
            "-f",
        ];
        let mut args = words(&fixed);
        args.extend([format.name().into(), source, target]);
        self.with_progress("qemu_img_convert", args, control, size)
            .await
    }

    /// Converts a raw image into a new file of `format`.
    ///
    /// # Errors
    /// As [`convert_into`](Self::convert_into).
    pub async fn convert_to_new(
        &self,
        source: OsString,
        (target, format): (OsString, Format),
        control: &Control,
        size: ByteSize,
    ) -> Result<()> {
        let mut args = words(&[
            "convert",
            "-p",
            "-t",
            "writeback",
            "-f",
            "raw",
            "-O",
            format.name(),
        ]);
        match format {
            // Without it the size is rounded to what a disk geometry can say.
            Format::Vpc => args.extend(words(&["-o", "subformat=dynamic,force_size=on"])),
            Format::Vhdx => args.extend(words(&["-o", "subformat=dynamic"])),
            Format::Raw | Format::Qcow2 => {}
        }
        args.extend([source, target]);
        self.with_progress("qemu_img_convert", args, control, size)
            .await
    }

    /// Whether an image and a raw image have the same content; what only one of them has must be
    /// zeros.
    ///
    /// # Errors
    /// As [`convert_into`](Self::convert_into).
    pub async fn same_content(
        &self,
        (image, format): (OsString, Format),
        raw: OsString,
        control: &Control,
        size: ByteSize,
    ) -> Result<bool> {
        let mut args = words(&["compare", "-p", "-f", format.name(), "-F", "raw"]);
        args.extend([image, raw]);
        let mut watch = |percent: f64| report(control, percent, size);
        let done = self.run("qemu_img_compare", args, None, &mut watch).await?;
        match done.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(failure("qemu_img_compare", &done)),
        }
    }

    async fn with_progress(
        &self,
        op: &'static str,
        args: Vec<OsString>,
        control: &Control,
        size: ByteSize,
    ) -> Result<()> {
        let mut watch = |percent: f64| report(control, percent, size);
        let done = self.run(op, args, None, &mut watch).await?;
        match done.status.success() {
            true => Ok(()),
            false => Err(failure(op, &done)),
        }
    }

    async fn run(
        &self,
        op: &'static str,
        args: Vec<OsString>,
        limits: Option<Limits>,
        watch: &mut (dyn FnMut(f64) + Send),
    ) -> Result<Finished> {
        tracing::info!(program = %self.path.display(), ?args, "running");
        let broken = |e| Error::from_io(op, e).with("program", self.path.display());
        let mut command = Command::new(&self.path);
        command
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        die_with_parent(&mut command, limits);
        let mut child = command.spawn().map_err(broken)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut ignore = |_| ();
        let work = async {
            let (stdout, stderr) = tokio::join!(read(stdout, watch), read(stderr, &mut ignore));
            Ok::<_, std::io::Error>((stdout?, stderr?, child.wait().await?))
        };
        let finished = tokio::select! {
            biased;
            done = work => Some(done.map_err(broken)?),
            () = self.cancel.cancelled() => None,
        };
        // A Ctrl-C at the terminal reaches the program too, and may end it first.
        let (Some((stdout, stderr, status)), false) = (finished, self.cancel.is_cancelled()) else {
            // Waits for its end: it must not write to what is cleaned up next.
            child.kill().await.map_err(broken)?;
            return Err(Error::new(ErrorKind::TimedOut, op).reason(STOPPED));
        };
        Ok(Finished {
            status,
            stdout,
            stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
        })
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn report(control: &Control, percent: f64, size: ByteSize) {
    let done = size.bytes() as f64 * percent / 100.0;
    control.report((done as u64).min(size.bytes()), size.bytes());
}

/// Makes the program end when this one does, however it ends, and limits what it may use.
fn die_with_parent(command: &mut Command, limits: Option<Limits>) {
    let parent = rustix::process::getpid();
    let limit = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        if let Some(limits) = limits {
            rustix::process::setrlimit(Resource::As, limit(limits.bytes))?;
            rustix::process::setrlimit(Resource::Cpu, limit(limits.seconds))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, no memory is taken and no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Reads to the end and keeps the beginning; tells of each progress mark.
async fn read(
    from: Option<impl AsyncRead + Unpin>,
    watch: &mut (dyn FnMut(f64) + Send),
) -> std::io::Result<Vec<u8>> {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    let Some(mut from) = from else {
        return Ok(kept);
    };
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(kept);
        }
        if let Some(percent) = last_progress(&buffer[..length]) {
            watch(percent);
        }
        let room = MAX_OUTPUT - kept.len();
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
}

/// The last whole `(12.34/100%)` in `output`.
fn last_progress(output: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(output).ok()?;
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    number.parse().ok().filter(|p| (0.0..=100.0).contains(p))
}

/// The error of a failed run. The program says what is wrong only in words.
fn failure(op: &'static str, done: &Finished) -> Error {
    let has = |part: &str| done.stderr.contains(part);
    let kind = if has("No space left") || has("Disk quota") || has("File too large") {
        ErrorKind::NoSpace
    } else if has("Permission denied") || has("Operation not permitted") {
        ErrorKind::PermissionDenied
    } else if has("Failed to get") && has("lock") {
        ErrorKind::Busy
    } else if has("Input/output error") {
        ErrorKind::Unavailable
    } else if done.status.code().is_none() {
        // Killed, by its limits or by somebody.
        ErrorKind::Unavailable
    } else {
        ErrorKind::InvalidInput
    };
    let mut error = Error::new(kind, op).reason(format!("qemu-img: {}", done.status));
    if kind == ErrorKind::Busy {
        error = error.help("somebody writes to it; take a snapshot and use that");
    }
    let complaint: String = done.stderr.chars().take(MAX_COMPLAINT).collect();
    if !complaint.is_empty() {
        error = error.with_source(complaint);
    }
    error
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_output_makes_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            text in "[(0-9./%)]{0,40}",
        ) {
            let _ = last_progress(&bytes);
            let percent = last_progress(text.as_bytes()).unwrap_or(0.0);
            prop_assert!((0.0..=100.0).contains(&percent));
        }
    }

    #[test]
    fn names_are_never_protocols() {
        for name in ["/x/nbd:host:1", "/x/json:{}", "/x/a,b=c", "/x/\"q\""] {
            let node = node(Path::new(name), Format::Qcow2, false).expect("node");
            let text = node
                .to_str()
                .expect("UTF-8")
                .strip_prefix("json:")
                .expect("json:");
            let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(value["file"]["filename"], name);
            assert_eq!(value["file"]["driver"], "file");
            assert_eq!(value["driver"], "qcow2");
            assert_eq!(value.get("backing"), Some(&serde_json::Value::Null));
        }
        assert_eq!(new_file(Path::new("/x/nbd:y")), "file:/x/nbd:y");
    }

    #[test]
    fn progress_is_read_from_the_last_mark() {
        assert_eq!(
            last_progress(b"    (0.00/100%)\r    (12.34/100%)\r    (5"),
            Some(12.34)
        );
        for none in ["", "(x/100%)", "/100%)", "(200/100%)", "(1.0/10"] {
            assert_eq!(last_progress(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn failures_have_the_kind_that_fits() {
        for (stderr, kind) in [
            (
                "error while writing: No space left on device",
                ErrorKind::NoSpace,
            ),
            (
                "Could not open 'x': Permission denied",
                ErrorKind::PermissionDenied,
            ),
            ("Failed to get shared \"write\" lock", ErrorKind::Busy),
            (
                "error while reading: Input/output error",
                ErrorKind::Unavailable,
            ),
            ("Image is not in qcow2 format", ErrorKind::InvalidInput),
        ] {
            let done = Finished {
                status: ExitStatus::from_raw(256),
                stdout: Vec::new(),
                stderr: stderr.into(),
            };
            assert_eq!(failure("t", &done).kind(), kind, "{stderr}");
        }
        let killed = Finished {
            status: ExitStatus::from_raw(9),
            stdout: Vec::new(),
            stderr: String::new(),
        };
        assert_eq!(failure("t", &killed).kind(), ErrorKind::Unavailable);
    }
}

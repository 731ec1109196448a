//! Running lvm2's commands: with arguments and never through a shell, in one language, for a limited
//! time, and not more at once than the group's lock lets through anyway.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::Semaphore;
use volmux_core::{Error, ErrorKind, Result};

/// Those that only read, at once.
const AT_ONCE: usize = 4;
/// What is kept of a command's complaints.
const LONGEST_COMPLAINT: u64 = 64 << 10;

/// Runs commands.
#[derive(Debug)]
pub struct Commands {
    lvm: PathBuf,
    timeout: Duration,
    slots: Arc<Semaphore>,
    started: AtomicU64,
}

impl Commands {
    /// With the program `lvm` in the directory `programs`.
    pub fn new(programs: Option<&Path>, timeout: Option<u64>) -> Self {
        Commands {
            lvm: programs.unwrap_or(Path::new("/usr/sbin")).join("lvm"),
            timeout: Duration::from_secs(timeout.unwrap_or(120)),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            started: AtomicU64::new(0),
        }
    }

    /// How many processes were started.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Runs `lvm` with `args` and returns what it printed. The command goes on, and is waited for,
    /// if the future is dropped: half of a command is worse than all of it.
    ///
    /// # Errors
    /// What the command complained of, as the kind that fits. `TimedOut` after the time limit: it
    /// is then asked to stop (SIGINT, on which lvm2 gives up waiting for locks), and never killed,
    /// for it might leave a device suspended.
    pub async fn lvm(&self, op: &'static str, args: &[&str]) -> Result<Vec<u8>> {
        self.run(op, args, Stdio::null()).await
    }

    /// As [`lvm`](Self::lvm). A lock on the open file `lock` lasts as long as the command does, if
    /// nobody waits for it any more, or this process is killed, too: the next one must not rest on
    /// what the command is about to change.
    pub async fn lvm_in_turn(
        &self,
        op: &'static str,
        args: &[&str],
        lock: &File,
    ) -> Result<Vec<u8>> {
        // lvm2 closes what else it inherits.
        let lock = lock.try_clone().map_err(|e| self.not_started(op, e))?;
        self.run(op, args, lock.into()).await
    }

    async fn run(&self, op: &'static str, args: &[&str], stdin: Stdio) -> Result<Vec<u8>> {
        let shown = shown(args);
        // Commands that hang keep their slots.
        let slot = tokio::time::timeout(self.timeout, self.slots.clone().acquire_owned()).await;
        let Ok(slot) = slot else {
            return Err(Error::new(ErrorKind::TimedOut, op)
                .with("command", shown)
                .reason(format!(
                    "{AT_ONCE} other lvm2 commands of this process hang"
                ))
                .help("see what they wait for: a device that is suspended or does not answer"));
        };
        let (mut child, stdout) = self
            .start(args, stdin)
            .map_err(|error| self.not_started(op, error))?;
        self.started.fetch_add(1, Ordering::Relaxed);
        let pid = child.id();
        let mut done = tokio::spawn(async move {
            let done = collect(&mut child, stdout).await;
            drop(slot);
            done
        });
        let Ok(done) = tokio::time::timeout(self.timeout, &mut done).await else {
            interrupt(pid);
            return Err(Error::new(ErrorKind::TimedOut, op)
                .with("command", shown)
                .with("pid", pid.unwrap_or_default())
                .reason(format!("it is not done after {} s", self.timeout.as_secs()))
                .help("see what it waits for: a device that is suspended or does not answer, or another lvm2 command"));
        };
        let done = done.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?;
        let done = done.map_err(|error| Error::from_io(op, error).with("command", &shown))?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        Err(failure(op, &done.stderr, done.status).with("command", shown))
    }

    /// A command, and the file in memory that it prints into: from a pipe, somebody would have to
    /// be woken for each line.
    fn start(&self, args: &[&str], stdin: Stdio) -> std::io::Result<(Child, File)> {
        let stdout = File::from(memfd_create("lvm2", MemfdFlags::CLOEXEC)?);
        let child = Command::new(&self.lvm)
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .stdin(stdin)
            .stdout(stdout.try_clone()?)
            .stderr(Stdio::piped())
            // Ctrl-C is meant for us.
            .process_group(0)
            .spawn()?;
        Ok((child, stdout))
    }

    fn not_started(&self, op: &'static str, error: std::io::Error) -> Error {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let path = self.lvm.display();
        let error = Error::from_io(op, error).with("path", path);
        if missing {
            return error
                .with_kind(ErrorKind::InvalidConfig)
                .reason("lvm2 is not installed there")
                .help("install lvm2 (apt-get install lvm2), or set programs=/directory");
        }
        error.reason("lvm2 can't be started")
    }
}

struct Done {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

async fn collect(child: &mut Child, mut stdout: File) -> std::io::Result<Done> {
    let stderr = complaints(child.stderr.take()).await;
    let status = child.wait().await?;
    let mut printed = Vec::new();
    stdout.rewind()?;
    stdout.read_to_end(&mut printed)?;
    Ok(Done {
        status,
        stdout: printed,
        stderr: String::from_utf8_lossy(&stderr?).into_owned(),
    })
}

async fn complaints(pipe: Option<ChildStderr>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(mut pipe) = pipe else {
        return Ok(bytes);
    };
    let mut kept = (&mut pipe).take(LONGEST_COMPLAINT);
    kept.read_to_end(&mut bytes).await?;
    // A command that can't write any more would wait for ever.
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

/// A command as an error shows it: without what is so long that nothing else would be seen.
fn shown(args: &[&str]) -> String {
    let short = args
        .iter()
        .map(|arg| if arg.len() > 160 { "…" } else { arg });
    short.collect::<Vec<_>>().join(" ")
}

fn interrupt(pid: Option<u32>) {
    let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill_process(pid, Signal::INT);
    }
}

/// What lvm2 says (2.03.16), in the order in which it is looked for: kind, and what to do.
const COMPLAINTS: &[(&str, ErrorKind, &str)] = &[
    (
        "Permission denied",
        ErrorKind::PermissionDenied,
        "run as root",
    ),
    ("non-root user", ErrorKind::PermissionDenied, "run as root"),
    (
        "Is device-mapper driver missing",
        ErrorKind::Unavailable,
        "load the kernel module dm-mod",
    ),
    (
        "Failure to communicate with kernel device-mapper driver",
        ErrorKind::Unavailable,
        "load the kernel module dm-mod (modprobe dm-mod)",
    ),
    ("already exists", ErrorKind::AlreadyExists, ""),
    ("Failed to find logical volume", ErrorKind::NotFound, ""),
    (
        "not found",
        ErrorKind::NotFound,
        "see what there is with vgs and lvs",
    ),
    ("in use", ErrorKind::Busy, "close the device first"),
    (
        "is used by another device",
        ErrorKind::Busy,
        "close the device first",
    ),
    (
        "Device or resource busy",
        ErrorKind::Busy,
        "close the device first",
    ),
    (
        "reached threshold",
        ErrorKind::NoSpace,
        "extend the thin pool (lvextend), or its metadata (lvextend --poolmetadatasize)",
    ),
    (
        "nsufficient",
        ErrorKind::NoSpace,
        "free space in the group, or add a physical volume (vgextend)",
    ),
    (
        "Not enough free",
        ErrorKind::NoSpace,
        "free space in the group, or add a physical volume (vgextend)",
    ),
    (
        "while expected",
        ErrorKind::Corrupt,
        "the kernel's thin pool and LVM's metadata differ: stop, and see man lvmthin, \"transaction\"",
    ),
    (
        "Manual repair required",
        ErrorKind::Corrupt,
        "deactivate the thin pool and run lvconvert --repair on it (man lvmthin)",
    ),
    (
        "are reserved",
        ErrorKind::InvalidInput,
        "choose another name",
    ),
    (
        "Can't get lock",
        ErrorKind::Busy,
        "another lvm2 command holds the lock; on a shared group see lvmlockctl",
    ),
    (
        "due to failed lock",
        ErrorKind::Unavailable,
        "see lvmlockctl, and whether lvmlockd runs",
    ),
    (
        "locked by other host",
        ErrorKind::Busy,
        "deactivate it on that host first",
    ),
    ("nterrupted", ErrorKind::TimedOut, ""),
];

/// The error of a command that failed.
fn failure(op: &'static str, stderr: &str, status: ExitStatus) -> Error {
    let complaint = COMPLAINTS.iter().find(|(words, ..)| stderr.contains(words));
    let kind = complaint.map_or(ErrorKind::Unavailable, |(_, kind, _)| *kind);
    let said: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("WARNING: "))
        .collect();
    let reason = if said.is_empty() {
        format!("lvm2 gave up without a word ({status})")
    } else {
        said.join("; ")
    };
    let error = Error::new(kind, op).reason(reason);
    match complaint {
        Some((_, _, help)) if !help.is_empty() => error.help(help),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn commands(script: &str, timeout: u64) -> (tempfile::TempDir, Commands) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lvm");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, executable).expect("chmod");
        let commands = Commands::new(Some(directory.path()), Some(timeout));
        (directory, commands)
    }

    #[tokio::test]
    async fn arguments_stay_as_they_are() {
        let (_directory, commands) = commands("printf '%s|' \"$@\" \"$LC_ALL\" \"$HOME\"", 10);
        let printed = commands
            .lvm("test", &["lvs", "a b", "$(id)", "--", "-x"])
            .await;
        assert_eq!(printed.expect("it runs"), b"lvs|a b|$(id)|--|-x|C||");
        assert_eq!(commands.started(), 1);
    }

    #[tokio::test]
    async fn complaints_have_a_kind_and_are_shown() {
        for (said, kind) in [
            (
                "  Failed to find logical volume \"vg/x\"",
                ErrorKind::NotFound,
            ),
            ("  Volume group \"nix\" not found", ErrorKind::NotFound),
            (
                "  Logical Volume \"a\" already exists in volume group \"vg\"",
                ErrorKind::AlreadyExists,
            ),
            ("  Logical volume vg/a in use.", ErrorKind::Busy),
            (
                "  Logical volume vg/a contains a filesystem in use.",
                ErrorKind::Busy,
            ),
            (
                "  Volume group \"vg\" has insufficient free space (2976 extents): 16384 required.",
                ErrorKind::NoSpace,
            ),
            (
                "  Cannot create new thin volume, free space in thin pool vg/pool reached threshold.",
                ErrorKind::NoSpace,
            ),
            (
                "  Names including \"_tmeta\" are reserved. Please choose a different LV name.",
                ErrorKind::InvalidInput,
            ),
            (
                "  /run/lock/lvm/V_vg:aux: open failed: Permission denied\n  Can't get lock for vg.",
                ErrorKind::PermissionDenied,
            ),
            (
                "  Thin pool vg-pool-tpool (253:2) transaction_id is 3, while expected 5.",
                ErrorKind::Corrupt,
            ),
            (
                "  Check of pool vg/pool failed (status:1). Manual repair required!",
                ErrorKind::Corrupt,
            ),
            ("  Giving up.", ErrorKind::Unavailable),
        ] {
            let (_directory, commands) = commands(
                &format!("cat >&2 <<'END'\n  WARNING: x\n{said}\nEND\nexit 5"),
                10,
            );
            let error = commands.lvm("test", &["lvs"]).await.expect_err("it fails");
            assert_eq!(error.kind(), kind, "{said}");
            let shown = error.get("reason").expect("a reason");
            assert!(
                !shown.contains("WARNING")
                    && said.contains(shown.split(';').next().expect("a line")),
                "{shown}"
            );
            assert_eq!(error.get("command"), Some("lvs"));
        }
    }

    #[tokio::test]
    async fn a_silent_failure_is_told() {
        let (_directory, commands) = commands("exit 3", 10);
        let error = commands.lvm("test", &["lvs"]).await.expect_err("it fails");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_installed_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let commands = Commands::new(Some(directory.path()), None);
        let error = commands
            .lvm("test", &["lvs"])
            .await
            .expect_err("nothing is there");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(
            error
                .get("help")
                .is_some_and(|help| help.contains("apt-get install lvm2"))
        );
    }

    #[tokio::test]
    async fn slow_commands_are_asked_to_stop() {
        let (directory, commands) = commands(
            "trap 'touch \"$0.stopped\"; exit 1' INT; while :; do sleep 0.05; done",
            1,
        );
        let error = commands
            .lvm("test", &["lvs"])
            .await
            .expect_err("it is slow");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        while !directory.path().join("lvm.stopped").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn who_waits_for_commands_that_hang_gives_up_too() {
        let script = "trap '' INT; for i in 1 2 3 4 5 6 7 8; do sleep 0.5; done";
        let (_directory, commands) = commands(script, 1);
        let hang = (0..=AT_ONCE).map(|_| commands.lvm("test", &["lvs"]));
        let all = futures::future::join_all(hang);
        let ended = tokio::time::timeout(Duration::from_secs(3), all).await;
        for result in ended.expect("nobody waits for ever") {
            assert_eq!(result.expect_err("it hangs").kind(), ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn a_dropped_command_runs_to_its_end() {
        let (directory, commands) = commands("sleep 0.3; touch \"$0.done\"", 10);
        let run = commands.lvm("test", &["lvs"]);
        let dropped = tokio::time::timeout(Duration::from_millis(100), run).await;
        assert!(dropped.is_err());
        while !directory.path().join("lvm.done").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_lock_lasts_as_long_as_the_command_that_was_started_with_it() {
        let (directory, commands) = commands("trap '' INT; sleep 2; touch \"$0.done\"; exit 0", 1);
        let path = directory.path().join("lock");
        let open = || {
            let mut options = File::options();
            options.create(true).append(true).open(&path).expect("open")
        };
        let lock = open();
        lock.try_lock().expect("nobody has it");
        let error = commands.lvm_in_turn("test", &["lvs"], &lock).await;
        assert_eq!(error.expect_err("it is slow").kind(), ErrorKind::TimedOut);
        drop(lock);
        let next = open();
        while next.try_lock().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(directory.path().join("lvm.done").exists());
    }

    #[tokio::test]
    async fn long_output_is_read_to_the_end() {
        let (_directory, commands) = commands(
            "yes complaint | head -c 1000000 >&2; yes | head -c 1000000",
            60,
        );
        let printed = commands.lvm("test", &["lvs"]).await.expect("it runs");
        assert_eq!(printed.len(), 1_000_000);
    }
}

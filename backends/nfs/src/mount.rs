//! Mounting an export: finds a mount that is there, or makes one below a private directory, which
//! the last who uses it takes away again.

use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use tokio::process::Command;
use volmux_core::{Control, Error, ErrorKind, Result, VolumeId};

use crate::config::NfsConfig;
use crate::layout::{file_error, name_hash};
use crate::queue::run;
use crate::sys;

const OP: &str = "open_pool";
/// Where exports are mounted that nobody else has mounted.
const PRIVATE: &str = "/run/volmux/nfs";
const PROGRAM: &str = "/usr/sbin/mount.nfs";
/// How long an unmount may take before it is left to whoever mounts the export next.
const UNMOUNT: Duration = Duration::from_secs(5);
/// How often it is tried while somebody has it open: a child that another thread has just forked has
/// a copy of each descriptor until it runs its own program.
const BUSY: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);

/// A mounted export. It can't be unmounted while this is there.
#[derive(Debug)]
pub struct Mount {
    /// The export, as messages name it.
    label: String,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Keeps everybody from unmounting it.
    root: Option<OwnedFd>,
    /// For one below the private directory: what keeps mounts and unmounts of it apart.
    lock: Option<PathBuf>,
}

impl Mount {
    /// Mounts the export that `config` names, unless it is mounted already.
    ///
    /// # Errors
    /// `NotFound` if there is no such host or export; `PermissionDenied` if the server or this host
    /// refuses; `Unsupported` for a version that the server does not have; `Unavailable` if it does
    /// not answer.
    pub async fn of(config: &NfsConfig, time: Duration) -> Result<Mount> {
        let wanted = Wanted::new(config);
        if let Some(mount) = find(&wanted, None).await? {
            return Ok(mount);
        }
        let directory = Path::new(PRIVATE).join(format!("{:016x}", name_hash(&wanted.identity())));
        let lock_path = directory.with_extension("lock");
        // For root alone: what is in it is reached by whoever may open volumes.
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&directory);
        made.map_err(|error| not_mounted_here(file_error(OP, &directory, error)))?;
        let lock = lock(&lock_path, time).await?;
        if let Some(mount) = find(&wanted, Some((&directory, &lock_path))).await? {
            return Ok(mount);
        }
        mount(&wanted, &directory, time).await?;
        let found = find(&wanted, Some((&directory, &lock_path))).await?;
        if found.is_none() {
            // It would lie below the next one.
            let _ = rustix::mount::unmount(&directory, UnmountFlags::DETACH);
        }
        drop(lock);
        found.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, OP)
                .with("export", &wanted.source)
                .reason("it was mounted, and not as it was asked for")
                .help("see what the server lets this host have, and the kernel's log")
        })
    }
}

impl Mount {
    /// Keeps it mounted, also when nobody here uses it any more: somebody else was told a path in
    /// it. Can be repeated.
    ///
    /// # Errors
    /// If that can't be noted.
    pub fn keep(&self, id: VolumeId, holder: &str) -> std::io::Result<()> {
        let Some(notes) = &self.notes() else {
            return Ok(());
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(notes)?;
        std::fs::write(notes.join(note(id, holder)), "")
    }

    /// Ends [`keep`](Self::keep).
    pub fn release(&self, id: VolumeId, holder: &str) {
        if let Some(notes) = &self.notes() {
            // There is none after a reboot.
            let _ = std::fs::remove_file(notes.join(note(id, holder)));
            let _ = std::fs::remove_dir(notes);
        }
    }

    fn notes(&self) -> Option<PathBuf> {
        self.lock
            .as_ref()
            .map(|lock| lock.with_extension("attached"))
    }
}

fn note(id: VolumeId, holder: &str) -> String {
    format!("{id}-{:016x}", name_hash(holder))
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else {
            return;
        };
        let (path, root) = (self.path.clone(), self.root.take());
        // A server that does not answer may hold this up for ever.
        let (done, wait) = mpsc::channel();
        let thread = std::thread::Builder::new().name("unmount".into());
        let started = thread.spawn(move || {
            drop(root);
            unmount(&path, &lock);
            let _ = done.send(());
        });
        if started.is_ok() {
            let _ = wait.recv_timeout(UNMOUNT);
        }
    }
}

/// Unmounts it if nobody else uses it.
fn unmount(path: &Path, lock_path: &Path) {
    let Ok(lock) = open_lock(lock_path) else {
        return;
    };
    // Whoever holds the lock is about to use it.
    if lock.try_lock().is_err() || lock_path.with_extension("attached").exists() {
        return;
    }
    for _ in 0..BUSY {
        match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
            Ok(()) => {
                // Should somebody have put something into it, it stays.
                let _ = std::fs::remove_dir(path);
                return;
            }
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(PAUSE),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "stays mounted");
                return;
            }
        }
    }
}

/// An export, and how it is to be mounted.
#[derive(Debug)]
struct Wanted {
    /// `host:/export`.
    source: String,
    label: String,
    vers: Option<String>,
    port: Option<u16>,
    sec: Option<String>,
    proto: Option<String>,
    /// What else was asked for, as mount.nfs(8) takes it.
    options: String,
    writes: bool,
    /// Whether soft mounts and such without locks are good enough.
    careless: bool,
}

impl Wanted {
    fn new(config: &NfsConfig) -> Wanted {
        let export = match config.export.trim_end_matches('/') {
            "" => "/",
            export => export,
        };
        let port = config.port.map_or(String::new(), |port| format!(":{port}"));
        let mut options = vec!["nosuid".to_owned(), "nodev".into(), "noexec".into()];
        options.push(if config.soft { "soft" } else { "hard" }.into());
        let mut add = |name: &str, value: Option<String>| {
            options.extend(value.map(|value| format!("{name}={value}")));
        };
        add("vers", config.vers.clone());
        add("port", config.port.map(|n| n.to_string()));
        add("sec", config.sec.clone());
        add("proto", config.proto.clone());
        for (name, number) in [
            ("nconnect", config.nconnect),
            ("rsize", config.rsize),
            ("wsize", config.wsize),
            ("timeo", config.timeo),
            ("retrans", config.retrans),
        ] {
            add(name, number.map(|n| n.to_string()));
        }
        if config.nolock {
            options.push("nolock".into());
        }
        Wanted {
            source: format!("{}:{export}", config.host),
            label: format!("nfs://{}{port}{export}", config.host),
            vers: config.vers.clone(),
            port: config.port,
            sec: config.sec.clone(),
            proto: config.proto.clone(),
            options: options.join(","),
            writes: !config.read_only,
            careless: config.force || config.read_only,
        }
    }

    /// What tells two mounts apart.
    fn identity(&self) -> String {
        format!("{} {}", self.source, self.options)
    }

    /// Whether a mount is of the export, and good enough.
    fn is_met_by(&self, mounted: &Mounted) -> bool {
        let option = |name: &str| {
            let mut options = mounted.options.split(',');
            options.find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
        };
        let flag = |name: &str| mounted.options.split(',').any(|option| option == name);
        let vers = self.vers.as_deref().is_none_or(|wanted| {
            let found = option("vers").unwrap_or_default();
            found == wanted || wanted == "4" && found.starts_with("4.")
        });
        // The kernel shows a port only if it is not the usual one.
        let found = option("port").and_then(|port| port.parse().ok());
        let port = self
            .port
            .is_none_or(|wanted| found.unwrap_or(2049) == wanted);
        // Who asks for privacy must not get a mount without; the rest is about speed.
        let same = |name: &str, wanted: &Option<String>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| option(name) == Some(wanted))
        };
        let careful = !flag("soft") && !flag("softerr") && option("local_lock") == Some("none");
        matches!(&*mounted.kind, "nfs" | "nfs4")
            && mounted.source == self.source
            && mounted.root == "/"
            && vers
            && port
            && same("sec", &self.sec)
            && same("proto", &self.proto)
            && (self.careless || careful)
            && !(self.writes && mounted.read_only)
    }
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    path: PathBuf,
    root: String,
    kind: String,
    source: String,
    options: String,
    read_only: bool,
}

/// What is mounted, by what the kernel says of it. Lines that can't be understood are left out.
fn mounted(mountinfo: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let (first, second) = line.split_once(" - ")?;
        let first: Vec<&str> = first.split(' ').collect();
        let [_, _, _, root, path, flags, ..] = first[..] else {
            return None;
        };
        let mut second = second.split(' ');
        let (kind, source, options) = (second.next()?, second.next()?, second.next()?);
        let read_only = |flags: &str| flags.split(',').any(|flag| flag == "ro");
        Some(Mounted {
            path: unescaped(path).into(),
            root: unescaped(root),
            kind: kind.to_owned(),
            source: unescaped(source),
            options: options.to_owned(),
            read_only: read_only(flags) || read_only(options),
        })
    };
    mountinfo.lines().filter_map(line).collect()
}

/// Space, tab, newline and backslash are a backslash and three octal digits there.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 4);
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain + rest
}

/// A mount that meets what is wanted: the one at `private` with its lock, or one that others made.
async fn find(wanted: &Wanted, private: Option<(&Path, &Path)>) -> Result<Option<Mount>> {
    let failed = |error| file_error(OP, "/proc/self/mountinfo", error);
    let text = std::fs::read("/proc/self/mountinfo").map_err(failed)?;
    let all = mounted(&String::from_utf8_lossy(&text));
    // Of several that lie over each other the last one counts.
    let found = all.iter().rev().find(|mounted| {
        let place = match private {
            Some((directory, _)) => mounted.path == directory,
            None => !mounted.path.starts_with(PRIVATE),
        };
        place && wanted.is_met_by(mounted)
    });
    let Some(found) = found else {
        return Ok(None);
    };
    let path = found.path.clone();
    let root = run(OP, Control::new(), move |_| {
        // Without asking the server: for that there is time later.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty());
        // It may have been unmounted meanwhile, or lie below another mount.
        Ok(root
            .ok()
            .filter(|root| sys::is_remote(root.as_fd()).unwrap_or(false)))
    });
    Ok(root.await?.map(|root| Mount {
        label: wanted.label.clone(),
        path: found.path.clone(),
        root: Some(root),
        lock: private.map(|(_, lock)| lock.to_owned()),
    }))
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Keeps all other volmux processes from mounting and unmounting there.
async fn lock(path: &Path, time: Duration) -> Result<File> {
    let failed = |error| not_mounted_here(file_error(OP, path, error));
    let file = open_lock(path).map_err(failed)?;
    let end = Instant::now() + time;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() > end => {
                return Err(Error::new(ErrorKind::Unavailable, OP)
                    .with("path", path.display())
                    .reason("another volmux process has been mounting this export all the time")
                    .help("see whether the server answers (rpcinfo, showmount)"));
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn not_mounted_here(error: Error) -> Error {
    if error.kind() == ErrorKind::PermissionDenied {
        return error
            .help("run as root, or have the export mounted: volmux uses a mount that is there");
    }
    error
}

/// Has mount.nfs(8) mount it.
async fn mount(wanted: &Wanted, directory: &Path, time: Duration) -> Result<()> {
    // It would go on trying for two minutes.
    let options = format!("{},retry=0", wanted.options);
    let started = Command::new(PROGRAM)
        .args([
            &wanted.source,
            &directory.display().to_string(),
            "-o",
            &options,
        ])
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let describe = |error: Error| error.with("export", &wanted.source);
    let child = started.map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = describe(Error::from_io(OP, error).with("path", PROGRAM));
        if missing {
            return error
                .with_kind(ErrorKind::InvalidConfig)
                .reason("the program that mounts NFS is not installed")
                .help("apt-get install nfs-common");
        }
        error
    })?;
    let Ok(output) = tokio::time::timeout(time, child.wait_with_output()).await else {
        return Err(describe(Error::new(ErrorKind::Unavailable, OP))
            .reason(format!(
                "the server has not answered for {} s",
                time.as_secs()
            ))
            .help("see whether it runs and can be reached (ping, rpcinfo)"));
    };
    let output = output.map_err(|error| describe(Error::from_io(OP, error)))?;
    if output.status.success() {
        return Ok(());
    }
    Err(describe(failure(&String::from_utf8_lossy(&output.stderr))))
}

/// What mount.nfs (2.6.2) says, in the order in which it is looked for: kind, and what to do.
const COMPLAINTS: &[(&str, ErrorKind, &str)] = &[
    (
        "Failed to resolve server",
        ErrorKind::NotFound,
        "see whether the host's name is right (getent hosts)",
    ),
    (
        "Resource temporarily unavailable",
        ErrorKind::Unavailable,
        "no name server answers (getent hosts): give the server's address, or put it into /etc/hosts",
    ),
    (
        "access denied by server",
        ErrorKind::PermissionDenied,
        "see on the server whether the directory is exported to this host (exportfs -v)",
    ),
    (
        "requested NFS version or transport protocol is not supported",
        ErrorKind::Unsupported,
        "leave vers and proto out, or name what the server has (rpcinfo -p HOST)",
    ),
    (
        "Protocol not supported",
        ErrorKind::Unsupported,
        "leave vers and proto out, or name what the server has (rpcinfo -p HOST)",
    ),
    (
        "No such file or directory",
        ErrorKind::NotFound,
        "see what the server exports (showmount -e HOST; version 4 counts from the export with fsid=0)",
    ),
    (
        "rpc.statd is not running",
        ErrorKind::Unavailable,
        "start it (systemctl start rpc-statd): version 3 needs it for locks; or use vers=4",
    ),
    (
        "Connection refused",
        ErrorKind::Unavailable,
        "see whether the server runs (rpc.nfsd, systemctl status nfs-server) and the port is right",
    ),
    (
        "timed out",
        ErrorKind::Unavailable,
        "see whether the server runs and can be reached (ping, rpcinfo)",
    ),
    (
        "No route to host",
        ErrorKind::Unavailable,
        "see whether the server runs and can be reached (ping, rpcinfo)",
    ),
    (
        "Network is unreachable",
        ErrorKind::Unavailable,
        "see whether the server can be reached (ip route)",
    ),
    (
        "must be root",
        ErrorKind::PermissionDenied,
        "run as root, or have the export mounted: volmux uses a mount that is there",
    ),
    (
        "ermission denied",
        ErrorKind::PermissionDenied,
        "see on the server whether the directory is exported to this host (exportfs -v)",
    ),
    (
        "not permitted",
        ErrorKind::PermissionDenied,
        "run as root, or have the export mounted: volmux uses a mount that is there",
    ),
    (
        "unknown filesystem type",
        ErrorKind::Unavailable,
        "load the kernel's NFS client (modprobe nfs)",
    ),
    (
        "No such device",
        ErrorKind::Unavailable,
        "load the kernel's NFS client (modprobe nfs)",
    ),
    (
        "an incorrect mount option",
        ErrorKind::InvalidConfig,
        "see man 5 nfs",
    ),
];

fn failure(said: &str) -> Error {
    let complaint = COMPLAINTS.iter().find(|(words, ..)| said.contains(words));
    let said: Vec<&str> = said
        .lines()
        .map(|line| line.trim().trim_start_matches("mount.nfs: "))
        .filter(|line| !line.is_empty())
        .collect();
    let reason = if said.is_empty() {
        "mount.nfs failed without a word".to_owned()
    } else {
        said.join("; ")
    };
    let kind = complaint.map_or(ErrorKind::Unavailable, |(_, kind, _)| *kind);
    let error = Error::new(kind, OP).reason(reason);
    match complaint {
        Some((_, _, help)) => error.help(help),
        None => error,
    }
}

#[cfg(test)]
mod tests;

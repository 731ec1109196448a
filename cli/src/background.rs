//! A server in the background: `attach --gateway SOCKET` starts one, `detach --gateway SOCKET` ends
//! it.
//!
//! It is `volmux export` in a process of its own. What it is, is in the file SOCKET.gateway, which
//! it keeps locked for as long as it lives; what it says is in SOCKET.log.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use volmux::{Access, AttachOptions, Error, ErrorKind, Result, Sharing, VolumeId, VolumeName};
use volmux_gateway::{Address, status_of};

use crate::app::{App, STOPPED};

const START: &str = "start_gateway";
const STOP: &str = "stop_gateway";
/// How long the connection of a client that has left may be there.
const LEAVING: Duration = Duration::from_secs(2);
/// How long another one that starts it, or ends it, is waited for.
const STARTING: Duration = Duration::from_secs(60);
/// Between two looks at whether it has ended.
const PAUSE: Duration = Duration::from_millis(10);
/// No record is longer.
const LONGEST: u64 = 64 << 10;
/// What it prints once it serves.
const READY: &[u8] = b"ready\n";

/// What a server in the background is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub volume: String,
    /// Two pools may have volumes of one name.
    pub id: VolumeId,
    pub holder: String,
    pub access: Access,
    pub sharing: Sharing,
}

impl Order {
    /// The volume `name`, which is `id`, for whom `options` say.
    pub fn new(name: &VolumeName, id: VolumeId, options: &AttachOptions) -> Self {
        Order {
            volume: name.to_string(),
            id,
            holder: options.holder.to_string(),
            access: options.access,
            sharing: options.sharing,
        }
    }
}

/// What SOCKET.gateway holds.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: i32,
    order: Order,
    /// It has begun to serve.
    served: bool,
    /// Why it did not end in order.
    failed: Option<String>,
}

/// SOCKET.gateway, from the side of the server: locked until this is dropped.
#[derive(Debug)]
pub struct Running {
    path: PathBuf,
    file: File,
    order: Order,
    /// It has served.
    served: bool,
}

impl Running {
    /// Makes this process the server that `path` tells of.
    ///
    /// # Errors
    /// `Busy` if there is another; those of the file.
    pub fn new(path: &Path, order: Order) -> Result<Self> {
        let wrong = |e| Error::from_io(START, e).with("path", path.display());
        loop {
            let file = open(path, true).map_err(wrong)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(another(path)),
                Err(TryLockError::Error(error)) => return Err(wrong(error)),
            }
            // One that ended may have removed it in between.
            if is_at(&file, path) {
                let running = Running {
                    path: path.to_owned(),
                    file,
                    order,
                    served: false,
                };
                running.write(None)?;
                return Ok(running);
            }
        }
    }

    fn write(&self, failed: Option<String>) -> Result<()> {
        let record = Record {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            order: self.order.clone(),
            served: self.served,
            failed,
        };
        let text = serde_json::to_vec(&record).map_err(std::io::Error::from);
        let written = text.and_then(|text| {
            let mut file = &self.file;
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&text)
        });
        written.map_err(|e| Error::from_io(START, e).with("path", self.path.display()))
    }

    /// Tells who started this process that it serves, and leaves that one's standard output. `served` is
    /// the volume that it serves.
    ///
    /// # Errors
    /// `Busy` if that is another one than was ordered; `Unavailable` if nobody listens any more.
    pub fn ready(&mut self, served: VolumeId) -> Result<()> {
        let wrong = |e| Error::from_io(START, e);
        if served != self.order.id {
            return Err(Error::new(ErrorKind::Busy, START)
                .with("volume", &self.order.volume)
                .reason("another volume has got this name meanwhile")
                .help("attach it again"));
        }
        self.served = true;
        self.write(None)?;
        let mut out = std::io::stdout().lock();
        let told = out.write_all(READY).and_then(|()| out.flush());
        told.map_err(wrong)?;
        let null = OpenOptions::new().write(true).open("/dev/null");
        let null = null.map_err(wrong)?;
        rustix::stdio::dup2_stdout(&null).map_err(|e| wrong(e.into()))
    }

    /// Whom the volume is served for.
    pub fn holder(&self) -> &str {
        &self.order.holder
    }

    /// Leaves nothing behind after an end in order; after another one, why, for who detaches.
    pub fn ended(self, result: &Result<()>) {
        let left = match result {
            Err(error) if self.served => self.write(Some(error.to_string())),
            _ => remove(&self.path),
        };
        if let Err(error) = left {
            tracing::warn!(%error, path = %self.path.display(), "the record is left as it is");
        }
    }
}

/// Has `order` served on `socket` by a process of its own, and returns when it serves. One that does
/// so already, does. If it can't, it has told why, and its exit code comes back.
///
/// # Errors
/// `Busy` if something else is served there; those of starting it.
pub async fn start(app: &App, socket: &Path, order: &Order) -> Result<u8> {
    let record = beside(socket, "gateway");
    if serves(app, &record, order).await? {
        return Ok(0);
    }
    let log = beside(socket, "log");
    let wrong = |e| Error::from_io(START, e).with("path", log.display());
    let said = open(&log, true).map_err(wrong)?;
    let before = said.metadata().map_err(wrong)?.len();
    // One of its own: the position of a duplicate would be the same.
    let mut reader = open(&log, false).map_err(wrong)?;
    reader.seek(SeekFrom::Start(before)).map_err(wrong)?;
    keep_descriptors();
    let mut child = command(app, socket, order, &record)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(said)
        .spawn()
        .map_err(|e| Error::from_io(START, e))?;
    if is_ready(app, &mut child).await? {
        return Ok(0);
    }
    let status = child.wait().await.map_err(|e| Error::from_io(START, e))?;
    match status.code() {
        Some(code @ 1..=255) => {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map_err(wrong)?;
            let told = std::io::stderr().lock().write_all(&text);
            told.map_err(|e| Error::from_io(START, e))?;
            Ok(code as u8)
        }
        _ => Err(Error::new(ErrorKind::Internal, START)
            .with("log", log.display())
            .reason(format!("the server ended before it served: {status}"))),
    }
}

/// What this program was given open is not for the server: who waits for a pipe to end, or has a lock of
/// flock(1), would wait for as long as it serves.
fn keep_descriptors() {
    for entry in fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|&number: &i32| number > 2) else {
            continue;
        };
        // SAFETY: it is borrowed for one call, which changes nothing but a flag. Whatever has the number by
        // then is to have that flag, as all that this program opens has; if nothing has, the call fails.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
}

/// Whether a server that is there does, or will in a moment, what is ordered.
async fn serves(app: &App, path: &Path, order: &Order) -> Result<bool> {
    let start = Instant::now();
    loop {
        let Some(found) = find(path)? else {
            return Ok(false);
        };
        let lives = found.lives();
        match found.record {
            Some(record) if !lives => {
                if let Some(why) = record.failed {
                    app.warn(&format!("the gateway before did not end in order: {why}"));
                }
                return Ok(false);
            }
            None if !lives => return Ok(false),
            Some(record) if record.order != *order => return Err(another(path)),
            Some(record) if record.served && record.failed.is_none() => return Ok(true),
            _ if start.elapsed() > STARTING => return Err(another(path)),
            _ => pause(app, START).await?,
        }
    }
}

async fn pause(app: &App, op: &'static str) -> Result<()> {
    let pause = async {
        tokio::time::sleep(PAUSE).await;
        Ok(())
    };
    app.guard(op, pause).await
}

/// Waits until the server serves (true) or has ended.
async fn is_ready(app: &App, child: &mut Child) -> Result<bool> {
    let Some(mut out) = child.stdout.take() else {
        return Ok(false);
    };
    let mut told = Vec::new();
    tokio::select! {
        biased;
        read = out.read_to_end(&mut told) => {
            read.map_err(|e| Error::from_io(START, e))?;
            Ok(told == READY)
        }
        () = app.cancel.cancelled() => {
            end(child)?;
            child.wait().await.map_err(|e| Error::from_io(START, e))?;
            Err(Error::new(ErrorKind::TimedOut, START).reason(STOPPED))
        }
    }
}

/// Tells the server to end, by its parent.
fn end(child: &Child) -> Result<()> {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    match pid.map(|pid| rustix::process::kill_process(pid, Signal::TERM)) {
        Some(Err(error)) => Err(Error::from_io(START, error.into())),
        _ => Ok(()),
    }
}

fn command(app: &App, socket: &Path, order: &Order, record: &Path) -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| Error::from_io(START, e))?;
    let mut command = Command::new(program);
    app.for_the_same_pool(&mut command);
    command.args(["export", &order.volume, "--socket"]);
    command.arg(socket).arg("--background").arg(record);
    let mut status = OsString::from("unix:");
    status.push(beside(socket, "status"));
    command.arg("--statistics").arg(status);
    command.args(["--holder", &order.holder, "--id"]);
    command.arg(order.id.to_string());
    if order.access == Access::ReadOnly {
        command.arg("--read-only");
    }
    if order.sharing == Sharing::Shared {
        command.arg("--shared");
    }
    Ok(command)
}

/// Ends the server that serves `name` for `holder` on `socket`, and waits until it has. There need not
/// be one.
///
/// # Errors
/// `Busy` if it is for another volume or holder, or a client still uses it; `TimedOut` on Ctrl-C; how it
/// ended, if not in order.
pub async fn stop(app: &App, socket: &Path, name: &str, holder: &str) -> Result<()> {
    let path = beside(socket, "gateway");
    let Some(found) = find(&path)? else {
        return Ok(());
    };
    let Some(record) = &found.record else {
        return match found.lives() {
            true => Err(another(&path)),
            // Killed before it began.
            false => remove(&path),
        };
    };
    if (record.order.volume.as_str(), record.order.holder.as_str()) != (name, holder) {
        return Err(another(&path));
    }
    if found.lives() {
        check_unused(app, socket, &found, record).await?;
        tell(&found, record.pid)?;
    } else if record.failed.is_none() {
        app.warn("the gateway was killed: what was flushed before is in the volume");
    }
    // With the lock nobody starts another one there meanwhile.
    while found.file.try_lock().is_err() {
        pause(app, STOP).await?;
    }
    if !is_at(&found.file, &path) {
        return Ok(());
    }
    let left = read(&found.file, &path)?.and_then(|record| record.failed);
    remove(&path)?;
    match left {
        None => Ok(()),
        Some(text) => Err(Error::new(ErrorKind::Unavailable, STOP)
            .with("volume", name)
            .with("log", beside(socket, "log").display())
            .reason(format!("the gateway did not end in order: {text}"))),
    }
}

/// Refuses while somebody uses the volume. Who has just left may be seen for a moment more.
async fn check_unused(app: &App, socket: &Path, found: &Found, record: &Record) -> Result<()> {
    let address = Address::Unix(beside(socket, "status"));
    let start = Instant::now();
    loop {
        let late = start.elapsed() > LEAVING;
        match app.guard(STOP, status_of(&address)).await {
            Ok(status) if status.connections == 0 => return Ok(()),
            Ok(_) if late => return Err(in_use(record)),
            // It may be about to end, for another who detaches.
            Err(_) if !found.lives() => return Ok(()),
            Err(error) if late || app.cancel.is_cancelled() => {
                let pid = record.pid;
                return Err(error.help(format!(
                    "if the gateway (process {pid}) hangs, kill it, and detach again"
                )));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn in_use(record: &Record) -> Error {
    Error::new(ErrorKind::Busy, STOP)
        .with("volume", &record.order.volume)
        .with("attached_to", &record.order.holder)
        .reason("a client of the gateway uses it")
        .help("take the disk from the guest, or disconnect the device (nbd-client -d), first")
}

/// SIGTERM to the process that holds the lock, and to no other that has its number by now.
fn tell(found: &Found, pid: i32) -> Result<()> {
    let wrong = |e: rustix::io::Errno| Error::from_io(STOP, e.into());
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(());
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(wrong(error)),
    };
    if !found.lives() {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(wrong(error)),
    }
}

/// A record that is there.
struct Found {
    file: File,
    /// None while its server has not written it.
    record: Option<Record>,
}

impl Found {
    /// Whether its server runs.
    fn lives(&self) -> bool {
        // Whoever looks takes the lock for a moment, shared: two that look don't see each other.
        let locked = self.file.try_lock_shared().is_err();
        if !locked {
            let _ = self.file.unlock();
        }
        locked
    }
}

fn find(path: &Path) -> Result<Option<Found>> {
    let file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::from_io(STOP, error).with("path", path.display())),
    };
    let owner = file.metadata().map(|metadata| metadata.uid());
    let owner = owner.map_err(|e| Error::from_io(STOP, e).with("path", path.display()))?;
    // What it says is believed: which process is to be told to end.
    if owner != rustix::process::geteuid().as_raw() {
        return Err(Error::new(ErrorKind::PermissionDenied, STOP)
            .with("path", path.display())
            .reason("it belongs to another user")
            .help("put the socket in a directory of your own"));
    }
    let record = read(&file, path)?;
    Ok(Some(Found { file, record }))
}

fn read(mut file: &File, path: &Path) -> Result<Option<Record>> {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0));
    let read = read.and_then(|_| file.take(LONGEST).read_to_string(&mut text));
    read.map_err(|e| Error::from_io(STOP, e).with("path", path.display()))?;
    if text.is_empty() {
        return Ok(None);
    }
    let record = serde_json::from_str(&text).map_err(|e| {
        Error::new(ErrorKind::InvalidInput, STOP)
            .with("path", path.display())
            .reason("this is no record of a gateway")
            .with_source(e)
    })?;
    Ok(Some(record))
}

fn open(path: &Path, create: bool) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(create)
        .create(create)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    let ours = file.metadata().map(|m| (m.dev(), m.ino()));
    let there = fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()));
    matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::from_io(STOP, error).with("path", path.display()))
        }
        _ => Ok(()),
    }
}

fn another(path: &Path) -> Error {
    let error = Error::new(ErrorKind::Busy, START).with("path", path.display());
    match find(path) {
        Ok(Some(Found {
            record: Some(record),
            ..
        })) => error
            .with("volume", record.order.volume)
            .with("attached_to", record.order.holder)
            .reason("a gateway serves this there")
            .help("choose another socket, or detach that first"),
        _ => error.reason("a gateway is being started or ended there"),
    }
}

/// The socket's path, with an ending more.
fn beside(socket: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(".");
    path.push(ending);
    PathBuf::from(path)
}

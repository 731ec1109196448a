//! One connection for all calls, by OpenSSH's `ssh`.
//!
//! A first process, the master, connects and keeps the connection. It runs `cat` there, which ends
//! with its standard input: when this process is gone, however it went, so are the master and all
//! that was started through it. Each call is an `ssh` of its own that hands its files to the
//! master. Where that does not work, because the master is gone or sshd allows no more sessions
//! (`MaxSessions`, 10), ssh makes a connection for itself.
//!
//! The socket is in a directory of its own, which goes with the pool. After kill -9 it stays, with
//! a socket in it that nobody listens at.

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use volmux_core::{Error, ErrorKind, Result};

use super::config::{OPEN, RemoteConfig};
use super::failure::{self, Complaints};
use super::lines::Lines;
use super::quote::command_line;

/// What `cat` gives back once the connection stands.
const READY: &str = "volmux-ready";
/// Lines that a host may print before that.
const MOST_GREETINGS: usize = 64;
const LONGEST_GREETING: usize = 4096;
/// Within which a host that is there answers.
const CONNECT: Duration = Duration::from_secs(15);
/// The longest directory below which a socket's name is short enough, with what ssh adds to it.
const LONGEST_DIRECTORY: usize = 48;

/// Options of every ssh: nothing asks, nothing is forwarded, hosts prove who they are, and a
/// connection that is dead is found to be so.
const OPTIONS: &[&str] = &[
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "PreferredAuthentications=publickey",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RequestTTY=no",
    "EscapeChar=none",
    "ConnectionAttempts=1",
    "TCPKeepAlive=yes",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ControlPersist=no",
    "LogLevel=ERROR",
];

/// The way to another host.
#[derive(Debug)]
pub(super) struct Ssh {
    pub(super) config: RemoteConfig,
    /// `user@host`, for errors.
    pub(super) place: String,
    master: Mutex<Option<Master>>,
    directory: TempDir,
    started: AtomicU64,
}

#[derive(Debug)]
struct Master {
    process: Child,
    /// Its end is that of the connection.
    _stdin: ChildStdin,
    /// Not read any more: what comes there is held back by ssh, and harms nobody.
    _stdout: Lines<ChildStdout>,
    complaints: Arc<std::sync::Mutex<Complaints>>,
    listener: JoinHandle<()>,
}

impl Drop for Master {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Ssh {
    /// Checks the configuration. Nothing is started yet.
    ///
    /// # Errors
    /// `InvalidConfig`; those of making a directory for the socket.
    pub(super) fn new(config: RemoteConfig) -> Result<Ssh> {
        config.check()?;
        let place = config.place();
        let here = |e| Error::from_io(OPEN, e).reason("no directory can be made for ssh's socket");
        let directory = socket_directory().map_err(here)?;
        Ok(Ssh {
            config,
            place,
            master: Mutex::new(None),
            directory,
            started: AtomicU64::new(0),
        })
    }

    /// How many processes were started.
    pub(super) fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// An error of `kind` that names the host.
    pub(super) fn error(&self, kind: ErrorKind, op: &'static str) -> Error {
        self.at(Error::new(kind, op))
    }

    /// Names the host in `error`, and the pool where it does not.
    pub(super) fn at(&self, error: Error) -> Error {
        let error = match error.get("pool") {
            Some(_) => error,
            None => error.with("pool", &self.config.pool),
        };
        error.with("host", &self.place)
    }

    /// Starts the program `words[0]` with the others as its arguments. The process here is killed
    /// when it is dropped; its standard input, output and error are pipes.
    ///
    /// # Errors
    /// Those of connecting.
    pub(super) async fn start(
        &self,
        op: &'static str,
        words: &[&str],
        deadline: Instant,
    ) -> Result<Child> {
        self.connect(op, deadline).await?;
        // The login shell makes way for the program, so that nothing is between it and sshd.
        let line = format!("exec env LC_ALL=C {}", command_line(words.iter().copied()));
        self.spawn(op, "ControlMaster=no", &line)
    }

    /// Sees to it that there is a connection. Whoever comes first makes it, the others wait.
    async fn connect(&self, op: &'static str, deadline: Instant) -> Result<()> {
        let late = || {
            self.error(ErrorKind::TimedOut, op)
                .reason("there was no connection in time")
                .help("see that the host is up, and answers ssh")
        };
        let mut master = timeout_at(deadline, self.master.lock())
            .await
            .map_err(|_| late())?;
        if let Some(running) = master.as_mut() {
            match running.process.try_wait() {
                Ok(None) => return Ok(()),
                ended => {
                    let said = running.complaints.lock();
                    let said = said.unwrap_or_else(PoisonError::into_inner).text();
                    tracing::warn!(host = %self.place, ?ended, said, "the connection was lost");
                }
            }
        }
        *master = None;
        // A new master does not listen where an old socket is.
        match std::fs::remove_file(self.socket()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(self.at(Error::from_io(op, e)));
            }
            _ => {}
        }
        let made = timeout_at(deadline, self.make_master(op)).await;
        *master = Some(made.map_err(|_| late())??);
        Ok(())
    }

    async fn make_master(&self, op: &'static str) -> Result<Master> {
        let mut process = self.spawn(op, "ControlMaster=yes", "exec cat")?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (
            process.stdin.take(),
            process.stdout.take(),
            process.stderr.take(),
        ) else {
            return Err(self
                .error(ErrorKind::Internal, op)
                .reason("ssh has no pipes"));
        };
        let complaints = Arc::new(std::sync::Mutex::new(Complaints::default()));
        let mut listener = tokio::spawn(listen(stderr, complaints.clone()));
        let mut stdout = Lines::new(stdout, LONGEST_GREETING);
        let hello = format!("{READY}\n");
        // If it can't be written, ssh is about to end and says why.
        let _ = stdin.write_all(hello.as_bytes()).await;
        if answers(&mut stdout).await {
            return Ok(Master {
                process,
                _stdin: stdin,
                _stdout: stdout,
                complaints,
                listener,
            });
        }
        drop((stdin, stdout));
        let status = process
            .wait()
            .await
            .map_err(|e| self.at(Error::from_io(op, e)))?;
        // What it said last may still be on its way; another process may hold the pipe open.
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut listener).await;
        listener.abort();
        let said = complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Err(self.at(match status.code() {
            Some(255) | None => failure::of_ssh(op, &said),
            Some(_) => Error::new(ErrorKind::InvalidConfig, op)
                .reason(format!(
                    "the account there runs no commands ({status}): {}",
                    said.text()
                ))
                .help("give the user there a POSIX shell that may run cat and volmux"),
        }))
    }

    /// Starts an ssh that runs `line` there.
    fn spawn(&self, op: &'static str, role: &str, line: &str) -> Result<Child> {
        let config = &self.config;
        let mut command = Command::new(&config.ssh);
        command.env_clear();
        command
            .env("LC_ALL", "C")
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        match &config.ssh_config {
            Some(path) => command.arg("-F").arg(path),
            None => command.args(["-F", "none"]),
        };
        command.args(["-T", "-a", "-x"]);
        let connect = CONNECT.min(config.deadline).as_secs();
        let connect = format!("ConnectTimeout={connect}");
        for option in OPTIONS.iter().copied().chain([role, &connect]) {
            command.args(["-o", option]);
        }
        if let Some(path) = &config.known_hosts {
            let option = format!("UserKnownHostsFile=\"{}\"", path.display());
            command.args(["-o", &option, "-o", "GlobalKnownHostsFile=/dev/null"]);
        }
        match &config.key {
            Some(path) => {
                command.args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i"]);
                command.arg(path);
            }
            None => {
                if let Some(agent) = std::env::var_os("SSH_AUTH_SOCK") {
                    command.env("SSH_AUTH_SOCK", agent);
                }
            }
        }
        command.arg("-S").arg(self.socket());
        command.args(["-p", &config.port.to_string(), "-l", &config.user]);
        command.args(["--", &config.host, line]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C is meant for us.
            .process_group(0);
        self.started.fetch_add(1, Ordering::Relaxed);
        command.spawn().map_err(|error| self.not_started(op, error))
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("s")
    }

    fn not_started(&self, op: &'static str, error: std::io::Error) -> Error {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = Error::from_io(op, error).with("path", self.config.ssh.display());
        self.at(match missing {
            true => error
                .with_kind(ErrorKind::InvalidConfig)
                .reason("there is no ssh here")
                .help("install OpenSSH's client (apt-get install openssh-client)"),
            false => error.reason("ssh can't be started"),
        })
    }
}

/// Whether `cat` gave back what it got. Whatever a host says first is passed over.
async fn answers(stdout: &mut Lines<ChildStdout>) -> bool {
    for _ in 0..MOST_GREETINGS {
        match stdout.next().await {
            Ok(Some(line)) if *line == *READY.as_bytes() => return true,
            Ok(Some(_)) => {}
            _ => return false,
        }
    }
    false
}

/// Keeps what the master says: one that could not write it would stand still.
async fn listen(stderr: ChildStderr, complaints: Arc<std::sync::Mutex<Complaints>>) {
    let mut lines = Lines::new(stderr, failure::LONGEST_COMPLAINT);
    loop {
        match lines.next().await {
            Ok(Some(line)) => {
                let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
                complaints.add(&line);
            }
            // Who talks like that is not listened to.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => lines.forget(),
            _ => return,
        }
    }
}

/// A directory for this user alone, below the usual one for such, or below /tmp where that is so
/// long that no socket can be in it, or has characters that ssh would read as something else.
fn socket_directory() -> std::io::Result<TempDir> {
    let usual = std::env::temp_dir();
    let fits = |path: &str| {
        path.len() <= LONGEST_DIRECTORY
            && path.starts_with('/')
            && !path.contains(|c: char| c.is_control() || "\"\\%$".contains(c))
    };
    let base = match usual.to_str() {
        Some(path) if fits(path) => usual,
        _ => "/tmp".into(),
    };
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    tempfile::Builder::new()
        .prefix("volmux-")
        .permissions(mode)
        .tempdir_in(base)
}

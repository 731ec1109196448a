//! How an operation becomes a run of the program there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use volmux_core::{
    AuditReport, Capabilities, Control, Error, ErrorKind, Result, ThinPolicy, Volume, VolumeName,
};

use super::config::{OPEN, RemoteConfig};
use super::documents::{AuditDoc, Document, PoolDoc, VolumeDoc, parse};
use super::opened::Opened;
use super::run::{Ending, Run};
use super::ssh::Ssh;
use crate::open::Opener;

/// Calls at a time. With the master and a few lists it stays below what sshd allows in one
/// connection (`MaxSessions`, 10); more lists than that make connections of their own.
const AT_ONCE: usize = 6;
/// The longest report of an audit or a scrub, in bytes: all findings stand in one document.
const LONGEST_REPORT: usize = 64 << 20;
/// By how much later than here a call is given up there.
const LATER: u64 = 5;

/// A pool on another host. Clones are the same pool; the connection ends with the last one, and
/// with the last volume that was opened.
///
/// Its errors are those of the pool there, with `host` in their context, and besides: `Unavailable`
/// if there is no connection, `Unauthenticated` if a key is not accepted or the host's is another
/// one, `TimedOut`, and `InvalidConfig` if the host's key is not known, the program is not there,
/// or what answers is not volmux. A call that breaks off may have been done, and can be repeated;
/// only of renaming the repetition can't be told from a wrong call.
#[derive(Clone)]
pub struct RemotePool {
    pub(super) ssh: Arc<Ssh>,
    pub(super) opener: Arc<Opener>,
    pub(super) opened: Arc<Opened>,
    pub(super) capabilities: Capabilities,
    pub(super) policy: ThinPolicy,
    slots: Arc<Semaphore>,
    shown: Arc<str>,
}

/// What to run: a command with its options, and the names that follow it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command<'a> {
    /// The operation that errors name.
    pub(super) op: &'static str,
    pub(super) words: &'a [&'a str],
    pub(super) names: &'a [&'a str],
}

impl Command<'_> {
    /// All words, the program's name included: options first, and names after `--`.
    pub(super) fn words(&self, config: &RemoteConfig, limit: Option<Duration>) -> Vec<String> {
        let mut words = vec![
            config.program.clone(),
            "--json".into(),
            "--stop-at-eof".into(),
            "--any-name".into(),
            format!("--pool={}", config.pool),
        ];
        words.extend(limit.map(|limit| format!("--time-limit={}", limit.as_secs() + LATER)));
        words.extend(self.words.iter().map(ToString::to_string));
        if !self.names.is_empty() {
            words.push("--".into());
            words.extend(self.names.iter().map(ToString::to_string));
        }
        words
    }
}

impl RemotePool {
    /// Connects, and looks at the pool there. Its volumes are opened by `opener`.
    ///
    /// # Errors
    /// Those of [`RemotePool`], and of opening the pool there.
    pub async fn open(config: RemoteConfig, opener: Arc<Opener>) -> Result<RemotePool> {
        let ssh = Arc::new(Ssh::new(config)?);
        let limit = ssh.config.deadline;
        let words = Command {
            op: OPEN,
            words: &["pool", "info"],
            names: &[],
        }
        .words(&ssh.config, Some(limit));
        let answer = one(&ssh, OPEN, &words, limit, &Control::new()).await?;
        let info: PoolDoc = answer.document()?;
        let policy = info.policy().map_err(|wrong| answer.wrong(&wrong))?;
        Ok(RemotePool {
            shown: format!("{} over ssh://{}", info.pool, ssh.place).into(),
            ssh,
            opener,
            opened: Arc::default(),
            capabilities: info.capabilities,
            policy,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// How many processes it has started: one for each call, and one for each connection.
    pub fn started(&self) -> u64 {
        self.ssh.started()
    }

    /// A call that does not take long.
    pub(super) async fn call(&self, command: Command<'_>) -> Result<Answer> {
        let limit = self.ssh.config.deadline;
        let words = command.words(&self.ssh.config, Some(limit));
        self.in_turn(command.op, &words, limit, &Control::new())
            .await
    }

    /// Work that goes on as long as it makes progress.
    pub(super) async fn work(&self, command: Command<'_>, control: &Control) -> Result<Answer> {
        let limit = self.ssh.config.work_deadline;
        let mut words = command.words(&self.ssh.config, None);
        words.insert(1, "--progress".into());
        self.in_turn(command.op, &words, limit, control).await
    }

    async fn in_turn(
        &self,
        op: &'static str,
        words: &[String],
        limit: Duration,
        control: &Control,
    ) -> Result<Answer> {
        control.check(op)?;
        let slot = tokio::select! {
            slot = timeout(limit, self.slots.acquire()) => slot,
            () = control.cancelled() => {
                // It says so.
                control.check(op)?;
                return Err(self.ssh.error(ErrorKind::TimedOut, op));
            }
        };
        let Ok(Ok(_slot)) = slot else {
            return Err(self
                .ssh
                .error(ErrorKind::TimedOut, op)
                .reason(format!("{AT_ONCE} other calls to this host are not done"))
                .help("see what the programs there wait for"));
        };
        one(&self.ssh, op, words, limit, control).await
    }

    /// A call that makes or changes a volume, which is called `expected` then.
    pub(super) async fn volume_of(
        &self,
        command: Command<'_>,
        expected: &VolumeName,
    ) -> Result<Volume> {
        self.call(command).await?.volume(expected)
    }

    /// Work that makes or changes a volume, which is called `expected` then.
    pub(super) async fn volume_of_work(
        &self,
        (op, word): (&'static str, &str),
        names: &[&VolumeName],
        expected: &VolumeName,
        control: &Control,
    ) -> Result<Volume> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        let command = Command {
            op,
            words: &["volume", word],
            names: &names,
        };
        let made = self.work(command, control).await;
        made.and_then(|answer| answer.volume(expected))
            .map_err(|error| about(expected, error))
    }

    /// An audit or a scrub.
    pub(super) async fn report(
        &self,
        command: Command<'_>,
        control: &Control,
    ) -> Result<AuditReport> {
        let answer = self.work(command, control).await?;
        let read = parse::<AuditDoc>(&answer.line);
        read.and_then(|document| document.into_report(answer.ending == Ending::Done))
            .map_err(|wrong| answer.wrong(&wrong))
    }
}

/// Names the volume, where the error does not.
pub(super) fn about(name: &VolumeName, error: Error) -> Error {
    match error.get("volume") {
        Some(_) => error,
        None => error.with("volume", name),
    }
}

/// What the program printed.
#[derive(Debug)]
pub(super) struct Answer {
    line: Bytes,
    ending: Ending,
    run: Run,
}

impl Answer {
    /// An error about it.
    pub(super) fn wrong(&self, wrong: &str) -> Error {
        self.run.wrong(wrong)
    }

    /// The document of a command that was done.
    pub(super) fn document<T: Document>(&self) -> Result<T> {
        match self.ending {
            Ending::Done => parse(&self.line).map_err(|wrong| self.wrong(&wrong)),
            _ => Err(self.wrong("exit code 1")),
        }
    }

    /// A volume, which has to be the one that was meant.
    fn volume(&self, expected: &VolumeName) -> Result<Volume> {
        let volume = self.document::<VolumeDoc>()?.into_volume();
        let volume = volume.map_err(|wrong| self.wrong(&wrong))?;
        match volume.name == *expected {
            true => Ok(volume),
            false => Err(self.wrong(&format!("it tells of volume {}", volume.name))),
        }
    }
}

/// Runs the program for one document.
async fn one(
    ssh: &Arc<Ssh>,
    op: &'static str,
    words: &[String],
    limit: Duration,
    control: &Control,
) -> Result<Answer> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut run = Run::start(ssh, op, &words, limit).await?;
    if matches!(op, "audit" | "scrub") {
        run = run.limit(LONGEST_REPORT);
    }
    let (line, ending, run) = run.answer(control).await?;
    Ok(Answer { line, ending, run })
}

impl fmt::Display for RemotePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.shown)
    }
}

impl fmt::Debug for RemotePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemotePool")
            .field("pool", &self.shown)
            .field("started", &self.started())
            .finish_non_exhaustive()
    }
}

//! One run of the program on the other host: what it prints, how far it is, and how it ends.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::time::{Instant, timeout_at};
use volmux_core::{Control, Error, ErrorKind, Result};

use super::documents::{ProgressDoc, WarningDoc, schema};
use super::errors::ErrorDoc;
use super::failure::{self, Complaints};
use super::lines::Lines;
use super::ssh::Ssh;

/// The longest document on stdout.
const LONGEST_DOCUMENT: usize = 1 << 20;
/// The longest line on stderr.
const LONGEST_MESSAGE: usize = 1 << 20;
/// All lines on stderr but those that tell of progress, in bytes.
const MOST_MESSAGES: usize = 4 << 20;
/// How long the program may take to clean up when it is asked to stop: a little longer than it
/// takes to end if it can't.
const GOODBYE: Duration = Duration::from_secs(75);

/// What happens next.
#[derive(Debug)]
pub(super) enum Event {
    /// A document on stdout.
    Line(Bytes),
    /// An error on stderr.
    Problem(Error),
    /// It tells of progress, and is further than it was.
    Progress(ProgressDoc),
    /// All was said.
    End(ExitStatus),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Exit code 0.
    Done,
    /// Exit code 1: an audit or a scrub found something.
    Unclean,
    /// With the errors that were told of.
    Failed,
}

/// A run. Dropped, it is stopped.
#[derive(Debug)]
pub(super) struct Run {
    ssh: Arc<Ssh>,
    op: &'static str,
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines<ChildStdout>,
    stderr: Lines<ChildStderr>,
    open: (bool, bool),
    messages: usize,
    progress: Option<ProgressDoc>,
    complaints: Complaints,
    patience: Duration,
    deadline: Instant,
}

impl Run {
    /// Starts the program with `words`, which begin with its name. The deadline is `patience` from
    /// now on.
    ///
    /// # Errors
    /// Those of connecting.
    pub(super) async fn start(
        ssh: &Arc<Ssh>,
        op: &'static str,
        words: &[&str],
        patience: Duration,
    ) -> Result<Run> {
        let begin = Instant::now();
        // A connection is made fast, or not at all, also for what takes long.
        let connected = begin + patience.min(ssh.config.deadline);
        let mut process = ssh.start(op, words, connected).await?;
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            return Err(ssh
                .error(ErrorKind::Internal, op)
                .reason("ssh has no pipes"));
        };
        Ok(Run {
            ssh: ssh.clone(),
            op,
            stdin: process.stdin.take(),
            process,
            stdout: Lines::new(stdout, LONGEST_DOCUMENT),
            stderr: Lines::new(stderr, LONGEST_MESSAGE),
            open: (true, true),
            messages: 0,
            progress: None,
            complaints: Complaints::default(),
            patience,
            deadline: begin + patience,
        })
    }

    /// Lines on stdout are no longer than `limit` bytes from now on.
    pub(super) fn limit(mut self, limit: usize) -> Self {
        self.stdout.limit(limit);
        self
    }

    /// Begins to wait anew.
    pub(super) fn restart(&mut self) {
        self.deadline = Instant::now() + self.patience;
    }

    /// An error about what it printed.
    pub(super) fn wrong(&self, wrong: &str) -> Error {
        self.ssh
            .at(failure::of_answer(self.op, wrong, &self.complaints))
    }

    /// What happens next, before the deadline. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// `TimedOut`; `InvalidConfig` for what volmux does not print.
    pub(super) async fn event(&mut self) -> Result<Event> {
        let deadline = self.deadline;
        match timeout_at(deadline, self.next()).await {
            Ok(event) => event,
            Err(_) => {
                let limit = self.patience.as_secs_f64();
                Err(self
                    .ssh
                    .error(ErrorKind::TimedOut, self.op)
                    .reason(format!(
                        "nothing more was heard within {limit} s; it is stopped"
                    ))
                    .help("see what the program there waits for, and call again"))
            }
        }
    }

    async fn next(&mut self) -> Result<Event> {
        while self.open != (false, false) {
            // Errors go first: they tell what to make of a line that breaks off.
            tokio::select! {
                biased;
                line = self.stderr.next(), if self.open.1 => match line {
                    Ok(Some(line)) => if let Some(event) = self.heard(&line)? {
                        return Ok(event);
                    },
                    Ok(None) => self.open.1 = false,
                    Err(error) => self.broken(1, &error)?,
                },
                line = self.stdout.next(), if self.open.0 => match line {
                    Ok(Some(line)) => return Ok(Event::Line(line)),
                    Ok(None) => self.open.0 = false,
                    Err(error) => self.broken(0, &error)?,
                },
            }
        }
        let status = self.process.wait().await;
        let status = status.map_err(|e| self.ssh.at(Error::from_io(self.op, e)))?;
        Ok(Event::End(status))
    }

    /// A stream that breaks off in a line ends there, as the exit code tells why: it is that of a
    /// lost connection, or else [`ended`](Self::ended) misses what was not said.
    fn broken(&mut self, stream: usize, error: &std::io::Error) -> Result<()> {
        if error.kind() != std::io::ErrorKind::UnexpectedEof {
            return Err(self.wrong(&error.to_string()));
        }
        self.complaints.add(error.to_string().as_bytes());
        match stream {
            0 => self.open.0 = false,
            _ => self.open.1 = false,
        }
        Ok(())
    }

    /// What a line on stderr means.
    fn heard(&mut self, line: &Bytes) -> Result<Option<Event>> {
        let schema = schema(line);
        if schema.as_deref() == Some("volmux.progress.v1") {
            let progress: Option<ProgressDoc> = serde_json::from_slice(line).ok();
            // Saying the same again is no progress.
            let further = progress.filter(|_| progress != self.progress);
            self.progress = progress.or(self.progress);
            return Ok(further.map(Event::Progress));
        }
        self.messages += line.len();
        if self.messages > MOST_MESSAGES {
            return Err(self.wrong("it does not stop complaining"));
        }
        match schema.as_deref() {
            Some("volmux.error.v1") => {
                let document: Option<ErrorDoc> = serde_json::from_slice(line).ok();
                let error = document.and_then(|document| document.into_error(self.op));
                if error.is_none() {
                    self.complaints.add(line);
                }
                return Ok(error.map(|error| Event::Problem(self.ssh.at(error))));
            }
            Some("volmux.warning.v1") => {
                let warning: Option<WarningDoc> = serde_json::from_slice(line).ok();
                let message = warning.map(|warning| warning.message).unwrap_or_default();
                tracing::warn!(host = %self.ssh.place, op = self.op, message, "warning");
            }
            Some(_) => {}
            None => self.complaints.add(line),
        }
        Ok(None)
    }

    /// What the exit code says, where `first` is the first error that was told of.
    ///
    /// # Errors
    /// The one that it stands for, unless that was told of.
    pub(super) fn ended(&self, status: ExitStatus, first: Option<ErrorKind>) -> Result<Ending> {
        let (op, config, said) = (self.op, &self.ssh.config, &self.complaints);
        let error = match (status.code(), first) {
            (Some(0), None) => return Ok(Ending::Done),
            (Some(1), None) => return Ok(Ending::Unclean),
            (Some(255), _) => failure::of_ssh(op, said),
            (None, _) => {
                Error::new(ErrorKind::Unavailable, op).reason(format!("ssh was killed ({status})"))
            }
            (Some(126 | 127), _) => failure::of_program(op, config, said),
            (Some(101), _) => failure::of_panic(op, said),
            (Some(2), _) => failure::of_usage(op, config, said),
            (Some(code), Some(kind)) if code == 10 + kind.code() => return Ok(Ending::Failed),
            (Some(code), None) => match ErrorKind::ALL.iter().find(|k| 10 + k.code() == code) {
                // Stopped for good while it was cleaning up, or so full that it could not say more.
                Some(&kind) => {
                    Error::new(kind, op).reason(format!("it said no more: {}", said.text()))
                }
                None => failure::of_answer(op, &format!("exit code {code}"), said),
            },
            (Some(code), Some(kind)) => {
                let wrong = format!("exit code {code} after an error of kind {}", kind.name());
                failure::of_answer(op, &wrong, said)
            }
        };
        Err(self.ssh.at(error))
    }

    /// The one document that it prints, and how it ends. If `control` is cancelled it is asked to
    /// stop, and waited for while it cleans up.
    ///
    /// # Errors
    /// What it complained of.
    pub(super) async fn answer(mut self, control: &Control) -> Result<(Bytes, Ending, Run)> {
        let (mut document, mut problem) = (None, None::<Error>);
        loop {
            let event = tokio::select! {
                biased;
                event = self.event() => event?,
                () = control.cancelled(), if self.stdin.is_some() => {
                    self.stdin = None;
                    self.deadline = self.deadline.min(Instant::now() + GOODBYE);
                    continue;
                }
            };
            match event {
                Event::Line(_) if document.is_some() => return Err(self.wrong("a second document")),
                Event::Line(line) => document = Some(line),
                Event::Problem(error) => problem = problem.or(Some(error)),
                Event::Progress(progress) => {
                    control.report(progress.done, progress.total);
                    if self.stdin.is_some() {
                        self.restart();
                    }
                }
                Event::End(status) => {
                    let ending = self.ended(status, problem.as_ref().map(Error::kind))?;
                    return match (problem, document) {
                        (Some(error), _) => Err(self.cancelled(error)),
                        (None, Some(line)) => Ok((line, ending, self)),
                        (None, None) => Err(self.wrong("it says nothing")),
                    };
                }
            }
        }
    }

    /// Says who stopped it, where that was here.
    fn cancelled(&self, error: Error) -> Error {
        match self.stdin {
            None if error.kind() == ErrorKind::TimedOut => self
                .ssh
                .error(ErrorKind::TimedOut, self.op)
                .reason("cancelled by the caller")
                .help("call again to start over")
                .with_source(error),
            _ => error,
        }
    }
}

//! A lab that runs.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::Error;
use crate::job::Job;
use crate::machine::{Machine, Message};

/// How long a guest may take until it runs the command. On an idle machine it takes 3 seconds.
const BOOT: Duration = Duration::from_secs(180);
/// How long it may take to power off once the command has ended.
const OFF: Duration = Duration::from_secs(90);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this status; one that a signal ended has 128 and its number.
    Exit(u8),
    /// The time was over.
    TimeLimit,
    /// The guest did not come so far that it ran the command.
    NoBoot,
    /// The guest's kernel failed, or it powered off before the command had ended.
    Crash,
    /// The power was cut.
    PowerCut,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has booted: the command starts.
    Ready,
    /// The command wrote this to its standard output.
    Out(Vec<u8>),
    /// The command wrote this to its standard error, or QEMU complains.
    Err(Vec<u8>),
    /// It is over.
    End(End),
    /// Nothing, for as long as asked.
    Nothing,
}

/// All of a run that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// How it ended.
    pub end: End,
    /// What the command wrote to its standard output, but for the lines that were read before.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// What the kernel printed.
    pub console: String,
}

/// A lab that runs a command. Dropping it pulls its plug.
#[derive(Debug)]
pub struct Running {
    machine: Machine,
    job: Job,
    /// When it is ended, and as what.
    deadline: (Instant, End),
    ready: bool,
    status: Vec<u8>,
    exit: Option<u8>,
    /// What it is ended as by this side. What the guest had written by then is still read.
    forced: Option<End>,
    end: Option<End>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    limit: Instant,
}

impl Running {
    pub(crate) fn new(machine: Machine, job: Job, time: Duration) -> Running {
        let now = Instant::now();
        let limit = now + time;
        let deadline = match now + BOOT {
            boot if boot < limit => (boot, End::NoBoot),
            _ => (limit, End::TimeLimit),
        };
        Running {
            machine,
            job,
            deadline,
            ready: false,
            status: Vec::new(),
            exit: None,
            forced: None,
            end: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            limit,
        }
    }

    /// Waits for the next thing to happen, for `time` at most.
    ///
    /// # Errors
    /// If QEMU can't be waited for.
    pub fn event(&mut self, time: Duration) -> Result<Event, Error> {
        let start = Instant::now();
        loop {
            if let Some(end) = self.end {
                return Ok(Event::End(end));
            }
            let left = time.saturating_sub(start.elapsed());
            let until_deadline = self.deadline.0.saturating_duration_since(Instant::now());
            match self.machine.messages.recv_timeout(left.min(until_deadline)) {
                Ok(Message::Out(bytes)) => return Ok(Event::Out(bytes)),
                Ok(Message::Err(bytes)) => return Ok(Event::Err(bytes)),
                Ok(Message::Status(bytes)) => {
                    self.status.extend_from_slice(&bytes);
                    if self.read_status() {
                        return Ok(Event::Ready);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.machine.kill()?;
                    self.end = Some(self.judge());
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= self.deadline.0 => {
                    self.force(self.deadline.1)?;
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Event::Nothing),
            }
        }
    }

    /// Takes the lines that the guest tells of itself; whether it became ready.
    fn read_status(&mut self) -> bool {
        let was_ready = self.ready;
        while let Some(end) = self.status.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.status.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if line.trim_end() == "ready" {
                self.ready = true;
                self.deadline = (self.limit, End::TimeLimit);
            } else if let Some(code) = line.trim_end().strip_prefix("exit ") {
                self.exit = code.parse().ok();
                if let Some(code) = self.exit {
                    self.deadline = (Instant::now() + OFF, End::Exit(code));
                }
            }
        }
        self.ready && !was_ready
    }

    /// Kills QEMU, unless it is ending already.
    fn force(&mut self, end: End) -> Result<(), Error> {
        self.forced.get_or_insert(end);
        self.machine.kill()
    }

    /// How a run ended whose QEMU has ended.
    fn judge(&self) -> End {
        match (self.forced, self.exit) {
            _ if self.failed() => End::Crash,
            (Some(end), _) => end,
            (None, Some(code)) => End::Exit(code),
            (None, None) if self.ready => End::Crash,
            (None, None) => End::NoBoot,
        }
    }

    /// Whether the kernel failed.
    fn failed(&self) -> bool {
        self.console().lines().any(is_failure)
    }

    /// All that the kernel has printed.
    pub fn console(&self) -> String {
        // Missing if QEMU did not come so far.
        let bytes = std::fs::read(self.job.console()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Copies what the kernel has printed to a file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn save_console(&self, path: &Path) -> Result<(), Error> {
        let file = std::fs::File::create(path);
        let written = file.and_then(|mut file| file.write_all(self.console().as_bytes()));
        written.map_err(|error| Error::file(path, &error))
    }

    /// Waits until the command starts.
    ///
    /// # Errors
    /// If the guest does not come so far: with what it printed.
    pub fn wait_until_ready(&mut self) -> Result<(), Error> {
        while !self.ready {
            self.step()?;
            if self.end.is_some() {
                return Err(self.ended_early("before it booted"));
            }
        }
        Ok(())
    }

    /// The next line of the command's standard output, without its end; none if there are no
    /// more. Waits for it.
    ///
    /// # Errors
    /// If the guest did not boot, its kernel failed or its time was over: with what was printed.
    pub fn line(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some(end) = self.stdout.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.stdout.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            match self.end {
                Some(End::Exit(_) | End::PowerCut) => return Ok(None),
                Some(_) => return Err(self.ended_early("in the midst of its output")),
                None => self.step()?,
            }
        }
    }

    /// What the command has written to its standard error, as far as it came while lines were read.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Takes one event, and keeps what was printed.
    fn step(&mut self) -> Result<(), Error> {
        match self.event(Duration::from_secs(3600))? {
            Event::Out(bytes) => self.stdout.extend_from_slice(&bytes),
            Event::Err(bytes) => self.stderr.extend_from_slice(&bytes),
            Event::Ready | Event::End(_) | Event::Nothing => {}
        }
        Ok(())
    }

    fn ended_early(&self, when: &str) -> Error {
        Error::new(format!(
            "the lab ended {when}: {:?}\n{}\nthe kernel printed:\n{}",
            self.end,
            self.stderr(),
            self.console()
        ))
    }

    /// Cuts the power: kills QEMU at once. When this returns, the disks can be booted from again.
    /// What the command wrote before is still there to be read, as far as it had come out.
    ///
    /// # Errors
    /// If QEMU can't be waited for.
    pub fn cut_power(&mut self) -> Result<(), Error> {
        self.force(End::PowerCut)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If QEMU can't be waited for.
    pub fn finish(mut self) -> Result<Done, Error> {
        let end = loop {
            match self.end {
                Some(end) => break end,
                None => self.step()?,
            }
        };
        Ok(Done {
            end,
            stdout: String::from_utf8_lossy(&self.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
            console: self.console(),
        })
    }
}

/// Whether a line of the kernel says that it failed. A program that crashes is no failure of it.
fn is_failure(line: &str) -> bool {
    ["Kernel panic", "Oops: ", "BUG: ", "kernel BUG at"]
        .iter()
        .any(|words| line.contains(words))
}

//! tgt: a target in user space, by the management socket of its daemon, tgtd.
//!
//! What was found in tgt 1.0.85, and is counted on:
//! - tgtd removes a logical unit only when no command is with it, closes its file, and ends the
//!   threads that write to it before it answers: nothing reaches the file after that. Until then it
//!   says that the unit is in use.
//! - It looks at names and secrets when a login begins, not when it ends. One that is half done
//!   when an initiator is taken off the list, and goes on minutes later, leads to a session; but
//!   not if the target with that number is gone. So who must be kept out for certain is kept out by
//!   removing the target, and each target gets a number by chance that no other had.
//! - Unbinding one of several accounts of a target leaves a gap, on which tgtd crashes when it
//!   shows the target. So a target whose accounts change is made anew.
//! - A logical unit keeps the size that its file had when it was made. tgtd shows it in rounded
//!   megabytes only; four digits of the unit's identification tell whether it is another one.
//! - SYNCHRONIZE CACHE is fdatasync(2), as is each write with FUA. The write cache is said to be
//!   on.
//! - A command is over only when its answer was sent. An initiator that takes no data, as one that
//!   lost its network, would keep the unit in use for a quarter of an hour; so targets ping
//!   initiators, and give up who does not answer for 15 s.
//! - tgtd is one thread, and does one thing after the other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};
use volmux_core::{Error, ErrorKind, Result};

use super::lock::Lock;
use super::{
    Export, Exported, ExportedUnit, Resized, TargetControl, TargetSession, backing, names,
};
use show::Target;
use wire::Client;

mod accounts;
mod show;
mod steps;
mod wire;

/// The number of the logical unit; 0 is tgtd's own.
const LUN: u64 = 1;
/// Within which an operation is done, others included that are before it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until it is tried again to remove what is in use.
const PAUSE: Duration = Duration::from_millis(20);
/// The socket of a tgtd that was started without `-C`.
const SOCKET: &str = "/var/run/tgtd/socket.0";

/// The control interface of tgtd.
#[derive(Clone, Debug)]
pub struct Tgt {
    socket: PathBuf,
    lock: PathBuf,
}

/// What a step came to.
enum Step<T> {
    Done(T),
    /// It is to be looked at again, to go on from there.
    Next,
    /// The same, but something is in use.
    Wait,
}

impl Tgt {
    /// The tgtd with this management socket, if not that of control port 0:
    /// `/var/run/tgtd/socket.N` of the one started with `-C N`, or `$TGT_IPC_SOCKET.N` if that was
    /// set for it. Beside it lies a file `….volmux`, the lock by which processes take turns.
    pub fn new(socket: Option<PathBuf>) -> Tgt {
        let socket = socket.unwrap_or_else(|| SOCKET.into());
        let mut lock = socket.clone().into_os_string();
        lock.push(".volmux");
        Tgt {
            socket,
            lock: lock.into(),
        }
    }

    fn client(&self, op: &'static str) -> Client<'_> {
        Client {
            socket: &self.socket,
            op,
            until: Instant::now() + PATIENCE,
        }
    }

    /// For an operation on a target.
    async fn turns<'a>(&'a self, op: &'static str, target: &'a str) -> Result<Turns<'a>> {
        let client = self.client(op);
        // Says better than the lock's file that tgtd is not there.
        client.drivers().await?;
        Ok(Turns {
            client,
            lock: &self.lock,
            target,
            waits: false,
        })
    }
}

/// Steps of an operation, each of them alone.
struct Turns<'a> {
    client: Client<'a>,
    lock: &'a Path,
    target: &'a str,
    waits: bool,
}

impl Turns<'_> {
    /// Waits until others let a step be taken; they wait until the lock is dropped.
    async fn next(&mut self) -> Result<Lock> {
        if std::mem::take(&mut self.waits) {
            sleep(PAUSE).await;
        }
        Lock::take(self.lock, self.client.op, self.client.until).await
    }

    /// What a step came to, if that was the last one.
    fn done<T>(&mut self, step: Result<Step<T>>) -> Result<Option<T>> {
        let step = step.map_err(|error| match error.get("target") {
            None => error.with("target", self.target),
            Some(_) => error,
        })?;
        self.waits = match step {
            Step::Done(done) => return Ok(Some(done)),
            Step::Next => false,
            Step::Wait => true,
        };
        if Instant::now() + PAUSE < self.client.until {
            return Ok(None);
        }
        Err(Error::new(ErrorKind::Busy, self.client.op)
            .with("target", self.target)
            .reason("commands of its sessions do not come to an end")
            .help("see whether the storage answers, and tgtd's log"))
    }
}

#[async_trait]
impl TargetControl for Tgt {
    async fn check(&self, op: &'static str) -> Result<()> {
        self.client(op).drivers().await.map(drop)
    }

    async fn list(&self, op: &'static str, prefix: &str) -> Result<Vec<Exported>> {
        let client = self.client(op);
        let mut exported = Vec::new();
        for target in client.targets().await? {
            if !target.name.starts_with(prefix) {
                continue;
            }
            let connections = match target.has_sessions {
                true => client.connections(target.id).await?,
                false => Vec::new(),
            };
            let sessions = connections.into_iter().map(|connection| TargetSession {
                initiator: connection.initiator,
                address: connection.address,
            });
            exported.push(Exported {
                unit: target.unit(LUN).map(steps::exported),
                sessions: sessions.collect(),
                target: target.name,
                initiators: target.allowed,
            });
        }
        Ok(exported)
    }

    async fn export(&self, op: &'static str, export: &Export) -> Result<ExportedUnit> {
        names::check(op, export)?;
        check(op, export)?;
        let mut turns = self.turns(op, &export.target).await?;
        loop {
            let _lock = turns.next().await?;
            backing::look(op, export, turns.client.until).await?;
            let step = turns.client.export(export).await;
            if let Some(unit) = turns.done(step)? {
                return Ok(unit);
            }
        }
    }

    async fn unexport(&self, op: &'static str, target: &str) -> Result<()> {
        names::name(op, "target", target)?;
        let mut turns = self.turns(op, target).await?;
        let client = turns.client;
        loop {
            let _lock = turns.next().await?;
            let Some(id) = client.number(target).await? else {
                client.clean().await;
                return Ok(());
            };
            let step: Result<Step<()>> = client.remove(id).await;
            turns.done(step)?;
        }
    }

    async fn deny(&self, op: &'static str, target: &str, initiator: &str) -> Result<()> {
        names::name(op, "target", target)?;
        names::name(op, "initiator", initiator)?;
        let mut turns = self.turns(op, target).await?;
        let client = turns.client;
        // As it was before it was removed.
        let mut before: Option<Target> = None;
        loop {
            let _lock = turns.next().await?;
            let Some(id) = client.number(target).await? else {
                if let Some(before) = before.as_mut() {
                    before.allowed.retain(|name| name != initiator);
                    client.restore(before).await?;
                }
                client.clean().await;
                return Ok(());
            };
            if before.is_none() {
                let targets = match client.targets().await {
                    // To keep somebody out matters more than that others stay.
                    Err(error) if error.kind() == ErrorKind::Corrupt => Vec::new(),
                    targets => targets?,
                };
                before = targets.into_iter().find(|other| other.id == id);
            }
            let step = match &before {
                Some(before) if before.unit(LUN).is_some_and(|unit| unit.read_only) => {
                    client.show_out(before, |name| name == initiator).await
                }
                _ => client.remove(id).await,
            };
            if let Some(()) = turns.done(step)? {
                return Ok(());
            }
        }
    }

    async fn resize(&self, op: &'static str, export: &Export) -> Result<Resized> {
        names::check(op, export)?;
        check(op, export)?;
        let mut turns = self.turns(op, &export.target).await?;
        let client = turns.client;
        // What is made from then on has the new size.
        let mut removed = false;
        loop {
            let _lock = turns.next().await?;
            backing::look(op, export, client.until).await?;
            let step = match client.number(&export.target).await? {
                Some(id) if !removed => client.remove(id).await,
                _ => {
                    removed = true;
                    client.export(export).await
                }
            };
            if turns.done(step)?.is_some() {
                return Ok(Resized::Remade);
            }
        }
    }
}

/// Checks what only tgtd can't do.
fn check(op: &'static str, export: &Export) -> Result<()> {
    let wrong = |reason: &str| {
        let error = Error::new(ErrorKind::InvalidInput, op).with("target", &export.target);
        Err(error.reason(reason))
    };
    if export.target.contains('_') {
        return wrong("tgtd takes no underscores in names of targets");
    }
    let names = [&export.chap, &export.mutual_chap].map(|credentials| {
        let credentials = credentials.as_ref();
        credentials.map(|credentials| credentials.name.as_str())
    });
    if names[0].is_some() && names[0] == names[1] {
        return wrong(
            "tgtd has one secret a name: both directions of CHAP need names of their own",
        );
    }
    if names
        .iter()
        .flatten()
        .any(|name| name.starts_with(accounts::PREFIX))
    {
        return wrong("CHAP names that begin like this are taken");
    }
    Ok(())
}

//! `volume snapshot-group`: snapshots of several volumes, between two commands.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use volmux::group::{Freezer, GroupOptions, Member, snapshot_group};
use volmux::{Error, ErrorKind, Result, VolumeName};

use crate::app::App;
use crate::args::GroupArgs;
use crate::output::{VolumeDoc, made_line};

const OP: &str = "snapshot_group";
/// So much of what a command says goes into an error.
const SAID: u64 = 1000;

/// Takes the snapshots.
///
/// # Errors
/// `InvalidInput` for what is no pair of names; those of [`snapshot_group`].
pub async fn run(app: &App, args: &GroupArgs) -> Result<u8> {
    let pairs: Vec<_> = args
        .members
        .iter()
        .map(|given| pair(app, given))
        .collect::<Result<_>>()?;
    let pool = app.pool().await?;
    let member = |(volume, snapshot)| Member {
        pool: Arc::clone(&pool),
        volume,
        snapshot,
    };
    let commands = Commands {
        freeze: args.freeze.clone(),
        thaw: args.thaw.clone(),
    };
    let (bar, control) = app.progress("snapshot-group");
    let options = GroupOptions {
        deadline: Duration::from_secs(args.deadline.into()),
        control,
    };
    let members = pairs.into_iter().map(member).collect();
    let taken = snapshot_group(members, Arc::new(commands), options).await?;
    drop(bar);
    for volume in &taken {
        app.out.show(&VolumeDoc::from(volume), || {
            format!("created {}", made_line(volume))
        })?;
    }
    app.warn_of_pressure(pool.as_ref()).await;
    Ok(0)
}

/// A volume, and the snapshot that is made of it.
fn pair(app: &App, given: &str) -> Result<(VolumeName, VolumeName)> {
    let Some((volume, snapshot)) = given.split_once('=') else {
        return Err(Error::new(ErrorKind::InvalidInput, OP)
            .with("argument", given)
            .reason("the snapshot's name is missing")
            .help("say VOLUME=SNAPSHOT"));
    };
    Ok((VolumeName::new(volume)?, app.new_name(snapshot)?))
}

/// Commands of the shell.
struct Commands {
    freeze: String,
    thaw: String,
}

#[async_trait]
impl Freezer for Commands {
    async fn freeze(&self) -> Result<()> {
        ended(&self.freeze, "freeze").await
    }

    async fn thaw(&self) -> Result<()> {
        ended(&self.thaw, "thaw").await
    }
}

/// Runs a command to its end. It is killed if it is not waited for any more.
async fn ended(command: &str, name: &'static str) -> Result<()> {
    let wrong = |error| Error::from_io(OP, error).with(name, command);
    // Not a pipe, which something that it leaves in the background would keep open.
    let mut said = tempfile::tempfile().map_err(wrong)?;
    let output = || said.try_clone().map(Stdio::from);
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(output().map_err(wrong)?)
        .stderr(output().map_err(wrong)?)
        // Ctrl-C in a terminal must not end the thaw.
        .process_group(0)
        .spawn();
    let mut running = Running(child.map_err(wrong)?);
    let status = running.0.wait().await.map_err(wrong)?;
    if status.success() {
        return Ok(());
    }
    let error = Error::new(ErrorKind::Unavailable, OP)
        .with(name, command)
        .with("ended", status)
        .reason(format!("the {name} command failed"));
    Err(match first_of(&mut said).as_deref() {
        None | Some("") => error,
        Some(said) => error.with("said", said),
    })
}

fn first_of(said: &mut File) -> Option<String> {
    let mut bytes = Vec::new();
    said.rewind().ok()?;
    said.take(SAID).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A process group that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for it has no number any more, which another one may have.
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = pid.and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

//! The volume group: what is known of it, and the commands that change it.
//!
//! Who changes it holds a lock that all volmux processes of this host share; lvm2's own lock, which
//! it takes for each command, would let others in between a look and the change that rests on it. It
//! costs nothing, for lvm2 lets one command at a time change a group anyway.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};
use volmux_core::{Error, ErrorKind, Result};

use crate::change::Change;
use crate::command::Commands;
use crate::config::LvmConfig;
use crate::report::{self, Group, Report};
use crate::stamp::{Place, Stamp};
use crate::view::View;

/// Where locks are. It goes away with the host's memory, as they do.
const RUN: &str = "/run/volmux/lvm";
/// How long a lock is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// A volume group, or a thin pool in it.
#[derive(Debug)]
pub struct GroupClient {
    /// What it is.
    pub config: LvmConfig,
    /// Runs lvm2.
    pub commands: Commands,
    known: Mutex<Known>,
    /// Held by whoever changes the group.
    turn: Arc<Mutex<()>>,
    /// Whether the thin pool has done all that lvm2 had to tell it.
    pub caught_up: AtomicBool,
}

/// What was reported last.
#[derive(Debug, Default)]
struct Known {
    place: Option<Place>,
    stamp: Option<Stamp>,
    view: Option<Arc<View>>,
}

impl GroupClient {
    /// Of a pool. Looks at nothing yet.
    pub fn new(config: LvmConfig) -> Self {
        GroupClient {
            commands: Commands::new(config.programs.as_deref(), config.timeout),
            config,
            known: Mutex::default(),
            turn: Arc::default(),
            caught_up: AtomicBool::new(false),
        }
    }

    /// Where this group's locks and notes are, by a name that begins with the group's.
    ///
    /// # Errors
    /// If the directory can't be made.
    pub fn run_file(&self, op: &'static str, name: &str) -> Result<PathBuf> {
        let directory = Path::new(RUN).join(&self.config.group);
        // For root alone: whoever can open a file can lock it, and keep everybody waiting.
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        made.map_err(|error| {
            Error::from_io(op, error)
                .with("path", directory.display())
                .help("run as root")
        })?;
        Ok(directory.join(name))
    }

    /// The pool as it is now. No process is started if the group's metadata is as it was.
    ///
    /// # Errors
    /// What lvm2 complains of; `NotFound` or `InvalidConfig` if there is no such pool.
    pub async fn look(&self, op: &'static str) -> Result<Arc<View>> {
        let mut known = self.known.lock().await;
        let stamp = read_stamp(known.place.clone()).await;
        if let Some(view) = &known.view
            && stamp.is_some()
            && known.stamp == stamp
        {
            return Ok(view.clone());
        }
        let view = Arc::new(View::new(op, &self.config, self.report(op).await?)?);
        // One that was read before the report: a change in between is then seen the next time.
        known.stamp = stamp.filter(|stamp| is_stamp_of(stamp, &view));
        if known.stamp.is_none() {
            // Also good if it is read afterwards, for its number is that of what was reported.
            (known.place, known.stamp) = readable(&view).await.unzip();
        }
        known.view = Some(view.clone());
        Ok(view)
    }

    /// The pool as it was when it was looked at last: for what does not change.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub async fn last(&self, op: &'static str) -> Result<Arc<View>> {
        if let Some(view) = &self.known.lock().await.view {
            return Ok(view.clone());
        }
        self.look(op).await
    }

    /// Forgets what was reported, so that the next look asks lvm2: for what changes without a
    /// commit.
    pub async fn forget(&self) {
        self.known.lock().await.stamp = None;
    }

    async fn report(&self, op: &'static str) -> Result<Report> {
        let group = &self.config.group;
        let wrong = |what: &'static str| {
            move |error: serde_json::Error| {
                Error::new(ErrorKind::Internal, op)
                    .reason(format!("what {what} printed can't be understood"))
                    .with_source(error)
            }
        };
        let args = [
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
            "--binary",
            "-o",
        ];
        let space = if self.config.pool.is_none() {
            report::SPACE_COLUMNS
        } else {
            ""
        };
        let columns =
            [report::COLUMNS, report::GROUP_COLUMNS].map(|columns| format!("{columns}{space}"));
        let asked = |command, columns| [command, &args[..], &[columns, group]].concat();
        // With the parts of a thin pool: only those lie on physical volumes.
        let lvs = asked(&["lvs", "-a"], &columns[0]);
        let printed = self.commands.lvm(op, &lvs).await;
        let printed = printed.map_err(|error| error.with("group", group))?;
        if let Some(report) = report::lvs(&printed).map_err(wrong("lvs"))? {
            return Ok(report);
        }
        let printed = self.commands.lvm(op, &asked(&["vgs"], &columns[1])).await?;
        let found = report::vgs(&printed).map_err(wrong("vgs"))?;
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, op)
                .with("group", group)
                .reason("there is no such volume group")
        })
    }

    /// Keeps what the pool is after a change of one's own.
    pub async fn keep(&self, view: Arc<View>) {
        let mut known = self.known.lock().await;
        let stamp = read_stamp(known.place.clone()).await;
        // Had somebody else changed the group meanwhile, there would be more commits: then lvm2 is
        // asked at the next look.
        known.stamp = stamp.filter(|stamp| is_stamp_of(stamp, &view));
        known.view = Some(view);
    }

    /// Has the physical volumes keep, through a power cut, what was written to them: lvm2 does not
    /// ask disks to empty their write caches.
    ///
    /// # Errors
    /// What a disk says.
    pub async fn make_durable(&self, op: &'static str, view: &View) -> Result<()> {
        let devices = view.report.devices.clone();
        let synced = tokio::task::spawn_blocking(move || {
            devices.iter().try_for_each(|device| {
                let synced = File::open(device).and_then(|disk| disk.sync_all());
                synced.map_err(|error| {
                    Error::from_io(op, error)
                        .with("path", device.display())
                        .reason("it is done, and the disk may yet lose it in a power cut")
                })
            })
        });
        synced
            .await
            .unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, op).with_source(error)))
    }

    /// Waits for one's turn to change the group, and looks at it.
    ///
    /// # Errors
    /// As [`look`](Self::look); `PermissionDenied` for a pool that is read-only; `Busy` if another
    /// process does not give the lock up.
    pub async fn change(self: &Arc<Self>, op: &'static str) -> Result<Change> {
        if self.config.read_only {
            return Err(Error::new(ErrorKind::PermissionDenied, op)
                .reason("the pool was opened with read_only=true"));
        }
        let turn = self.turn(op).await?;
        let mut view = self.look(op).await?;
        check_group(op, &self.config.group, view.group())?;
        if !self.caught_up.swap(true, Ordering::Relaxed) {
            match self.catch_up(op, turn.lock()).await {
                // Also if there was nothing to do, lvm2 may have been asked anew: what was kept of a
                // change of one's own does not have the pool's transaction.
                Ok(_) => view = self.look(op).await?,
                // Much can be done all the same, such as deleting volumes of a pool that is full.
                Err(error) => {
                    tracing::warn!(%error, "what lvm2 has left undone can't be made up for");
                    self.doubt();
                }
            }
        }
        Ok(Change::new(op, self.clone(), view, turn))
    }

    /// Keeps everybody else from changing the group.
    ///
    /// # Errors
    /// `Busy` if another process does not give the lock up.
    pub async fn turn(&self, op: &'static str) -> Result<Turn> {
        let turn = self.turn.clone().lock_owned().await;
        let lock = lock(op, self.run_file(op, "change.lock")?).await?;
        Ok(Turn { lock, _turn: turn })
    }
}

/// Nobody else changes the group as long as this is held.
#[derive(Debug)]
pub struct Turn {
    lock: File,
    _turn: OwnedMutexGuard<()>,
}

impl Turn {
    /// The file that is locked against other processes.
    pub fn lock(&self) -> &File {
        &self.lock
    }
}

/// Locks a file against all other processes. Waits.
async fn lock(op: &'static str, path: PathBuf) -> Result<File> {
    let failed = |error| Error::from_io(op, error).with("path", path.display());
    let mut options = File::options();
    let file = options
        .create(true)
        .append(true)
        .open(&path)
        .map_err(failed)?;
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() > end => {
                return Err(Error::new(ErrorKind::Busy, op)
                    .with("path", path.display())
                    .reason("another volmux process has held the group's lock for minutes")
                    .help(
                        "see who has that file open (fuser), and what its lvm2 command waits for",
                    ));
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The first physical volume that has the group's metadata, as it was just reported.
async fn readable(view: &View) -> Option<(Place, Stamp)> {
    for device in &view.report.devices {
        let place = Place::new(device);
        let stamp = read_stamp(Some(place.clone())).await;
        if let Some(stamp) = stamp.filter(|stamp| is_stamp_of(stamp, view)) {
            return Some((place, stamp));
        }
    }
    None
}

fn is_stamp_of(stamp: &Stamp, view: &View) -> bool {
    stamp.is_of(&view.group().uuid, view.group().seqno)
}

/// None if it can't be told: then lvm2 is asked.
async fn read_stamp(place: Option<Place>) -> Option<Stamp> {
    let place = place?;
    let read = tokio::task::spawn_blocking(move || place.read())
        .await
        .ok()?;
    read.inspect_err(|error| tracing::debug!(%error, "the group's metadata can't be read"))
        .ok()
}

/// Refuses to change groups that lvm2 would not change, or in which something is missing.
fn check_group(op: &'static str, name: &str, group: &Group) -> Result<()> {
    let wrong = |kind, reason: &str, help: String| {
        Err(Error::new(kind, op)
            .with("group", name)
            .reason(reason)
            .help(help))
    };
    if group.attributes.exported {
        return wrong(
            ErrorKind::PermissionDenied,
            "the group is exported",
            format!("run vgimport {name}"),
        );
    }
    if !group.attributes.writable {
        return wrong(
            ErrorKind::PermissionDenied,
            "the group is read-only",
            format!(
                "its status in LVM's metadata lacks WRITE (vgcfgbackup {name} shows it): find out why"
            ),
        );
    }
    if group.attributes.partial {
        return wrong(
            ErrorKind::Unavailable,
            "a physical volume of the group is missing",
            format!("bring it back (pvs shows which), or see man vgreduce about {name}"),
        );
    }
    Ok(())
}

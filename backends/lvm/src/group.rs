//! The volume group: what is known of it, and the commands that change it.
//!
//! Who changes it holds a lock that all volmux processes of this host share; lvm2's own lock, which
//! it takes for each command, would let others in between a look and the change that rests on it. It
//! costs nothing, for lvm2 lets one command at a time change a group anyway.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};
use volmux_core::{ByteSize, Error, ErrorKind, Result};

use crate::command::Commands;
use crate::config::LvmConfig;
use crate::report::{self, Lv, Report};
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
        }
    }

    /// Where this group's locks and notes are, by a name that begins with the group's.
    ///
    /// # Errors
    /// If the directory can't be made.
    pub fn run_file(&self, op: &'static str, name: &str) -> Result<PathBuf> {
        let directory = Path::new(RUN).join(&self.config.group);
        std::fs::create_dir_all(&directory).map_err(|error| {
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
        if stamp.is_none() {
            known.place = readable(&view.report.devices).await;
        }
        // One that was read before the report: a change in between is then seen the next time.
        known.stamp = stamp;
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
        let asked = |command: &[&'static str], columns| {
            let words: &[&str] = &[columns, group];
            [command, &args[..], words].concat()
        };
        // With the parts of thin pools: they tell which disks the group lies on.
        let printed = self
            .commands
            .lvm(op, &asked(&["lvs", "-a"], report::COLUMNS))
            .await;
        let printed = printed.map_err(|error| error.with("group", group))?;
        if let Some(report) = report::lvs(&printed).map_err(wrong("lvs"))? {
            return Ok(report);
        }
        let printed = self
            .commands
            .lvm(op, &asked(&["vgs"], report::GROUP_COLUMNS))
            .await?;
        let found = report::vgs(&printed).map_err(wrong("vgs"))?;
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, op)
                .with("group", group)
                .reason("there is no such volume group")
        })
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
        let view = self.look(op).await?;
        check_group(op, &view)?;
        Ok(Change {
            op,
            client: self.clone(),
            view,
            _turn: turn,
        })
    }

    /// Keeps everybody else from changing the group.
    ///
    /// # Errors
    /// `Busy` if another process does not give the lock up.
    pub async fn turn(&self, op: &'static str) -> Result<Turn> {
        let turn = self.turn.clone().lock_owned().await;
        let lock = lock(op, self.run_file(op, "change.lock")?).await?;
        Ok(Turn {
            _lock: lock,
            _turn: turn,
        })
    }
}

/// Nobody else changes the group as long as this is held.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
    _turn: OwnedMutexGuard<()>,
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

/// The first physical volume that has the group's metadata.
async fn readable(devices: &BTreeSet<PathBuf>) -> Option<Place> {
    for device in devices {
        let place = Place::new(device);
        if read_stamp(Some(place.clone())).await.is_some() {
            return Some(place);
        }
    }
    None
}

/// Has the physical volumes keep, through a power cut, what was written to them: lvm2 does not ask
/// disks to empty their write caches.
async fn make_durable(op: &'static str, devices: &BTreeSet<PathBuf>) -> Result<()> {
    let devices = devices.clone();
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
fn check_group(op: &'static str, view: &View) -> Result<()> {
    let group = view.group();
    let wrong = |kind, reason: &str, help: String| {
        Err(Error::new(kind, op)
            .with("group", &group.name)
            .reason(reason)
            .help(help))
    };
    if group.exported {
        return wrong(
            ErrorKind::PermissionDenied,
            "the group is exported",
            format!("run vgimport {}", group.name),
        );
    }
    if group.permissions == "read-only" {
        return wrong(
            ErrorKind::PermissionDenied,
            "the group is read-only",
            format!("run vgchange --permission rw {}", group.name),
        );
    }
    if group.partial {
        return wrong(
            ErrorKind::Unavailable,
            "a physical volume of the group is missing",
            format!(
                "bring it back (pvs shows which), or see man vgreduce about {}",
                group.name
            ),
        );
    }
    Ok(())
}

/// One's turn to change a group.
#[derive(Debug)]
pub struct Change {
    op: &'static str,
    client: Arc<GroupClient>,
    view: Arc<View>,
    _turn: Turn,
}

impl Change {
    /// The pool as it is now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The group's client.
    pub fn client(&self) -> &Arc<GroupClient> {
        &self.client
    }

    /// `group/lv`, as commands take it.
    fn path(&self, lv: &str) -> String {
        format!("{}/{lv}", self.client.config.group)
    }

    /// Makes a thin volume of `size` bytes, inactive.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn create_thin(&mut self, name: &str, size: u64, tags: &[String]) -> Result<()> {
        let pool = self.client.config.pool.clone().unwrap_or_default();
        let (path, size) = (self.path(&pool), format!("{size}b"));
        let mut args = vec!["lvcreate", "-y", "-T", &path, "-V", &size, "-n", name];
        args.extend(["-ky", "-an"]);
        add_tags(&mut args, tags);
        let made = new_lv(name, "thin", &pool, &size, tags);
        self.run(&args, 2, |report| report.lvs.push(made)).await
    }

    /// Makes a thin snapshot of the logical volume `source`, inactive. lvm2 suspends the source's
    /// device for the moment, so that all writes that are done are in it.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn snapshot(
        &mut self,
        source: &Lv,
        name: &str,
        tags: &[String],
        read_only: bool,
    ) -> Result<()> {
        let path = self.path(&source.name);
        let permission = if read_only { "-pr" } else { "-prw" };
        let mut args = vec!["lvcreate", "-y", "-s", "-n", name, permission, "-ky", "-an"];
        add_tags(&mut args, tags);
        args.push(&path);
        let mut made = new_lv(
            name,
            "thin",
            &source.pool,
            &format!("{}b", source.size.bytes()),
            tags,
        );
        source.name.clone_into(&mut made.origin);
        if read_only {
            made.permissions = "read-only".into();
        }
        self.run(&args, 2, |report| report.lvs.push(made)).await
    }

    /// Makes a thick volume of `size` bytes, inactive, and full of what was there before.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn create_thick(&mut self, name: &str, size: u64, tags: &[String]) -> Result<()> {
        let (group, size) = (self.client.config.group.clone(), format!("{size}b"));
        let mut args = vec!["lvcreate", "-y", "-L", &size, "-n", name, "-ky", "-an"];
        // It is not active, and is zeroed as a whole later.
        args.extend(["-Wn", "-Zn"]);
        add_tags(&mut args, tags);
        args.push(&group);
        self.run_and_forget(&args).await
    }

    /// Removes a logical volume.
    ///
    /// # Errors
    /// `Busy` if its device is open; what lvm2 complains of.
    pub async fn remove(&mut self, lv: &str) -> Result<()> {
        let path = self.path(lv);
        let commits = if self.client.config.pool.is_some() {
            2
        } else {
            1
        };
        let args = ["lvremove", "-f", "-y", &path];
        self.run(&args, commits, |report| {
            report.lvs.retain(|known| known.name != lv);
        })
        .await
    }

    /// Gives a logical volume another name, in use or not.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn rename(&mut self, lv: &str, to: &str) -> Result<()> {
        let group = self.client.config.group.clone();
        let args = ["lvrename", &group, lv, to];
        self.run(&args, 1, |report| {
            for known in &mut report.lvs {
                if known.name == lv {
                    to.clone_into(&mut known.name);
                }
                if known.origin == lv {
                    to.clone_into(&mut known.origin);
                }
            }
        })
        .await
    }

    /// Adds and takes away tags, in one commit.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn retag(&mut self, lv: &str, add: &[String], remove: &[String]) -> Result<()> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        let path = self.path(lv);
        let mut args = vec!["lvchange"];
        add_tags(&mut args, add);
        for tag in remove {
            args.extend(["--deltag", tag]);
        }
        args.push(&path);
        self.run(&args, 1, |report| {
            let known = report.lvs.iter_mut().filter(|known| known.name == lv);
            for known in known {
                known.tags.retain(|tag| !remove.contains(tag));
                known.tags.extend_from_slice(add);
            }
        })
        .await
    }

    /// Makes a logical volume larger, in use or not.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn extend(&mut self, lv: &str, size: u64) -> Result<()> {
        let (path, size) = (self.path(lv), format!("{size}b"));
        let args = ["lvextend", "-y", "-L", &size, &path];
        self.run(&args, 1, resized(lv, &size)).await
    }

    /// Makes a logical volume larger by these extents and no others: `/dev/pv:first-last`.
    ///
    /// # Errors
    /// `NoSpace` if somebody else has them; what lvm2 complains of.
    pub async fn extend_by(&mut self, lv: &str, bytes: u64, extents: &[String]) -> Result<()> {
        let (path, more) = (self.path(lv), format!("+{bytes}b"));
        let mut args = vec!["lvextend", "-y", "-L", &more, &path];
        args.extend(extents.iter().map(String::as_str));
        self.run_and_forget(&args).await
    }

    /// Makes a logical volume smaller.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn reduce(&mut self, lv: &str, size: u64) -> Result<()> {
        let (path, size) = (self.path(lv), format!("{size}b"));
        let args = ["lvreduce", "-f", "-y", "-L", &size, &path];
        self.run(&args, 1, resized(lv, &size)).await
    }

    /// The extents that a logical volume has, as `lvextend` takes them.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn extents_of(&mut self, lv: &str) -> Result<Vec<String>> {
        let path = self.path(lv);
        let args = ["lvs", "--noheadings", "-o", "seg_pe_ranges", &path];
        let printed = self.client.commands.lvm(self.op, &args).await?;
        let printed = String::from_utf8_lossy(&printed);
        Ok(printed.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether a logical volume is left alone when its whole group is activated, as at boot.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn skip_activation(&mut self, lv: &str, skip: bool) -> Result<()> {
        let known = self.view.report.lvs.iter().find(|known| known.name == lv);
        if known.is_some_and(|known| known.skip_activation == skip) {
            return Ok(());
        }
        let path = self.path(lv);
        let args = ["lvchange", if skip { "-ky" } else { "-kn" }, &path];
        self.run(&args, 1, |report| {
            for known in report.lvs.iter_mut().filter(|known| known.name == lv) {
                known.skip_activation = skip;
            }
        })
        .await
    }

    /// Changes tags and properties, in one commit.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn alter(&mut self, lv: &str, alter: &Alter) -> Result<()> {
        let Some(known) = self.view.report.lvs.iter().find(|known| known.name == lv) else {
            return Err(Error::new(ErrorKind::NotFound, self.op)
                .with("logical_volume", lv)
                .reason("there is no such logical volume any more"));
        };
        // To set what is set already is an error to lvm2.
        let writable = alter
            .writable
            .filter(|writable| *writable != known.is_writable());
        let skip = alter.skip_activation;
        let skip = skip.filter(|skip| *skip != known.skip_activation);
        let path = self.path(lv);
        let mut args = vec!["lvchange"];
        add_tags(&mut args, &alter.add);
        for tag in &alter.remove {
            args.extend(["--deltag", tag]);
        }
        args.extend(writable.map(|writable| if writable { "-prw" } else { "-pr" }));
        args.extend(skip.map(|skip| if skip { "-ky" } else { "-kn" }));
        if args.len() == 1 {
            return Ok(());
        }
        args.push(&path);
        self.run(&args, 1, |report| {
            for known in report.lvs.iter_mut().filter(|known| known.name == lv) {
                known.tags.retain(|tag| !alter.remove.contains(tag));
                known.tags.extend_from_slice(&alter.add);
                if let Some(writable) = writable {
                    known.permissions = if writable { "writeable" } else { "read-only" }.into();
                }
                known.skip_activation = skip.unwrap_or(known.skip_activation);
            }
        })
        .await
    }

    /// Makes a thin pool's data (`-L`) or metadata (`--poolmetadatasize`) larger by so many bytes.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn extend_pool(&mut self, pool: &str, what: &str, bytes: u64) -> Result<()> {
        let (path, more) = (self.path(pool), format!("+{bytes}b"));
        self.run_and_forget(&["lvextend", "-y", what, &more, &path])
            .await
    }

    /// Runs a command about which nothing is known but that it changes the group.
    ///
    /// # Errors
    /// What lvm2 complains of.
    async fn run_and_forget(&mut self, args: &[&str]) -> Result<()> {
        let done = self.client.commands.lvm(self.op, args).await;
        self.client.forget().await;
        done?;
        self.view = self.client.look(self.op).await?;
        make_durable(self.op, &self.view.report.devices).await
    }

    /// Runs a command that makes so many commits, and changes what was reported like that.
    async fn run(
        &mut self,
        args: &[&str],
        commits: u64,
        effect: impl FnOnce(&mut Report),
    ) -> Result<()> {
        if let Err(error) = self.client.commands.lvm(self.op, args).await {
            // It may have come half the way.
            self.client.forget().await;
            return Err(error);
        }
        make_durable(self.op, &self.view.report.devices).await?;
        let view = self.view.after(self.op, &self.client.config, |report| {
            report.group.seqno += commits;
            effect(report);
        })?;
        let mut known = self.client.known.lock().await;
        let stamp = read_stamp(known.place.clone()).await;
        // Had somebody else changed the group meanwhile, there would be more commits: then lvm2 is
        // asked at the next look.
        known.stamp = stamp.filter(|stamp| stamp.seqno == view.group().seqno);
        self.view = Arc::new(view);
        known.view = Some(self.view.clone());
        Ok(())
    }
}

fn resized(lv: &str, size: &str) -> impl FnOnce(&mut Report) {
    let size = bytes(size);
    move |report| {
        for known in report.lvs.iter_mut().filter(|known| known.name == lv) {
            known.size = size;
        }
    }
}

/// The number in `4096b`.
fn bytes(size: &str) -> ByteSize {
    ByteSize::new(size.trim_end_matches('b').parse().unwrap_or_default())
}

/// What is to be changed about a logical volume; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Alter {
    /// Tags to add.
    pub add: Vec<String>,
    /// Tags to take away.
    pub remove: Vec<String>,
    /// Whether its device takes writes.
    pub writable: Option<bool>,
    /// Whether it is left alone when its whole group is activated, as at boot.
    pub skip_activation: Option<bool>,
}

fn add_tags<'a>(args: &mut Vec<&'a str>, tags: &'a [String]) {
    for tag in tags {
        args.extend(["--addtag", tag]);
    }
}

/// A logical volume as it is reported right after it was made, inactive.
fn new_lv(name: &str, segtype: &str, pool: &str, size: &str, tags: &[String]) -> Lv {
    Lv {
        name: name.to_owned(),
        size: bytes(size),
        tags: tags.to_vec(),
        segtype: segtype.to_owned(),
        pool: pool.to_owned(),
        origin: String::new(),
        thin_id: None,
        transaction_id: None,
        data_percent: None,
        metadata_percent: None,
        metadata_size: None,
        chunk_size: None,
        zero: true,
        discards: String::new(),
        when_full: String::new(),
        active: false,
        open: false,
        permissions: "unknown".into(),
        skip_activation: true,
        suspended: false,
        health: String::new(),
        check_needed: false,
    }
}

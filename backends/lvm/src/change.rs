//! The commands that change a group, and what each does to what was reported.

use std::sync::Arc;

use volmux_core::{ByteSize, Error, ErrorKind, Result};

use crate::group::{GroupClient, Turn};
use crate::pending;
use crate::report::{Lv, Report};
use crate::view::View;

/// One's turn to change a group.
#[derive(Debug)]
pub struct Change {
    op: &'static str,
    client: Arc<GroupClient>,
    view: Arc<View>,
    turn: Turn,
}

impl Change {
    /// For whoever has the turn, and this view of the pool.
    pub fn new(op: &'static str, client: Arc<GroupClient>, view: Arc<View>, turn: Turn) -> Self {
        Change {
            op,
            client,
            view,
            turn,
        }
    }

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
        self.run(&args, 2, |report| report.lvs.push(made.into()))
            .await
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
        self.run(&args, 2, |report| report.lvs.push(made.into()))
            .await
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
    /// `Busy` if its device is open, or lvm2 would remove others with it; what lvm2 complains of.
    pub async fn remove(&mut self, lv: &str) -> Result<()> {
        self.view.check_alone(self.op, lv)?;
        let path = self.path(lv);
        let args = ["lvremove", "-f", "-y", &path];
        if self.client.config.pool.is_none() {
            return self.run_and_forget(&args).await;
        }
        self.run(&args, 2, |report| {
            report.lvs.retain(|known| known.name != lv);
            let snapshots = report.lvs.iter_mut().filter(|known| known.origin == lv);
            snapshots.for_each(|known| Arc::make_mut(known).origin.clear());
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
            report.alter(lv, |known| to.clone_into(&mut known.name));
            let snapshots = report.lvs.iter_mut().filter(|known| known.origin == lv);
            snapshots.for_each(|known| to.clone_into(&mut Arc::make_mut(known).origin));
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
            report.alter(lv, |known| {
                known.tags.retain(|tag| !remove.contains(tag));
                known.tags.extend_from_slice(add);
            });
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
        // Since 2.03.17 lvm2 refuses what is not active or what a file system lies on, even with
        // -f; before, it did not know the option.
        let ignoring = [&args[..], &["--fs", "ignore"]].concat();
        match self.reduce_by(lv, &size, &ignoring).await {
            Err(error) if is_unknown_option(&error) => self.reduce_by(lv, &size, &args).await,
            done => done,
        }
    }

    async fn reduce_by(&mut self, lv: &str, size: &str, args: &[&str]) -> Result<()> {
        if self.client.config.pool.is_none() {
            return self.run_and_forget(args).await;
        }
        self.run(args, 1, resized(lv, size)).await
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
        let known = self.view.report.find(lv);
        if known.is_some_and(|known| known.skip_activation == skip) {
            return Ok(());
        }
        let path = self.path(lv);
        let args = ["lvchange", if skip { "-ky" } else { "-kn" }, &path];
        self.run(&args, 1, |report| {
            report.alter(lv, |known| known.skip_activation = skip);
        })
        .await
    }

    /// Whether LVM's metadata lets the device of a logical volume take writes.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn is_writable(&self, lv: &str) -> Result<bool> {
        let path = self.path(lv);
        let args = ["lvs", "--noheadings", "-o", "lv_permissions", &path];
        let printed = self.client.commands.lvm(self.op, &args).await?;
        // Otherwise "writeable", "read-only-override", or "unknown" for one that is not active.
        Ok(printed.trim_ascii() != b"read-only")
    }

    /// Changes tags and properties, in one commit.
    ///
    /// # Errors
    /// What lvm2 complains of.
    pub async fn alter(&mut self, lv: &str, alter: &Alter) -> Result<()> {
        let Some(known) = self.view.report.find(lv).cloned() else {
            return Err(Error::new(ErrorKind::NotFound, self.op)
                .with("logical_volume", lv)
                .reason("there is no such logical volume any more"));
        };
        // To set what is set already is an error to lvm2.
        let writable = match alter.writable {
            Some(writable) if writable != self.is_writable(lv).await? => Some(writable),
            _ => None,
        };
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
            report.alter(lv, |known| {
                known.tags.retain(|tag| !alter.remove.contains(tag));
                known.tags.extend_from_slice(&alter.add);
                known.skip_activation = skip.unwrap_or(known.skip_activation);
            });
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

    /// Runs a command, and keeps everybody else out as long as that takes, whatever becomes of us.
    async fn lvm(&self, args: &[&str]) -> Result<Vec<u8>> {
        let commands = &self.client.commands;
        let done = commands.lvm_in_turn(self.op, args, self.turn.lock()).await;
        match done {
            Err(error) if pending::may_be_behind(&error) => {
                // Another process's command may have been cut short meanwhile.
                self.client.forget().await;
                if !self.client.catch_up(self.op, self.turn.lock()).await? {
                    return Err(error);
                }
                commands.lvm_in_turn(self.op, args, self.turn.lock()).await
            }
            done => done,
        }
    }

    /// Runs a command about which nothing is known but that it changes the group.
    ///
    /// # Errors
    /// What lvm2 complains of.
    async fn run_and_forget(&mut self, args: &[&str]) -> Result<()> {
        let done = self.lvm(args).await;
        self.client.forget().await;
        done?;
        self.view = self.client.look(self.op).await?;
        self.client.make_durable(self.op, &self.view).await
    }

    /// Runs a command that makes so many commits, and changes what was reported like that.
    async fn run(
        &mut self,
        args: &[&str],
        commits: u64,
        effect: impl FnOnce(&mut Report),
    ) -> Result<()> {
        if let Err(error) = self.lvm(args).await {
            // It may have come half the way.
            self.client.forget().await;
            return Err(error);
        }
        self.client.make_durable(self.op, &self.view).await?;
        let view = self.view.after(self.op, &self.client.config, |report| {
            report.group.seqno += commits;
            effect(report);
        })?;
        self.view = Arc::new(view);
        self.client.keep(self.view.clone()).await;
        Ok(())
    }
}

/// Whether lvm2 is too old for one of its options.
fn is_unknown_option(error: &Error) -> bool {
    let reason = error.get("reason").unwrap_or_default();
    ["unrecognized option", "parsing of command line"]
        .iter()
        .any(|said| reason.contains(said))
}

fn resized(lv: &str, size: &str) -> impl FnOnce(&mut Report) {
    let size = bytes(size);
    move |report| report.alter(lv, |known| known.size = size)
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
        chunk_size: None,
        zero: true,
        skip_activation: true,
    }
}

//! LIO: the target in the Linux kernel, by its directories in configfs.
//!
//! What was found in Linux 6.1, and is counted on:
//! - The kernel takes a logical unit away only when all of its commands are done; a session is
//!   ended only when all of its are.
//! - A portal group that is disabled ends its sessions, and takes no more logins. One that is half
//!   done has no end by itself. As long as it lasts, whoever removes the initiator's entry or the
//!   portal waits in the kernel, and with it everybody who changes anything. So these are removed
//!   only when there is no connection without a session; until then they are left, and hold
//!   nothing.
//! - What a unit is over shows the size of its device by itself; that of a file is changed while it
//!   is in use. Neither tells initiators, who see it when they ask.
//! - A file is written through the page cache (`fd_buffered_io`): SYNCHRONIZE CACHE and FUA are
//!   fsync. A device has the cache that it says it has.
//! - Who may only read is kept from writing by the portal group (`prod_mode_write_protect`), from
//!   the moment on when the unit is mapped.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};
use volmux_core::{Error, ErrorKind, Result};

use super::lock::Lock;
use super::{Export, Exported, ExportedUnit, Resized, TargetControl, backing, names};
use backing::Kind;
use store::{Store, Wanted};
use target::Target;
use tree::Dir;

mod store;
mod target;
mod tree;

const ROOT: &str = "/sys/kernel/config/target";
const LOCK: &str = "/run/volmux-lio.lock";
/// Within which an operation is done, others included that are before it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Within which connections and sessions come and go together.
const SETTLING: Duration = Duration::from_secs(1);
/// Between two looks at them.
const PAUSE: Duration = Duration::from_millis(20);

/// The control interface of LIO.
#[derive(Clone, Debug)]
pub struct Lio {
    portals: Vec<SocketAddr>,
    root: PathBuf,
    lock: PathBuf,
}

impl Lio {
    /// This machine's LIO; its targets listen at `portals`.
    pub fn new(portals: Vec<SocketAddr>) -> Lio {
        Lio::at(portals, ROOT, LOCK)
    }

    /// The same, with configfs's directory `target` elsewhere, and the lock file by which processes
    /// take turns.
    pub fn at(portals: Vec<SocketAddr>, root: impl Into<PathBuf>, lock: impl Into<PathBuf>) -> Lio {
        Lio {
            portals,
            root: root.into(),
            lock: lock.into(),
        }
    }

    /// Does something in a thread that may wait for the kernel. It goes on if nobody waits for it
    /// any more; whoever comes next waits for the lock.
    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        lock: bool,
        work: impl FnOnce(&Tree) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let tree = Tree::new(op, &this)?;
            let _lock = match lock {
                true => Some(Lock::take_blocking(&this.lock, op, until)?),
                false => None,
            };
            work(&tree)
        });
        // The lock says it first if it is that.
        match timeout_at(until + Duration::from_secs(1), done).await {
            Ok(done) => {
                done.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?
            }
            Err(_) => Err(Error::new(ErrorKind::Busy, op)
                .reason("the kernel waits for commands that do not come to an end")
                .help("see whether the storage answers, and the kernel's log")),
        }
    }
}

#[async_trait]
impl TargetControl for Lio {
    async fn check(&self, op: &'static str) -> Result<()> {
        self.run(op, false, |tree| tree.check()).await
    }

    async fn list(&self, op: &'static str, prefix: &str) -> Result<Vec<Exported>> {
        let prefix = prefix.to_owned();
        self.run(op, true, move |tree| {
            let mut exported = Vec::new();
            for target in Target::all(&tree.iscsi)? {
                if target.name().starts_with(&prefix) && !target.is_retired()? {
                    exported.push(target.exported()?);
                }
            }
            Ok(exported)
        })
        .await
    }

    async fn export(&self, op: &'static str, export: &Export) -> Result<ExportedUnit> {
        let (unit, _) = self.exported(op, export).await?;
        Ok(unit)
    }

    async fn unexport(&self, op: &'static str, target: &str) -> Result<()> {
        names::name(op, "target", target)?;
        let name = target.to_owned();
        let done = self.run(op, true, move |tree| tree.unexport(&name)).await;
        done.map_err(|error| error.with("target", target))
    }

    async fn deny(&self, op: &'static str, target: &str, initiator: &str) -> Result<()> {
        names::name(op, "target", target)?;
        names::name(op, "initiator", initiator)?;
        let (name, out) = (target.to_owned(), initiator.to_owned());
        let done = self.run(op, true, move |tree| {
            let target = Target::named(&tree.iscsi, &name);
            match target.exists() {
                true => target.deny(&out),
                false => Ok(()),
            }
        });
        done.await.map_err(|error| error.with("target", target))
    }

    async fn resize(&self, op: &'static str, export: &Export) -> Result<Resized> {
        let (_, resized) = self.exported(op, export).await?;
        Ok(resized)
    }
}

impl Lio {
    async fn exported(&self, op: &'static str, export: &Export) -> Result<(ExportedUnit, Resized)> {
        names::check(op, export)?;
        target::check(op, export)?;
        if self.portals.is_empty() {
            return Err(Error::new(ErrorKind::InvalidConfig, op)
                .reason("there is no portal")
                .help("name an address of this host, such as 192.0.2.1:3260"));
        }
        self.check(op).await?;
        let kind = backing::look(op, export, Instant::now() + PATIENCE).await?;
        let (export, portals, name) = (export.clone(), self.portals.clone(), &export.target);
        let done = self.run(op, true, move |tree| tree.export(&export, kind, &portals));
        done.await.map_err(|error| error.with("target", name))
    }
}

/// LIO's directories, for one operation.
struct Tree {
    op: &'static str,
    root: Dir,
    core: Dir,
    iscsi: Dir,
}

impl Tree {
    fn new(op: &'static str, lio: &Lio) -> Result<Tree> {
        let root = Dir {
            path: lio.root.clone(),
            op,
        };
        let tree = Tree {
            op,
            core: root.at("core"),
            iscsi: root.at("iscsi"),
            root,
        };
        tree.check()?;
        Ok(tree)
    }

    /// That LIO is there, with iSCSI.
    fn check(&self) -> Result<()> {
        let unavailable = |reason: &str, help: &str| {
            let error = Error::new(ErrorKind::Unavailable, self.op);
            error
                .with("path", self.root.path.display())
                .reason(reason)
                .help(help)
        };
        if !self.core.exists() {
            return Err(unavailable(
                "the kernel's target is not there",
                "load its module (modprobe target_core_mod), and mount configfs",
            ));
        }
        // The kernel loads the module.
        self.iscsi
            .make()
            .map(drop)
            .map_err(|error| match error.kind() {
                ErrorKind::PermissionDenied => error,
                _ => unavailable(
                    "the kernel's target has no iSCSI",
                    "load its module (modprobe iscsi_target_mod)",
                )
                .with_source(error),
            })
    }

    fn export(
        &self,
        export: &Export,
        kind: Kind,
        portals: &[SocketAddr],
    ) -> Result<(ExportedUnit, Resized)> {
        let wanted = Wanted::new(self.op, export, kind)?;
        let target = Target::named(&self.iscsi, &export.target);
        let (wrong, right) = store::find(&self.core, &wanted)?;
        for store in &wrong {
            self.release(store)?;
            store.remove()?;
        }
        let resized = match wrong.is_empty() {
            true => Resized::OnLine,
            false => Resized::Remade,
        };
        let store = match right {
            Some(store) => {
                store.resize(export)?;
                store
            }
            None => store::make(&self.core, &wanted)?,
        };
        // Another volume's, if the target showed that before.
        let before = target
            .store()?
            .filter(|before| !before.is_at(&store.dir.path));
        target.make(export, portals, &store)?;
        if target.has_other_portals(portals)? {
            target.close()?;
            if self.is_idle()? {
                target.drop_other_portals(portals)?;
            }
        }
        target.let_in(export)?;
        target.open()?;
        if let Some(before) = before {
            before.dir.remove_unused()?;
        }
        // Readers' ones that had to let go of it, now or when somebody was cut off.
        for other in Target::all(&self.iscsi)? {
            if other.lacks(&export.serial)? {
                other.give_unit(&store)?;
                other.open()?;
            }
        }
        Ok((target.unit(&store)?, resized))
    }

    /// Has all targets let go of a backstore.
    fn release(&self, store: &Store) -> Result<()> {
        for target in Target::all(&self.iscsi)? {
            if target.shows(&store.dir.path)? {
                target.close()?;
                target.take_unit()?;
            }
        }
        Ok(())
    }

    fn unexport(&self, name: &str) -> Result<()> {
        let target = Target::named(&self.iscsi, name);
        let mut stores = match target.store()? {
            Some(store) => vec![store],
            None => Vec::new(),
        };
        if target.exists() {
            target.retire()?;
        }
        if stores.is_empty() {
            // What is left over from one that was cut off.
            stores = Store::all(&self.core)?;
        }
        for store in stores {
            store.dir.remove_unused()?;
        }
        // Also those that could not go before.
        let mut retired = Vec::new();
        for target in Target::all(&self.iscsi)? {
            if target.is_retired()? {
                retired.push(target);
            }
        }
        // A target without a group was never complete.
        retired.extend(target.exists().then_some(target));
        if !self.is_idle()? {
            tracing::warn!("a login is half done: LIO keeps empty directories until the next time");
            return Ok(());
        }
        retired.iter().try_for_each(Target::remove)
    }

    /// Whether no login is under way: each connection has a session. Others may begin meanwhile,
    /// but not with a target that is closed.
    fn is_idle(&self) -> Result<bool> {
        let until = Instant::now() + SETTLING;
        loop {
            let targets = Target::all(&self.iscsi)?;
            let mut ports = HashSet::new();
            let mut sessions = 0;
            for target in &targets {
                ports.extend(target.ports()?);
                sessions += target.sessions()?;
            }
            if connections(&ports) <= sessions {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// The connections that this machine has at ports of its own, as far as somebody still uses them.
fn connections(ports: &HashSet<u16>) -> usize {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let tables = tables.iter().flatten();
    let lines = tables.flat_map(|table| table.lines().skip(1));
    lines.filter(|line| is_connection(line, ports)).count()
}

/// Whether a line of these tables is one: `sl local_address rem_address st …`, in hexadecimal.
fn is_connection(line: &str, ports: &HashSet<u16>) -> bool {
    let mut words = line.split_ascii_whitespace().skip(1);
    let local = words.next().and_then(|local| local.rsplit_once(':'));
    let port = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
    // Established, or closed by the other side alone.
    let used = matches!(words.nth(1), Some("01" | "08"));
    used && port.is_some_and(|port| ports.contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_told_from_others() {
        let ports = HashSet::from([3260]);
        let line = |local: &str, state: &str| {
            let line =
                format!("   1: {local} 0100007F:C350 {state} 00000000:00000000 00:0 0 0 0 1");
            is_connection(&line, &ports)
        };
        assert!(line("0100007F:0CBC", "01") && line("0100007F:0CBC", "08"));
        assert!(line("00000000000000000000000001000000:0CBC", "01"));
        for (local, state) in [
            ("00000000:0CBC", "0A"),
            ("0100007F:0CBD", "01"),
            ("x", "01"),
        ] {
            assert!(!line(local, state), "{local} {state}");
        }
        assert!(!is_connection("", &ports));
    }
}

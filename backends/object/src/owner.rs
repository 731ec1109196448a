//! Who writes a log, and whether that is still so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The writers that live in this process. Process-wide, because two pools of one process may be
/// on the same store.
static LIVING: Mutex<BTreeMap<Uuid, Life>> = Mutex::new(BTreeMap::new());

/// A writer, as its manifests name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Owner {
    /// The writer itself.
    pub(crate) instance: Uuid,
    /// Name of its host, for people.
    pub(crate) host: String,
    /// This boot of its host (random/boot_id in proc(5)).
    pub(crate) boot: String,
    /// Its process, and the namespace in which that number counts.
    pub(crate) pid: u32,
    pub(crate) pid_namespace: String,
    /// Its host's installation: a digest of machine-id(5), which itself is not for everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) machine: Option<Uuid>,
    /// When its process started, in clock ticks since the boot: numbers of processes come again.
    pub(crate) started: u64,
}

/// Whether a writer may still write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It does.
    Lives,
    /// It is in this process, and about to end.
    Ending,
    /// It is gone for certain.
    Dead,
    /// It is on another host, or in a container that can't be looked into.
    Elsewhere,
}

/// A living writer of this process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Living(Owner);

impl Living {
    /// A new writer.
    pub(crate) fn begin(instance: Uuid) -> Self {
        living(|all| all.insert(instance, Life::Lives));
        Living(Owner::here(instance))
    }

    /// It is about to end.
    pub(crate) fn closing(&self) {
        living(|all| all.insert(self.0.instance, Life::Ending));
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.0
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        living(|all| all.remove(&self.0.instance));
    }
}

impl Owner {
    /// A writer in this process.
    fn here(instance: Uuid) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Owner {
            instance,
            host: read("/proc/sys/kernel/hostname").trim().to_owned(),
            boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            pid: std::process::id(),
            pid_namespace: pid_namespace(),
            machine: machine(&read("/etc/machine-id")),
            started: started("self").unwrap_or(0),
        }
    }

    /// Whether it is, or was, a writer of this process.
    pub(crate) fn is_here(&self) -> bool {
        self.is_with(&Owner::here(self.instance))
    }

    /// Whether both are, or were, in the same process.
    pub(crate) fn is_with(&self, other: &Owner) -> bool {
        self.pid == other.pid
            && self.started == other.started
            && self.pid_namespace == other.pid_namespace
            && self.boot == other.boot
    }

    /// Whether its host has been started again since, as far as can be told: by the same name of the
    /// same installation, outside of containers. Copies of a machine that kept both could be
    /// mistaken for it, so whoever may wake up has to be fenced all the same.
    pub(crate) fn was_rebooted(&self) -> bool {
        self.is_earlier_boot_of(&Owner::here(self.instance))
    }

    fn is_earlier_boot_of(&self, now: &Owner) -> bool {
        self.machine.is_some()
            && self.machine == now.machine
            && self.host == now.host
            && [self, now]
                .iter()
                .all(|owner| owner.pid_namespace == HOST_PIDS)
            && !self.boot.is_empty()
            && !now.boot.is_empty()
            && self.boot != now.boot
    }

    /// Whether it may still write, as far as can be told from here.
    pub(crate) fn life(&self) -> Life {
        let here = Owner::here(self.instance);
        if self.boot.is_empty() || self.boot != here.boot {
            return Life::Elsewhere;
        }
        if self.pid_namespace != here.pid_namespace {
            return Life::Elsewhere;
        }
        if self.is_with(&here) {
            living(|all| all.get(&self.instance).copied().unwrap_or(Life::Dead))
        } else if started(&self.pid.to_string()) == Some(self.started) {
            Life::Lives
        } else {
            Life::Dead
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on host {}", self.pid, self.host)
    }
}

fn living<T>(f: impl FnOnce(&mut BTreeMap<Uuid, Life>) -> T) -> T {
    f(&mut LIVING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The PID namespace of a host itself: its number is fixed (PROC_PID_INIT_INO in the kernel).
const HOST_PIDS: &str = "pid:[4026531836]";

/// None for what is no machine id.
fn machine(id: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(id.trim()).ok()?;
    let named = [b"volmux object owner".as_slice(), id.as_bytes()].concat();
    let digest = digest::digest(&digest::SHA256, &named);
    Uuid::from_slice(digest.as_ref().get(..16)?).ok()
}

fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid")
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// When a process started, if it still may do anything: field 22 of /proc/PID/stat, see proc(5). The
/// second field may hold spaces and brackets.
///
/// One whose parent has not asked how it ended keeps its number, for ever where process 1 of a
/// container asks for nobody. It is in state Z, without other threads: with those, only its first
/// thread has ended.
fn started(process: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(process).join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let (state, threads) = (*fields.first()?, *fields.get(17)?);
    if matches!(state, "Z" | "X") && matches!(threads, "0" | "1") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reboot_is_told_from_another_host() {
        let now = Owner {
            machine: machine("0123456789abcdef0123456789abcdef\n"),
            pid_namespace: HOST_PIDS.into(),
            ..Owner::here(Uuid::new_v4())
        };
        let before = Owner {
            boot: "before".into(),
            ..now.clone()
        };
        assert!(before.is_earlier_boot_of(&now));
        assert!(!now.is_earlier_boot_of(&now));
        let other = |change: fn(&mut Owner)| {
            let mut other = before.clone();
            change(&mut other);
            other.is_earlier_boot_of(&now)
        };
        assert!(!other(|o| o.host += "2"));
        assert!(!other(
            |o| o.machine = machine("1123456789abcdef0123456789abcdef")
        ));
        assert!(!other(|o| o.machine = None));
        assert!(!other(|o| o.boot.clear()));
        assert!(!other(|o| o.pid_namespace = "pid:[4026532000]".into()));
        assert_eq!(machine("uninitialized"), None);
        let id = "0123456789abcdef0123456789abcdef";
        assert_ne!(machine(id), Uuid::try_parse(id).ok());
    }

    #[test]
    fn a_writer_of_this_process_lives_until_it_is_dropped() {
        let living = Living::begin(Uuid::new_v4());
        let owner = living.owner().clone();
        assert_eq!(owner.life(), Life::Lives);
        living.closing();
        assert_eq!(owner.life(), Life::Ending);
        drop(living);
        assert_eq!(owner.life(), Life::Dead);
    }

    #[test]
    fn a_writer_of_another_process_lives_as_long_as_that() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let mut owner = Living::begin(Uuid::new_v4()).owner().clone();
        owner.pid = child.id();
        owner.started = started(&child.id().to_string()).expect("it runs");
        assert_eq!(owner.life(), Life::Lives);
        let reused = Owner {
            started: owner.started + 1,
            ..owner.clone()
        };
        assert_eq!(reused.life(), Life::Dead);
        child.kill().expect("it is killed");
        let stat = format!("/proc/{}/stat", child.id());
        while !std::fs::read_to_string(&stat)
            .expect("it is there")
            .contains(") Z ")
        {
            std::thread::yield_now();
        }
        assert_eq!(owner.life(), Life::Dead, "nobody has asked how it ended");
        child.wait().expect("it ended");
        assert_eq!(owner.life(), Life::Dead);
    }

    #[test]
    fn of_other_hosts_and_containers_nothing_is_known() {
        let owner = Living::begin(Uuid::new_v4()).owner().clone();
        let elsewhere = Owner {
            boot: "another".into(),
            ..owner.clone()
        };
        assert_eq!(elsewhere.life(), Life::Elsewhere);
        let contained = Owner {
            pid_namespace: "pid:[1]".into(),
            ..owner
        };
        assert_eq!(contained.life(), Life::Elsewhere);
    }
}

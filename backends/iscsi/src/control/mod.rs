//! How a volume on the target's host becomes a logical unit: the target's own control interface.

use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;
use volmux_core::Result;
use volmux_iscsi_initiator::Credentials;

mod backing;
pub mod lio;
mod lock;
mod names;
pub mod tgt;

/// What a target shows, and to whom.
#[derive(Clone, Debug)]
pub struct Export {
    /// Name of the target (IQN). It has this one logical unit. tgt takes letters, digits, and
    /// `.:-`.
    pub target: String,
    /// What the logical unit holds: a file with the raw content, or a block device, on the target's
    /// host. An absolute path without commas and control characters; LIO takes 255 bytes at most.
    pub path: PathBuf,
    /// Its size in bytes, which it must have: a multiple of 512.
    pub size: u64,
    /// Its unit serial number (VPD page 80h): 1 to 36 letters, digits and hyphens. All exports with
    /// the same number are of one volume. tgt shows it with spaces before it, LIO with a NUL
    /// behind.
    pub serial: String,
    /// Refuses writes.
    pub read_only: bool,
    /// Gives back the space of what initiators unmap. Without it all of it stays reserved.
    pub thin: bool,
    /// The initiators (IQN) that may log in; no others may.
    pub initiators: Vec<String>,
    /// What initiators prove who they are with; none is asked for without it.
    pub chap: Option<Credentials>,
    /// What the target proves who it is with.
    pub mutual_chap: Option<Credentials>,
}

/// A target as its control interface shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Name of the target (IQN).
    pub target: String,
    /// The logical unit, once it is there: its number, what it holds, whether it refuses writes.
    pub unit: Option<ExportedUnit>,
    /// The initiators that may log in.
    pub initiators: Vec<String>,
    /// Who is logged in.
    pub sessions: Vec<TargetSession>,
}

/// The logical unit of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedUnit {
    /// Its number.
    pub lun: u64,
    /// The file or block device that it shows.
    pub path: PathBuf,
    /// Its unit serial number.
    pub serial: String,
    /// Its size in bytes, if the target tells it: tgt does not.
    pub size: Option<u64>,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// A session with a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSession {
    /// Name of the initiator (IQN).
    pub initiator: String,
    /// Where it connects from, as far as the target tells.
    pub address: Option<String>,
}

/// What it took to have a logical unit show another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    /// Nothing that an initiator noticed.
    OnLine,
    /// The target was made anew: sessions were ended, and come back.
    Remade,
}

/// The control interface of a target, on the target's host.
///
/// Everything is idempotent and can be repeated after a failure at any point, or after the future
/// was dropped; what was begun may go on until then, but before what is called next. Several
/// processes may do this at once. `op` is the operation that errors name. Within a bit more than a
/// minute each call has an answer.
///
/// Whoever exports a path sees to it that it leads to the same file or device for as long: a target
/// holds what it has opened.
#[async_trait]
pub trait TargetControl: Debug + Send + Sync + 'static {
    /// Checks that the interface is there and may be used.
    ///
    /// # Errors
    /// `Unavailable` if the target does not run; `PermissionDenied`; `TimedOut` if it hangs.
    async fn check(&self, op: &'static str) -> Result<()>;

    /// The targets whose names begin with `prefix`, in no particular order.
    ///
    /// # Errors
    /// Those of [`check`](Self::check); `Corrupt` if what the target tells can't be trusted,
    /// because an initiator has written into it.
    async fn list(&self, op: &'static str, prefix: &str) -> Result<Vec<Exported>>;

    /// Makes the target as `export` says, or changes the one that there is: initiators are added
    /// and taken away, without harm to those that stay; a logical unit over another path, of
    /// another size or access is made anew. The initiators are let in last.
    ///
    /// Nothing of an initiator that was taken away reaches the path any more, but with some targets
    /// it can come back by a login that it had begun before: see [`deny`](Self::deny).
    ///
    /// # Errors
    /// `NotFound` if the path does not exist; `InvalidInput` if it has another size, or for what
    /// the target does not take; `PermissionDenied` if the target may not write it; `Busy` if
    /// others have the device, or commands do not come to an end; `AlreadyExists` if the target has
    /// another secret under that name, which others need; those of [`list`](Self::list).
    async fn export(&self, op: &'static str, export: &Export) -> Result<ExportedUnit>;

    /// Takes a target away, with its sessions. Once this has returned nothing that they sent
    /// reaches the path any more, which the target no longer holds. Succeeds if there is none.
    ///
    /// # Errors
    /// `Busy` if it can't be brought to an end; those of [`check`](Self::check).
    async fn unexport(&self, op: &'static str, target: &str) -> Result<()>;

    /// Keeps an initiator out for certain, and ends its sessions with the target. Once this has
    /// returned nothing that it sent reaches the path any more, and nothing that it sends will,
    /// whatever it had begun before. Succeeds if there is no such target.
    ///
    /// If that takes to make the target anew, sessions of others are ended, and come back. Should
    /// it be cut off there, [`export`](Self::export) lets in those who stay.
    ///
    /// # Errors
    /// As [`unexport`](Self::unexport).
    async fn deny(&self, op: &'static str, target: &str, initiator: &str) -> Result<()>;

    /// Has the logical unit show the size that its path has now, `export.size`. If there is no such
    /// target, as when this was cut off before, it is made.
    ///
    /// # Errors
    /// As [`export`](Self::export).
    async fn resize(&self, op: &'static str, export: &Export) -> Result<Resized>;
}

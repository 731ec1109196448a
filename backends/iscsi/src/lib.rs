//! iSCSI pools: one logical unit a volume, on targets and arrays that snapshot and clone by themselves.
//!
//! - [`transport`]: how SCSI commands reach a target; the default is the workspace's own initiator.
//! - [`scsi`]: what the commands mean: block commands, inquiries, reservations, sense data.
//! - [`targetd`]: arrays that are controlled by targetd.
//! - [`remote`]: a pool on another host, by the program `volmux` there, over SSH.
//! - [`control`]: how a volume on the target's host becomes a logical unit of it.

mod array;
mod backend;
pub mod config;
pub mod control;
pub mod credentials;
mod detached;
mod device;
mod extents;
mod lease;
mod luns;
pub mod open;
mod ranges;
pub mod remote;
pub mod scsi;
mod session;
pub mod targetd;
pub mod transport;
mod unflushed;
mod zeroing;

pub use array::LocalArray;
pub use backend::IscsiBackend;
pub use config::{ControlKind, IscsiConfig};
pub use luns::LunPool;

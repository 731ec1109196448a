//! Directory pools, `dir:///path`: volumes as raw sparse files, with snapshots and clones by reflink
//! where the file system makes them (XFS, btrfs), and as chains of qcow2 images elsewhere.
//!
//! A thick volume's space is reserved for its own blocks. Overwriting one that it shares with a
//! snapshot or a clone takes new space, on every file system that shares blocks.
//!
//! The files and how they come and go are described in `layout`; who uses a data file, in `inuse`.

mod abandoned;
mod abilities;
mod attach;
mod audit;
mod chain;
mod config;
mod content;
mod device;
mod duplicate;
mod export;
mod extents;
mod fence;
mod handle;
mod identity;
mod inner;
mod inuse;
mod known;
mod layout;
mod lifecycle;
mod list;
mod mount;
mod node;
mod nowait;
mod pool;
mod queue;
mod record;
mod refresh;
mod space;
mod staged;
mod sys;
mod users;

#[cfg(any(test, fuzzing))]
pub mod fuzz;

pub use config::{DirConfig, NfsConfig};
pub use export::{NfsBackend, open};
pub use pool::{DirBackend, DirPool};

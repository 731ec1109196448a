//! Directory pools (`dir:///path`); the NFS mount builds on them.
mod config;
mod pool;

pub use config::DirConfig;
pub use pool::{DirBackend, DirPool};

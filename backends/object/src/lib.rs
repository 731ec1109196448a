//! Pools in object stores.

mod cache;
mod catalog;
mod codec;
mod config;
mod connect;
mod envelope;
mod fault;
mod format;
mod ids;
mod keys;
mod local;
mod probe;
mod seal;
mod secret;
mod setting;
mod store;
mod tip;
mod walk;

pub use config::{Compression, Encryption, Flush, Location, ObjectConfig};
pub use secret::PoolKey;

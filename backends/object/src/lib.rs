//! Pools in object stores.

mod audit;
mod backend;
mod cache;
mod catalog;
mod claim;
mod codec;
mod config;
mod connect;
mod data;
mod device;
mod engine;
mod envelope;
mod extents;
mod fault;
mod format;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gc;
mod ids;
mod journal;
#[cfg(test)]
mod journaled;
mod keys;
mod lifecycle;
mod local;
mod local_dir;
mod manifest;
mod map;
mod open;
mod owner;
mod pieces;
mod pool;
mod probe;
mod scrub;
mod seal;
mod secret;
mod setting;
mod shared;
mod space;
mod store;
mod tip;
mod uses;
mod walk;
mod watched;

pub use backend::ObjectBackend;
pub use config::{Compression, Encryption, Flush, Location, ObjectConfig};
pub use pool::ObjectPool;
pub use secret::PoolKey;

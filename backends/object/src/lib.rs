//! Pools in object stores.

mod cache;
mod codec;
mod envelope;
mod ids;
mod keys;
mod seal;
mod tip;

//! Pools in object stores.

mod codec;
mod envelope;
mod ids;
mod keys;
mod seal;
mod tip;

//! Pools in object stores.

mod codec;
mod ids;
mod keys;
mod tip;

//! Pools in object stores.

mod ids;
mod keys;
mod tip;

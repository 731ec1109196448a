//! Pools in object stores.

mod cache;
mod catalog;
mod codec;
mod envelope;
mod fault;
mod ids;
mod keys;
mod map;
mod seal;
mod store;
mod tip;

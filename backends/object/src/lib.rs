//! Pools in object stores.

mod cache;
mod catalog;
mod codec;
mod config;
mod envelope;
mod fault;
mod ids;
mod keys;
mod seal;
mod secret;
mod setting;
mod store;
mod tip;

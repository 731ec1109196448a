//! Pools on another host: a real sshd on loopback, and the program itself on a directory pool.
//!
//! The host is this machine, so what the pool there should say can be asked of it directly.
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod array;
mod connections;
mod errors;
mod host;
mod life;
mod secrets;
mod stopping;

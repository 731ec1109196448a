//! The server, held against the protocol's specification, message by message.

#[path = "../common/mod.rs"]
mod common;

mod bad_requests;
mod contexts;
mod ends;
mod failures;
mod handshake;
mod limits;
mod options;
mod sharing;
mod tls;
mod transmission;

//! The server with the clients that people use, and the tests' own client with other servers.

#[path = "../common/mod.rs"]
mod common;

mod nbd_tools;
mod qemu;
mod secure;
mod test_client;

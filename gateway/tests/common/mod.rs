//! What the tests of the gateway share. The client is written from the protocol's specification
//! alone and shares no code with the server.

// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod certificates;
pub mod client;
pub mod log;
pub mod program;
pub mod random;
pub mod server;
pub mod stream;
pub mod transmission;
pub mod watch;
pub mod wire;

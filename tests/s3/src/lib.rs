//! An S3 server in memory, for tests and benchmarks: what object pools and their rivals need of S3,
//! with conditional puts that are really atomic.
//!
//! It can be slow ([`Server::latency`]), fail in every way that a store fails ([`Fault`]), by
//! order or by seed, be gone for a while ([`Server::outage`]), refuse writes
//! ([`Server::read_only`]) and strangers ([`Options::keys`]), and it counts what it is asked
//! ([`Server::counts`]). The program `volmux-s3-server` is the same in a process of its own, and
//! takes orders on its own address: see [`Remote`].
//!
//! One thread a connection and one lock around the objects: the least that can stand between a
//! client and memory, so that a benchmark measures the client.

mod auth;
mod counts;
mod faults;
mod http;
mod orders;
mod remote;
mod s3;
mod server;
mod store;
mod xml;

pub use auth::Keys;
pub use counts::{Counts, Kind, Record, Stored};
pub use faults::{Fault, Rule};
pub use remote::Remote;
pub use server::{Options, Server};

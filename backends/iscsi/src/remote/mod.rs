//! A pool on another host, by the `volmux` program there, over SSH.
//!
//! Each operation is one run of `volmux --json` on that host, whose documents (`docs/json.md`)
//! become what [`Pool`](volmux_core::Pool) promises. It is how volumes of an array are made,
//! snapshotted and attached, where the store and the target are on a host of their own: the pool
//! there makes its volumes logical units, and those are used from here over iSCSI.
//!
//! - OpenSSH's own `ssh` connects, once for all calls: a call costs one round trip, and what the
//!   program there takes to open its pool. The host's key is checked, there is no agent and no
//!   forwarding, and nothing ever asks a person.
//! - No secret is on a command line, here or there: keys and the secrets of pools are files.
//! - Whoever is waiting no more stops the work. The program there runs with `--stop-at-eof`: if a
//!   future is dropped, a deadline passes, the connection breaks or this process is killed, its
//!   standard input ends, it cleans up as on Ctrl-C, and ends within a minute. (sshd sends it no
//!   signal.) As long as the network swallows everything the host does not find out: calls with a
//!   deadline then end by themselves soon after it (`--time-limit`), long work is done to its end,
//!   or until sshd gives the connection up. Calling again converges in any case.

mod calls;
mod config;
mod documents;
mod errors;
mod failure;
mod lines;
mod opened;
mod pool;
mod quote;
mod run;
mod ssh;
mod streams;

pub use calls::RemotePool;
pub use config::RemoteConfig;

//! An iSCSI initiator in user space (RFC 7143): it needs neither a kernel module nor root.
//!
//! [`Session::login`] gives a session with a target, [`Session::execute`] sends it SCSI commands, many
//! at a time, and [`discover`] lists the targets of a portal. What this crate does not know is what
//! the commands mean.
//!
//! - CHAP with MD5, SHA-1 and SHA-256, one-way and mutual. What was asked for and not agreed is refused.
//! - Digests of headers and data; immediate, unsolicited and solicited data; pings; aborting of
//!   commands; redirection; logout on request. Error recovery level 0: a connection that breaks is made
//!   anew, and commands are repeated only as their [`Replay`] allows.
//! - Every length that comes from the target is checked, what it can have kept in memory is bounded, and
//!   every wait has an end.
//! - A future that is dropped leaves the session in order. The command may have been sent by then.
//!
//! One connection a session. For more throughput make several sessions.
//!
//! ```no_run
//! use volmux_iscsi_initiator::{Command, Data, Options, Result, Session};
//!
//! # async fn example() -> Result<()> {
//! let mut options = Options::new("10.0.0.1:3260", "iqn.2026-11.org.example:me");
//! options.target = Some("iqn.2026-11.org.example:disk".into());
//! let session = Session::login(options).await?;
//! let inquiry = Command {
//!     cdb: vec![0x12, 0, 0, 0, 96, 0],
//!     data: Data::Read(96),
//!     ..Command::default()
//! };
//! let reply = session.execute(0, inquiry).await?;
//! println!("{}", String::from_utf8_lossy(reply.data.get(8..32).unwrap_or_default()));
//! session.logout().await
//! # }
//! ```

mod buffers;
mod chap;
mod command;
mod connection;
mod deadlines;
mod discovery;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod incoming;
mod login;
mod options;
mod outbox;
mod params;
mod pdu;
mod session;
mod shared;
mod tasks;
mod text;
mod wire;

pub use command::{Command, Data, Replay, Reply, Residual};
pub use discovery::{DiscoveredTarget, discover};
pub use error::{Error, ErrorKind, Result};
pub use options::{ChapAlgorithm, Credentials, Digest, Options};
pub use session::Session;

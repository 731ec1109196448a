//! Serves the volumes of any volmux pool over NBD, to QEMU, the Linux kernel, WNBD and every other
//! client of the protocol.
//!
//! ```
//! # async fn example() -> volmux_core::Result<()> {
//! use std::time::Duration;
//!
//! use volmux_core::memory::MemoryPool;
//! use volmux_core::{ByteSize, CreateOptions, Pool, VolumeName};
//! use volmux_gateway::{ExportOptions, Exports, Limits, Listen, ServeOptions, serve};
//!
//! let pool = MemoryPool::unlimited();
//! let name = VolumeName::new("disk")?;
//! pool.create_volume(&name, CreateOptions::thin(ByteSize::gib(1))).await?;
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("socket");
//! let server = serve(
//!     pool,
//!     ServeOptions {
//!         exports: Exports::Volumes(vec![ExportOptions::read_write(name)]),
//!         listen: vec![Listen::Unix(path)],
//!         tls: None,
//!         statistics: None,
//!         limits: Limits::default(),
//!     },
//! )
//! .await?;
//! println!("listening on {}", server.addresses()[0]);
//! server.stop(Duration::from_secs(30)).await
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```
//!
//! # How it works
//! Listening and handshakes are asynchronous tasks. A client that has chosen its export gets a
//! thread, which receives, begins requests, and sends replies; a request that its volume answers
//! right away costs no switch to another thread. All clients of a volume share one open device, so
//! a flush on one connection covers the writes of all.
//!
//! # What is promised
//! - A request that was answered with success has taken effect; a flush, or a write with FUA, that
//!   was answered is durable.
//! - A request that arrived in part has no effect. Of one that was not answered it is not known.
//! - No client makes the server hold more memory than [`Limits`] say, or hangs another client.

mod budget;
mod client;
mod export;
mod http;
mod listen;
mod metrics;
mod nbd;
mod options;
mod server;
mod stats;
mod status;
mod tls;
mod transport;
mod uri;
mod wakeup;

pub use http::status_of;
pub use options::{Address, ExportOptions, Exports, Limits, Listen, ServeOptions};
pub use server::{Server, serve};
pub use status::{ExportStatus, LimitsStatus, RequestStatus, Status};
pub use tls::{ClientCertificates, Tls};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

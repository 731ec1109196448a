//! What a server serves, where, and within which limits.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use volmux_core::{Access, Error, ErrorKind, Result, Sharing, VolumeName};

use crate::tls::Tls;

/// What a server serves, where, and within which limits.
#[derive(Debug)]
pub struct ServeOptions {
    /// What is served.
    pub exports: Exports,
    /// Where; at least one.
    pub listen: Vec<Listen>,
    /// TLS. If given, a client that does not begin with it is shown nothing and refused.
    pub tls: Option<Tls>,
    /// Where `/metrics` (Prometheus) and `/status` (JSON) are answered over HTTP, if anywhere. It
    /// has no access control of its own: use a Unix socket or a loopback address.
    pub statistics: Option<Listen>,
    /// Limits.
    pub limits: Limits,
}

/// What is served. The name of an export is that of its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exports {
    /// These volumes, each open from the server's start to its end: nobody else writes one while
    /// its client is away. If it is only one, it is the default export (the empty name) too.
    Volumes(Vec<ExportOptions>),
    /// Every volume of the pool, those made later too. A volume is opened for its first client and
    /// closed after its last, see [`Limits::release_time`].
    EveryVolume {
        /// For reading only, or for writing too. Snapshots are always read-only.
        access: Access,
        /// As [`ExportOptions::sharing`].
        sharing: Sharing,
    },
}

/// One volume that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// The volume.
    pub volume: VolumeName,
    /// For reading only, or for writing too. A snapshot can only be read.
    pub access: Access,
    /// With `Exclusive`, a volume that is written has one client at a time: connections of one
    /// process (Unix socket) or one address (TCP), as many as it wants. With `Shared`, anybody, and
    /// a pool that can let several programs write a volume is asked to.
    pub sharing: Sharing,
}

impl ExportOptions {
    /// `volume` for reading only.
    pub fn read_only(volume: VolumeName) -> Self {
        ExportOptions {
            volume,
            access: Access::ReadOnly,
            sharing: Sharing::Exclusive,
        }
    }

    /// `volume` for one client that reads and writes.
    pub fn read_write(volume: VolumeName) -> Self {
        ExportOptions {
            volume,
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
        }
    }
}

/// Where a server listens.
#[derive(Debug)]
pub enum Listen {
    /// A Unix socket that is made there, for its owner alone (mode 0600), and removed at the end. A
    /// socket that nobody listens on any more is replaced.
    Unix(PathBuf),
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket that somebody else made, as systemd does.
    UnixListener(UnixListener),
    /// A TCP socket that somebody else made.
    TcpListener(TcpListener),
}

/// Where a server can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// `unix:/absolute/path` or `tcp:IP:PORT` (`tcp:[::1]:10809`).
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            Error::new(ErrorKind::InvalidInput, "address")
                .with("address", text)
                .reason(reason)
                .help("write unix:/run/volmux.sock or tcp:127.0.0.1:10809")
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            // sockaddr_un holds 108 bytes with the final zero (unix(7)).
            if !path.is_absolute() || path.as_os_str().len() > 107 {
                return Err(wrong(
                    "a socket's path is absolute and has 107 bytes at most",
                ));
            }
            return Ok(Address::Unix(path));
        }
        let address = text
            .strip_prefix("tcp:")
            .ok_or_else(|| wrong("an address begins with unix: or tcp:"))?;
        let address = address
            .parse()
            .map_err(|e| wrong("this is not an IP address with a port").with_source(e))?;
        Ok(Address::Tcp(address))
    }
}

impl From<Address> for Listen {
    fn from(address: Address) -> Self {
        match address {
            Address::Unix(path) => Listen::Unix(path),
            Address::Tcp(address) => Listen::Tcp(address),
        }
    }
}

/// The limits of a server. What a client can make it hold is at most
/// `in_flight_total + connections * request_length`, and what the sockets' buffers hold: 1 MiB for a
/// connection on a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; more are closed as they come. 1 to 4096.
    pub connections: usize,
    /// How long a client may take from connecting to choosing its export (CVE-2024-7409).
    pub handshake_time: Duration,
    /// How long the pool may take for a request before the client is told that it failed. A volume
    /// whose pool hangs gives errors, it does not hang its clients.
    pub request_time: Duration,
    /// How long a volume of [`Exports::EveryVolume`] stays open, once it has no client, if one of its
    /// clients went away without saying so and may come back.
    pub release_time: Duration,
    /// The longest option of a handshake, in bytes. 4096 to 65536.
    pub option_length: u32,
    /// The longest read or write, in bytes. 1 MiB to 64 MiB; the protocol recommends 32 MiB.
    pub request_length: u32,
    /// Requests of one connection that are worked on at a time. The rest waits in the socket.
    pub in_flight_requests: usize,
    /// Bytes of the requests that one connection has under way. At least `request_length`.
    pub in_flight_per_connection: u64,
    /// Bytes of the requests that all connections have under way. A connection that has none under
    /// way may always begin one, so that nobody who stopped reading can stop the others.
    pub in_flight_total: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 256,
            handshake_time: Duration::from_secs(10),
            request_time: Duration::from_secs(60),
            release_time: Duration::from_secs(60),
            option_length: 8192,
            request_length: 32 << 20,
            in_flight_requests: 256,
            in_flight_per_connection: 64 << 20,
            in_flight_total: 512 << 20,
        }
    }
}

impl Limits {
    /// Checks the ranges.
    ///
    /// # Errors
    /// `InvalidInput` that names the limit.
    pub fn check(&self) -> Result<()> {
        let wrong = |limit: &str, reason: &str| {
            Err(Error::new(ErrorKind::InvalidInput, "serve")
                .with("limit", limit)
                .reason(reason))
        };
        if !(1..=4096).contains(&self.connections) {
            return wrong("connections", "1 to 4096");
        }
        if !(4096..=65536).contains(&self.option_length) {
            return wrong("option_length", "4096 to 65536 bytes");
        }
        if !(1 << 20..=64 << 20).contains(&self.request_length) {
            return wrong("request_length", "1 MiB to 64 MiB");
        }
        if !(1..=65536).contains(&self.in_flight_requests) {
            return wrong("in_flight_requests", "1 to 65536");
        }
        if self.in_flight_per_connection < u64::from(self.request_length) {
            return wrong("in_flight_per_connection", "at least request_length");
        }
        if self.in_flight_total < self.in_flight_per_connection {
            return wrong("in_flight_total", "at least in_flight_per_connection");
        }
        if self.handshake_time.is_zero() || self.request_time.is_zero() {
            return wrong("handshake_time, request_time", "more than nothing");
        }
        Ok(())
    }
}

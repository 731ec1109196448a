//! The shape of `volmux export`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use volmux::{ByteSize, Result, VolumeId};
use volmux_gateway::Limits;

/// Options and arguments.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct ServeArgs {
    /// The volumes; each is an export of the same name, and open from the start to the end
    #[arg(value_name = "VOLUME", required_unless_present_any = ["all", "status"])]
    pub volumes: Vec<String>,
    /// Serve every volume of the pool, those made later too; each is open while it has a client
    #[arg(long, conflicts_with = "volumes")]
    pub all: bool,
    /// For reading only. A snapshot needs it; with --all a snapshot is read-only without it
    #[arg(short, long)]
    pub read_only: bool,
    /// Let several clients write a volume at a time, who arrange that among themselves
    #[arg(long, conflicts_with = "read_only")]
    pub shared: bool,
    /// Listen on a Unix socket, made for this user alone; may be repeated
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Vec<PathBuf>,
    /// Listen on a TCP address, such as 127.0.0.1:10809 or [::1]:10809; may be repeated
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Vec<SocketAddr>,
    /// Demand TLS, with ca-cert.pem, server-cert.pem and server-key.pem from this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls: Option<PathBuf>,
    /// Let in only clients with a certificate of the authority in ca-cert.pem
    #[arg(long, requires = "tls")]
    pub tls_verify_clients: bool,
    /// Allow TCP addresses other than loopback without TLS: who reaches them has the volumes
    #[arg(long)]
    pub insecure: bool,
    /// Answer /metrics (Prometheus) and /status (JSON) over HTTP at unix:PATH or tcp:IP:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub statistics: Option<String>,
    /// Serve nothing: show the status of the server whose --statistics this is
    #[arg(
        long,
        value_name = "ADDRESS",
        conflicts_with_all = ["volumes", "all", "socket", "listen", "statistics", "tls"]
    )]
    pub status: Option<String>,
    /// For `attach --gateway`, which starts this: leave the terminal, say when it serves, and keep
    /// the record of it in this file
    #[arg(long, value_name = "FILE", hide = true, requires = "holder", conflicts_with_all = ["all", "status"])]
    pub background: Option<PathBuf>,
    /// Who the volume is for
    #[arg(long, hide = true, requires = "id")]
    pub holder: Option<String>,
    /// Which volume it is
    #[arg(long, hide = true)]
    pub id: Option<VolumeId>,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Limits.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// How long a client may take from connecting to choosing its volume
    #[arg(long, value_name = "TIME", default_value_t = Limits::default().handshake_time.into())]
    handshake_time: humantime::Duration,
    /// How long the pool may take for a request before it is answered with an error
    #[arg(long, value_name = "TIME", default_value_t = Limits::default().request_time.into())]
    request_time: humantime::Duration,
    /// With --all: how long a volume stays open for a client that vanished and may come back
    #[arg(long, value_name = "TIME", default_value_t = Limits::default().release_time.into())]
    release_time: humantime::Duration,
    /// The longest read or write
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::new(Limits::default().request_length.into()))]
    max_request: ByteSize,
    /// Requests of one connection that are worked on at a time
    #[arg(long, value_name = "N", default_value_t = Limits::default().in_flight_requests)]
    max_requests: usize,
    /// Bytes of the requests that one connection has under way
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::new(Limits::default().in_flight_per_connection))]
    max_in_flight_per_connection: ByteSize,
    /// Bytes of the requests that all connections have under way
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::new(Limits::default().in_flight_total))]
    max_in_flight: ByteSize,
    /// At the end: how long requests under way and the last flush may take
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub drain_time: humantime::Duration,
}

impl LimitArgs {
    /// As the server takes them.
    ///
    /// # Errors
    /// `InvalidInput` that names the option.
    pub fn limits(&self) -> Result<Limits> {
        let limits = Limits {
            connections: self.max_connections,
            handshake_time: self.handshake_time.into(),
            request_time: self.request_time.into(),
            release_time: self.release_time.into(),
            // One that does not fit is too large, and is refused as such.
            request_length: u32::try_from(self.max_request.bytes()).unwrap_or(u32::MAX),
            in_flight_requests: self.max_requests,
            in_flight_per_connection: self.max_in_flight_per_connection.bytes(),
            in_flight_total: self.max_in_flight.bytes(),
            ..Limits::default()
        };
        limits.check().map_err(|error| {
            let option = match error.get("limit") {
                Some("connections") => "--max-connections",
                Some("request_length") => "--max-request",
                Some("in_flight_requests") => "--max-requests",
                Some("in_flight_per_connection") => "--max-in-flight-per-connection",
                Some("in_flight_total") => "--max-in-flight",
                _ => "--handshake-time, --request-time",
            };
            error.with("option", option)
        })?;
        Ok(limits)
    }
}

const AFTER_HELP: &str = "\
When it listens, it prints one NBD URI a line for each volume and address (with --all: for each \
address), for example nbd+unix:///web?socket=/run/web.sock. It runs until Ctrl-C or SIGTERM; then \
it lets in nobody any more, answers what is under way, flushes and closes the volumes, and ends \
with exit code 0. A second signal ends it at once.

NBD has no access control: who can open the Unix socket, or reach the TCP address, can read and \
write the volumes. --tls with --tls-verify-clients lets in only who has a certificate.

Sockets that systemd hands over (LISTEN_FDS) are listened on too.

To write a volume to an image file: volmux volume export.";

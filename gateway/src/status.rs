//! What a running server tells of itself.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use volmux_core::{Access, Sharing, VolumeName};

use crate::metrics;
use crate::options::Limits;
use crate::stats::{ExportCounters, Op, OpCounters, ServerCounters};

/// What a running server tells of itself, at one moment. Within a version of the schema fields are
/// added, never taken away or changed in meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// [`Status::SCHEMA`].
    pub schema: String,
    /// When the server began: RFC 3339 in UTC.
    pub started: String,
    /// For how long it has been there, in seconds.
    pub uptime_seconds: f64,
    /// Where it listens, as [`Address`](crate::Address) prints it.
    pub addresses: Vec<String>,
    /// Whether clients must use TLS.
    pub tls: bool,
    /// Connections that are open, handshakes included.
    pub connections: u64,
    /// Connections that there ever were.
    pub connections_total: u64,
    /// Connections that were closed as they came, because there were too many.
    pub turned_away_total: u64,
    /// Handshakes that failed: too slow, malformed, without TLS, an export refused.
    pub handshakes_failed_total: u64,
    /// Bytes of the requests that are worked on.
    pub in_flight_bytes: u64,
    /// The limits that are in force.
    pub limits: LimitsStatus,
    /// The exports: those that were named at the start, or else those that had a client since.
    pub exports: Vec<ExportStatus>,
}

/// [`Limits`], with times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LimitsStatus {
    /// See [`Limits::connections`].
    pub connections: usize,
    /// See [`Limits::handshake_time`].
    pub handshake_seconds: f64,
    /// See [`Limits::request_time`].
    pub request_seconds: f64,
    /// See [`Limits::release_time`].
    pub release_seconds: f64,
    /// See [`Limits::option_length`].
    pub option_length: u32,
    /// See [`Limits::request_length`].
    pub request_length: u32,
    /// See [`Limits::in_flight_requests`].
    pub in_flight_requests: usize,
    /// See [`Limits::in_flight_per_connection`].
    pub in_flight_per_connection: u64,
    /// See [`Limits::in_flight_total`].
    pub in_flight_total: u64,
}

/// One export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExportStatus {
    /// Its name, which is the volume's.
    pub name: String,
    /// For reading only, or for writing too.
    pub access: Access,
    /// One client that writes, or several.
    pub sharing: Sharing,
    /// The volume's size in bytes; `None` while it is not open.
    pub size: Option<u64>,
    /// Whether the volume is open.
    pub open: bool,
    /// Connections that are open.
    pub connections: u64,
    /// Connections that there ever were.
    pub connections_total: u64,
    /// Who is connected, each client once however many connections it has.
    pub clients: Vec<String>,
    /// Requests that are worked on.
    pub in_flight: u64,
    /// What was counted of each kind of request: `read`, `write`, `flush`, `trim`, `write_zeroes`,
    /// `cache`, `block_status`.
    pub requests: BTreeMap<String, RequestStatus>,
}

/// What was counted of one kind of request. All only ever grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RequestStatus {
    /// Answered, with success or not.
    pub requests: u64,
    /// Answered with an error.
    pub errors: u64,
    /// Bytes of those answered with success.
    pub bytes: u64,
    /// From arrival to answer, all together.
    pub nanoseconds: u64,
}

impl From<&Limits> for LimitsStatus {
    fn from(limits: &Limits) -> Self {
        LimitsStatus {
            connections: limits.connections,
            handshake_seconds: limits.handshake_time.as_secs_f64(),
            request_seconds: limits.request_time.as_secs_f64(),
            release_seconds: limits.release_time.as_secs_f64(),
            option_length: limits.option_length,
            request_length: limits.request_length,
            in_flight_requests: limits.in_flight_requests,
            in_flight_per_connection: limits.in_flight_per_connection,
            in_flight_total: limits.in_flight_total,
        }
    }
}

impl From<&OpCounters> for RequestStatus {
    fn from(counters: &OpCounters) -> Self {
        RequestStatus {
            requests: counters.requests.load(Relaxed),
            errors: counters.errors.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            nanoseconds: counters.nanoseconds.load(Relaxed),
        }
    }
}

impl ExportStatus {
    /// An export as its counters and its volume are now. `size` is that of the open volume.
    pub(crate) fn new(
        name: &VolumeName,
        (access, sharing): (Access, Sharing),
        size: Option<u64>,
        clients: Vec<String>,
        counters: &ExportCounters,
    ) -> Self {
        let requests = Op::ALL.map(|op| (op.name().to_owned(), counters.op(op).into()));
        ExportStatus {
            name: name.to_string(),
            access,
            sharing,
            size,
            open: size.is_some(),
            connections: counters.connections.load(Relaxed),
            connections_total: counters.connections_total.load(Relaxed),
            clients,
            in_flight: counters.in_flight.load(Relaxed),
            requests: requests.into(),
        }
    }
}

impl Status {
    /// The schema that this structure is.
    pub const SCHEMA: &str = "volmux.gateway.v1";

    /// A server that began at `started`, as its counters are now.
    pub(crate) fn new(
        started: SystemTime,
        (addresses, tls): (Vec<String>, bool),
        limits: &Limits,
        counters: &ServerCounters,
        exports: Vec<ExportStatus>,
    ) -> Self {
        let uptime = started.elapsed().unwrap_or_default();
        Status {
            schema: Status::SCHEMA.into(),
            started: humantime::format_rfc3339_micros(started).to_string(),
            uptime_seconds: uptime.as_secs_f64(),
            addresses,
            tls,
            connections: counters.connections.load(Relaxed),
            connections_total: counters.connections_total.load(Relaxed),
            turned_away_total: counters.turned_away.load(Relaxed),
            handshakes_failed_total: counters.handshakes_failed.load(Relaxed),
            in_flight_bytes: counters.in_flight_bytes.load(Relaxed),
            limits: limits.into(),
            exports,
        }
    }

    /// The same in the text format of Prometheus and OpenMetrics.
    pub fn prometheus(&self) -> String {
        metrics::text(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// A server that has one export, which was read and written.
    pub(crate) fn sample() -> Status {
        let counters = ExportCounters::default();
        counters.answered(Op::Read, Some(4096), Duration::from_millis(1500));
        counters.answered(Op::Read, None, Duration::from_millis(500));
        counters.answered(Op::Write, Some(512), Duration::from_nanos(1));
        counters.connections.store(2, Relaxed);
        counters.connections_total.store(3, Relaxed);
        counters.in_flight.store(1, Relaxed);
        let name = VolumeName::new("web-1").expect("name");
        let how = (Access::ReadWrite, Sharing::Exclusive);
        let clients = vec!["pid 17".to_owned()];
        let export = ExportStatus::new(&name, how, Some(1 << 30), clients, &counters);
        let server = ServerCounters::default();
        server.connections.store(4, Relaxed);
        server.connections_total.store(9, Relaxed);
        server.turned_away.store(5, Relaxed);
        server.handshakes_failed.store(6, Relaxed);
        server.in_flight_bytes.store(8192, Relaxed);
        let started = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let listening = (vec!["unix:/run/a.sock".to_owned()], false);
        Status::new(
            started,
            listening,
            &Limits::default(),
            &server,
            vec![export],
        )
    }

    #[test]
    fn it_goes_through_json_and_back() {
        let status = sample();
        let json = serde_json::to_value(&status).expect("JSON");
        assert_eq!(json["schema"], "volmux.gateway.v1");
        assert_eq!(json["started"], "2023-11-14T22:13:20.250000Z");
        assert!(json["uptime_seconds"].as_f64().expect("number") > 1.0);
        assert_eq!(json["limits"]["handshake_seconds"], 10.0);
        assert_eq!(
            json["exports"][0]["requests"]["read"],
            serde_json::json!({
                "requests": 2, "errors": 1, "bytes": 4096, "nanoseconds": 2_000_000_000u64,
            })
        );
        assert_eq!(json["exports"][0]["access"], "read-write");
        assert_eq!(json["exports"][0]["open"], true);
        let back: Status = serde_json::from_value(json).expect("status");
        assert_eq!(back, status);
    }

    #[test]
    fn a_server_that_tells_more_is_understood() {
        let mut json = serde_json::to_value(sample()).expect("JSON");
        json["more"] = 1.into();
        json["limits"]["more"] = 1.into();
        json["exports"][0]["more"] = 1.into();
        json["exports"][0]["requests"]["more"] = json["exports"][0]["requests"]["read"].clone();
        let status: Status = serde_json::from_value(json).expect("status");
        assert_eq!(status.exports[0].requests.len(), Op::ALL.len() + 1);
    }
}

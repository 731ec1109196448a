//! What a server counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    Cache,
    BlockStatus,
}

impl Op {
    pub(crate) const ALL: [Op; 7] = [
        Op::Read,
        Op::Write,
        Op::Flush,
        Op::Trim,
        Op::WriteZeroes,
        Op::Cache,
        Op::BlockStatus,
    ];

    /// Whether it changes the volume.
    pub(crate) const fn changes(self) -> bool {
        matches!(self, Op::Write | Op::Trim | Op::WriteZeroes)
    }

    /// The name in statistics and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Trim => "trim",
            Op::WriteZeroes => "write_zeroes",
            Op::Cache => "cache",
            Op::BlockStatus => "block_status",
        }
    }
}

/// What is counted of one kind of request. All only ever grow.
#[derive(Debug, Default)]
pub(crate) struct OpCounters {
    /// Answered, with success or not.
    pub(crate) requests: AtomicU64,
    /// Answered with an error.
    pub(crate) errors: AtomicU64,
    /// Bytes of those answered with success.
    pub(crate) bytes: AtomicU64,
    /// Time from a request's arrival to its answer, all together.
    pub(crate) nanoseconds: AtomicU64,
}

/// What is counted of one export, from the server's start on.
#[derive(Debug, Default)]
pub(crate) struct ExportCounters {
    ops: [OpCounters; Op::ALL.len()],
    /// Connections that are open now.
    pub(crate) connections: AtomicU64,
    /// Connections that there ever were.
    pub(crate) connections_total: AtomicU64,
    /// Requests that are worked on now.
    pub(crate) in_flight: AtomicU64,
}

impl ExportCounters {
    pub(crate) fn op(&self, op: Op) -> &OpCounters {
        &self.ops[op as usize]
    }

    /// Counts a connection that begins.
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.connections_total.fetch_add(1, Relaxed);
    }

    /// Counts a connection that ends.
    pub(crate) fn disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Counts a request that begins.
    pub(crate) fn begun(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Counts requests whose client is gone.
    pub(crate) fn abandoned(&self, requests: usize) {
        self.in_flight.fetch_sub(requests as u64, Relaxed);
    }

    /// Counts a request that is answered; `bytes` is `None` for one that failed.
    pub(crate) fn answered(&self, op: Op, bytes: Option<u64>, took: Duration) {
        self.in_flight.fetch_sub(1, Relaxed);
        let counters = self.op(op);
        counters.requests.fetch_add(1, Relaxed);
        match bytes {
            Some(bytes) => counters.bytes.fetch_add(bytes, Relaxed),
            None => counters.errors.fetch_add(1, Relaxed),
        };
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counters.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }
}

/// What is counted of the server as a whole.
#[derive(Debug, Default)]
pub(crate) struct ServerCounters {
    /// Connections that are open now, handshakes included.
    pub(crate) connections: AtomicU64,
    /// Connections that there ever were.
    pub(crate) connections_total: AtomicU64,
    /// Connections that were closed because there were too many.
    pub(crate) turned_away: AtomicU64,
    /// Handshakes that failed: too slow, malformed, without TLS, an export refused.
    pub(crate) handshakes_failed: AtomicU64,
    /// Bytes of requests under way.
    pub(crate) in_flight_bytes: AtomicU64,
}

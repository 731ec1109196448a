//! fio, the client of every NBD server that is measured.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::Result;

/// What fio does: one pattern of access with a fixed number of requests in flight.
#[derive(Clone, Debug)]
pub struct Job {
    /// fio's `rw`: `read`, `write`, `randread`, `randwrite`.
    pub pattern: &'static str,
    /// Bytes of a request.
    pub block: u64,
    /// Requests in flight on each connection.
    pub depth: u32,
    /// Connections, a thread each.
    pub connections: u32,
    /// A flush is waited for after so many writes; 0: never.
    pub flush_every: u32,
    /// A flush ends the job, within its time.
    pub flush_at_end: bool,
}

impl Job {
    /// `pattern` in requests of `block` bytes, `depth` in flight on one connection.
    pub const fn new(pattern: &'static str, block: u64, depth: u32) -> Self {
        Job {
            pattern,
            block,
            depth,
            connections: 1,
            flush_every: 0,
            flush_at_end: false,
        }
    }

    /// The same on so many connections at once.
    #[must_use]
    pub const fn on(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// The same with a flush after so many writes.
    #[must_use]
    pub const fn flush_every(mut self, writes: u32) -> Self {
        self.flush_every = writes;
        self
    }

    /// The same with a flush at the end.
    #[must_use]
    pub const fn flush_at_end(mut self) -> Self {
        self.flush_at_end = true;
        self
    }
}

/// What came of a job, all connections together.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Requests a second.
    pub requests_per_second: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Requests in all.
    pub requests: u64,
}

/// Does `job` on the default export of the server on `socket`, on its first `size` bytes, for
/// `time`; without a time, once over all of them.
///
/// # Errors
/// If fio fails or a request did.
pub fn run(job: &Job, socket: &Path, size: u64, time: Option<Duration>) -> Result<Outcome> {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=job",
        "--thread",
        "--ioengine=nbd",
        "--group_reporting",
    ])
    .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()))
    .arg(format!("--rw={}", job.pattern))
    .arg(format!("--bs={}", job.block))
    .arg(format!("--iodepth={}", job.depth))
    .arg(format!("--numjobs={}", job.connections))
    .arg(format!("--fsync={}", job.flush_every))
    .arg(format!("--end_fsync={}", u8::from(job.flush_at_end)))
    .arg(format!("--size={size}"))
    .arg("--output-format=json");
    if let Some(time) = time {
        fio.arg("--time_based");
        fio.arg(format!("--runtime={}ms", time.as_millis()));
    }
    let output = fio.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("fio: {error}: run .ci/setup"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{fio:?}: {}: {error}{said}", output.status).into());
    }
    outcome(&said, job).ok_or_else(|| format!("{fio:?} printed {said}").into())
}

/// The outcome in fio's report, if every request succeeded.
fn outcome(report: &str, job: &Job) -> Option<Outcome> {
    // Warnings may come first.
    let report: Value = serde_json::from_str(&report[report.find('{')?..]).ok()?;
    let [done] = report["jobs"].as_array()?.as_slice() else {
        return None;
    };
    if done["error"].as_i64()? != 0 {
        return None;
    }
    let writes = job.pattern.ends_with("write");
    let side = &done[if writes { "write" } else { "read" }];
    Some(Outcome {
        requests_per_second: side["iops"].as_f64()?,
        bytes_per_second: side["bw_bytes"].as_f64()?,
        requests: side["total_ios"]
            .as_u64()
            .filter(|&requests| requests > 0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Job = Job::new("randread", 4096, 32);

    #[test]
    fn a_report_is_understood() {
        let report = r#"fio: a warning
            {"jobs": [{"error": 0, "read": {"iops": 12.5, "bw_bytes": 51200, "total_ios": 25},
            "write": {"iops": 0, "bw_bytes": 0, "total_ios": 0}}]}"#;
        let read = outcome(report, &READ).expect("an outcome");
        assert_eq!(read.requests, 25);
        assert!((read.requests_per_second - 12.5).abs() < 1e-9);
        assert!(outcome(report, &Job::new("write", 4096, 1)).is_none());
    }

    #[test]
    fn a_failed_job_has_no_outcome() {
        let report = r#"{"jobs": [{"error": 5, "read":
            {"iops": 12.5, "bw_bytes": 51200, "total_ios": 25}}]}"#;
        assert!(outcome(report, &READ).is_none());
        assert!(outcome("{}", &READ).is_none());
        assert!(outcome("", &READ).is_none());
    }
}

//! The initiator with tgtd, a target in user space that others wrote. It runs as root, on loopback.

mod chap;
mod digests;
mod discovery;
mod oracle;
mod plain;
mod random;
mod reservations;
mod restart;
mod scsi;
mod sessions;
mod thin;
mod verified;

use std::future::Future;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Fails if that takes longer than any test may.
async fn within<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    done.expect("done within a minute")
}

/// Waits until that is so.
async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(30), "not so: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

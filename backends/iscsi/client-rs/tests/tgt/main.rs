//! The transports with tgtd, a target in user space that others wrote. It runs as root, on
//! loopback. Whatever both can do is asked of both, in the same words.

mod chap;
mod digests;
mod plain;
#[path = "../../../initiator/tests/tgt/random.rs"]
mod random;
mod refused;
mod reservations;
mod restart;
mod scsi;
mod verified;

use std::future::Future;
use std::time::Duration;

use volmux_iscsi::transport::{Connector, Native};
use volmux_iscsi_client_rs::ClientRs;
use volmux_iscsi_server as server;

const MIB: u64 = 1 << 20;

/// All that there are.
fn connectors() -> [Box<dyn Connector>; 2] {
    [Box::new(Native), Box::new(ClientRs)]
}

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

//! Logical units of tgtd, a target in user space that others wrote. It runs as root, on loopback.

mod blocks;
mod changes;
mod data;
mod full;
mod probe;
mod reservations;

use std::fs;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use volmux_iscsi::scsi::{LogicalUnit, ScsiError, UnitOptions};
use volmux_iscsi::transport::ScsiTransport;
use volmux_iscsi_initiator::{Options, Session};
use volmux_iscsi_server::Server;

const MIB: u64 = 1 << 20;

/// Fails if that takes longer than any test may.
async fn within<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(120), work).await;
    done.expect("done within two minutes")
}

async fn login(options: Options) -> Arc<dyn ScsiTransport> {
    Arc::new(Session::login(options).await.expect("a login"))
}

async fn try_open(options: Options, lun: u64) -> Result<LogicalUnit, ScsiError> {
    let unit_options = UnitOptions {
        portal: Some(options.portal.clone()),
        target: options.target.clone(),
        ..UnitOptions::default()
    };
    LogicalUnit::open_with(login(options).await, lun, unit_options).await
}

/// LUN 1 of the first target.
async fn open(server: &Server) -> LogicalUnit {
    open_as(server.options(1)).await
}

async fn open_as(options: Options) -> LogicalUnit {
    try_open(options, 1).await.expect("a unit")
}

/// Bytes that do not repeat soon, and differ by `seed`.
fn content(seed: u64, length: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..length.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length as usize).collect()
}

/// Bytes that the file of LUN 1 occupies.
fn occupied(server: &Server) -> u64 {
    let data = fs::metadata(server.file(1, 1)).expect("the file");
    512 * data.blocks()
}

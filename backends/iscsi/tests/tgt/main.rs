//! The control of tgt, with a real tgtd. It runs as root, on loopback.

mod accounts;
mod exports;
mod fences;
mod hostile;
#[path = "../support/load.rs"]
mod load;
#[path = "../support/login.rs"]
mod login;
#[path = "../support/scsi.rs"]
mod scsi;
mod server;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use volmux_iscsi::control::Export;

const MIB: u64 = 1 << 20;
const OP: &str = "test";
const TARGET: &str = "iqn.2026-01.org.example:pool.0a1b2c3d-0000-4000-8000-00000000abcd";
const SERIAL: &str = "0a1b2c3d-0000-4000-8000-00000000abcd";
const ONE: &str = "iqn.2026-01.org.example:one";
const TWO: &str = "iqn.2026-01.org.example:two";

/// For one initiator, to be written.
fn export(path: &Path, size: u64) -> Export {
    Export {
        target: TARGET.into(),
        path: path.into(),
        size,
        serial: SERIAL.into(),
        read_only: false,
        thin: true,
        initiators: vec![ONE.into()],
        chap: None,
        mutual_chap: None,
    }
}

/// Fails if that takes longer than any test may.
async fn within<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(100), work).await;
    done.expect("done in time")
}

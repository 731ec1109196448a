//! The control of LIO, with the kernel's own, in the lab.

#[path = "../support/load.rs"]
mod load;
#[path = "../support/login.rs"]
mod login;
#[path = "../support/scsi.rs"]
mod scsi;

mod exports;
mod fences;
mod kernel;
mod machine;
mod states;

use std::future::Future;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const OP: &str = "test";
const ONE: &str = "iqn.2026-01.org.example:one";
const TWO: &str = "iqn.2026-01.org.example:two";

/// Fails if that takes longer than any test may.
async fn within<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(300), work).await;
    done.expect("done in time")
}

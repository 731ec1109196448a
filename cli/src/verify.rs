//! SHA-256 of the virtual content.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::{self, StreamExt};
use sha2::{Digest, Sha256};
use volmux::{BlockDevice, Control, Error, ErrorKind, Result};

const CHUNK: u64 = 1 << 20;
/// Reads in flight.
const DEPTH: usize = 4;

/// The SHA-256, in hex, of what `device` reads as, followed by zeros up to `size` bytes.
///
/// # Errors
/// Those of reading; `TimedOut` when cancelled.
pub async fn sha256(device: &dyn BlockDevice, size: u64, control: &Control) -> Result<String> {
    const OP: &str = "verify";
    let own = device.size().min(size);
    let mut hash = Sha256::new();
    let mut done = 0;
    let mut failed = None;
    let stopped = AtomicBool::new(false);
    let offsets = (0..own).step_by(CHUNK as usize);
    let mut reads = stream::iter(offsets.take_while(|_| !stopped.load(Ordering::Relaxed)))
        .map(|offset| async move {
            control.check(OP)?;
            let length = CHUNK.min(own - offset) as usize;
            device.read_at(offset, length).await
        })
        .buffered(DEPTH);
    // After a failure the reads in flight are waited for: a dropped one may hold its volume in use
    // for a while, and the caller is about to delete it.
    while let Some(read) = reads.next().await {
        match read {
            Ok(data) => {
                hash.update(&data);
                done += data.len() as u64;
                control.report(done, size);
            }
            Err(error) => {
                stopped.store(true, Ordering::Relaxed);
                failed.get_or_insert(error);
            }
        }
    }
    drop(reads);
    if let Some(error) = failed {
        return Err(error);
    }
    let zeros = vec![0; CHUNK as usize];
    while done < size {
        control.check(OP)?;
        let length = (size - done).min(CHUNK);
        hash.update(&zeros[..length as usize]);
        done += length;
        control.report(done, size);
        tokio::task::yield_now().await;
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Fails unless both sides have the same hash.
///
/// # Errors
/// `Corrupt`.
pub fn check_same(op: &'static str, source: &str, target: &str) -> Result<()> {
    if source == target {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, op)
        .with("source_sha256", source)
        .with("target_sha256", target)
        .reason("what was written reads back differently, or the source changed meanwhile")
        .help("nothing was kept; make sure that nobody writes to the source, and try again"))
}

//! SHA-256 of the virtual content.

use futures::stream::{self, StreamExt, TryStreamExt};
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
    let mut reads = stream::iter((0..own).step_by(CHUNK as usize))
        .map(|offset| async move {
            control.check(OP)?;
            device
                .read_at(offset, CHUNK.min(own - offset) as usize)
                .await
        })
        .buffered(DEPTH);
    let mut hash = Sha256::new();
    let mut done = 0;
    while let Some(data) = reads.try_next().await? {
        hash.update(&data);
        done += data.len() as u64;
        control.report(done, size);
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

//! Moving data between open volumes of any two pools.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::{
    BlockDevice, ByteRange, ByteSize, Control, CreateOptions, Error, ErrorKind, OpenOptions, Pool,
    PoolExt, Result, Volume, VolumeName,
};

const OP: &str = "copy_volume";
/// One read and one write are at most this long.
const CHUNK: u64 = 1 << 20;
/// Requests in flight: memory is bounded by this many chunks.
const DEPTH: usize = 8;

/// Copies the allocated extents of `from` over `to`, which must be at least as large and read as
/// zeros. Ends with a flush.
///
/// # Errors
/// Those of the two devices; `TimedOut` when cancelled; `InvalidInput` if `to` is smaller.
pub async fn copy_device(
    from: &dyn BlockDevice,
    to: &dyn BlockDevice,
    control: &Control,
) -> Result<u64> {
    let size = from.size();
    if to.size() < size {
        return Err(Error::new(ErrorKind::InvalidInput, OP)
            .with("source_size", size)
            .with("target_size", to.size())
            .reason("the target is smaller than the source"));
    }
    let extents = from
        .extents(ByteRange::new(0, size))
        .await?
        .collect_joined()
        .await?;
    let total: u64 = extents.iter().map(|e| e.length).sum();
    control.report(0, total);
    let chunks = extents.into_iter().flat_map(|extent| {
        (extent.offset..extent.end())
            .step_by(CHUNK as usize)
            .map(move |offset| ByteRange::from_to(offset, extent.end().min(offset + CHUNK)))
    });
    let mut done = 0;
    let mut failed = None;
    let stopped = AtomicBool::new(false);
    let mut moved = stream::iter(chunks.take_while(|_| !stopped.load(Ordering::Relaxed)))
        .map(|range| async move {
            control.check(OP)?;
            let data = from.read_at(range.offset, range.length as usize).await?;
            if !is_zero(&data) {
                to.write_at(range.offset, data).await?;
            }
            Ok::<u64, Error>(range.length)
        })
        .buffer_unordered(DEPTH);
    // After a failure the requests in flight are waited for: a dropped one may hold its volume in
    // use for a while, and the caller is about to delete the target.
    while let Some(result) = moved.next().await {
        match result {
            Ok(length) => {
                done += length;
                control.report(done, total);
            }
            Err(error) => {
                stopped.store(true, Ordering::Relaxed);
                failed.get_or_insert(error);
            }
        }
    }
    drop(moved);
    if let Some(error) = failed {
        return Err(error);
    }
    to.flush().await?;
    Ok(total)
}

/// Whether `data` is all zeros.
pub fn is_zero(data: &[u8]) -> bool {
    // 16 bytes at a time: the compiler makes vector code of it.
    let (chunks, rest) = data.as_chunks::<16>();
    chunks.iter().all(|c| u128::from_ne_bytes(*c) == 0) && rest.iter().all(|&b| b == 0)
}

/// What [`PoolExt::copy_volume_to`] does.
pub(crate) async fn copy_between_pools(
    from: &dyn Pool,
    source: &VolumeName,
    to: &dyn Pool,
    name: &VolumeName,
    control: &Control,
) -> Result<Volume> {
    let reader = from.open_volume(source, OpenOptions::read_only()).await?;
    if to.find_volume(name).await?.is_some() {
        return Err(Error::new(ErrorKind::AlreadyExists, OP).with("volume", name));
    }
    let size = ByteSize::new(reader.size());
    to.create_volume(name, CreateOptions::thin(size)).await?;
    let copied = async {
        let writer = to.open_volume(name, OpenOptions::read_write()).await?;
        copy_device(reader.as_ref(), writer.as_ref(), control).await
    };
    match copied.await {
        Ok(_) => to.volume(name).await,
        Err(mut error) => {
            if error.get("volume").is_none() {
                error = error.with("volume", name);
            }
            // The copy's own failure is what the caller must see; a volume that could not be
            // removed either is named beside it.
            match to.delete_volume(name).await {
                Ok(()) => Err(error),
                Err(left) => Err(error.with("left_behind", format!("{name} ({left})"))),
            }
        }
    }
}

/// Writes `data` at `offset` in chunks that a backend takes well.
///
/// # Errors
/// Those of the device.
pub async fn write_all(device: &dyn BlockDevice, offset: u64, data: Bytes) -> Result<()> {
    let mut at = 0;
    while at < data.len() {
        let end = data.len().min(at + CHUNK as usize);
        device
            .write_at(offset + at as u64, data.slice(at..end))
            .await?;
        at = end;
    }
    Ok(())
}

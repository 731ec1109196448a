//! Moving data between open volumes of any two pools.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::{
    BlockDevice, ByteRange, ByteSize, Control, CreateOptions, Error, ErrorKind, OpenOptions, Pool,
    PoolExt, Result, Support, Volume, VolumeName,
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
    let options = match to.capabilities().thin {
        Support::None => CreateOptions::thick(size),
        _ => CreateOptions::thin(size),
    };
    to.create_volume(name, options).await?;
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock, Mutex};

    use super::*;
    use crate::layers::{Fault, FaultPlan, Faulty, When};
    use crate::memory::{MemoryConfig, MemoryPool};
    use crate::{CopyOptions, Progress};

    const MIB: u64 = 1 << 20;
    static SOURCE: LazyLock<VolumeName> = LazyLock::new(|| name("source"));
    static TARGET: LazyLock<VolumeName> = LazyLock::new(|| name("target"));

    fn name(name: &str) -> VolumeName {
        VolumeName::new(name).expect("the name is right")
    }

    async fn device(pool: &dyn Pool, volume: &str, size: u64) -> Arc<dyn BlockDevice> {
        let options = CreateOptions::thin(ByteSize::new(size));
        let volume = name(volume);
        let made = pool.create_volume(&volume, options).await;
        made.expect("create");
        let opened = pool.open_volume(&volume, OpenOptions::read_write()).await;
        opened.expect("open")
    }

    /// 16 GiB with 3 MiB of ones from 5 KiB on, 1 MiB of allocated zeros, and a last block.
    async fn source(pool: &dyn Pool) -> Arc<dyn BlockDevice> {
        let size = 16 << 30;
        let source = device(pool, "source", size).await;
        let data = Bytes::from(vec![1; 3 * MIB as usize]);
        write_all(source.as_ref(), 5 << 10, data)
            .await
            .expect("write");
        let zeros = Bytes::from(vec![0; MIB as usize]);
        source.write_at(1 << 30, zeros).await.expect("write");
        let last = Bytes::from(vec![2; 512]);
        source.write_at(size - 512, last).await.expect("write");
        source
    }

    async fn allocated(device: &dyn BlockDevice) -> Vec<ByteRange> {
        let extents = device.extents(ByteRange::new(0, device.size())).await;
        extents
            .expect("extents")
            .collect_joined()
            .await
            .expect("extents")
    }

    #[tokio::test]
    async fn a_copy_moves_the_data_and_not_the_holes() {
        let counter = Faulty::new(MemoryPool::unlimited(), FaultPlan::none());
        let pool: &dyn Pool = counter.as_ref();
        let source = source(pool).await;
        let written = counter.calls_of("write_at");
        let target = device(pool, "target", source.size() + 512).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let control = Control::new().with_progress(move |progress| {
            told.lock().expect("a lock").push(progress);
        });
        let total = copy_device(source.as_ref(), target.as_ref(), &control).await;
        let total = total.expect("copy");
        assert_eq!(total, 4 * MIB + 2 * 4096);

        let data = [ByteRange::new(4096, 3 * MIB + 4096)];
        let read = source.read_at(4096, 3 * MIB as usize).await.expect("read");
        assert_eq!(
            target.read_at(4096, 3 * MIB as usize).await.expect("read"),
            read
        );
        let last = ByteRange::new(source.size() - 4096, 4096);
        assert_eq!(allocated(target.as_ref()).await, [data[0], last]);
        assert!(counter.calls_of("read_at") < 10, "holes are not read");
        // Four chunks of ones and the last block; the zeros are read and not written.
        assert_eq!(counter.calls_of("write_at") - written, 5);
        assert_eq!(counter.calls_of("flush"), 1);

        let seen = seen.lock().expect("a lock").clone();
        assert_eq!(seen.first(), Some(&Progress { done: 0, total }));
        assert_eq!(seen.last(), Some(&Progress { done: total, total }));
        assert!(seen.is_sorted_by_key(|progress| progress.done));
    }

    #[tokio::test]
    async fn a_smaller_target_is_refused() {
        let pool = MemoryPool::unlimited();
        let source = device(pool.as_ref(), "source", 1024).await;
        let target = device(pool.as_ref(), "target", 512).await;
        let copied = copy_device(source.as_ref(), target.as_ref(), &Control::new()).await;
        let error = copied.expect_err("smaller");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.get("target_size"), Some("512"));
    }

    #[tokio::test]
    async fn a_copy_to_another_pool_is_a_thin_volume_of_its_own() {
        let from: Arc<dyn Pool> = MemoryPool::unlimited();
        let to: Arc<dyn Pool> = MemoryPool::unlimited();
        let size = source(from.as_ref()).await.size();
        let options = CopyOptions::default;
        let copy = || from.copy_volume_to(&SOURCE, to.as_ref(), &TARGET, options());
        let made = copy().await.expect("copy");
        assert_eq!(made.virtual_size.bytes(), size);
        assert_eq!(made.allocated, Some(ByteSize::new(3 * MIB + 2 * 4096)));
        assert_eq!(made.origin, None);
        let error = copy().await.expect_err("it is there");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(to.volumes().await.expect("volumes").len(), 1);
    }

    async fn fails(to: &dyn Pool, control: Control) -> Error {
        let from = MemoryPool::unlimited();
        drop(source(from.as_ref()).await);
        let options = CopyOptions { control };
        let copied = from.copy_volume_to(&SOURCE, to, &TARGET, options).await;
        copied.expect_err("it must fail")
    }

    #[tokio::test]
    async fn a_copy_that_fails_or_is_cancelled_leaves_nothing() {
        let control = Control::new();
        let stop = control.clone();
        let control = control.with_progress(move |progress| {
            if progress.done > 0 {
                stop.cancel();
            }
        });
        let pool = MemoryPool::unlimited();
        let error = fails(pool.as_ref(), control).await;
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(pool.find_volume(&TARGET).await.expect("find"), None);

        let small = MemoryConfig::with_total(ByteSize::mib(1));
        let pool = MemoryPool::new(small).expect("a pool");
        let error = fails(pool.as_ref(), Control::new()).await;
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(pool.find_volume(&TARGET).await.expect("find"), None);
        assert_eq!(pool.usage().await.expect("usage").used, ByteSize::ZERO);
    }

    #[tokio::test]
    async fn what_cannot_be_removed_after_a_failed_copy_is_named() {
        let plan = FaultPlan::explicit([
            Fault::fail(1, When::Before)
                .of("flush")
                .with_kind(ErrorKind::Corrupt),
            Fault::fail(1, When::Before).of("delete_volume"),
        ]);
        let pool = Faulty::new(MemoryPool::unlimited(), plan);
        let error = fails(pool.as_ref(), Control::new()).await;
        assert_eq!((error.kind(), error.op()), (ErrorKind::Corrupt, "flush"));
        let left = error.get("left_behind").expect("it is named");
        assert!(
            left.starts_with("target (delete_volume: unavailable"),
            "{left}"
        );
    }

    #[tokio::test]
    async fn a_long_write_goes_in_chunks() {
        let counter = Faulty::new(MemoryPool::unlimited(), FaultPlan::none());
        let target = device(counter.as_ref(), "target", 4 * MIB).await;
        let data: Vec<u8> = (0..3 * MIB as usize + 5).map(|i| (i / 7) as u8).collect();
        write_all(target.as_ref(), 3, data.clone().into())
            .await
            .expect("write");
        assert_eq!(counter.calls_of("write_at"), 4);
        assert_eq!(target.read_at(3, data.len()).await.expect("read"), data);
    }

    #[test]
    fn zeros_are_told_from_data_at_every_place() {
        for length in [0, 1, 15, 16, 17, 4096, 4099] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for place in 0..length.min(40) {
                data[place] = 1;
                data.swap(place, length - 1 - place);
                assert!(!is_zero(&data), "{place} of {length}");
                data.fill(0);
            }
        }
    }
}

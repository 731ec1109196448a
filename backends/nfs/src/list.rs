//! Listing: one pass over `volumes/`, a batch at a time, on a few threads.

use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures::stream::{self, Stream, StreamExt};
use rustix::fs::{AtFlags, Dir};
use tokio::sync::mpsc;
use volmux_core::{ByteSize, Control, Error, ErrorKind, Result, Volume, VolumeName};

use crate::inner::{Inner, act};
use crate::known::Stamp;
use crate::layout::{PoolDirs, file_error};
use crate::queue::{received, run};
use crate::record::VolumeRecord;

const OP: &str = "list_volumes";
/// Volumes looked at in one go: enough to make the hand-over between threads cheap.
const BATCH: usize = 512;
/// Each thread is bound by system calls on cached metadata, so more than the processors are no gain.
const MOST_THREADS: usize = 4;
/// Batches that wait for the reader at most.
const AHEAD: usize = 4;

/// Every volume, in no order.
pub fn volumes(inner: Arc<Inner>) -> impl Stream<Item = Result<Volume>> + Send + 'static {
    let open = move |_| {
        let _acting = act(OP, inner.identity)?;
        Names::open(inner)
    };
    stream::once(run(OP, Control::new(), open)).flat_map(|opened| match opened {
        Ok(Some(names)) => looked_at(names).left_stream(),
        Ok(None) => stream::empty().boxed().right_stream(),
        Err(error) => stream::once(async { Err(error) }).boxed().right_stream(),
    })
}

/// A few threads that take names by the batch, each until none is left.
fn looked_at(names: Names) -> impl Stream<Item = Result<Volume>> + Send + 'static {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MOST_THREADS);
    let inner = names.inner.clone();
    let names = Arc::new(Mutex::new(names));
    let (sink, source) = mpsc::channel(AHEAD);
    let workers = (0..threads).map(|_| {
        let (inner, names, sink) = (inner.clone(), names.clone(), sink.clone());
        tokio::task::spawn_blocking(move || {
            loop {
                let mut last = true;
                let looked = act(OP, inner.identity).and_then(|_acting| {
                    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
                    let batch = names.next_batch()?;
                    drop(names);
                    last = batch.is_empty();
                    Ok(inner.look_at(batch))
                });
                // Sending fails once nobody listens any more.
                if sink.blocking_send(looked).is_err() || last {
                    return;
                }
            }
        })
    });
    received(OP, source, workers.collect()).flat_map(|batch| match batch {
        Ok(volumes) => stream::iter(volumes),
        Err(error) => stream::iter(vec![Err(error)]),
    })
}

/// The names in `volumes/`.
struct Names {
    inner: Arc<Inner>,
    dir: Dir,
}

/// The volume that a file of `volumes/` is the record of.
pub fn volume_of(file_name: &CStr) -> Option<VolumeName> {
    let name = file_name.to_str().ok()?.strip_suffix(".json")?;
    VolumeName::new(name).ok()
}

impl Names {
    fn open(inner: Arc<Inner>) -> Result<Option<Names>> {
        let Some(pool) = inner.layout.pool(OP)? else {
            return Ok(None);
        };
        let dir = pool.record_dir();
        let dir = dir.map_err(|e| file_error(OP, inner.layout.full("volumes"), e))?;
        Ok(Some(Names { inner, dir }))
    }

    fn next_batch(&mut self) -> Result<Vec<VolumeName>> {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            match self.dir.read() {
                Some(Ok(entry)) => batch.extend(volume_of(entry.file_name())),
                Some(Err(errno)) => {
                    return Err(file_error(OP, self.inner.layout.full("volumes"), errno));
                }
                None => break,
            }
        }
        Ok(batch)
    }
}

impl Inner {
    fn look_at(&self, names: Vec<VolumeName>) -> Vec<Result<Volume>> {
        let Ok(pool) = self.pool(OP) else {
            return Vec::new();
        };
        let records = self.records(OP, pool, names);
        let one = |(name, record)| self.list_one(pool, name, record).transpose();
        records.into_iter().filter_map(one).collect()
    }

    /// One volume; `None` if it was deleted meanwhile.
    fn list_one(
        &self,
        pool: &PoolDirs,
        name: VolumeName,
        record: Result<Arc<VolumeRecord>>,
    ) -> Result<Option<Volume>> {
        let mut record = record?;
        loop {
            let file = record.data.to_string();
            match rustix::fs::statat(&pool.data, &file, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let blocks = ByteSize::new(stat.st_blocks as u64 * 512);
                    // Of a chain, only a walk through all of its files would tell.
                    let allocated = (!record.data.is_qcow2()).then_some(blocks);
                    return Ok(Some(record.to_volume(name, allocated)));
                }
                Err(rustix::io::Errno::NOENT) => {
                    // A revert or a delete may have come in between.
                    let Some(now) = self.find(OP, &name)? else {
                        return Ok(None);
                    };
                    if now.data == record.data {
                        return Err(Error::new(ErrorKind::Corrupt, OP)
                            .with("volume", name)
                            .with("path", self.layout.full("data").join(file).display())
                            .reason("the volume's data file is missing")
                            .help("restore it from a backup, or delete the volume"));
                    }
                    record = Arc::new(now);
                }
                Err(errno) => {
                    return Err(file_error(OP, self.layout.full("data").join(file), errno)
                        .with("volume", name));
                }
            }
        }
    }

    /// The records of `names`, without those that are gone; from memory where the file is still the
    /// one that was read before.
    fn records(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        names: Vec<VolumeName>,
    ) -> Vec<(VolumeName, Result<Arc<VolumeRecord>>)> {
        let now = SystemTime::now();
        let stamps: Vec<Option<Stamp>> = names.iter().map(|name| pool.stamp(name)).collect();
        let known = self.known_records.get(&names, &stamps);
        let mut read = Vec::new();
        let mut records = Vec::with_capacity(names.len());
        for ((name, stamp), known) in names.into_iter().zip(stamps).zip(known) {
            let record = match known {
                Some(record) => Ok(record),
                None => match self.find(op, &name) {
                    Ok(None) => continue,
                    Ok(Some(record)) => {
                        let record = Arc::new(record);
                        if let Some(stamp) = stamp.filter(|stamp| stamp.is_settled(now)) {
                            read.push((name.clone(), stamp, record.clone()));
                        }
                        Ok(record)
                    }
                    Err(error) => Err(error),
                },
            };
            records.push((name, record));
        }
        self.known_records.put(read);
        records
    }

    /// The sum of all virtual sizes. Volumes whose record can't be read count as nothing.
    pub fn provisioned(&self, op: &'static str, pool: &PoolDirs) -> Result<ByteSize> {
        let failed = |error| file_error(op, self.layout.full("volumes"), error);
        let mut names = Vec::new();
        for entry in pool.record_dir().map_err(failed)? {
            let entry = entry.map_err(|errno| failed(errno.into()))?;
            names.extend(volume_of(entry.file_name()));
        }
        let records = self.records(op, pool, names).into_iter();
        let sizes = records.filter_map(|(_, record)| Some(record.ok()?.virtual_size.bytes()));
        Ok(ByteSize::new(sizes.fold(0, u64::saturating_add)))
    }
}

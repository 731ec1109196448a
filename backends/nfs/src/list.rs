//! Listing: one pass over `volumes/`, a batch at a time, on a few threads.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, Stream, StreamExt};
use rustix::fs::{AtFlags, Dir, OFlags};
use volmux_core::{ByteSize, Control, Error, ErrorKind, Result, Volume, VolumeName};

use crate::known::Stamp;
use crate::layout::{PoolDirs, data_file, file_error, open_beneath};
use crate::pool::Inner;
use crate::queue::run;
use crate::record::VolumeRecord;

const OP: &str = "list_volumes";
/// Volumes looked at in one go: enough to make the hand-over between threads cheap.
const BATCH: usize = 512;
/// Batches in work at once. Each is bound by system calls on cached metadata.
const THREADS: usize = 4;

/// Every volume, in the order in which the directory gives them.
pub fn volumes(inner: Arc<Inner>) -> impl Stream<Item = Result<Volume>> + Send + 'static {
    stream::once(run(OP, Control::new(), move |_| Names::open(inner))).flat_map(|opened| {
        match opened {
            Ok(Some(names)) => batches(names).left_stream(),
            Ok(None) => stream::empty().boxed().right_stream(),
            Err(error) => stream::once(async { Err(error) }).boxed().right_stream(),
        }
    })
}

fn batches(names: Names) -> impl Stream<Item = Result<Volume>> + Send + 'static {
    let inner = names.inner.clone();
    stream::unfold(Some(names), |names| async move {
        let mut names = names?;
        let next = run(OP, Control::new(), move |_| {
            let batch = names.next_batch();
            Ok((batch, names))
        });
        match next.await {
            Ok((Ok(batch), _)) if batch.is_empty() => None,
            Ok((Ok(batch), names)) => Some((Ok(batch), Some(names))),
            Ok((Err(error), _)) | Err(error) => Some((Err(error), None)),
        }
    })
    .map(move |batch| {
        let inner = inner.clone();
        async move {
            let batch = batch?;
            run(OP, Control::new(), move |_| Ok(inner.look_at(batch))).await
        }
    })
    .buffered(THREADS)
    .flat_map(|batch| match batch {
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
        let dir = record_dir(pool).map_err(|e| file_error(OP, inner.layout.full("volumes"), e))?;
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

/// `volumes/`, with a position of its own.
pub fn record_dir(pool: &PoolDirs) -> rustix::io::Result<Dir> {
    let fd = open_beneath(&pool.volumes, ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    Dir::new(fd)
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
            let file = data_file(record.data);
            match rustix::fs::statat(&pool.data, &file, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let allocated = ByteSize::new(stat.st_blocks as u64 * 512);
                    return Ok(Some(record.to_volume(name, Some(allocated))));
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
        let failed = |errno| file_error(op, self.layout.full("volumes"), errno);
        let mut names = Vec::new();
        for entry in record_dir(pool).map_err(failed)? {
            names.extend(volume_of(entry.map_err(failed)?.file_name()));
        }
        let records = self.records(op, pool, names).into_iter();
        let sizes = records.filter_map(|(_, record)| Some(record.ok()?.virtual_size.bytes()));
        Ok(ByteSize::new(sizes.fold(0, u64::saturating_add)))
    }
}

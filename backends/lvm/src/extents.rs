//! Extents: what the thin pool's metadata says of volumes.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use volmux_core::{
    ByteRange, ByteSize, Error, ErrorKind, ExtentKind, ExtentQuery, ExtentStream, Grade, Result,
    VolumeId, VolumeName,
};

use crate::device::{LvmDevice, Of};
use crate::metadata::{Occupied, ThinMetadata};
use crate::pool::Inner;
use crate::report::Lv;
use crate::view::{Entry, View};

/// How often volumes that change meanwhile are looked at again.
const TRIES: usize = 5;
/// A thick volume has no unit but the disk's.
const SECTOR: u64 = 512;

type Ranges = BoxStream<'static, Result<ByteRange>>;

/// The extents of the volume `name`.
pub async fn extents(
    inner: &Arc<Inner>,
    name: &VolumeName,
    query: ExtentQuery,
) -> Result<ExtentStream> {
    const OP: &str = "extents";
    for _ in 0..TRIES {
        let view = inner.client.look(OP).await?;
        let entry = view.get(OP, name)?;
        let size = entry.size().bytes();
        let range = query.range.unwrap_or(ByteRange::new(0, size));
        range.check_within(size, OP)?;
        let (found, since) = match &query.kind {
            ExtentKind::Allocated => (inner.allocated_in(OP, &entry.lv, range).await?, None),
            ExtentKind::ChangedSince(since) => {
                inner.check_thin(OP, "changed extents")?;
                let since = view.get(OP, since)?;
                let found = inner.changed_in(OP, entry, since, range).await?;
                (found, Some(since))
            }
        };
        // LVM gives the numbers of thin devices away again.
        let now = inner.client.look(OP).await?;
        if [Some(entry), since]
            .into_iter()
            .flatten()
            .all(|e| is_still(&now, e))
        {
            return Ok(named(found, name.clone()));
        }
    }
    Err(Error::new(ErrorKind::Busy, OP).reason("the volume changes all the time"))
}

/// The allocated extents of an open volume.
pub async fn of_device(
    device: &LvmDevice,
    op: &'static str,
    range: ByteRange,
) -> Result<ExtentStream> {
    let gone = || Error::new(ErrorKind::NotFound, op).reason("the volume is gone from the pool");
    let inner = &device.inner;
    // Open, it keeps its thin device.
    let view = inner.client.look(op).await?;
    let lv = match &device.of {
        Of::Volume(id) => lv_of(&view, *id),
        Of::Hidden(name) => view.report.find(name),
    };
    let found = inner.allocated_in(op, lv.ok_or_else(gone)?, range).await?;
    Ok(named(found, device.name.clone()))
}

/// The logical volume of a volume, or of what is to become one.
fn lv_of(view: &View, id: VolumeId) -> Option<&Arc<Lv>> {
    let half_made = || view.half_made.values().find(|entry| entry.record.id == id);
    view.by_id(id).or_else(half_made).map(|entry| &entry.lv)
}

/// Whether a volume still is the same thin device. The number of one just made is not known yet.
fn is_still(view: &View, entry: &Entry) -> bool {
    view.find(&entry.name).is_some_and(|now| {
        let number = entry.lv.thin_id;
        now.record.id == entry.record.id && (number.is_none() || now.lv.thin_id == number)
    })
}

/// Names the volume in each error.
fn named(found: ExtentStream, name: VolumeName) -> ExtentStream {
    let (grade, granularity) = (found.grade(), found.granularity());
    let extents = found.map(move |extent| {
        extent.map_err(|error| match error.get("volume") {
            None => error.with("volume", &name),
            Some(_) => error,
        })
    });
    ExtentStream::new(grade, granularity, extents)
}

impl Inner {
    /// What a volume occupies, and what of it no other one shares; `None` for a thick one, where the
    /// tools for that are not installed, and while others read the metadata all the time.
    pub async fn allocated(
        &self,
        op: &'static str,
        view: &View,
        entry: &Entry,
    ) -> Result<Option<(ByteSize, ByteSize)>> {
        if entry.lv.segtype != "thin" || view.pool.is_none() {
            return Ok(None);
        }
        let number = self.number(op, &entry.lv).await?;
        match self.metadata(op).await?.usage(op).await {
            // A device that maps nothing may be left out.
            Ok(usage) => Ok(Some(
                usage.get(&number).map_or_else(Default::default, sizes),
            )),
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Busy) => {
                tracing::debug!(%error, "what volumes occupy is not known");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What each thin device of the pool occupies.
    pub async fn thin_devices(
        &self,
        op: &'static str,
        view: &View,
    ) -> Result<HashMap<u64, (ByteSize, ByteSize)>> {
        if view.pool.is_none() {
            return Ok(HashMap::new());
        }
        let usage = self.metadata(op).await?.usage(op).await?;
        Ok(usage
            .iter()
            .map(|(number, occupied)| (u64::from(*number), sizes(occupied)))
            .collect())
    }

    /// What of `range` is mapped.
    async fn allocated_in(
        &self,
        op: &'static str,
        lv: &Lv,
        range: ByteRange,
    ) -> Result<ExtentStream> {
        if lv.segtype != "thin" {
            // All of it may hold data.
            let whole = Some(range).filter(|range| !range.is_empty());
            let whole = stream::iter(whole.map(Ok));
            return Ok(ExtentStream::new(Grade::Superset, SECTOR, whole));
        }
        let chunk = self.chunk(op).await?;
        let found = self.mapped(op, lv, range).await?;
        Ok(ExtentStream::new(Grade::Exact, chunk, found))
    }

    async fn mapped(&self, op: &'static str, lv: &Lv, range: ByteRange) -> Result<Ranges> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let number = self.number(op, lv).await?;
        let metadata = self.metadata(op).await?;
        Ok(metadata.allocated(op, number, range).await?.boxed())
    }

    /// What of `range` may have changed.
    async fn changed_in(
        &self,
        op: &'static str,
        entry: &Entry,
        since: &Entry,
        range: ByteRange,
    ) -> Result<ExtentStream> {
        let chunk = self.chunk(op).await?;
        // Past the end of what is not shrunk yet, its thin device still maps what does not count
        // any more. The chunk that it ends in is part of that.
        let end = since.size().bytes();
        let end = if end < since.lv.size.bytes() {
            end / chunk * chunk
        } else {
            u64::MAX
        };
        let before = range.intersect(&ByteRange::from_to(0, end));
        let past = ByteRange::from_to(range.offset.max(end), range.end());
        let changed = if entry.record.id == since.record.id || before.is_empty() {
            stream::empty().boxed()
        } else {
            let (now, then) = (
                self.number(op, &entry.lv).await?,
                self.number(op, &since.lv).await?,
            );
            let metadata = self.metadata(op).await?;
            metadata.changed(op, now, then, before).await?.boxed()
        };
        let found = if past.is_empty() {
            changed
        } else {
            // Only then: one at a time can read the metadata.
            let (number, metadata) = (self.number(op, &entry.lv).await?, self.metadata(op).await?);
            let past = async move { metadata.allocated(op, number, past).await };
            changed.chain(stream::once(past).try_flatten()).boxed()
        };
        Ok(ExtentStream::new(Grade::Superset, chunk, found))
    }

    /// The metadata of the thin pool, which is activated if need be.
    async fn metadata(&self, op: &'static str) -> Result<ThinMetadata> {
        let view = self.client.last(op).await?;
        let pool = view.pool.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Internal, op).reason("a pool of thick volumes has no metadata")
        })?;
        self.pool_state(op, pool).await?;
        let lock = format!("{}.metadata.lock", pool.name);
        let lock = self.client.run_file(op, &lock)?;
        Ok(ThinMetadata::new(
            &self.client.config.group,
            &pool.name,
            lock,
        ))
    }

    /// The number of a thin device in the pool's metadata. What was made just now is asked for: lvm2
    /// chose the number.
    async fn number(&self, op: &'static str, lv: &Lv) -> Result<u32> {
        let mut number = lv.thin_id;
        if number.is_none() {
            self.client.forget().await;
            let view = self.client.look(op).await?;
            let found = view.report.find(&lv.name);
            number = found.and_then(|now| now.thin_id);
        }
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| {
                Error::new(ErrorKind::Busy, op)
                    .with("logical_volume", &lv.name)
                    .reason("lvm2 does not say which thin device it is: it was removed or renamed")
            })
    }

    async fn chunk(&self, op: &'static str) -> Result<u64> {
        let view = self.client.last(op).await?;
        self.chunk_size(&view).ok_or_else(|| {
            Error::new(ErrorKind::Internal, op)
                .reason("lvm2 does not say how large the thin pool's chunks are")
        })
    }
}

fn sizes(occupied: &Occupied) -> (ByteSize, ByteSize) {
    (
        ByteSize::new(occupied.mapped),
        ByteSize::new(occupied.exclusive),
    )
}

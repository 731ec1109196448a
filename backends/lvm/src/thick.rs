//! Thick volumes: what their extents held before is never to be read, so they are zeroed as logical
//! volumes that nobody opens. Others change the group meanwhile, for that takes as long as it takes.

use std::sync::Arc;

use volmux_core::{
    ByteRange, ByteSize, Error, ErrorKind, Provisioning, Result, Volume, VolumeId, VolumeName,
    ZeroOptions,
};

use crate::change::Change;
use crate::lifecycle::check_making;
use crate::locks::VolumeLocks;
use crate::names::Hidden;
use crate::pool::Inner;
use crate::raw::RawDisk;
use crate::tags::{Record, Work};
use crate::view::Entry;

/// Makes a thick volume, which counts once all of it is zeros.
pub async fn create(
    inner: &Arc<Inner>,
    mut change: Change,
    name: &VolumeName,
    size: ByteSize,
    mut record: Record,
) -> Result<Volume> {
    const OP: &str = "create_volume";
    record.work = Some(Work::Making);
    let made = VolumeLocks::of(change.client(), OP, record.id)?.alone_now()?;
    change
        .create_thick(name.as_str(), size.bytes(), &record.tags())
        .await?;
    // In one's turn, so that this is the one that has the name.
    let disk = RawDisk::open(&inner.client, OP, name.as_str(), None).await;
    drop(change);
    let zeroed = zero(disk, OP, size).await;
    let mut change = inner.client.change(OP).await?;
    drop(made);
    let ours = check_making(OP, &change, name, record.id);
    if let Err(error) = zeroed {
        if ours.is_ok() {
            change.remove(name.as_str()).await?;
        }
        return Err(error);
    }
    ours?;
    change
        .retag(name.as_str(), &[], &[Work::Making.tag()])
        .await?;
    Ok(change.view().get(OP, name)?.volume())
}

/// Writes zeros over all of a logical volume that nobody uses.
async fn zero(disk: Result<RawDisk>, op: &'static str, size: ByteSize) -> Result<()> {
    let disk = disk?;
    let range = ByteRange::new(0, size.bytes());
    let zeroed = disk.write_zeroes(range, ZeroOptions::default()).await;
    let flushed = match zeroed {
        Ok(()) => disk.flush().await,
        Err(error) => Err(error),
    };
    disk.close(op).await?;
    flushed
}

/// Refuses thick volumes whose extents lvm2 chooses and rounds by itself.
pub fn check_resizable(op: &'static str, entry: &Entry) -> Result<()> {
    if entry.provisioning() == Provisioning::Thin || entry.lv.segtype == "linear" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, op)
        .with("segment_type", &entry.lv.segtype)
        .reason("only linear logical volumes can be resized, and this one was adopted as another")
        .help("use lvextend or lvreduce; new extents hold what was there before"))
}

/// Grows a thick volume by extents that are zeroed first, so that what another volume left in them
/// can't be read for a moment, not even where the device is in use.
pub async fn grow(
    inner: &Arc<Inner>,
    mut change: Change,
    entry: &Entry,
    growth: ByteSize,
) -> Result<Change> {
    const OP: &str = "resize_volume";
    // Of its own, and locked: an audit must not take it for what was left behind.
    let id = VolumeId::random();
    let locks = VolumeLocks::of(&inner.client, OP, id)?;
    let alone = locks.alone_now()?;
    let hidden = Hidden::Zero.name(id);
    change.create_thick(&hidden, growth.bytes(), &[]).await?;
    let disk = RawDisk::open(&inner.client, OP, &hidden, None).await;
    drop(change);
    let zeroed = zero(disk, OP, growth).await;
    let mut change = inner.client.change(OP).await?;
    let ranges = match zeroed.and_then(|()| check_same(OP, &change, entry)) {
        Ok(()) => change.extents_of(&hidden).await,
        Err(error) => Err(error),
    };
    change.remove(&hidden).await?;
    if let Some(alone) = alone {
        locks.forget(alone);
    }
    change
        .extend_by(&entry.lv.name, growth.bytes(), &ranges?)
        .await?;
    Ok(change)
}

/// `Busy` if a volume is not what it was.
fn check_same(op: &'static str, change: &Change, entry: &Entry) -> Result<()> {
    let now = change.view().by_id(entry.record.id);
    if now.is_some_and(|now| now.lv.name == entry.lv.name && now.lv.size == entry.lv.size) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, op)
        .with("volume", &entry.name)
        .reason("the volume was renamed, resized or deleted by somebody else meanwhile")
        .help("try again"))
}

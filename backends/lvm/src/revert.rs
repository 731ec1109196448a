//! Revert: the new content first, then the names are exchanged, and the old content goes last.

use std::sync::Arc;

use volmux_core::{ByteSize, Control, Error, ErrorKind, Result, SpaceRequest, Volume, VolumeName};

use crate::lifecycle::{alone, check_not_snapshot, finished, remove_hidden};
use crate::names::Hidden;
use crate::pool::Inner;
use crate::tags::Work;
use crate::view::Entry;

pub async fn revert(
    inner: Arc<Inner>,
    name: VolumeName,
    snapshot: VolumeName,
    control: Control,
) -> Result<Volume> {
    const OP: &str = "revert_volume";
    inner.check_thin(OP, "snapshots")?;
    control.check(OP)?;
    let mut change = inner.client.change(OP).await?;
    let entry = finished(&inner, OP, &mut change, &name).await?;
    let from = change.view().get(OP, &snapshot)?.clone();
    check_not_snapshot(OP, &entry, "reverted")?;
    check_own_snapshot(OP, &entry, &from)?;
    let _alone = alone(OP, &change, &entry).await?;
    let growth = from.size().bytes().saturating_sub(entry.size().bytes());
    let request = SpaceRequest {
        provisioned: ByteSize::new(growth),
        reserved: ByteSize::ZERO,
    };
    inner.admit(OP, &mut change, request).await?;

    let id = entry.record.id;
    let (new, old) = (Hidden::Revert.name(id), Hidden::Old.name(id));
    remove_hidden(&mut change, &[new.clone(), old.clone()]).await?;
    let mut record = entry.record.clone();
    record.work = Some(Work::Naming(name.clone()));
    change
        .snapshot(&from.lv, &new, &record.tags(), false)
        .await?;
    // From here on the volume has the new content, whatever happens.
    change.rename(&entry.lv.name, &old).await?;
    let entry = finished(&inner, OP, &mut change, &name).await?;
    Ok(entry.volume())
}

fn check_own_snapshot(op: &'static str, entry: &Entry, from: &Entry) -> Result<()> {
    let origin = from.record.origin.as_ref();
    let own = origin.is_some_and(|origin| origin.parent_id == entry.record.id);
    if own && from.record.is_snapshot() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, op)
        .with("snapshot", &from.name)
        .reason("that is not a snapshot of this volume")
        .help("name one of its own snapshots; to start from something else, make a clone of it"))
}

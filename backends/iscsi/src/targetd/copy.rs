//! Full copies, over iSCSI.
//!
//! targetd can't rename, so what is copied into can't be the copy itself: a copy that was cut short
//! would look like one that is done. What is asked for is made of it by `vol_copy` when all is
//! there, in one step; then it is deleted, and the copy has its blocks alone.

use std::sync::Arc;

use tokio::sync::oneshot;
use volmux_core::transfer::copy_device;
use volmux_core::{Control, Error, ErrorKind, OpenOptions, Result, Volume, VolumeName};

use super::array::Array;
use super::{exports, lifecycle, names};

const OP: &str = "copy_volume";

/// Ends early once `gone` is told or dropped: the caller is gone.
pub(super) async fn copy(
    array: &Arc<Array>,
    source: &VolumeName,
    name: &VolumeName,
    control: &Control,
    gone: oneshot::Receiver<()>,
) -> Result<Volume> {
    array.check_name(OP, name)?;
    array.check_clones(OP)?;
    let Some(there) = lifecycle::prepare(array, OP, source, name).await? else {
        return array.volume(OP, name).await;
    };
    control.check(OP)?;
    array.admit(OP, name, there.size).await?;
    let (moment, filled) = (names::hidden(), names::hidden());
    let copied = async {
        let mut gone = gone;
        lifecycle::link(array, OP, source, &moment, there.size).await?;
        lifecycle::make(array, OP, &filled, there.size).await?;
        tokio::select! {
            filled = fill(array, &moment, &filled, control) => filled?,
            _ = &mut gone => return Err(Error::new(ErrorKind::TimedOut, OP)
                .reason("the caller is gone")),
        }
        control.check(OP)?;
        lifecycle::link(array, OP, &filled, name, there.size).await
    };
    let copied = copied.await;
    let mut left = Vec::new();
    for hidden in [&moment, &filled] {
        if let Err(error) = remove(array, OP, hidden.as_str()).await {
            tracing::warn!(%error, volume = %hidden, "a copy left something behind: see audit");
            left.push(hidden.as_str());
        }
    }
    match copied {
        Err(error) if !left.is_empty() => Err(error.with("left_behind", left.join(" "))),
        copied => copied,
    }
}

/// Copies the data of `from` into `to`, which is empty.
async fn fill(
    array: &Arc<Array>,
    from: &VolumeName,
    to: &VolumeName,
    control: &Control,
) -> Result<()> {
    let reader = array.open(from, OpenOptions::read_only()).await?;
    let writer = array.open(to, OpenOptions::read_write()).await?;
    copy_device(reader.as_ref(), writer.as_ref(), control).await?;
    Ok(())
}

/// Deletes what a copy needed meanwhile, whoever still has it.
pub(super) async fn remove(array: &Array, op: &'static str, hidden: &str) -> Result<()> {
    if let Some(there) = array.find(op, hidden).await? {
        exports::take_away(array, op, &there, None).await?;
        lifecycle::delete(array, hidden).await?;
    }
    Ok(())
}

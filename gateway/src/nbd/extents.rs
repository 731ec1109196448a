//! Metadata contexts: what `NBD_CMD_BLOCK_STATUS` tells of ranges.

use futures::StreamExt;
use volmux_core::{ByteRange, ExtentQuery, ExtentStream, Result, VolumeId, VolumeName};

use super::request::{Answer, Session};

/// The context that tells data from holes.
pub(crate) const ALLOCATION: &str = "base:allocation";
/// Our namespace. Those that are not registered begin with `x-`.
pub(crate) const NAMESPACE: &str = "x-volmux:";
/// What the contexts that tell changed ranges begin with; the snapshot's name follows.
pub(crate) const CHANGED_SINCE: &str = "x-volmux:changed-since:";

/// `NBD_STATE_HOLE` and `NBD_STATE_ZERO`.
const HOLE_AND_ZERO: u32 = 3;
/// As `NBD_STATE_DIRTY` of QEMU's dirty bitmaps.
const CHANGED: u32 = 1;

/// The most ranges that one reply has for one context.
const MOST: usize = 8192;
/// The memory that they take.
pub(crate) const MOST_BYTES: u64 = (MOST * size_of::<Descriptor>()) as u64;

/// A metadata context that a client selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) id: u32,
    pub(crate) kind: ContextKind,
}

/// What a context tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ContextKind {
    Allocation,
    /// A snapshot, and which one: another may come to have its name.
    ChangedSince(VolumeName, VolumeId),
}

impl ContextKind {
    /// The name on the wire.
    pub(crate) fn name(&self) -> String {
        match self {
            ContextKind::Allocation => ALLOCATION.to_owned(),
            ContextKind::ChangedSince(snapshot, _) => format!("{CHANGED_SINCE}{snapshot}"),
        }
    }
}

/// A range that follows the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) length: u64,
    pub(crate) flags: u32,
}

/// The status of `range` in each of the session's contexts that `chosen` names by its index.
pub(crate) async fn status(
    session: &Session,
    range: ByteRange,
    one: bool,
    chosen: Vec<usize>,
) -> Result<Answer> {
    let most = if one { 1 } else { MOST };
    let mut answers = Vec::with_capacity(chosen.len());
    for index in chosen {
        let context = &session.contexts[index];
        let descriptors = match &context.kind {
            ContextKind::Allocation => {
                let extents = session.export.device().extents(range).await?;
                describe(extents, range, 0, HOLE_AND_ZERO, most).await?
            }
            ContextKind::ChangedSince(snapshot, id) => {
                let query = ExtentQuery::changed_since(snapshot.clone()).within(range);
                session.export.check_names(snapshot, *id).await?;
                let extents = session.export.extents(query).await?;
                let descriptors = describe(extents, range, CHANGED, 0, most).await?;
                // The pool was asked by name. Had another volume taken a name meanwhile, this
                // would be its map, and the client must not rely on it or see it.
                session.export.check_names(snapshot, *id).await?;
                descriptors
            }
        };
        answers.push((context.id, descriptors));
    }
    Ok(Answer::Status(answers))
}

/// `range` as ranges that follow each other without a gap, `most` at most: those of `extents` with
/// the flags `inside`, those between them with `outside`.
async fn describe(
    mut extents: ExtentStream,
    range: ByteRange,
    inside: u32,
    outside: u32,
    most: usize,
) -> Result<Vec<Descriptor>> {
    let mut found: Vec<Descriptor> = Vec::new();
    let mut at = range.offset;
    let mut push = |length: u64, flags: u32| -> bool {
        let full = found.len() == most;
        match found.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ if length == 0 => {}
            // The one before is known to be whole only now.
            _ if full => return false,
            _ => found.push(Descriptor { length, flags }),
        }
        true
    };
    while let Some(extent) = extents.next().await {
        let extent = extent?;
        let gap = extent.offset.saturating_sub(at);
        if !push(gap, outside) || !push(extent.length, inside) {
            return Ok(found);
        }
        at = extent.end();
    }
    push(range.end().saturating_sub(at), outside);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use volmux_core::Grade;

    use super::*;

    async fn described(extents: &[(u64, u64)], most: usize) -> Vec<(u64, u32)> {
        let extents: Vec<_> = extents
            .iter()
            .map(|&(from, to)| Ok(ByteRange::from_to(from, to)))
            .collect();
        let extents = ExtentStream::new(Grade::Exact, 1, stream::iter(extents));
        let found = describe(extents, ByteRange::from_to(100, 200), 1, 0, most).await;
        found
            .expect("no extent is an error")
            .into_iter()
            .map(|d| (d.length, d.flags))
            .collect()
    }

    #[tokio::test]
    async fn gaps_and_extents_follow_each_other() {
        assert_eq!(described(&[], 9).await, [(100, 0)]);
        assert_eq!(described(&[(100, 200)], 9).await, [(100, 1)]);
        assert_eq!(
            described(&[(100, 110), (120, 150)], 9).await,
            [(10, 1), (10, 0), (30, 1), (50, 0)]
        );
        assert_eq!(
            described(&[(110, 120), (120, 200)], 9).await,
            [(10, 0), (90, 1)]
        );
    }

    #[tokio::test]
    async fn one_range_is_as_long_as_it_can_be() {
        assert_eq!(
            described(&[(100, 110), (110, 150), (160, 170)], 1).await,
            [(50, 1)]
        );
        assert_eq!(described(&[(160, 170)], 1).await, [(60, 0)]);
        assert_eq!(described(&[(160, 170)], 2).await, [(60, 0), (10, 1)]);
    }
}

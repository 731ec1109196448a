//! The allocated extents of a logical unit, as it tells them itself (GET LBA STATUS).

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use tokio::time::Instant;
use volmux_core::{ByteRange, ExtentStream, Grade, Result};

use crate::scsi::{BlockState, LbaStatus};
use crate::session::Attached;

/// Within which one answer has to come.
const ANSWER: Duration = Duration::from_secs(60);

/// The allocated extents within `range`. All of it, where the unit does not tell.
///
/// # Errors
/// Those of the data path.
pub async fn of_unit(
    attached: Arc<Attached>,
    op: &'static str,
    range: ByteRange,
    until: Instant,
) -> Result<ExtentStream> {
    let block = attached.block_size();
    let all = || {
        let whole = (!range.is_empty()).then_some(Ok(range));
        ExtentStream::new(Grade::Superset, block, stream::iter(whole))
    };
    if range.is_empty() || !attached.tells_lba_status() {
        return Ok(all());
    }
    // One answer now, so that a unit that can't do it is found out before the stream is.
    let first = attached.lba_status(op, range.offset / block, until).await;
    let first = match first {
        Err(error) if error.kind() == volmux_core::ErrorKind::Unsupported => return Ok(all()),
        first => first?,
    };
    let mut walk = Walk {
        attached,
        op,
        range,
        block,
        at: range.offset,
        pieces: Vec::new(),
    };
    walk.take(&first);
    Ok(ExtentStream::new(
        Grade::Superset,
        block,
        stream::unfold(Some(walk), |walk| async move {
            let mut walk = walk?;
            match walk.next().await {
                Ok(extent) => extent.map(|extent| (Ok(extent), Some(walk))),
                Err(error) => Some((Err(error), None)),
            }
        }),
    ))
}

/// A walk over the unit, answer by answer.
struct Walk {
    attached: Arc<Attached>,
    op: &'static str,
    range: ByteRange,
    block: u64,
    /// What is before it is known.
    at: u64,
    /// Allocated ranges before `at` that were not given out yet, the last one first.
    pieces: Vec<ByteRange>,
}

impl Walk {
    /// Adds one answer. One that does not go on from here says nothing: the rest counts as data.
    fn take(&mut self, answer: &[LbaStatus]) {
        let mut found = Vec::new();
        let mut moved = false;
        for status in answer {
            let start = status.lba.saturating_mul(self.block);
            let end = start.saturating_add(status.blocks.saturating_mul(self.block));
            if start > self.at || end <= self.at {
                continue;
            }
            let piece = ByteRange::from_to(self.at, end.min(self.range.end()));
            if status.state == BlockState::Mapped && !piece.is_empty() {
                found.push(piece);
            }
            self.at = piece.end();
            moved = true;
        }
        if !moved {
            found.push(ByteRange::from_to(self.at, self.range.end()));
            self.at = self.range.end();
        }
        found.reverse();
        self.pieces = found;
    }

    async fn next(&mut self) -> Result<Option<ByteRange>> {
        loop {
            if let Some(piece) = self.pieces.pop() {
                return Ok(Some(piece));
            }
            if self.at >= self.range.end() {
                return Ok(None);
            }
            let until = Instant::now() + ANSWER;
            let lba = self.at / self.block;
            let answer = self.attached.lba_status(self.op, lba, until).await?;
            self.take(&answer);
        }
    }
}

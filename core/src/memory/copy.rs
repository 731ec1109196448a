//! Full duplicates.

use std::sync::Arc;

use super::space::{Reservation, Space};
use super::tree::{BLOCK, Blocks, Effects, Fill, Tree};
use crate::{ByteRange, Control, Result};

/// A copy gives way to others after this many blocks.
const STEP: u64 = 256;

/// Duplicates `from` block by block, having set `blocks` aside, and returns with the duplicate what
/// of them it did not take. `None` where there is no room.
pub(super) async fn duplicate(
    space: &Arc<Space>,
    from: &Tree,
    blocks: u64,
    control: &Control,
) -> Result<Option<(Tree, Reservation)>> {
    let Some(mut reservation) = space.reserve(blocks) else {
        return Ok(None);
    };
    let mut tree = Tree::new(space.clone());
    let total = from.mapped() * BLOCK;
    control.report(0, total);
    let mut at = Some(0);
    while let Some(first) = at {
        let end = u64::MAX / BLOCK;
        let (runs, next) = from.scan(None, Blocks { first, end });
        at = next;
        for step in runs
            .into_iter()
            .flat_map(|run| steps(run.blocks, run.zeros))
        {
            control.check("copy_volume")?;
            let mut effects = Effects::default();
            match step {
                Step::Zeros(blocks) => tree.fill(blocks, Fill::Zeros, &mut effects),
                Step::Data(blocks) => {
                    let range = ByteRange::from_to(blocks.first * BLOCK, blocks.end * BLOCK);
                    let mut bytes = Vec::with_capacity(range.length as usize);
                    from.read(range, &mut bytes);
                    tree.write(range.offset, &bytes, &mut effects);
                }
            }
            // At once, so that both sides are right when the future is dropped in between.
            reservation.keep(effects.created);
            control.report(tree.mapped() * BLOCK, total);
            tokio::task::yield_now().await;
        }
    }
    Ok(Some((tree, reservation)))
}

enum Step {
    Zeros(Blocks),
    Data(Blocks),
}

fn steps(blocks: Blocks, zeros: bool) -> impl Iterator<Item = Step> {
    let stride = if zeros { usize::MAX } else { STEP as usize };
    (blocks.first..blocks.end)
        .step_by(stride)
        .map(move |first| {
            if zeros {
                Step::Zeros(blocks)
            } else {
                let end = blocks.end.min(first + STEP);
                Step::Data(Blocks { first, end })
            }
        })
}

//! One volume: its content, and who has it open.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use super::space::Space;
use super::tree::{BLOCK, Blocks, Effects, Fill, Tree};
use crate::{
    Access, ByteRange, ByteSize, OpenOptions, Origin, OriginKind, Provisioning, Sharing, Volume,
    VolumeId, VolumeName,
};

/// A volume of a memory pool. Its name is the pool's business.
#[derive(Debug)]
pub(super) struct MemoryVolume {
    pub(super) id: VolumeId,
    pub(super) created: SystemTime,
    pub(super) origin: Option<Origin>,
    content: RwLock<Content>,
}

impl MemoryVolume {
    pub(super) fn new(content: Content, origin: Option<Origin>) -> Self {
        MemoryVolume {
            id: VolumeId::random(),
            created: SystemTime::now(),
            origin,
            content: RwLock::new(content),
        }
    }

    pub(super) fn is_snapshot(&self) -> bool {
        self.origin
            .as_ref()
            .is_some_and(|o| o.kind == OriginKind::Snapshot)
    }

    // No code that holds these locks calls foreign code, so a poisoned one is still whole.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the pool says of it; without `exclusive`, which takes a walk.
    pub(super) fn describe(&self, name: &VolumeName) -> Volume {
        let content = self.read();
        let mut volume = Volume::new(name.clone(), self.id, ByteSize::new(content.size));
        volume.allocated = Some(blocks(content.tree.mapped() + content.unwritten()));
        volume.provisioning = content.provisioning();
        volume.origin.clone_from(&self.origin);
        volume.created = self.created;
        volume
    }

    /// What deleting it would free.
    pub(super) fn exclusive(&self) -> ByteSize {
        let content = self.read();
        let owned = content.tree.survey(content.all()).owned;
        blocks(owned + content.unwritten())
    }
}

fn blocks(count: u64) -> ByteSize {
    ByteSize::new(count * BLOCK)
}

/// What a volume holds, and who has it open.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) tree: Tree,
    /// In bytes.
    pub(super) size: u64,
    thick: bool,
    /// Writers of an earlier epoch are fenced.
    pub(super) epoch: u64,
    readers: u64,
    writers: u64,
    /// Whether the present writers share.
    shared: bool,
}

impl Content {
    pub(super) fn new(tree: Tree, size: u64, provisioning: Provisioning) -> Self {
        Content {
            tree,
            size,
            thick: provisioning == Provisioning::Thick,
            epoch: 0,
            readers: 0,
            writers: 0,
            shared: false,
        }
    }

    pub(super) fn provisioning(&self) -> Provisioning {
        if self.thick {
            Provisioning::Thick
        } else {
            Provisioning::Thin
        }
    }

    /// Every block of the volume.
    pub(super) fn all(&self) -> Blocks {
        Blocks {
            first: 0,
            end: self.size.div_ceil(BLOCK),
        }
    }

    /// Blocks of a thick volume that are set aside and not written.
    pub(super) fn unwritten(&self) -> u64 {
        if self.thick {
            self.all().end - self.tree.mapped()
        } else {
            0
        }
    }

    pub(super) fn in_use(&self) -> bool {
        self.readers + self.writers > 0
    }

    /// Lets a holder in, or refuses because of a writer.
    pub(super) fn open(&mut self, options: OpenOptions) -> bool {
        if options.take_over {
            self.epoch += 1;
            self.writers = 0;
        }
        if options.access == Access::ReadOnly {
            self.readers += 1;
            return true;
        }
        let shared = options.sharing == Sharing::Shared;
        if self.writers > 0 && !(self.shared && shared) {
            return false;
        }
        self.writers += 1;
        self.shared = shared;
        true
    }

    /// A holder who opened in `epoch` is done.
    pub(super) fn close(&mut self, access: Access, epoch: u64) {
        match access {
            Access::ReadOnly => self.readers -= 1,
            // A fenced writer was struck off when it was fenced.
            Access::ReadWrite if epoch == self.epoch => self.writers -= 1,
            Access::ReadWrite => {}
        }
    }

    /// Does `edit` with at most `need` more blocks counted, or nothing and `None` where they are
    /// not free. Drop what it returns without the lock: that frees what was replaced.
    pub(super) fn change(
        &mut self,
        space: &Arc<Space>,
        need: u64,
        edit: impl FnOnce(&mut Content, &mut Effects),
    ) -> Option<Effects> {
        let before = self.unwritten();
        let reservation = space.reserve(need)?;
        let mut effects = Effects::default();
        edit(self, &mut effects);
        let kept = effects.created.cast_signed() + self.unwritten().cast_signed();
        reservation.settle(kept - before.cast_signed());
        Some(effects)
    }

    /// Writes `data`, which lies within the volume.
    pub(super) fn write(
        &mut self,
        space: &Arc<Space>,
        offset: u64,
        data: &[u8],
    ) -> Option<Effects> {
        let end = (offset + data.len() as u64).div_ceil(BLOCK);
        let first = offset / BLOCK;
        let need = self.need(Blocks { first, end }, true);
        self.change(space, need, |content, effects| {
            content.tree.write(offset, data, effects);
        })
    }

    /// Makes a range within the volume read as zeros: whole blocks are freed or allocated, others
    /// changed in part.
    pub(super) fn zero(
        &mut self,
        space: &Arc<Space>,
        range: ByteRange,
        free: bool,
    ) -> Option<Effects> {
        let plan = ZeroPlan::new(range, self.size);
        let whole = self.tree.survey(plan.whole);
        let mut need = match (self.thick, free) {
            // What was set aside for a freed block was turned into the block, and that stays with
            // who shares it.
            (true, _) => whole.shared,
            (false, true) => 0,
            (false, false) => whole.shared + whole.absent,
        };
        for part in plan.partly.iter().flatten() {
            need += self.need(part.block(), !free);
        }
        self.change(space, need, |content, effects| {
            plan.apply(&mut content.tree, free, effects);
        })
    }

    /// Blocks that writing to `blocks` can count more than before: shared ones are copied, and
    /// absent ones may be made.
    fn need(&self, blocks: Blocks, makes: bool) -> u64 {
        let survey = self.tree.survey(blocks);
        if makes && !self.thick {
            survey.shared + survey.absent
        } else {
            survey.shared
        }
    }

    /// Changes the size. What lies past a smaller one is gone.
    pub(super) fn resize(&mut self, space: &Arc<Space>, size: u64) -> Option<Effects> {
        let lost = ByteRange::from_to(size, self.size);
        let plan = ZeroPlan::new(lost, self.size);
        let mut need = plan
            .partly
            .iter()
            .flatten()
            .map(|part| self.need(part.block(), false))
            .sum();
        if self.thick {
            need += size.div_ceil(BLOCK).saturating_sub(self.all().end);
        }
        self.change(space, need, |content, effects| {
            if !lost.is_empty() {
                plan.apply(&mut content.tree, true, effects);
            }
            content.size = size;
        })
    }

    /// Takes over the content and size of another volume.
    pub(super) fn become_copy_of(
        &mut self,
        space: &Arc<Space>,
        tree: Tree,
        size: u64,
    ) -> Option<(Effects, Tree)> {
        let after = size.div_ceil(BLOCK) - tree.mapped();
        let need = if self.thick {
            after.saturating_sub(self.unwritten())
        } else {
            0
        };
        let mut old = tree;
        let effects = self.change(space, need, |content, _| {
            std::mem::swap(&mut content.tree, &mut old);
            content.size = size;
        })?;
        Some((effects, old))
    }
}

/// A range taken apart into whole blocks and the parts at its ends.
#[derive(Debug)]
struct ZeroPlan {
    whole: Blocks,
    partly: [Option<Part>; 2],
}

#[derive(Clone, Copy, Debug)]
struct Part {
    offset: u64,
    length: usize,
}

impl Part {
    fn new(from: u64, to: u64) -> Option<Part> {
        (from < to).then(|| Part {
            offset: from,
            length: (to - from) as usize,
        })
    }

    fn block(self) -> Blocks {
        let first = self.offset / BLOCK;
        Blocks {
            first,
            end: first + 1,
        }
    }
}

impl ZeroPlan {
    fn new(range: ByteRange, size: u64) -> Self {
        // The last block is whole where the range reaches the volume's end.
        let end = if range.end() == size {
            size.next_multiple_of(BLOCK)
        } else {
            range.end()
        };
        let first = range.offset.div_ceil(BLOCK);
        let whole_end = end / BLOCK;
        let head_end = end.min(first * BLOCK);
        let tail = head_end.max(whole_end * BLOCK);
        ZeroPlan {
            whole: Blocks {
                first,
                end: whole_end,
            },
            partly: [Part::new(range.offset, head_end), Part::new(tail, end)],
        }
    }

    fn apply(&self, tree: &mut Tree, free: bool, effects: &mut Effects) {
        for part in self.partly.iter().flatten() {
            if tree.has_data(part.offset / BLOCK) {
                let zeros = [0; BLOCK as usize];
                tree.write(part.offset, &zeros[..part.length], effects);
            } else if !free {
                tree.fill(part.block(), Fill::Zeros, effects);
            }
        }
        let with = if free { Fill::Hole } else { Fill::Zeros };
        tree.fill(self.whole, with, effects);
    }
}

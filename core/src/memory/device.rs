//! An open volume of a memory pool.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::space::Space;
use super::tree::{BLOCK, Blocks, Effects, Run, Tree};
use super::volume::{Content, MemoryVolume};
use crate::{
    Access, BlockDevice, Buffer, ByteRange, Error, ErrorKind, ExtentStream, Grade, Result,
    VolumeName, ZeroOptions,
};

/// Read at most so much while writers wait: they do as long for 256 KiB as for thirty small reads.
const READ: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct MemoryDevice {
    pub(super) name: VolumeName,
    pub(super) volume: Arc<MemoryVolume>,
    pub(super) space: Arc<Space>,
    pub(super) access: Access,
    pub(super) epoch: u64,
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        self.volume.write().close(self.access, self.epoch);
    }
}

impl MemoryDevice {
    fn error(&self, kind: ErrorKind, op: &'static str) -> Error {
        Error::new(kind, op).with("volume", &self.name)
    }

    fn check(&self, content: &Content, range: ByteRange, op: &'static str) -> Result<()> {
        if self.access == Access::ReadWrite && content.epoch != self.epoch {
            return Err(self
                .error(ErrorKind::Fenced, op)
                .reason("another writer took the volume over"));
        }
        range
            .check_within(content.size, op)
            .map_err(|error| error.with("volume", &self.name))
    }

    /// Changes the content under the lock, and frees what was replaced without it.
    fn change(
        &self,
        op: &'static str,
        range: ByteRange,
        change: impl FnOnce(&mut Content) -> Option<Effects>,
    ) -> Result<()> {
        let replaced = {
            let mut content = self.volume.write();
            self.check(&content, range, op)?;
            if self.access == Access::ReadOnly {
                return Err(self
                    .error(ErrorKind::InvalidInput, op)
                    .reason("the volume is open for reading only")
                    .help("open it for writing"));
            }
            if range.is_empty() {
                return Ok(());
            }
            change(&mut content)
        };
        match replaced {
            Some(_) => Ok(()),
            None => Err(self
                .error(ErrorKind::NoSpace, op)
                .with("offset", range.offset)
                .with("length", range.length)
                .reason("the pool is full")
                .help("delete volumes or discard what is not needed")),
        }
    }
}

#[async_trait]
impl BlockDevice for MemoryDevice {
    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn size(&self) -> u64 {
        self.volume.read().size
    }

    fn access(&self) -> Access {
        self.access
    }

    async fn refresh(&self) -> Result<u64> {
        let content = self.volume.read();
        self.check(&content, ByteRange::new(0, 0), "refresh")?;
        Ok(content.size)
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        const OP: &str = "read_at";
        let range = ByteRange::new(offset, length as u64);
        // Before memory is taken for it.
        self.check(&self.volume.read(), range, OP)?;
        let mut buffer = Buffer::new(length).map_err(|error| {
            self.error(ErrorKind::InvalidInput, OP)
                .with("length", length)
                .reason("this is too much for one read")
                .with_source(error)
        })?;
        let mut rest = range;
        while !rest.is_empty() {
            let part = ByteRange::new(rest.offset, rest.length.min(READ));
            let content = self.volume.read();
            self.check(&content, part, OP)?;
            content.tree.read(part, buffer.room());
            rest = ByteRange::from_to(part.end(), rest.end());
        }
        Ok(buffer.into_bytes())
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        let range = ByteRange::new(offset, data.len() as u64);
        self.change("write_at", range, |content| {
            content.write(&self.space, offset, &data)
        })
    }

    async fn flush(&self) -> Result<()> {
        self.check(&self.volume.read(), ByteRange::new(0, 0), "flush")
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        self.change("discard", range, |content| {
            content.zero(&self.space, range, true)
        })
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        self.change("write_zeroes", range, |content| {
            content.zero(&self.space, range, options.may_discard)
        })
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        let content = self.volume.read();
        self.check(&content, range, "extents")?;
        Ok(extents(content.tree.clone(), None, range, content.size))
    }
}

/// A block that the volume ends in may differ from that of a larger volume only past the end, which
/// is no difference to this volume.
fn drop_same_tail(runs: &mut Vec<Run>, tree: &Tree, other: &Tree, size: u64) {
    let Some(last) = runs.last_mut().filter(|run| run.blocks.end * BLOCK > size) else {
        return;
    };
    let start = size / BLOCK * BLOCK;
    let tail = |tree: &Tree| {
        let mut bytes = Vec::new();
        tree.read(ByteRange::from_to(start, size), &mut bytes);
        bytes
    };
    if tail(tree) == tail(other) {
        last.blocks.end -= 1;
        if last.blocks.first == last.blocks.end {
            runs.pop();
        }
    }
}

/// The allocated extents of `tree` within `range`, or those that differ from `other`, as they are
/// at this moment.
pub(super) fn extents(
    tree: Tree,
    other: Option<Tree>,
    range: ByteRange,
    size: u64,
) -> ExtentStream {
    let first = range.offset / BLOCK;
    // An empty range within a block would otherwise yield that block cut to nothing.
    let end = if range.is_empty() {
        first
    } else {
        range.end().div_ceil(BLOCK)
    };
    let batches = stream::unfold(Some(first), move |from| {
        let scanned = from.filter(|&from| from < end).map(|from| {
            let (mut runs, next) = tree.scan(other.as_ref(), Blocks { first: from, end });
            if let Some(other) = &other {
                drop_same_tail(&mut runs, &tree, other, size);
            }
            (runs, next)
        });
        async move {
            let (runs, next) = scanned?;
            // A comparison of much data gives way to others in between.
            tokio::task::yield_now().await;
            let extents = runs.into_iter().map(move |run| {
                let blocks = run.blocks;
                Ok(ByteRange::from_to(blocks.first * BLOCK, blocks.end * BLOCK).intersect(&range))
            });
            Some((stream::iter(extents), next))
        }
    });
    ExtentStream::new(Grade::Exact, BLOCK, batches.flatten())
}

//! Blocks of one object, as they come from the store.

use std::ops::Range;

use bytes::Bytes;
use volmux_core::Result;

use super::frames::Contents;
use crate::map::ObjectInfo;
use crate::pieces::Pieces;
use crate::seal::{BlockSeal, CONTENT, Damage, Seal};
use crate::shared::Shared;

/// Blocks of one object as they are stored, or decompressed.
pub(crate) struct Slots {
    name: String,
    /// None where they were verified already.
    seal: Option<BlockSeal>,
    first: u32,
    stride: usize,
    bytes: Pieces,
}

impl Shared {
    /// Some blocks of one object from the store.
    pub(crate) async fn stored_blocks(
        &self,
        op: &'static str,
        info: &ObjectInfo,
        blocks: Range<u32>,
    ) -> Result<Slots> {
        if info.framed {
            let contents = self.unframed(op, info, blocks).await?;
            return Ok(Slots::decompressed(info, contents));
        }
        let stride = self.seal.stride() as u64;
        let at = |index: u32| (u64::from(info.start) + u64::from(index)) * stride;
        let name = info.key.to_string();
        let range = at(blocks.start)..at(blocks.end);
        let bytes = self.store.get_pieces(op, &name, range).await?;
        let bytes = bytes.ok_or_else(|| self.missing(op, &name))?;
        Ok(Slots::stored(&self.seal, info, blocks.start, bytes))
    }
}

impl Slots {
    /// As they are stored, from block `first` on.
    pub(super) fn stored(seal: &Seal, info: &ObjectInfo, first: u32, bytes: Pieces) -> Slots {
        Slots {
            name: info.key.to_string(),
            seal: Some(seal.blocks(&info.key)),
            first,
            stride: seal.stride(),
            bytes,
        }
    }

    pub(super) fn decompressed(info: &ObjectInfo, contents: Contents) -> Slots {
        Slots {
            name: info.key.to_string(),
            seal: None,
            first: contents.first,
            stride: CONTENT,
            bytes: contents.bytes.into(),
        }
    }

    /// Number of the first one.
    pub(super) fn first(&self) -> u32 {
        self.first
    }

    /// All of them, as they came.
    pub(super) fn bytes(&self) -> Bytes {
        self.bytes.clone().into_bytes()
    }

    /// Verifies one block and puts its content into `out`.
    pub(crate) fn open(
        &self,
        shared: &Shared,
        op: &'static str,
        index: u32,
        out: &mut [u8],
    ) -> Result<()> {
        let at = (index - self.first) as usize * self.stride;
        let slot = self.bytes.get(at..at + self.stride).unwrap_or_default();
        let slot = &*slot;
        let opened = match &self.seal {
            Some(seal) => seal.open(index, slot, out),
            None if slot.len() != out.len() => Err(Damage::TooShort(slot.len())),
            None => {
                out.copy_from_slice(slot);
                Ok(())
            }
        };
        opened.map_err(|damage| shared.damaged(op, &self.name, damage).with("block", index))
    }

    /// One block, verified.
    pub(super) fn content(&self, shared: &Shared, op: &'static str, index: u32) -> Result<Bytes> {
        let mut content = vec![0; CONTENT];
        self.open(shared, op, index, &mut content)?;
        Ok(content.into())
    }
}

//! The data object that writes are gathered in, and those that are on their way to the store.

use bytes::Bytes;
use volmux_core::Result;

use crate::data::{Header, strides};
use crate::keys::ObjectKey;
use crate::map::{ObjectId, ObjectInfo, Place};
use crate::seal::{BlockSeal, CONTENT, Damage, Seal};
use crate::shared::Shared;
use crate::tip::TailItem;

/// A data object that is being filled.
#[derive(Debug)]
pub(crate) struct Building {
    pub(crate) id: ObjectId,
    pub(crate) key: ObjectKey,
    header: Header,
    /// Whole slots of the seal's stride.
    slots: Vec<u8>,
    stride: usize,
    /// Checksums are made as blocks come in; what is encrypted is kept plain until it is put.
    checksums: Option<BlockSeal>,
}

/// No header grows longer: discards take no room among the blocks.
const MOST_EXTENTS: usize = 1 << 16;

impl Building {
    /// An empty one with room for `blocks` blocks.
    pub(crate) fn new(id: ObjectId, key: ObjectKey, seal: &Seal, blocks: usize) -> Self {
        let stride = seal.stride();
        Building {
            id,
            key,
            header: Header::default(),
            slots: Vec::with_capacity(blocks * stride),
            stride,
            checksums: seal.key().is_none().then(|| seal.blocks(&key)),
        }
    }

    /// Blocks that still fit.
    pub(crate) fn room(&self) -> usize {
        if self.header.extents.len() >= MOST_EXTENTS {
            return 0;
        }
        (self.slots.capacity() - self.slots.len()) / self.stride
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.header.extents.is_empty()
    }

    /// Bytes of memory that it fills.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.len()
    }

    /// Adds whole blocks, for which there must be room, and says where the first lies.
    pub(crate) fn push(&mut self, start: u64, content: &[u8]) -> Result<Place, Damage> {
        let index = (self.slots.len() / self.stride) as u32;
        for (i, block) in content.chunks_exact(CONTENT).enumerate() {
            let at = self.slots.len();
            self.slots.extend_from_slice(block);
            self.slots.resize(at + self.stride, 0);
            self.finish(index + i as u32)?;
        }
        self.header
            .push(start, (content.len() / CONTENT) as u64, false);
        Ok(Place {
            object: self.id,
            index,
        })
    }

    /// Notes that blocks became holes.
    pub(crate) fn push_hole(&mut self, start: u64, blocks: u64) {
        self.header.push(start, blocks, true);
    }

    /// Changes a part of a block that is in here.
    pub(crate) fn change(&mut self, index: u32, within: usize, data: &[u8]) -> Result<(), Damage> {
        let at = index as usize * self.stride + within;
        let target = self.slots.get_mut(at..at + data.len());
        let target = target.ok_or(Damage::Length(at))?;
        target.copy_from_slice(data);
        self.finish(index)
    }

    /// A block's content.
    pub(crate) fn block(&self, index: u32) -> Option<&[u8]> {
        let at = index as usize * self.stride;
        self.slots.get(at..at + CONTENT)
    }

    fn finish(&mut self, index: u32) -> Result<(), Damage> {
        let Some(checksums) = &self.checksums else {
            return Ok(());
        };
        let at = index as usize * self.stride;
        checksums.seal(index, &mut self.slots[at..at + self.stride])
    }
}

/// A data object that is complete and on its way to the store. Reads are served from it.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) id: ObjectId,
    pub(crate) key: ObjectKey,
    /// The header, before it is put into its envelope.
    pub(crate) header: Vec<u8>,
    /// Slots; not yet encrypted where the pool is.
    pub(crate) slots: Bytes,
    pub(crate) stride: usize,
    /// Length of the whole object, if it is not compressed.
    pub(crate) bytes: u32,
}

impl Sealed {
    /// Closes an object that was filled.
    pub(crate) fn of(op: &'static str, shared: &Shared, building: Building) -> Result<Self> {
        let Building {
            id,
            key,
            header,
            slots,
            stride,
            ..
        } = building;
        let header = header.encode();
        let start = strides(header.len(), stride);
        let bytes = usize::from(start) * stride + slots.len();
        let bytes = u32::try_from(bytes)
            .map_err(|_| shared.damaged(op, &key.to_string(), Damage::Length(bytes)))?;
        if shared.settings.codec.is_none() {
            // A checkpoint need not wait for the object to be stored.
            shared.table.intern(&ObjectInfo {
                key,
                start,
                framed: false,
            })?;
        }
        Ok(Sealed {
            id,
            key,
            header,
            slots: slots.into(),
            stride,
            bytes,
        })
    }

    /// As an item of a tail; as long as it is not stored, its length may change.
    pub(crate) fn item(&self) -> TailItem {
        TailItem::Object {
            key: self.key,
            bytes: self.bytes,
        }
    }

    /// Blocks that it stores.
    pub(crate) fn blocks(&self) -> u32 {
        (self.slots.len() / self.stride) as u32
    }

    /// A block's content.
    pub(crate) fn block(&self, index: u32) -> Option<&[u8]> {
        let at = index as usize * self.stride;
        self.slots.get(at..at + CONTENT)
    }

    /// The slots as they are stored.
    pub(super) fn sealed_slots(&self, seal: &Seal) -> Result<Bytes, Damage> {
        if seal.key().is_none() {
            return Ok(self.slots.clone());
        }
        let blocks = seal.blocks(&self.key);
        let mut slots = self.slots.to_vec();
        for (index, slot) in slots.chunks_exact_mut(self.stride).enumerate() {
            blocks.seal(index as u32, slot)?;
        }
        Ok(slots.into())
    }
}

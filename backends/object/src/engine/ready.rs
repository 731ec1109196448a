//! Making a sealed object into what is put: encrypted, or checked, and compressed where that pays.

use bytes::Bytes;
use object_store::PutPayload;
use tokio::task::yield_now;
use volmux_core::{Error, ErrorKind, Result};

use super::building::Sealed;
use crate::data::{filling, strides};
use crate::envelope::Kind;
use crate::frame::{Codec, Encoder, FRAME, FRAME_BYTES, FrameTable, encoded_length, frames};
use crate::map::ObjectInfo;
use crate::seal::Damage;
use crate::shared::Shared;

/// Bytes of compressed frames that lie in one piece of memory.
const PIECE: usize = 1 << 20;

/// An object as it is put.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) payload: PutPayload,
    /// Its length.
    pub(crate) bytes: u32,
}

impl Sealed {
    /// Makes the object into what is put, which takes a while if it is compressed, and from then
    /// on the pool's table knows which way it is stored. To be called once: what is put under a
    /// name must never differ.
    pub(crate) async fn ready(&self, op: &'static str, shared: &Shared) -> Result<Ready> {
        let compressed = match shared.settings.codec {
            Some(codec) => self.compressed(op, shared, codec).await?,
            None => None,
        };
        let framed = compressed.is_some();
        let (kind, body, pieces) = match compressed {
            Some((table, pieces)) => (Kind::FramedHeader, table.encode(&self.header), pieces),
            None => {
                let slots = self.sealed_slots(&shared.seal);
                let slots = slots.map_err(|damage| self.failed(op, shared, damage))?;
                (Kind::DataHeader, self.header.clone(), vec![slots])
            }
        };
        let info = ObjectInfo {
            key: self.key,
            start: strides(body.len(), self.stride),
            framed,
        };
        let envelope = shared.wrap(op, kind, &self.key.to_string(), &body)?;
        let filling = filling(&envelope, self.stride);
        let payload: PutPayload = [envelope, filling].into_iter().chain(pieces).collect();
        let length = payload.content_length();
        let bytes =
            u32::try_from(length).map_err(|_| self.failed(op, shared, Damage::Length(length)))?;
        shared.table.intern(&info)?;
        Ok(Ready { payload, bytes })
    }

    /// Its frames; none where they would not be smaller than the blocks by a sixteenth.
    async fn compressed(
        &self,
        op: &'static str,
        shared: &Shared,
        codec: Codec,
    ) -> Result<Option<(FrameTable, Vec<Bytes>)>> {
        let (blocks, seal) = (self.blocks(), shared.seal.frames(&self.key));
        let header = self.header.len() + encoded_length(frames(blocks) as usize);
        let start = usize::from(strides(header, self.stride));
        let most = self.bytes as usize - self.bytes as usize / 16;
        let Some(room) = most.checked_sub(start * self.stride).filter(|_| blocks > 0) else {
            return Ok(None);
        };
        let mut encoder = Encoder::new(codec).map_err(|error| {
            Error::new(ErrorKind::Internal, op)
                .reason("nothing can be compressed")
                .with_source(error)
        })?;
        let mut content = Vec::with_capacity(FRAME_BYTES);
        let mut lengths = Vec::with_capacity(frames(blocks) as usize);
        let (mut pieces, mut piece, mut total) = (Vec::new(), Vec::new(), 0);
        for frame in 0..frames(blocks) {
            content.clear();
            for index in frame * FRAME..blocks.min((frame + 1) * FRAME) {
                content.extend_from_slice(self.block(index).unwrap_or_default());
            }
            let mut stored = encoder.encode(&content).to_vec();
            lengths.push((stored.len() - 1) as u16);
            seal.seal(frame, &mut stored)
                .map_err(|damage| self.failed(op, shared, damage))?;
            total += stored.len();
            if total > room {
                return Ok(None);
            }
            piece.extend_from_slice(&stored);
            if piece.len() >= PIECE {
                pieces.push(Bytes::from(std::mem::take(&mut piece)));
            }
            // Others have their turn: an object takes some 20 ms.
            yield_now().await;
        }
        pieces.push(piece.into());
        Ok(Some((FrameTable::new(codec, blocks, lengths), pieces)))
    }

    fn failed(&self, op: &'static str, shared: &Shared, damage: Damage) -> Error {
        shared.damaged(op, &self.key.to_string(), damage)
    }
}

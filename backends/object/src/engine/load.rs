//! Coming by an engine: from a tip, by replaying what came after the map's checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore};
use tokio::task::spawn_blocking;
use volmux_core::{Error, ErrorKind, Result};

use super::ahead::Ahead;
use super::commit::Committed;
use super::state::{State, Writer};
use super::upload::UPLOADS;
use super::{Engine, Requests, Role};
use crate::claim::Claimed;
use crate::data::{HEADER_GUESS, Header, LAST_BLOCK, strides};
use crate::envelope::Kind;
use crate::frame::FrameTable;
use crate::journal::{Op, Replay};
use crate::keys::{LogId, ObjectKey};
use crate::manifest::{Manifest, Phase};
use crate::map::{ObjectInfo, Place};
use crate::owner::Living;
use crate::seal::Seal;
use crate::shared::Shared;
use crate::tip::{TailItem, Tip};
use crate::watched::Watched;

/// Records of a journal that are in memory at once: each is 256 KiB at most.
const REPLAYED: usize = 32;

/// Headers that are read at once.
const HEADERS: usize = 32;

/// Which commits a reader follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Following {
    pub(crate) log: LogId,
    /// The manifest that it knows; 0 for none.
    pub(crate) number: u64,
    /// Whether the store is asked before each read: a writer of this process has the volume open,
    /// and who flushes and then reads in one process expects to see it.
    pub(crate) closely: bool,
}

impl Following {
    /// From a manifest on.
    pub(crate) fn of(newest: &Manifest) -> Self {
        Following {
            log: newest.log,
            number: newest.number,
            closely: newest.phase == Phase::Open && newest.owner.is_here(),
        }
    }

    /// Of a log that has no manifest yet.
    pub(crate) fn nothing(log: LogId) -> Self {
        Following {
            log,
            number: 0,
            closely: false,
        }
    }
}

impl Engine {
    /// For reading what `tip` says, and, with `following`, what is committed after it.
    pub(crate) async fn reader(
        op: &'static str,
        shared: Arc<Shared>,
        tip: &Tip,
        following: Option<Following>,
    ) -> Result<Arc<Engine>> {
        let state = replayed(op, &shared, tip).await?;
        Ok(Arc::new_cyclic(|me| Engine {
            me: me.clone(),
            shared,
            state: Mutex::new(state),
            ahead: Ahead::default(),
            fixed: following.is_none().then(|| tip.clone()),
            following: AsyncMutex::new(following),
            role: None,
        }))
    }

    /// For writing on from a claim that was put. What the journal holds beside that is done again.
    pub(crate) async fn writer(
        op: &'static str,
        shared: Arc<Shared>,
        claimed: Claimed,
        living: Living,
    ) -> Result<Arc<Engine>> {
        let Claimed { manifest, journal } = claimed;
        let mut state = replayed(op, &shared, &manifest.tip).await?;
        let (log, epoch) = (manifest.log, manifest.epoch);
        let mut writer = Writer::new(log, epoch, shared.settings.object_blocks);
        writer.journal = manifest.journal.map_or(0, |mark| mark.position);
        state.checkpointed.journal = writer.journal;
        for item in &mut state.tail {
            item.journal = writer.journal;
        }
        state.writer = Some(writer);
        let (journal, replay) = journal.unzip();
        let role = Role {
            log,
            living,
            uploads: Semaphore::new(UPLOADS),
            stored: Notify::new(),
            wanted: Notify::new(),
            requests: Mutex::new(Requests::default()),
            progress: Watched::default(),
            committed: Mutex::new(Committed::new(manifest.number, manifest.tip)),
            checkpointing: AsyncMutex::new(()),
            replaying: AtomicBool::new(replay.is_some()),
            journal,
            pin: manifest.pin,
            kept: Mutex::default(),
        };
        let engine = Arc::new_cyclic(|me| Engine {
            me: me.clone(),
            shared,
            state: Mutex::new(state),
            ahead: Ahead::default(),
            fixed: None,
            following: AsyncMutex::new(Some(Following::nothing(log))),
            role: Some(role),
        });
        let committing = engine.clone();
        tokio::spawn(async move { committing.committing().await });
        let engine = Begun(Some(engine));
        if let Some(replay) = replay
            && let Some(begun) = &engine.0
            && let Err(error) = begun.replay(op, replay).await
        {
            // What could not be done again is still in the journal.
            begun.fence();
            return Err(error);
        }
        engine.taken(op)
    }

    /// Does again what a journal holds.
    async fn replay(&self, op: &'static str, mut replay: Replay) -> Result<()> {
        let role = self.role(op)?;
        loop {
            let some = spawn_blocking(move || {
                let some: Result<Vec<_>> = replay.by_ref().take(REPLAYED).collect();
                some.map(|some| (some, replay))
            });
            let failed = |error| Error::new(ErrorKind::Internal, op).with_source(error);
            let (some, rest) = some.await.map_err(failed)??;
            replay = rest;
            if some.is_empty() {
                break;
            }
            for (position, change) in some {
                match change {
                    Op::Write { offset, data } => self.write(op, offset, &data).await?,
                    Op::Zero { range } => self.zero(op, range, u64::MAX).await?,
                }
                if let Some(writer) = &mut self.lock().writer {
                    writer.journal = position;
                }
            }
        }
        role.replaying.store(false, Ordering::Release);
        Ok(())
    }

    /// The log that it reads, where there may be more commits.
    pub(crate) async fn log(&self) -> Option<LogId> {
        self.following.lock().await.map(|known| known.log)
    }

    /// See [`Following::closely`].
    pub(crate) async fn follows_closely(&self) -> bool {
        let following = self.following.lock().await;
        following.as_ref().is_some_and(|known| known.closely)
    }

    /// Catches up with what others committed. `false` where the log was retired: the volume is
    /// gone, or goes on in another one.
    pub(crate) async fn follow(&self, op: &'static str) -> Result<bool> {
        let mut following = self.following.lock().await;
        let Some(known) = following.as_mut() else {
            return Ok(true);
        };
        let newest = self
            .shared
            .newest_manifest(op, known.log, known.number)
            .await?;
        let Some(newest) = newest else {
            return Ok(true);
        };
        let state = replayed(op, &self.shared, &newest.tip).await?;
        *known = Following::of(&newest);
        *self.lock() = state;
        Ok(newest.phase != Phase::Retired)
    }
}

/// A writer that nobody holds yet: it ends with whoever was about to.
struct Begun(Option<Arc<Engine>>);

impl Begun {
    fn taken(mut self, op: &'static str) -> Result<Arc<Engine>> {
        let taken = self.0.take();
        taken.ok_or_else(|| Error::new(ErrorKind::Internal, op).reason("there is no engine"))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(engine) = &self.0 {
            engine.close();
        }
    }
}

/// The state that a tip describes.
pub(super) async fn replayed(op: &'static str, shared: &Shared, tip: &Tip) -> Result<State> {
    let mut state = State::new(tip);
    let mut items = stream::iter(tip.tail.clone())
        .map(|item| read_item(op, shared, item))
        .buffered(HEADERS);
    while let Some(item) = items.try_next().await? {
        let (info, header) = match item {
            Item::Cut(block) => {
                let blocks = LAST_BLOCK.saturating_sub(block);
                state.active.insert(block, blocks, None);
                continue;
            }
            Item::Object(info, header) => (info, header),
        };
        let object = shared.table.intern(&info)?;
        let mut index = 0;
        for extent in header.extents {
            let place = (!extent.hole).then_some(Place { object, index });
            state.active.insert(extent.start, extent.blocks, place);
            if !extent.hole {
                // A header tells of no more blocks than fit, see `Header::decode`.
                index += extent.blocks as u32;
            }
        }
    }
    drop(items);
    Ok(state)
}

/// An item of a tail, ready to be replayed.
enum Item {
    Object(ObjectInfo, Header),
    Cut(u64),
}

async fn read_item(op: &'static str, shared: &Shared, item: TailItem) -> Result<Item> {
    match item {
        TailItem::Cut(block) => Ok(Item::Cut(block)),
        TailItem::Object { key, bytes } => {
            let (info, header) = header(op, shared, &key, bytes).await?;
            Ok(Item::Object(info, header))
        }
    }
}

/// A data object's header.
pub(crate) async fn header(
    op: &'static str,
    shared: &Shared,
    key: &ObjectKey,
    bytes: u32,
) -> Result<(ObjectInfo, Header)> {
    let name = key.to_string();
    let damaged = |damage| shared.damaged(op, &name, damage);
    let total = u64::from(bytes);
    let mut start = beginning(op, shared, &name, total.min(HEADER_GUESS)).await?;
    let length = Seal::envelope_length(&start).map_err(damaged)?;
    if length > start.len() {
        start = beginning(op, shared, &name, (length as u64).min(total)).await?;
    }
    let (info, header, table) = decode_header(op, shared, key, &start)?;
    let stride = shared.seal.stride() as u64;
    let content = match &table {
        None => header.stored() * stride,
        Some(table) => table.total(shared.seal.tail_length()),
    };
    if length.div_ceil(stride as usize) as u64 * stride + content != total {
        return Err(shared
            .store
            .error(ErrorKind::Corrupt, op, &name)
            .reason("the object has another length than its header tells")
            .help("run `volmux pool scrub`, then restore what it names from a backup"));
    }
    if let Some(table) = table {
        shared.tables.put(*key, Arc::new(table));
    }
    Ok((info, header))
}

/// A data object's header, from the object's beginning; with the table of its frames where it is
/// compressed.
pub(super) fn decode_header(
    op: &'static str,
    shared: &Shared,
    key: &ObjectKey,
    start: &[u8],
) -> Result<(ObjectInfo, Header, Option<FrameTable>)> {
    let name = key.to_string();
    let damaged = |damage| shared.damaged(op, &name, damage);
    let malformed = |malformed| shared.malformed(op, &name, malformed);
    let length = Seal::envelope_length(start).map_err(damaged)?;
    let envelope = start.get(..length).unwrap_or_default();
    let framed = Seal::looks_like(Kind::FramedHeader, envelope);
    let kind = match framed {
        true => Kind::FramedHeader,
        false => Kind::DataHeader,
    };
    let body = shared.seal.unwrap(kind, &name, envelope).map_err(damaged)?;
    let (header, table) = match framed {
        true => {
            let (header, table) = FrameTable::decode(&body).map_err(malformed)?;
            (header, Some(table))
        }
        false => (Header::decode(&body).map_err(malformed)?, None),
    };
    let info = ObjectInfo {
        key: *key,
        start: strides(body.len(), shared.seal.stride()),
        framed,
    };
    Ok((info, header, table))
}

async fn beginning(op: &'static str, shared: &Shared, name: &str, length: u64) -> Result<Bytes> {
    let got = shared.store.get_range(op, name, 0..length).await?;
    got.ok_or_else(|| shared.missing(op, name))
}

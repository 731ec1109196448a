//! The map's checkpoint: the changes that are in memory become pages of the map's tree, so that
//! neither memory nor what the next opener has to replay grows for ever.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;
use volmux_core::{Error, ErrorKind, Result};

use super::state::Frozen;
use super::{Engine, Role};
use crate::envelope::Kind;
use crate::keys::ObjectKey;
use crate::map::{self, Overlay, PageSink};
use crate::seal::Seal;
use crate::shared::Shared;
use crate::tip::{PagePtr, Root};

const OP: &str = "checkpoint";

/// Bytes of pages that are put as one object.
const OBJECT: usize = 4 << 20;

/// Objects of pages that are uploaded at once.
const PUTS: usize = 2;

/// Bytes of memory in pages that are on their way, and in those that are being gathered.
pub(crate) const IN_FLIGHT: usize = (PUTS + 1) * OBJECT;

impl Engine {
    /// Begins a checkpoint if one is due and none is being made.
    pub(super) fn begin_checkpoint(&self) {
        let settings = &self.shared.settings;
        let due = {
            let state = self.lock();
            state.frozen.is_none()
                && (state.active.len() >= settings.overlay || state.tail.len() >= settings.tail)
        };
        let Some(engine) = self.me.upgrade().filter(|_| due) else {
            return;
        };
        tokio::spawn(async move {
            if let Err(error) = engine.checkpoint().await {
                // It is tried again with what has been added by then.
                tracing::warn!(%error, "the map's checkpoint was not made");
            }
        });
    }

    /// Makes a checkpoint. What it changes is committed with the next manifest.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        let role = self.role(OP)?;
        let _turn = role.checkpointing.lock().await;
        role.check(OP)?;
        let Some((root, frozen)) = self.freeze()? else {
            return Ok(());
        };
        let result = async {
            if self.shared.settings.codec.is_some() {
                // Pages say of each object whether it is compressed. Before that is not known.
                self.until_stored(OP, role, frozen.change).await?;
            }
            let root = self.write_pages(&root, &frozen.overlay).await?;
            // A tree must not be committed before the blocks that it leads to are in the store.
            self.until_stored(OP, role, frozen.change).await?;
            Ok(root)
        };
        let result = result.await;
        // Writers may have waited for it, whatever has come of it.
        let _told = Told(role);
        let mut state = self.lock();
        if let Some(writer) = &mut state.writer {
            writer.pages_from = None;
        }
        match result {
            Ok(root) => {
                state.root = root;
                state.frozen = None;
                let last = state.tail.drain(..frozen.items).next_back();
                if let Some(last) = last {
                    state.checkpointed = last;
                }
                state.note_checkpoint();
                drop(state);
                role.wanted.notify_one();
                Ok(())
            }
            Err(error) => {
                // Newer changes win over those that were to be frozen.
                let mut both = Arc::unwrap_or_clone(frozen.overlay);
                for run in state.active.iter() {
                    both.insert(run.start, run.blocks, run.place);
                }
                state.active = both;
                state.frozen = None;
                Err(error)
            }
        }
    }

    /// Sets apart what the checkpoint will contain: everything up to now.
    fn freeze(&self) -> Result<Option<(Root, Frozen)>> {
        let mut state = self.lock();
        self.seal_and_upload(OP, &mut state)?;
        if state.tail.is_empty() || state.writer.is_none() {
            return Ok(None);
        }
        let frozen = Frozen {
            overlay: Arc::new(std::mem::take(&mut state.active)),
            items: state.tail.len(),
            change: state.tail.back().map_or(0, |last| last.change),
        };
        state.frozen = Some(frozen.clone());
        let root = state.root;
        if let Some(writer) = &mut state.writer {
            writer.pages_from = Some(writer.next_seq);
        }
        Ok(Some((root, frozen)))
    }

    async fn write_pages(&self, root: &Root, overlay: &Overlay) -> Result<Root> {
        let mut pages = Pages {
            engine: self,
            object: None,
            puts: JoinSet::new(),
        };
        let shared = &*self.shared;
        let root = map::apply(shared, &shared.table, root, overlay.iter(), &mut pages).await?;
        pages.finish().await?;
        Ok(root)
    }

    /// Names the next object of pages.
    fn page_key(&self) -> Result<ObjectKey> {
        let mut state = self.lock();
        let Some(writer) = &mut state.writer else {
            return Err(Error::new(ErrorKind::Internal, OP).reason("nobody writes"));
        };
        let seq = writer.next_seq;
        writer.next_seq += 1;
        Ok(ObjectKey {
            log: writer.log,
            epoch: writer.epoch,
            seq,
        })
    }
}

/// Tells those who wait for room, when it is dropped.
struct Told<'a>(&'a Role);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.stored.notify_waiters();
    }
}

/// Packs pages into objects and puts them.
struct Pages<'a> {
    engine: &'a Engine,
    /// The object that is being filled.
    object: Option<(ObjectKey, Vec<u8>)>,
    puts: JoinSet<Result<()>>,
}

/// The name that a page's envelope is made for.
pub(crate) fn page_name(object: &ObjectKey, offset: u32) -> String {
    format!("{object}@{offset}")
}

#[async_trait]
impl PageSink for Pages<'_> {
    async fn place(&mut self, body: Vec<u8>) -> Result<PagePtr> {
        let fits = |bytes: &Vec<u8>| bytes.len() + Seal::HEAD + body.len() <= bytes.capacity();
        let (object, mut bytes) = match self.object.take() {
            Some((object, bytes)) if fits(&bytes) => (object, bytes),
            full => {
                if let Some((object, bytes)) = full {
                    self.put(object, bytes).await?;
                }
                (self.engine.page_key()?, Vec::with_capacity(OBJECT))
            }
        };
        let name = page_name(&object, bytes.len() as u32);
        let envelope = self.engine.shared.wrap(OP, Kind::MapPage, &name, &body)?;
        let at = PagePtr {
            object,
            offset: bytes.len() as u32,
            length: envelope.len() as u32,
        };
        bytes.extend_from_slice(&envelope);
        self.object = Some((object, bytes));
        Ok(at)
    }
}

impl Pages<'_> {
    async fn put(&mut self, object: ObjectKey, bytes: Vec<u8>) -> Result<()> {
        while self.puts.len() >= PUTS {
            self.joined().await?;
        }
        let shared: Arc<Shared> = self.engine.shared.clone();
        self.puts.spawn(async move {
            let payload = Bytes::from(bytes).into();
            shared.store.put(OP, &object.to_string(), payload).await
        });
        Ok(())
    }

    async fn joined(&mut self) -> Result<()> {
        match self.puts.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(Error::new(ErrorKind::Internal, OP).with_source(error)),
        }
    }

    async fn finish(mut self) -> Result<()> {
        if let Some((object, bytes)) = self.object.take() {
            self.put(object, bytes).await?;
        }
        while !self.puts.is_empty() {
            self.joined().await?;
        }
        Ok(())
    }
}

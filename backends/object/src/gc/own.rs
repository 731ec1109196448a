//! A log of the collection's own, for what it writes anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use volmux_core::{Error, ErrorKind, Result};

use crate::engine::page_name;
use crate::envelope::Kind;
use crate::keys::{LogId, ObjectKey};
use crate::manifest::{Manifest, Phase};
use crate::map::PageSink;
use crate::owner::Living;
use crate::shared::Shared;
use crate::store::Put;
use crate::tip::{PagePtr, Tip};

/// Bytes of pages that are put as one object.
const OBJECT: usize = 4 << 20;

/// The log. No volume has it; as long as its owner lives, other collections take everything in it
/// for something that is under way.
#[derive(Debug)]
pub(super) struct Own {
    op: &'static str,
    shared: Arc<Shared>,
    log: LogId,
    living: Arc<Living>,
    next: AtomicU64,
    /// A manifest may have been sent that names what is in the log, and not have arrived yet.
    doubtful: AtomicBool,
}

impl Own {
    /// Begins a log.
    pub async fn begin(op: &'static str, shared: Arc<Shared>) -> Result<Self> {
        let own = Own {
            op,
            log: LogId(shared.ids.uuid()),
            living: Arc::new(Living::begin(shared.ids.uuid())),
            shared,
            next: AtomicU64::new(0),
            doubtful: AtomicBool::new(false),
        };
        own.put(1, Phase::Open).await?;
        Ok(own)
    }

    /// Gives up the log: what nothing refers to by now is garbage. Does nothing if that is in
    /// doubt: what is in the log is then kept as long as what may name it is not decided.
    pub async fn end(&self) -> Result<()> {
        match self.doubtful.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.put(2, Phase::Closed).await,
        }
    }

    /// It is not known whether a volume goes on from what is in the log.
    pub fn doubt(&self) {
        self.doubtful.store(true, Ordering::Relaxed);
    }

    /// What keeps others from collecting what is in the log.
    pub fn living(&self) -> &Arc<Living> {
        &self.living
    }

    /// Names the next object.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            log: self.log,
            epoch: 1,
            seq: self.next.fetch_add(1, Ordering::Relaxed),
        }
    }

    async fn put(&self, number: u64, phase: Phase) -> Result<()> {
        let manifest = Manifest {
            log: self.log,
            number,
            epoch: 1,
            owner: self.living.owner().clone(),
            phase,
            tip: Tip::EMPTY,
            in_flight: 0,
            fences: false,
            journal: None,
            // By this, others tell it from what is left of a volume's log.
            pin: Some(Tip::EMPTY),
        };
        let (name, envelope) = self.shared.wrap_manifest(self.op, &manifest)?;
        match self.shared.store.put_new(self.op, &name, envelope).await? {
            Put::Created => Ok(()),
            Put::Taken => Err(Error::new(ErrorKind::Internal, self.op)
                .with("object", name)
                .reason("somebody else writes to the log of this collection")),
        }
    }
}

/// Packs pages into objects of the log.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    own: &'a Own,
    object: Option<(ObjectKey, Vec<u8>)>,
}

impl<'a> Sink<'a> {
    pub fn new(own: &'a Own) -> Self {
        Sink { own, object: None }
    }

    /// Puts what has not been put yet. Before this, none of the pages may be referred to.
    pub async fn finish(&mut self) -> Result<()> {
        let Some((object, bytes)) = self.object.take() else {
            return Ok(());
        };
        let store = &self.own.shared.store;
        store
            .put(self.own.op, &object.to_string(), bytes.into())
            .await
    }
}

#[async_trait]
impl PageSink for Sink<'_> {
    async fn place(&mut self, body: Vec<u8>) -> Result<PagePtr> {
        let own = self.own;
        let (object, bytes) = self.object.get_or_insert_with(|| (own.key(), Vec::new()));
        let name = page_name(object, bytes.len() as u32);
        let envelope = own.shared.wrap(own.op, Kind::MapPage, &name, &body)?;
        let at = PagePtr {
            object: *object,
            offset: bytes.len() as u32,
            length: envelope.len() as u32,
        };
        bytes.extend_from_slice(&envelope);
        if bytes.len() >= OBJECT {
            self.finish().await?;
        }
        Ok(at)
    }
}

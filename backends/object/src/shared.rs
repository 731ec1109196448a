//! What all volumes of an open pool share.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use volmux_core::{ErrorKind, Result};

use crate::cache::{Cache, DiskCache, Tables};
use crate::codec::Malformed;
use crate::config::{Compression, ObjectConfig};
use crate::engine::{self, page_name};
use crate::envelope::Kind;
use crate::frame::Codec;
use crate::ids::Ids;
use crate::keys::{self, LogId, Named};
use crate::manifest::Manifest;
use crate::map::{ObjectTable, Page, PageStore};
use crate::seal::{Damage, Seal};
use crate::store::Store;
use crate::tip::PagePtr;

/// How volumes are read and written.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Blocks in a data object.
    pub(crate) object_blocks: usize,
    /// Bytes that a volume may hold in memory before they are in the store.
    pub(crate) pending: usize,
    /// Bytes of blocks and pages in memory.
    pub(crate) cache: u64,
    /// Bytes of frame tables in memory.
    pub(crate) tables: u64,
    /// How new objects are compressed, if at all.
    pub(crate) codec: Option<Codec>,
    /// Bytes that are read ahead of a sequential reader at most.
    pub(crate) ahead: u64,
    /// Changes in memory, in map entries, that make a checkpoint due.
    pub(crate) overlay: usize,
    /// Objects in the tail that make a checkpoint due.
    pub(crate) tail: usize,
}

impl Settings {
    /// As configured, in a pool that is compressed like this.
    pub(crate) fn new(config: &ObjectConfig, compression: Compression, seal: &Seal) -> Self {
        let object = config.object_bytes() as usize;
        let budget = config.cache_bytes() as usize;
        // Two objects at least: one fills while one is put.
        let pending = (budget / 8).clamp(2 * object, 8 * object);
        // Each takes some 22 bytes, and there are twice as many while a checkpoint is made.
        let overlay = budget / 1024;
        let written = pending + object + 2 * 22 * overlay + engine::IN_FLIGHT;
        let rest = budget.saturating_sub(written);
        // A cache that is too small to hold what is being looked at would only cost.
        let cache = rest.max(budget / 4) as u64;
        let codec = Codec::of(compression);
        // A table takes some 600 bytes for an object of 8 MiB.
        let tables = codec.map_or(0, |_| cache / 16);
        Settings {
            object_blocks: (object / seal.stride()).max(1),
            pending,
            cache: cache - tables,
            tables,
            codec,
            ahead: engine::MOST_AHEAD.min(cache / 16),
            overlay,
            tail: 256,
        }
    }
}

/// What all volumes of an open pool share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) seal: Seal,
    pub(crate) table: ObjectTable,
    pub(crate) cache: Cache<Page>,
    pub(crate) tables: Tables,
    /// Slots on a local disk, where the pool has that.
    pub(crate) disk: Option<DiskCache>,
    pub(crate) ids: Arc<Ids>,
    pub(crate) settings: Settings,
}

impl Shared {
    /// Puts a body into its envelope.
    pub(crate) fn wrap(
        &self,
        op: &'static str,
        kind: Kind,
        name: &str,
        body: &[u8],
    ) -> Result<Bytes> {
        self.seal
            .wrap(kind, name, body, self.ids.nonce())
            .map_err(|damage| self.store.damaged(op, name, damage))
    }

    /// A manifest as it is put.
    pub(crate) fn wrap_manifest(
        &self,
        op: &'static str,
        manifest: &Manifest,
    ) -> Result<(String, Bytes)> {
        let name = keys::manifest(manifest.log, manifest.number);
        let body = manifest
            .encode()
            .map_err(|m| self.malformed(op, &name, m))?;
        let envelope = self.wrap(op, Kind::Manifest, &name, &body)?;
        Ok((name, envelope))
    }

    /// One manifest; none where it is not there.
    pub(crate) async fn manifest(
        &self,
        op: &'static str,
        log: LogId,
        number: u64,
    ) -> Result<Option<Manifest>> {
        let name = keys::manifest(log, number);
        let Some(bytes) = self.store.get(op, &name).await? else {
            return Ok(None);
        };
        let body = self
            .seal
            .unwrap(Kind::Manifest, &name, &bytes)
            .map_err(|damage| self.store.damaged(op, &name, damage))?;
        let manifest =
            Manifest::decode(log, number, &body).map_err(|m| self.malformed(op, &name, m))?;
        Ok(Some(manifest))
    }

    /// The newest manifest of a log that has a number above `after`.
    pub(crate) async fn newest_manifest(
        &self,
        op: &'static str,
        log: LogId,
        after: u64,
    ) -> Result<Option<Manifest>> {
        let below = keys::manifests(log);
        loop {
            let start = (after > 0).then(|| keys::manifest(log, after));
            let mut newest = None;
            let mut listed = self.store.list(op, &below, start.as_deref());
            while let Some(object) = listed.try_next().await? {
                if let Ok(Named::Manifest(_, number)) = object.name.parse() {
                    newest = newest.max(Some(number).filter(|n| *n > after));
                }
            }
            let Some(number) = newest else {
                return Ok(None);
            };
            // A manifest that is gone by now was replaced by a newer one.
            if let Some(manifest) = self.manifest(op, log, number).await? {
                return Ok(Some(manifest));
            }
        }
    }

    /// A page of a map, from the store; `table` gets to know the objects that it names.
    pub(crate) async fn read_page(&self, at: &PagePtr, table: &ObjectTable) -> Result<Page> {
        let op = "read_map";
        let name = at.object.to_string();
        let end = u64::from(at.offset) + u64::from(at.length);
        let bytes = self
            .store
            .get_range(op, &name, at.offset.into()..end)
            .await?;
        let bytes = bytes.ok_or_else(|| self.missing(op, &name))?;
        let body = self
            .seal
            .unwrap(Kind::MapPage, &page_name(&at.object, at.offset), &bytes)
            .map_err(|damage| self.damaged(op, &name, damage))?;
        Page::decode(&body, table).map_err(|m| self.malformed(op, &name, m))
    }

    /// The error for an object that can't be understood.
    pub(crate) fn malformed(
        &self,
        op: &'static str,
        name: &str,
        malformed: Malformed,
    ) -> volmux_core::Error {
        self.store
            .error(ErrorKind::Corrupt, op, name)
            .reason(malformed)
            .help("the object is damaged: run `volmux pool scrub`, and restore it from a backup")
    }

    /// The error for an object that is gone.
    pub(crate) fn missing(&self, op: &'static str, name: &str) -> volmux_core::Error {
        self.store
            .error(ErrorKind::Corrupt, op, name)
            .reason("the object is not there")
            .help("run `volmux pool scrub`, then restore what it names from a backup")
    }

    /// The error for an object that is not what was put.
    pub(crate) fn damaged(
        &self,
        op: &'static str,
        name: &str,
        damage: Damage,
    ) -> volmux_core::Error {
        self.store.damaged(op, name, damage)
    }
}

#[async_trait]
impl PageStore for Shared {
    async fn load(&self, at: &PagePtr) -> Result<Arc<Page>> {
        let load = async {
            let page = self.read_page(at, &self.table).await?;
            let bytes = page.memory() as u32;
            Ok((Arc::new(page), bytes))
        };
        self.cache.page_or_load(*at, load).await
    }

    fn cached(&self, at: &PagePtr) -> Option<Arc<Page>> {
        self.cache.page(at)
    }
}

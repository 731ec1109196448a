//! The catalogue: which volumes a pool has, as numbered records that are created and never changed.
//!
//! The records in the order of their numbers are the pool's history, the same for everybody. To
//! append one is to create the next number, which only one of several writers can do. A
//! checkpoint holds what all records up to its number say together, so that opening need not read
//! them all. Of checkpoints the newest two are kept.
//!
//! Records are never deleted. A handle that slept for long appends at a number that was taken
//! long ago; were that record gone, its put would succeed and fork the history. A record takes
//! about 1 KiB, and nothing ever lists them, so old ones cost nothing else.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod record;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::TryStreamExt;
use tokio::sync::MutexGuard as Turn;
use tracing::warn;
use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Origin, Provisioning, Result, VolumeId, VolumeName};

use crate::envelope::Kind;
use crate::keys::{self, LogId, Named};
use crate::seal::Seal;
use crate::store::{Put, Store};
use crate::tip::Tip;

use record::Record;
pub(crate) use state::State;

/// Records that are asked for at a time by one that is behind, at most.
const AT_ONCE: u64 = 16;
/// Records that are read one by one before a checkpoint is looked for.
const FAR_BEHIND: u64 = 64;
/// How often checkpoints are listed again because others deleted those listed before.
const TRIES: u32 = 8;

/// What the catalogue says of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The identity, which outlives every change.
    pub id: VolumeId,
    /// What it is called.
    pub name: VolumeName,
    /// Virtual size in bytes.
    pub size: u64,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Where it came from.
    pub origin: Option<Origin>,
    /// When it was made.
    pub created: SystemTime,
    /// What its writers append to; none for a snapshot, which nobody writes.
    pub log: Option<LogId>,
    /// What it holds before the first manifest of its log; for a snapshot: what it holds.
    pub base: Arc<Tip>,
}

/// One change of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A volume that is new, or takes the place of the one with the same identity.
    Put(Entry),
    /// There is no such volume any more.
    Remove(VolumeId),
    /// Only moves the head, so that whoever decided on an older state has to decide again.
    Gc {
        /// Tells one collection from another.
        marker: Uuid,
    },
}

/// A handle on a pool's catalogue. All methods may be called at once, and dropped at any moment.
#[derive(Debug)]
pub(crate) struct Catalog {
    store: Store,
    seal: Seal,
    state: Mutex<State>,
    /// Held while records are read or appended: one at a time finds out what the next number is.
    turn: tokio::sync::Mutex<()>,
    /// Number of the newest read that has begun.
    begun: AtomicU64,
    ended: Mutex<Ended>,
}

/// The newest read that has ended.
#[derive(Debug, Default)]
struct Ended {
    number: u64,
    /// What kept it from reading all.
    failure: Option<(ErrorKind, String)>,
}

/// What became of a record that was to be created.
enum Fate {
    Ours,
    Lost,
}

impl Catalog {
    /// Reads the catalogue.
    ///
    /// # Errors
    /// `Corrupt` that names the record; those of the store.
    pub(crate) async fn open(op: &'static str, store: Store, seal: Seal) -> Result<Catalog> {
        let catalog = Catalog {
            store,
            seal,
            state: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            begun: AtomicU64::new(0),
            ended: Mutex::default(),
        };
        let turn = catalog.turn.lock().await;
        catalog.load_checkpoint(op, &turn).await?;
        catalog.read_on(op, &turn, AT_ONCE).await?;
        drop(turn);
        Ok(catalog)
    }

    /// Number of the newest record known here; 0 before the first.
    pub(crate) fn head(&self) -> u64 {
        self.state().head()
    }

    /// Shows the state known here. A lock is held meanwhile.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state())
    }

    /// Takes in every record that was created before the call, and returns the newest one's
    /// number. Costs one GET where there is nothing new; calls at the same time share the work.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) async fn refresh(&self, op: &'static str) -> Result<u64> {
        let before = self.begun.load(Ordering::Acquire);
        let turn = self.turn.lock().await;
        {
            // A read that began after this call has seen all that this call has to see. It is
            // shared if it failed, too: were each caller to wait for a dead store in its turn,
            // the last one would wait for hours.
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            if ended.number > before {
                return match &ended.failure {
                    None => Ok(self.head()),
                    Some((kind, failure)) => Err(Error::new(*kind, op).reason(failure)),
                };
            }
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let read = self.read_on(op, &turn, 1).await;
        let failure = read.as_ref().err().map(|e| (e.kind(), e.to_string()));
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Ended { number, failure };
        read.map(|()| self.head())
    }

    /// Appends a record with `changes`, decided on the state as of record `head`: all of them
    /// take effect, or none. `false` where the head has moved: newer records were then read in,
    /// and the caller decides again.
    ///
    /// # Errors
    /// `Internal` for changes that do not fit the state at `head`, with nothing changed. After
    /// `Unavailable` or `TimedOut` the record may have been created, or may yet be.
    pub(crate) async fn try_commit(
        &self,
        op: &'static str,
        head: u64,
        changes: Vec<Change>,
    ) -> Result<bool> {
        let turn = self.turn.lock().await;
        if self.head() != head {
            return Ok(false);
        }
        let number = head + 1;
        let token = self.store.ids().uuid();
        let name = keys::catalog_record(number);
        let unfit = |wrong: Box<dyn std::error::Error + Send + Sync>| {
            self.store
                .error(ErrorKind::Internal, op, &name)
                .reason("these changes of the catalogue do not fit what it says")
                .with_source(wrong)
        };
        let encoded = record::encode(number, token, &changes);
        // What counts is what others will read.
        let read = encoded.and_then(|body| Ok((record::decode(number, &body)?, body)));
        let (Record { changes, .. }, body) = read.map_err(|wrong| unfit(wrong.into()))?;
        let fits = self.state().check(changes.clone());
        fits.map_err(|wrong| unfit(wrong.into()))?;
        let sealed = self.sealed(op, Kind::CatalogRecord, &name, &body)?;
        match self.create(op, number, token, sealed).await? {
            Fate::Lost => {
                self.read_on(op, &turn, 1).await?;
                return Ok(false);
            }
            Fate::Ours => {}
        }
        let due = {
            let mut state = self.state();
            let applied = state.apply(number, changes);
            applied.map_err(|wrong| unfit(wrong.into()))?;
            let all = || state.in_id_order().cloned().collect();
            state.checkpoint_is_due().then(all)
        };
        drop(turn);
        if let Some(volumes) = due {
            self.write_checkpoint(op, number, volumes).await;
        }
        Ok(true)
    }

    /// Creates a record; after a doubtful answer it looks whose the record is.
    async fn create(
        &self,
        op: &'static str,
        number: u64,
        token: Uuid,
        sealed: Bytes,
    ) -> Result<Fate> {
        let name = keys::catalog_record(number);
        let failure = match self.store.put_new(op, &name, sealed).await {
            Ok(Put::Created) => return Ok(Fate::Ours),
            Ok(Put::Taken) => return Ok(Fate::Lost),
            Err(failure) => failure,
        };
        match self.record(op, number).await {
            Ok(Some(record)) if record.token == token => Ok(Fate::Ours),
            Ok(Some(_)) => Ok(Fate::Lost),
            _ => Err(failure),
        }
    }

    /// The lock on the state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Record `number`, if it is there.
    async fn record(&self, op: &'static str, number: u64) -> Result<Option<Record>> {
        let name = keys::catalog_record(number);
        let Some(body) = self.body(op, Kind::CatalogRecord, &name).await? else {
            return Ok(None);
        };
        let decoded = record::decode(number, &body);
        decoded
            .map(Some)
            .map_err(|wrong| self.corrupt(op, &name, wrong))
    }

    /// Takes in all records after the head, the first `ahead` of them at once.
    async fn read_on(&self, op: &'static str, turn: &Turn<'_, ()>, ahead: u64) -> Result<()> {
        let mut ahead = ahead;
        let mut behind = 0;
        while self.read_some(op, turn, ahead).await? == ahead {
            behind += ahead;
            ahead = (ahead * 2).min(AT_ONCE);
            if behind > FAR_BEHIND {
                self.load_checkpoint(op, turn).await?;
                behind = 0;
            }
        }
        Ok(())
    }

    /// Takes in up to `count` records after the head, and returns how many there were.
    async fn read_some(&self, op: &'static str, _turn: &Turn<'_, ()>, count: u64) -> Result<u64> {
        let next = self.head() + 1;
        let found = join_all((next..next + count).map(|n| self.record(op, n))).await;
        let mut taken = 0;
        let mut missing = false;
        for (number, record) in (next..).zip(found) {
            let record = match record? {
                Some(record) if !missing => record,
                Some(_) => {
                    // Both may have been created while we were asking.
                    let missed = next + taken;
                    return match self.record(op, missed).await? {
                        Some(_) => Ok(taken),
                        None => {
                            let wrong = format!("it is missing, and record {number} is there");
                            Err(self.corrupt(op, &keys::catalog_record(missed), wrong))
                        }
                    };
                }
                None => {
                    missing = true;
                    continue;
                }
            };
            let applied = self.state().apply(number, record.changes);
            applied.map_err(|wrong| self.corrupt(op, &keys::catalog_record(number), wrong))?;
            taken += 1;
        }
        Ok(taken)
    }

    /// Goes on to the newest checkpoint after the head, if there is any.
    async fn load_checkpoint(&self, op: &'static str, _turn: &Turn<'_, ()>) -> Result<()> {
        for _ in 0..TRIES {
            let mut gone = false;
            let numbers = self.checkpoints(op).await?;
            let newer = numbers.into_iter().filter(|number| *number > self.head());
            for number in newer.collect::<Vec<_>>().into_iter().rev() {
                match self.checkpoint(op, number).await {
                    Ok(Some(state)) => {
                        *self.state() = state;
                        return Ok(());
                    }
                    // Others wrote two newer ones since they were listed.
                    Ok(None) => gone = true,
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        // The records are all there, so nothing is lost but time.
                        warn!(number, %error, "a damaged checkpoint of the catalogue is left out");
                    }
                    Err(error) => return Err(error),
                }
            }
            if !gone {
                break;
            }
        }
        Ok(())
    }

    /// The state that checkpoint `number` holds, if it is there.
    async fn checkpoint(&self, op: &'static str, number: u64) -> Result<Option<State>> {
        let name = keys::catalog_checkpoint(number);
        let Some(body) = self.body(op, Kind::CatalogCheckpoint, &name).await? else {
            return Ok(None);
        };
        let volumes = record::decode_checkpoint(number, &body)
            .map_err(|wrong| self.corrupt(op, &name, wrong))?;
        let state = State::from_checkpoint(number, volumes);
        state
            .map(Some)
            .map_err(|wrong| self.corrupt(op, &name, wrong))
    }

    /// Writes a checkpoint and deletes all but the newest two. Whoever opens the pool can do
    /// without it, so a failure is only noted.
    async fn write_checkpoint(&self, op: &'static str, number: u64, volumes: Vec<Arc<Entry>>) {
        let written = async {
            let name = keys::catalog_checkpoint(number);
            let body = record::encode_checkpoint(number, &volumes).map_err(|wrong| {
                self.store
                    .error(ErrorKind::Internal, op, &name)
                    .with_source(wrong)
            })?;
            let sealed = self.sealed(op, Kind::CatalogCheckpoint, &name, &body)?;
            // Where somebody else was faster, theirs says the same.
            self.store.put_new(op, &name, sealed).await?;
            let numbers = self.checkpoints(op).await?;
            let old = numbers.into_iter().rev().skip(2);
            let old = old.map(keys::catalog_checkpoint).collect();
            self.store.delete(op, old).await
        };
        if let Err(error) = written.await {
            warn!(number, %error, "no checkpoint of the catalogue was written");
        }
    }

    /// Numbers of the checkpoints that are there, in order.
    async fn checkpoints(&self, op: &'static str) -> Result<Vec<u64>> {
        let mut listed = self.store.list(op, keys::CATALOG_CHECKPOINT, None);
        let mut numbers = Vec::new();
        while let Some(object) = listed.try_next().await? {
            if let Ok(Named::CatalogCheckpoint(number)) = object.name.parse() {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What the object called `name` holds, if it is there.
    async fn body(&self, op: &'static str, kind: Kind, name: &str) -> Result<Option<Bytes>> {
        let Some(sealed) = self.store.get(op, name).await? else {
            return Ok(None);
        };
        let body = self.seal.unwrap(kind, name, &sealed);
        body.map(Some)
            .map_err(|damage| self.store.damaged(op, name, damage))
    }

    fn sealed(&self, op: &'static str, kind: Kind, name: &str, body: &[u8]) -> Result<Bytes> {
        let sealed = self.seal.wrap(kind, name, body, self.store.ids().nonce());
        sealed.map_err(|damage| {
            self.store
                .error(ErrorKind::Internal, op, name)
                .reason(damage)
        })
    }

    fn corrupt(&self, op: &'static str, name: &str, wrong: impl Display) -> Error {
        self.store
            .error(ErrorKind::Corrupt, op, name)
            .reason(wrong)
            .help("the pool's catalogue is damaged: restore this object from a backup")
    }
}

//! Becoming a log's writer, and ending a log.
//!
//! Both put the log's next manifest, so of all who try one succeeds. Ending a log takes two steps:
//! a manifest that retires it, then the catalogue's record that gives the volume another log, or
//! removes it. Where only the first was done, the log can be claimed again; then the record must
//! not come after all. So whoever retires looks at the catalogue's head first, and whoever claims
//! a retired log moves that head first: the record, made for the old head, fails.

use std::time::Duration;

use futures::TryStreamExt;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use volmux_core::{Error, ErrorKind, Result, VolumeId, VolumeName};

use crate::catalog::{Change, Entry};
use crate::engine::Following;
use crate::journal::{Journal, Replay};
use crate::keys::{self, LogId};
use crate::manifest::{JournalMark, Manifest, Phase};
use crate::owner::{Life, Living, Owner};
use crate::pool::Ready;
use crate::store::{Put, Store};
use crate::tip::Tip;

/// Between the first two looks at a writer that is about to end.
const LOOK: Duration = Duration::from_millis(5);
/// Between two later ones.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// A log that was claimed.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// The manifest to go on from.
    pub(crate) manifest: Manifest,
    /// The journal, and what of it is not in the manifest's tip, where the pool has journals.
    pub(crate) journal: Option<(Journal, Replay)>,
}

impl Ready {
    /// Becomes the writer of a volume's log.
    pub(crate) async fn claim(
        &self,
        op: &'static str,
        (id, name): (VolumeId, &VolumeName),
        living: &Living,
        take_over: bool,
    ) -> Result<Claimed> {
        let mut patience = Patience::new(self.shared.store.patience().write);
        loop {
            let head = self.catalog.refresh(op).await?;
            let entry = self.entry_by_id(op, id, name)?;
            let Some(log) = entry.log else {
                return Err(self
                    .error(ErrorKind::InvalidInput, op, name)
                    .reason("a snapshot is read-only")
                    .help("clone it and write to the clone"));
            };
            let newest = self.shared.newest_manifest(op, log, 0).await?;
            let open = newest.as_ref().filter(|newest| newest.phase == Phase::Open);
            if let Some(open) = open
                && !take_over
                && self.check_free(op, name, open)? == Free::Soon
            {
                patience.wait(|| busy_ending(self, op, name)).await?;
                continue;
            }
            if newest
                .as_ref()
                .is_some_and(|newest| newest.phase == Phase::Retired)
            {
                let marker = self.shared.ids.uuid();
                let moved = vec![Change::Gc { marker }];
                if !self.catalog.try_commit(op, head, moved).await? {
                    continue;
                }
            }
            let journal = self
                .journal_of(op, name, newest.as_ref(), log, take_over)
                .await?;
            let manifest = Manifest {
                journal: journal.as_ref().map(|(journal, replay)| JournalMark {
                    id: journal.id(),
                    position: journal.position() - replay.left(),
                }),
                ..next(log, newest, &entry.base, living.owner(), Phase::Open)
            };
            if self.put(op, &manifest).await? {
                // The log may have been given up before it had a manifest to see that by.
                self.catalog.refresh(op).await?;
                if self.entry_by_id(op, id, name)?.log == Some(log) {
                    return Ok(Claimed { manifest, journal });
                }
            }
            if let Some((journal, _)) = journal {
                journal.end(false).await;
            }
        }
    }

    /// The log's journal, where the pool has journals. What a dead writer flushed is in its
    /// journal only: it is an error not to have that, unless it is taken over without.
    async fn journal_of(
        &self,
        op: &'static str,
        name: &VolumeName,
        newest: Option<&Manifest>,
        log: LogId,
        take_over: bool,
    ) -> Result<Option<(Journal, Replay)>> {
        let mark = newest.and_then(|newest| newest.journal);
        let journal = match self.config.journal_config()? {
            None => None,
            Some(config) => {
                let seal = self.shared.seal.clone();
                let mark = mark.map(|mark| (mark.id, mark.position));
                let opening = spawn_blocking(move || Journal::open(&config, log, &seal, mark));
                let failed = |error| Error::new(ErrorKind::Internal, op).with_source(error);
                Some(opening.await.map_err(failed)??)
            }
        };
        match (newest, mark) {
            (Some(newest), Some(mark))
                if journal
                    .as_ref()
                    .is_none_or(|(journal, _)| journal.id() != mark.id)
                    && !take_over =>
            {
                Err(self
                    .in_a_journal(op, name, newest, mark)
                    .help("open it with that journal directory, or take it over to do without"))
            }
            _ => Ok(journal),
        }
    }

    fn in_a_journal(
        &self,
        op: &'static str,
        name: &VolumeName,
        newest: &Manifest,
        mark: JournalMark,
    ) -> Error {
        self.error(ErrorKind::Busy, op, name)
            .with("writer", &newest.owner)
            .with("journal", mark.id)
            .reason("its last writer died, and what it flushed last is in its journal only")
    }

    /// Fails with `Busy` while somebody may write a log.
    pub(crate) async fn check_unwritten(
        &self,
        op: &'static str,
        name: &VolumeName,
        log: LogId,
    ) -> Result<()> {
        let newest = self.shared.newest_manifest(op, log, 0).await?;
        if let Some(newest) = newest.filter(|newest| newest.phase == Phase::Open) {
            self.check_free(op, name, &newest)?;
        }
        Ok(())
    }

    /// Makes sure that nobody writes a log any more, for the catalogue's state as of `head`, and
    /// returns what it holds. What a dead writer's journal holds beside that is given up; where it
    /// is `wanted`, that is an error.
    pub(crate) async fn retire(
        &self,
        op: &'static str,
        entry: &Entry,
        log: LogId,
        wanted: bool,
    ) -> Result<Tip> {
        let mut patience = Patience::new(self.shared.store.patience().write);
        loop {
            let newest = self.shared.newest_manifest(op, log, 0).await?;
            if let Some(newest) = newest.as_ref().filter(|newest| newest.phase == Phase::Open) {
                match self.check_free(op, &entry.name, newest)? {
                    Free::Yes => {}
                    Free::Soon => {
                        let late = || busy_ending(self, op, &entry.name);
                        patience.wait(late).await?;
                        continue;
                    }
                }
            }
            if let Some(newest) = newest.as_ref().filter(|_| wanted)
                && let Some(mark) = newest.journal
            {
                return Err(self
                    .in_a_journal(op, &entry.name, newest, mark)
                    .help("open it for writing once, with that journal directory"));
            }
            let manifest = Manifest {
                // If the log is claimed again after all, that is still a part of it.
                journal: newest.as_ref().and_then(|newest| newest.journal),
                ..next(
                    log,
                    newest,
                    &entry.base,
                    self.living.owner(),
                    Phase::Retired,
                )
            };
            if self.put(op, &manifest).await? {
                return Ok(manifest.tip);
            }
        }
    }

    /// Begins a log that no volume has yet, to copy into it what `pin` holds.
    pub(crate) async fn claim_new(
        &self,
        op: &'static str,
        log: LogId,
        owner: &Owner,
        pin: &Tip,
    ) -> Result<Option<Manifest>> {
        let newest = self.shared.newest_manifest(op, log, 0).await?;
        let manifest = Manifest {
            pin: Some(pin.clone()),
            ..next(log, newest, &Tip::EMPTY, owner, Phase::Open)
        };
        Ok(self.put(op, &manifest).await?.then_some(manifest))
    }

    /// What a volume holds now, as far as it is committed.
    pub(crate) async fn committed_tip(
        &self,
        op: &'static str,
        entry: &Entry,
    ) -> Result<(Option<Following>, Tip)> {
        let newest = self.newest_of(op, entry).await?;
        Ok(content(entry, newest))
    }

    /// The same, unless that is not all: what a writer that died on this host flushed may be in
    /// its journal only.
    ///
    /// # Errors
    /// `Busy` in that case; those of the store.
    pub(crate) async fn whole_tip(
        &self,
        op: &'static str,
        entry: &Entry,
    ) -> Result<(Option<Following>, Tip)> {
        let newest = self.newest_of(op, entry).await?;
        if let Some(newest) = &newest
            && let Some(mark) = newest.journal
            && (newest.owner.life() == Life::Dead || newest.owner.was_rebooted())
        {
            return Err(self.in_a_journal(op, &entry.name, newest, mark).help(
                "open it for writing once, with that journal directory: \
                 `volmux volume take-over`",
            ));
        }
        Ok(content(entry, newest))
    }

    async fn newest_of(&self, op: &'static str, entry: &Entry) -> Result<Option<Manifest>> {
        match entry.log {
            Some(log) => self.shared.newest_manifest(op, log, 0).await,
            None => Ok(None),
        }
    }

    /// Puts a manifest, and says whether it is the log's newest now.
    async fn put(&self, op: &'static str, manifest: &Manifest) -> Result<bool> {
        let (name, envelope) = self.shared.wrap_manifest(op, manifest)?;
        if self.shared.store.put_new(op, &name, envelope).await? == Put::Taken {
            return Ok(false);
        }
        // A number may be free because the writer who used it is further on by now and has
        // cleared it away. The newest is never cleared away.
        let (log, number) = (manifest.log, manifest.number);
        if self
            .shared
            .newest_manifest(op, log, number)
            .await?
            .is_none()
        {
            return Ok(true);
        }
        // Whoever came next went on from it, if it is one of the last two: without it, the writer
        // that it fences could go on.
        if !manifest.fences {
            self.shared.store.delete(op, vec![name]).await?;
        }
        Ok(false)
    }

    /// Whether a log that was not closed may be taken from its writer.
    fn check_free(&self, op: &'static str, name: &VolumeName, newest: &Manifest) -> Result<Free> {
        let busy = |reason: &str| {
            self.error(ErrorKind::Busy, op, name)
                .with("writer", &newest.owner)
                .reason(reason)
        };
        match newest.owner.life() {
            Life::Ending => Ok(Free::Soon),
            Life::Dead => Ok(Free::Yes),
            Life::Elsewhere if newest.owner.was_rebooted() => Ok(Free::Yes),
            Life::Lives => Err(busy("the volume is open for writing")
                .help("close it there, or take it over: `volmux volume take-over`")),
            Life::Elsewhere => Err(busy(
                "the volume was opened for writing on another host, and not closed",
            )
            .help(
                "close it there; if that host is gone for certain, take it over: \
                 `volmux volume take-over`",
            )),
        }
    }

    /// Leaves a mark that a volume is read, as long as the mark lives.
    pub(crate) async fn mark(&self, op: &'static str, volume: VolumeId) -> Result<Mark> {
        let living = Living::begin(self.shared.ids.uuid());
        let name = keys::reader(volume, living.owner().instance);
        let body = serde_json::to_vec(living.owner())
            .map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?;
        self.shared.store.put(op, &name, body.into()).await?;
        let store = self.shared.store.clone();
        Ok(Mark {
            name,
            _living: living,
            store,
        })
    }

    /// Fails with `Busy` while somebody on this host reads the volume. Readers on other hosts
    /// can't be told from what is left of them.
    pub(crate) async fn check_unread(
        &self,
        op: &'static str,
        volume: VolumeId,
        name: &VolumeName,
    ) -> Result<()> {
        let store = &self.shared.store;
        let marks: Vec<_> = store
            .list(op, &keys::readers(volume), None)
            .try_collect()
            .await?;
        for mark in marks {
            let Some(bytes) = store.get(op, &mark.name).await? else {
                continue;
            };
            let owner = serde_json::from_slice::<Owner>(&bytes).ok();
            if let Some(owner) = owner.filter(|owner| owner.life() == Life::Lives) {
                return Err(self
                    .error(ErrorKind::Busy, op, name)
                    .with("reader", &owner)
                    .reason("the volume is open")
                    .help("close it first"));
            }
        }
        Ok(())
    }
}

/// That a volume is read.
#[derive(Debug)]
pub(crate) struct Mark {
    name: String,
    _living: Living,
    store: Store,
}

impl Drop for Mark {
    fn drop(&mut self) {
        // It counts no more once nobody lives behind it; where it can't be deleted, it is collected.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (name, store) = (std::mem::take(&mut self.name), self.store.clone());
            runtime.spawn(async move { store.delete("close", vec![name]).await });
        }
    }
}

#[derive(PartialEq, Eq)]
enum Free {
    Yes,
    /// Its writer is about to end.
    Soon,
}

/// What a volume holds by the newest manifest of its log, and which commits come after that.
fn content(entry: &Entry, newest: Option<Manifest>) -> (Option<Following>, Tip) {
    match (entry.log, newest) {
        (_, Some(newest)) => (Some(Following::of(&newest)), newest.tip),
        (log, None) => (log.map(Following::nothing), Tip::clone(&entry.base)),
    }
}

/// The manifest after `newest`, with the same content.
fn next(log: LogId, newest: Option<Manifest>, base: &Tip, owner: &Owner, phase: Phase) -> Manifest {
    let number = newest.as_ref().map_or(1, |newest| newest.number + 1);
    // Who is dead for certain sleeps no more.
    let may_wake =
        |before: &Manifest| before.phase == Phase::Open && before.owner.life() != Life::Dead;
    let fences = newest.as_ref().is_some_and(may_wake);
    Manifest {
        log,
        number,
        epoch: number,
        owner: owner.clone(),
        phase,
        tip: newest.map_or_else(|| base.clone(), |newest| newest.tip),
        in_flight: 0,
        fences,
        journal: None,
        pin: None,
    }
}

fn busy_ending(ready: &Ready, op: &'static str, name: &VolumeName) -> Error {
    ready
        .error(ErrorKind::Busy, op, name)
        .reason("the volume is being closed, and that does not come to an end")
        .help("see whether the store can be reached")
}

/// Waits, but not for ever, and longer each time.
struct Patience {
    end: Instant,
    pause: Duration,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Patience {
            end: Instant::now() + limit,
            pause: LOOK,
        }
    }

    async fn wait(&mut self, late: impl FnOnce() -> Error) -> Result<()> {
        if Instant::now() >= self.end {
            return Err(late());
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_LOOK);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use volmux_core::{ByteSize, CreateOptions, OpenOptions, Pool};

    use super::*;
    use crate::catalog::tests::rough::Rough;
    use crate::config::{Location, ObjectConfig};
    use crate::pool::ObjectPool;

    const OP: &str = "test";

    #[tokio::test(start_paused = true)]
    async fn who_puts_a_number_that_was_cleared_away_has_not_claimed_the_log() {
        let config = ObjectConfig::new(Location::Memory);
        let pool = ObjectPool::over(Rough::new(1), config, 79 << 32)
            .await
            .expect("it opens");
        let name = VolumeName::new("a").expect("a name");
        let size = CreateOptions::thin(ByteSize::mib(1));
        pool.create_volume(&name, size).await.expect("create");
        let opened = pool.open_volume(&name, OpenOptions::read_write()).await;
        let device = opened.expect("open");
        for _ in 0..40 {
            device
                .write_at(0, vec![1; 4096].into())
                .await
                .expect("write");
            device.flush().await.expect("flush");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ready = pool
            .look(OP)
            .await
            .expect("the store works")
            .expect("a pool");
        let log = ready
            .entry(OP, &name)
            .expect("it is there")
            .log
            .expect("no snapshot");
        let newest = ready
            .shared
            .newest_manifest(OP, log, 0)
            .await
            .expect("the store works");
        let newest = newest.expect("it was written");
        let late = Manifest {
            number: 5,
            epoch: 5,
            ..newest.clone()
        };
        let there = ready
            .shared
            .manifest(OP, log, 5)
            .await
            .expect("the store works");
        assert_eq!(there, None, "it was cleared away");
        assert!(!ready.put(OP, &late).await.expect("the store works"));
        let there = ready
            .shared
            .manifest(OP, log, 5)
            .await
            .expect("the store works");
        assert_eq!(there, None);
        // It may be all that is in the way of a writer whom two others superseded at once.
        let fences = Manifest {
            fences: true,
            ..late
        };
        assert!(!ready.put(OP, &fences).await.expect("the store works"));
        let there = ready.shared.manifest(OP, log, 5).await;
        assert_eq!(there.expect("the store works"), Some(fences));
        let next = Manifest {
            number: newest.number + 1,
            ..newest
        };
        assert!(ready.put(OP, &next).await.expect("the store works"));
    }
}

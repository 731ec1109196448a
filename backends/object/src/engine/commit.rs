//! Committing: manifests that say what of the log counts.

use std::time::Duration;

use tokio::time::Instant;
use volmux_core::{ErrorKind, Result};

use super::state::Trailing;
use super::{Engine, Role, Trouble, fenced};
use crate::keys;
use crate::manifest::{JournalMark, Manifest, Phase};
use crate::store::Put;
use crate::tip::Tip;

/// Changes that nobody flushes are committed after this long.
const IDLE: Duration = Duration::from_secs(5);

/// What is stored is committed when it has come to so many objects.
const UNCOMMITTED: usize = 8;

/// Manifests that a newer one replaces are deleted so many at a time.
const SWEEP: u64 = 16;

/// Objects that may be left for the next opener to replay.
const TAIL_LEFT: usize = 8;

/// What is committed.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    /// The manifest's number.
    pub(crate) number: u64,
    pub(crate) tip: Tip,
    /// Manifests from this number on, up to the one before `number`, are of no use.
    swept: u64,
}

impl Committed {
    pub(super) fn new(number: u64, tip: Tip) -> Self {
        Committed {
            number,
            tip,
            swept: number + 1,
        }
    }
}

/// What those who wait for a commit look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Number of the last change that is committed.
    change: u64,
    /// Number of attempts that were begun.
    begun: u64,
    /// The last attempt that failed, and why.
    failed: Option<(u64, Trouble)>,
    /// The committing task has ended.
    pub(super) ended: bool,
}

impl Role {
    /// Asks for everything up to this change to be committed.
    pub(super) fn want(&self, change: u64) {
        {
            let mut requests = self.requests();
            requests.change = requests.change.max(change);
        }
        self.wanted.notify_one();
    }
}

impl Engine {
    /// Makes every change that was made before the call durable: in the store, or in the journal
    /// where there is one.
    pub(crate) async fn flush(&self, op: &'static str) -> Result<()> {
        let role = self.role(op)?;
        role.check(op)?;
        match &role.journal {
            None => self.commit(op).await,
            Some(journal) => match journal.sync().await {
                Ok(()) => Ok(()),
                Err(error) => {
                    // It has told once itself that it failed.
                    tracing::debug!(%error, "the journal is of no use: flushing to the store");
                    self.commit(op).await
                }
            },
        }
    }

    /// Has every change that was made before the call committed, together with those of others
    /// who wait.
    pub(crate) async fn commit(&self, op: &'static str) -> Result<()> {
        let role = self.role(op)?;
        let change = self.lock().writer.as_ref().map_or(0, |w| w.change);
        let begun = {
            let now = role.progress.now();
            if now.change >= change {
                return role.check(op);
            }
            now.begun
        };
        role.want(change);
        let outcome = |now: &Progress| match &now.failed {
            _ if now.change >= change => Some(Ok(())),
            Some((attempt, trouble)) if *attempt > begun => Some(Err(trouble.error(op))),
            _ if now.ended => Some(Err(fenced(op))),
            _ => None,
        };
        role.progress.until(outcome).await
    }

    /// Whether no other writer has taken over, as far as the store knows by now; otherwise this
    /// one is fenced.
    pub(crate) async fn is_current(&self, op: &'static str) -> Result<bool> {
        let Some(role) = &self.role else {
            return Ok(false);
        };
        if self.is_ending() {
            return Ok(false);
        }
        let number = role.committed().number + 1;
        let next = self.shared.manifest(op, role.log, number).await?;
        let ours = |next: &Manifest| next.owner.instance == role.living.owner().instance;
        if next.as_ref().is_none_or(ours) {
            return Ok(true);
        }
        self.fence();
        Ok(false)
    }

    /// What is committed now.
    pub(crate) fn committed(&self) -> Option<Committed> {
        Some(self.role.as_ref()?.committed().clone())
    }

    /// Asks for the end: what is there is committed, then the log is marked as closed.
    pub(crate) fn close(&self) {
        if let Some(role) = &self.role {
            role.living.closing();
            role.requests().close = true;
            role.wanted.notify_one();
            role.stored.notify_waiters();
        }
    }

    /// Another writer of this process takes over: from now on every request fails.
    pub(crate) fn fence(&self) {
        if let Some(role) = &self.role {
            role.requests().fenced = true;
            role.wanted.notify_one();
            role.stored.notify_waiters();
        }
    }

    /// Waits until the committing task has ended.
    pub(crate) async fn ended(&self) {
        if let Some(role) = &self.role {
            role.progress
                .until(|progress| progress.ended.then_some(()))
                .await;
        }
    }

    /// The committing task: one a writer, from its claim to its end.
    pub(super) async fn committing(&self) {
        let Some(role) = &self.role else {
            return;
        };
        let mut dirty_since = None;
        loop {
            let (mut wanted, close) = {
                let mut requests = role.requests();
                if requests.fenced {
                    break;
                }
                (std::mem::take(&mut requests.change), requests.close)
            };
            if close {
                self.end(role).await;
                break;
            }
            let done = role.progress.now().change;
            let change = self.changes();
            if change == done {
                dirty_since = None;
            } else if dirty_since.get_or_insert_with(Instant::now).elapsed() >= IDLE {
                wanted = change;
            }
            if wanted > done || self.stored_uncommitted(done) >= UNCOMMITTED {
                dirty_since = None;
                self.attempt(role, wanted, Phase::Open).await;
                self.begin_checkpoint();
                continue;
            }
            tokio::select! {
                biased;
                () = role.wanted.notified() => {}
                () = tokio::time::sleep(IDLE), if change > done => {}
            }
        }
        role.requests().given_up = true;
        role.stored.notify_waiters();
        if let Some(journal) = &role.journal {
            // Whoever takes over on this host may want it; it is gone where it ended cleanly.
            journal.end(false).await;
        }
        role.progress.change(|progress| progress.ended = true);
    }

    /// The last commit. What fails now was not flushed, and is lost with the process anyway.
    async fn end(&self, role: &Role) {
        let long = self.lock().tail.len() > TAIL_LEFT;
        if long && let Err(error) = self.checkpoint().await {
            tracing::warn!(%error, "the map's checkpoint was not made at the end");
        }
        self.attempt(role, self.changes(), Phase::Closed).await;
        if let Some(journal) = &role.journal {
            let committed = role.progress.now().change;
            journal.end(committed == self.changes()).await;
        }
    }

    /// Number of the last change.
    fn changes(&self) -> u64 {
        self.lock().writer.as_ref().map_or(0, |w| w.change)
    }

    /// Objects that are in the store and not committed.
    fn stored_uncommitted(&self, done: u64) -> usize {
        let state = self.lock();
        let stored = state.stored_change();
        let newer = state
            .tail
            .iter()
            .rev()
            .take_while(|item| item.change > done);
        newer.filter(|item| item.change <= stored).count()
    }

    /// Commits what is stored, at least everything up to `wanted`, and tells those who wait.
    async fn attempt(&self, role: &Role, wanted: u64, phase: Phase) {
        let mut begun = 0;
        role.progress.change(|progress| {
            progress.begun += 1;
            begun = progress.begun;
        });
        match self.put_manifest(role, wanted, phase).await {
            Ok(change) => role.progress.change(|progress| {
                progress.change = progress.change.max(change);
            }),
            Err(error) => {
                if error.kind() == ErrorKind::Fenced {
                    self.fence();
                }
                tracing::warn!(%error, log = %role.log, "a commit failed");
                let trouble = Trouble::new(error);
                role.progress
                    .change(|progress| progress.failed = Some((begun, trouble)));
            }
        }
    }

    async fn put_manifest(&self, role: &Role, wanted: u64, phase: Phase) -> Result<u64> {
        let op = "commit";
        {
            let mut state = self.lock();
            if state.writer.as_ref().is_some_and(|w| w.sealed < wanted) {
                self.seal_and_upload(op, &mut state)?;
            }
        }
        self.until_stored(op, role, wanted).await?;
        loop {
            let (manifest, last, kept) = self.next_manifest(role, phase);
            let (name, envelope) = self.shared.wrap_manifest(op, &manifest)?;
            match self.shared.store.put_new(op, &name, envelope).await? {
                Put::Created => {
                    self.advance(role, manifest.number, manifest.tip);
                    role.kept().drain(..kept);
                    if let Some(journal) = &role.journal {
                        journal.trim(last.journal);
                    }
                    return Ok(last.change);
                }
                // It may be one that was put here before, and whose answer was lost for good.
                Put::Taken => match self.shared.manifest(op, role.log, manifest.number).await? {
                    Some(there) if there.owner.instance == manifest.owner.instance => {
                        self.advance(role, there.number, there.tip);
                    }
                    _ => return Err(fenced(op)),
                },
            }
        }
    }

    /// Waits until everything up to change `wanted` is in the store.
    pub(super) async fn until_stored(
        &self,
        op: &'static str,
        role: &Role,
        wanted: u64,
    ) -> Result<()> {
        loop {
            let stored = role.stored.notified();
            tokio::pin!(stored);
            // From here on no notification is missed.
            stored.as_mut().enable();
            role.check(op)?;
            if self.lock().stored_change() >= wanted {
                return Ok(());
            }
            if let Some(trouble) = &role.requests().trouble {
                return Err(trouble.error(op));
            }
            stored.await;
        }
    }

    /// The manifest, the last item in it, and how much of what is kept need not be after it.
    fn next_manifest(&self, role: &Role, phase: Phase) -> (Manifest, Trailing, usize) {
        let number = role.committed().number + 1;
        let state = self.lock();
        let kept = role.kept().len();
        let (tip, last) = state.stored();
        let (epoch, in_flight) = match &state.writer {
            Some(writer) => (writer.epoch, writer.in_flight()),
            None => (number, 0),
        };
        let manifest = Manifest {
            log: role.log,
            number,
            epoch,
            owner: role.living.owner().clone(),
            phase,
            tip,
            in_flight,
            fences: false,
            // Once it is closed, nothing is in the journal only.
            journal: role
                .journal
                .as_ref()
                .filter(|_| phase == Phase::Open)
                .map(|journal| JournalMark {
                    id: journal.id(),
                    position: last.journal,
                }),
            pin: role.pin.clone(),
        };
        (manifest, last, kept)
    }

    /// Goes on from a manifest that is in the store, and clears old ones away.
    fn advance(&self, role: &Role, number: u64, tip: Tip) {
        let mut committed = role.committed();
        committed.number = number;
        committed.tip = tip;
        if number - committed.swept < SWEEP {
            return;
        }
        let old = (committed.swept..number)
            .map(|n| keys::manifest(role.log, n))
            .collect();
        committed.swept = number;
        drop(committed);
        if let Some(engine) = self.me.upgrade() {
            // What is left over is found by the garbage collection.
            tokio::spawn(async move { engine.shared.store.delete("commit", old).await });
        }
    }
}

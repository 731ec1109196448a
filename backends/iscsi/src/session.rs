//! A logical unit that a volume is open on, through every session that it takes.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::{Instant, sleep, timeout_at};
use volmux_core::{Access, ByteRange, Error, ErrorKind, ExtentStream, Result, Sharing};
use volmux_iscsi_initiator as initiator;

use crate::lease::{Lease, Standing};
use crate::scsi::{Illegal, LbaStatus, LogicalUnit, ScsiError, ScsiErrorKind};
use crate::transport::ScsiTransport;
use crate::unflushed::{Done, Unflushed};
use crate::{extents, zeroing};

/// Between two attempts to have a session again, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Within which one attempt has to succeed.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Between two looks at an idle session.
const WATCH: Duration = Duration::from_secs(2);
/// Bytes that are asked for at a time.
const MOST_READ: u64 = 64 << 20;
/// Within which the target has to let go at the end.
const GOODBYE: Duration = Duration::from_secs(10);

/// A logical unit and the right to it.
pub struct Attached {
    /// The right.
    pub lease: Box<dyn Lease>,
    /// Within which a request is answered, reconnecting included.
    pub timeout: Duration,
    access: Access,
    /// Others write too, so that what was lost with a session must not be written again: it could
    /// take the place of what they wrote since. Nothing is confirmed before it is durable.
    through: bool,
    transport: Arc<dyn ScsiTransport>,
    unit: LogicalUnit,
    /// Requests read it. Who verifies a session writes, and so is alone.
    gate: RwLock<()>,
    /// Which session was verified last; changes only under the gate.
    nexus: AtomicU64,
    /// How often one was; changes only under the gate.
    verified: AtomicU64,
    /// What the unit had told of its resets by then; changes only under the gate.
    resets: AtomicU64,
    unflushed: Mutex<Unflushed>,
    /// Who flushes the unit's cache has it.
    flushes: tokio::sync::Mutex<()>,
    /// A flush is under way that nobody asked for.
    flushing: AtomicBool,
    /// Why it is no more this holder's, once that is so.
    lost: OnceLock<String>,
}

impl Attached {
    /// With a unit that was probed and verified in session `nexus`.
    pub fn new(
        lease: Box<dyn Lease>,
        transport: Arc<dyn ScsiTransport>,
        unit: LogicalUnit,
        nexus: u64,
        (access, sharing): (Access, Sharing),
        timeout: Duration,
    ) -> Self {
        Attached {
            lease,
            timeout,
            access,
            through: sharing == Sharing::Shared,
            transport,
            resets: AtomicU64::new(unit.resets()),
            unit,
            gate: RwLock::new(()),
            nexus: AtomicU64::new(nexus),
            verified: AtomicU64::new(0),
            unflushed: Mutex::default(),
            flushes: tokio::sync::Mutex::default(),
            flushing: AtomicBool::new(false),
            lost: OnceLock::new(),
        }
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u64 {
        u64::from(self.unit.block_size())
    }

    /// The part of `range` that is whole blocks.
    pub fn whole_blocks(&self, range: ByteRange) -> Option<ByteRange> {
        let block = self.block_size();
        let start = range.offset.next_multiple_of(block);
        let end = range.end() / block * block;
        (start < end).then(|| ByteRange::from_to(start, end))
    }

    /// Whether space can be given back, and what was reads as zeros.
    pub fn unmaps(&self) -> bool {
        zeroing::unmaps(&self.unit, self.lease.unmapped_is_zero())
    }

    /// Fails once the volume is not this holder's any more.
    ///
    /// # Errors
    /// `Fenced`.
    pub fn alive(&self, op: &'static str) -> Result<()> {
        match self.lost.get() {
            None => Ok(()),
            Some(reason) => Err(self.lease.describe(
                Error::new(ErrorKind::Fenced, op)
                    .reason(reason)
                    .help("this handle is of no more use: find out who has the volume now"),
            )),
        }
    }

    /// Reads whole blocks.
    ///
    /// # Errors
    /// Those of the data path.
    pub async fn read(
        self: &Arc<Self>,
        op: &'static str,
        offset: u64,
        length: u64,
        until: Instant,
    ) -> Result<Bytes> {
        let block = self.block_size();
        let piece = |at: u64| {
            let blocks = (MOST_READ.min(offset + length - at) / block) as u32;
            self.attempt(op, until, move |this, nexus| async move {
                let read = this.unit.read(Some(nexus), at / block, blocks);
                read.await.map(|(data, _)| data)
            })
        };
        if length <= MOST_READ {
            return piece(offset).await;
        }
        let mut data = BytesMut::new();
        let mut at = offset;
        while at < offset + length {
            let part = piece(at).await?;
            at += part.len() as u64;
            data.extend_from_slice(&part);
        }
        Ok(data.freeze())
    }

    /// Writes or zeroes whole blocks.
    ///
    /// # Errors
    /// Those of the data path.
    pub async fn change(
        self: &Arc<Self>,
        op: &'static str,
        done: Done,
        until: Instant,
    ) -> Result<()> {
        if self.through || self.unit.write_cache() == Some(false) {
            let through = self.through;
            return self
                .attempt(op, until, move |this, nexus| {
                    let done = done.clone();
                    async move {
                        this.apply(nexus, &done).await?;
                        match through {
                            true => this.make_durable(nexus).await,
                            false => Ok(()),
                        }
                    }
                })
                .await;
        }
        if self.unflushed().is_full() {
            self.flush(op, until).await?;
        }
        self.attempt(op, until, move |this, nexus| {
            let done = done.clone();
            async move {
                this.apply(nexus, &done).await?;
                // Still within the gate: whoever verifies another session finds it.
                this.unflushed().add(done);
                Ok(())
            }
        })
        .await?;
        self.flush_if_much();
        Ok(())
    }

    /// Makes durable what was confirmed before.
    ///
    /// # Errors
    /// Those of the data path.
    pub async fn flush(self: &Arc<Self>, op: &'static str, until: Instant) -> Result<()> {
        self.attempt(op, until, |this, nexus| async move {
            let mark = this.unflushed().end();
            this.make_durable(nexus).await?;
            // Otherwise it has to be written again, and is flushed by the next attempt.
            if this.has_all() {
                this.unflushed().flushed(mark);
            }
            Ok(())
        })
        .await
    }

    /// Has the unit flush its cache, one time after the other.
    ///
    /// After one that failed, another may succeed though the target has dropped what the first was to
    /// make durable: all of it has to be written again before. So none may succeed beside one that
    /// fails, and what comes of each is looked at, though its caller may have gone.
    async fn make_durable(self: &Arc<Self>, nexus: u64) -> Result<(), ScsiError> {
        let this = self.clone();
        let flush = tokio::spawn(async move {
            let _alone = this.flushes.lock().await;
            let done = this.unit.flush(Some(nexus)).await;
            if done.as_ref().is_err_and(|error| !wants_another_look(error)) {
                this.resets.store(u64::MAX, Ordering::Release);
            }
            done.map(drop)
        });
        match flush.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends, and so does whoever waits here.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether the unit has what it confirmed, as far as it has told.
    fn has_all(&self) -> bool {
        self.unit.resets() == self.resets.load(Ordering::Acquire)
    }

    /// The size in bytes, looked up.
    ///
    /// # Errors
    /// Those of the data path.
    pub async fn capacity(self: &Arc<Self>, op: &'static str, until: Instant) -> Result<u64> {
        self.attempt(op, until, |this, nexus| async move {
            let capacity = this.unit.read_capacity(Some(nexus)).await;
            capacity.map(|(capacity, _)| capacity.bytes())
        })
        .await
    }

    /// The allocated extents.
    ///
    /// # Errors
    /// Those of whoever knows them.
    pub async fn extents(
        self: &Arc<Self>,
        op: &'static str,
        range: ByteRange,
        until: Instant,
    ) -> Result<ExtentStream> {
        self.alive(op)?;
        if let Some(extents) = self.lease.extents(op, range).await {
            return extents;
        }
        extents::of_unit(self.clone(), op, range, until).await
    }

    /// What the unit says of the blocks from `lba` on.
    ///
    /// # Errors
    /// Those of the data path.
    pub async fn lba_status(
        self: &Arc<Self>,
        op: &'static str,
        lba: u64,
        until: Instant,
    ) -> Result<Vec<LbaStatus>> {
        self.attempt(op, until, move |this, nexus| async move {
            let status = this.unit.lba_status(Some(nexus), lba).await;
            status.map(|(status, _)| status)
        })
        .await
    }

    /// Whether the unit can be asked for that.
    pub fn tells_lba_status(&self) -> bool {
        self.unit.capacity().provisioned
    }

    /// Goes on looking whether the session is there, and has another one verified if it is not: who
    /// has a volume open and is not logged in is taken for dead after a while.
    pub async fn watch(attached: Weak<Self>) {
        loop {
            sleep(WATCH).await;
            let Some(attached) = attached.upgrade() else {
                return;
            };
            let until = Instant::now() + attached.timeout;
            if let Err(error) = attached.capacity("open_volume", until).await {
                tracing::debug!(%error, "an open volume has no session");
                if error.kind() == ErrorKind::Fenced {
                    return;
                }
            }
        }
    }

    /// Ends it: what is not durable is left to the target.
    pub async fn close(&self) {
        let ending = async {
            if self.lost.get().is_none() {
                self.lease.release(&self.unit).await;
            }
            if let Err(error) = self.transport.logout().await {
                tracing::debug!(%error, "the target did not say goodbye");
            }
        };
        if timeout_at(Instant::now() + GOODBYE, ending).await.is_err() {
            tracing::debug!("the target did not answer at the end");
        }
        self.lease.end().await;
    }

    fn unflushed(&self) -> MutexGuard<'_, Unflushed> {
        // The list is whole between any two statements.
        self.unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a flush in the background before so much is kept that writers have to wait.
    fn flush_if_much(self: &Arc<Self>) {
        if !self.unflushed().is_much() || self.flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        let attached = self.clone();
        tokio::spawn(async move {
            let until = Instant::now() + attached.timeout;
            if let Err(error) = attached.flush("flush", until).await {
                // Whoever flushes, or writes too much, is told.
                tracing::debug!(%error, "nothing is durable yet");
            }
            attached.flushing.store(false, Ordering::Release);
        });
    }

    async fn apply(&self, nexus: u64, done: &Done) -> Result<(), ScsiError> {
        let block = self.block_size();
        match done {
            Done::Written(offset, data) => {
                let written = self.unit.write(Some(nexus), offset / block, data.clone());
                written.await.map(drop)
            }
            Done::Zeroed(range, unmap) => zeroing::zero(&self.unit, nexus, *range, *unmap).await,
        }
    }

    async fn pass(&self, op: &'static str, until: Instant) -> Result<RwLockReadGuard<'_, ()>> {
        if let Ok(gate) = self.gate.try_read() {
            return Ok(gate);
        }
        let gate = timeout_at(until, self.gate.read()).await;
        gate.map_err(|_| self.late(op, None))
    }

    /// Does `work` in the session that was verified last, again if that has broken.
    async fn attempt<T, F: Future<Output = Result<T, ScsiError>> + Send>(
        self: &Arc<Self>,
        op: &'static str,
        until: Instant,
        work: impl Fn(Arc<Self>, u64) -> F + Send + Sync,
    ) -> Result<T> {
        loop {
            let gate = self.pass(op, until).await?;
            self.alive(op)?;
            let verified = self.verified.load(Ordering::Acquire);
            let nexus = self.nexus.load(Ordering::Acquire);
            let mut done = work(self.clone(), nexus).await;
            if done
                .as_ref()
                .is_err_and(|error| error.is_illegal(Illegal::LbaOutOfRange))
            {
                // It may have grown.
                done = match self.unit.read_capacity(Some(nexus)).await {
                    Ok(_) => work(self.clone(), nexus).await,
                    Err(error) => Err(error),
                };
            }
            let has_all = self.has_all();
            drop(gate);
            let error = match done {
                Ok(done) if has_all => return Ok(done),
                // What was confirmed before may be gone.
                Ok(_) => None,
                Err(error) if wants_another_look(&error) => Some(error),
                Err(error) => {
                    return Err(self.lease.describe(error.into_core(op, self.lease.name())));
                }
            };
            if Instant::now() >= until {
                return Err(self.late(op, error));
            }
            tracing::debug!(?error, "the session has to be verified");
            // To its end: what it sends again must not be overtaken by another attempt.
            let attached = self.clone();
            let task = tokio::spawn(async move { attached.verify(op, verified, until).await });
            match timeout_at(until, task).await {
                Ok(Ok(verified)) => verified?,
                Ok(Err(panic)) => {
                    return Err(Error::new(ErrorKind::Internal, op).with_source(panic));
                }
                Err(_) => return Err(self.late(op, error)),
            }
        }
    }

    fn late(&self, op: &'static str, cause: Option<ScsiError>) -> Error {
        let error = Error::new(ErrorKind::TimedOut, op)
            .reason(format!("no answer within {:?}", self.timeout))
            .help("see whether the target runs and can be reached");
        self.lease.describe(match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        })
    }

    /// Has a session again that is verified. `seen` is how often that was done when the caller's broke.
    async fn verify(self: &Arc<Self>, op: &'static str, seen: u64, until: Instant) -> Result<()> {
        let gate = timeout_at(until, self.gate.write()).await;
        let _gate = gate.map_err(|_| self.late(op, None))?;
        self.alive(op)?;
        if self.verified.load(Ordering::Acquire) != seen {
            return Ok(());
        }
        let mut pause = FIRST_PAUSE;
        loop {
            match timeout_at(until, self.lease.standing()).await {
                Ok(Ok(Standing::Held)) => {}
                Ok(Ok(Standing::Lost(reason))) => return Err(self.give_up(op, reason)),
                Ok(Err(error)) => tracing::debug!(%error, "whose the volume is can't be asked"),
                Err(_) => return Err(self.late(op, None)),
            }
            let error = match self.rejoin(until).await {
                Ok(Ok(nexus)) => {
                    self.nexus.store(nexus, Ordering::Release);
                    self.verified.fetch_add(1, Ordering::AcqRel);
                    return Ok(());
                }
                Ok(Err(reason)) => return Err(self.give_up(op, reason)),
                Err(error) => error,
            };
            tracing::debug!(%error, "no session yet");
            if may_not_be_shown(&error)
                && let Err(error) = self.lease.renew().await
            {
                if error.kind() == ErrorKind::Fenced {
                    let reason = error.get("reason").unwrap_or("it was taken over");
                    return Err(self.give_up(op, reason.to_owned()));
                }
                tracing::debug!(%error, "the target can't be asked to let us in");
            }
            if Instant::now() + pause >= until {
                return Err(self.late(op, Some(error)));
            }
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Logs in, looks whose unit it is, and sends again what may be lost. Gives the new session, or
    /// why there can never be one.
    async fn rejoin(&self, until: Instant) -> Result<Result<u64, String>, ScsiError> {
        // Not for long: who was turned away has to say so, to be let in again.
        let soon = until.saturating_duration_since(Instant::now()).min(ATTEMPT);
        let nexus = self.unit.reach(soon).await?;
        let nexus = match self.unit.check_identity(Some(nexus)).await {
            Ok(nexus) => nexus,
            Err(error) => match error.kind() {
                ScsiErrorKind::OtherUnit { found } => {
                    return Ok(Err(format!("the logical unit is another one now: {found}")));
                }
                ScsiErrorKind::Unsupported(_) => {
                    return Ok(Err(
                        "the logical unit can't be told from others, so it is not known \
                                   whether it is the same in another session"
                            .into(),
                    ));
                }
                _ => return Err(error),
            },
        };
        // Whose right is gone disturbs nobody.
        if let Standing::Lost(reason) = self.lease.verify(&self.unit, nexus).await? {
            return Ok(Err(reason));
        }
        if nexus != self.nexus.load(Ordering::Acquire) {
            self.silence().await?;
            // The reset may be told of. If it cost the session, all this begins anew.
            self.unit.check_identity(Some(nexus)).await?;
        }
        self.unit.read_capacity(Some(nexus)).await?;
        // Of one whose caller has gone it is not known yet whether it fails.
        let _no_flush = self.flushes.lock().await;
        let resets = self.unit.resets();
        let again = self.unflushed().entries();
        for done in &again {
            // What can't be written now stays in the list.
            self.apply(nexus, done).await?;
        }
        self.resets.store(resets, Ordering::Release);
        Ok(Ok(nexus))
    }

    /// Has the unit end what the old session had begun: should some of that still be on its way to
    /// the disk, it must not arrive after what is written next.
    async fn silence(&self) -> Result<(), ScsiError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        match self.transport.reset_lun(self.unit.lun()).await {
            // Then a new session has to be enough, as RFC 7143 section 6.3.5 says that it is.
            Err(error) if error.kind() == initiator::ErrorKind::Refused => Ok(()),
            reset => reset.map_err(|error| self.unit.transport_error(error)),
        }
    }

    fn give_up(&self, op: &'static str, reason: String) -> Error {
        let reason = self.lost.get_or_init(|| reason);
        match self.alive(op) {
            Err(error) => error,
            Ok(()) => Error::new(ErrorKind::Fenced, op).reason(reason),
        }
    }
}

/// Whether an error is of the session, or of what the unit is to this session, and not of the
/// request.
fn wants_another_look(error: &ScsiError) -> bool {
    use initiator::ErrorKind as Kind;
    match error.kind() {
        ScsiErrorKind::Transport(error) => matches!(
            error.kind(),
            Kind::Lost | Kind::Protocol | Kind::NotFound | Kind::Refused | Kind::Unauthenticated
        ),
        ScsiErrorKind::Attention { .. } | ScsiErrorKind::ReservationConflict => true,
        _ => error.is_illegal(Illegal::LunNotSupported),
    }
}

/// Whether the target may not show the unit, or not to us. tgtd ends connections without a word as
/// long as it has no targets.
fn may_not_be_shown(error: &ScsiError) -> bool {
    matches!(error.kind(), ScsiErrorKind::Transport(_))
        || error.is_illegal(Illegal::LunNotSupported)
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("lease", &self.lease)
            .field("nexus", &self.nexus)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

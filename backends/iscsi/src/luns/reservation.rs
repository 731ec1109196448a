//! The right to a logical unit that nobody hands out: a persistent reservation (SPC-4 section 5.13).
//!
//! Who writes alone registers a key of his own and reserves the unit (Write Exclusive). Who shares it
//! registers, and all who are registered hold the reservation (Write Exclusive, All Registrants).
//! Readers need nothing. A unit whose reservation is gone in a new session may have been another
//! writer's meanwhile, so it is given up.

use std::fmt;

use async_trait::async_trait;
use volmux_core::{
    Access, ByteRange, Error, ErrorKind, ExtentStream, OpenOptions, Result, Sharing, VolumeName,
};

use crate::array::Closing;
use crate::lease::{Lease, Standing};
use crate::open::Reached;
use crate::scsi::{LogicalUnit, Reservation, ReservationKind, ScsiError, ScsiErrorKind};

/// A unit's registration, or none for who only reads.
pub struct ReservationLease {
    pool: String,
    name: VolumeName,
    held: Option<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    key: u64,
    kind: ReservationKind,
}

/// Gets the right to a unit.
///
/// # Errors
/// `Busy` if somebody else has it reserved; `Unsupported` if the unit has no reservations;
/// `PermissionDenied` if it is write protected; those of the unit.
pub async fn lease(
    op: &'static str,
    pool: String,
    name: &VolumeName,
    reached: &Reached,
    options: OpenOptions,
) -> Result<Box<dyn Lease>> {
    let unit = &reached.unit;
    let mut lease = ReservationLease {
        pool,
        name: name.clone(),
        held: None,
    };
    if options.access == Access::ReadOnly {
        return Ok(Box::new(lease));
    }
    if unit.write_protected() {
        return Err(lease.describe(
            Error::new(ErrorKind::PermissionDenied, op)
                .reason("the target shows this logical unit for reading only"),
        ));
    }
    let mut key = [0; 8];
    getrandom::fill(&mut key).map_err(|error| {
        Error::new(ErrorKind::Unavailable, op).reason(format!("no random numbers: {error}"))
    })?;
    let held = Held {
        key: u64::from_be_bytes(key).max(1),
        kind: match options.sharing {
            Sharing::Exclusive => ReservationKind::WriteExclusive,
            Sharing::Shared => ReservationKind::WriteExclusiveAll,
        },
    };
    match take(reached, held, options.take_over).await {
        Ok(None) => {
            lease.held = Some(held);
            Ok(Box::new(lease))
        }
        Ok(Some(other)) => {
            held.give_up(unit).await;
            Err(lease.describe(
                Error::new(ErrorKind::Busy, op)
                    .reason(format!(
                        "the logical unit is reserved ({:?}) by the key {:#018x}",
                        other.kind, other.key
                    ))
                    .help("close it there; if that writer is lost, take the volume over"),
            ))
        }
        Err(error) => {
            held.give_up(unit).await;
            let error = lease.describe(error.into_core(op, name));
            Err(match error.kind() {
                ErrorKind::Unsupported => error.help(
                    "this target has no persistent reservations, so writers can't be kept apart",
                ),
                _ => error,
            })
        }
    }
}

/// Registers and reserves. Gives the reservation that is in the way.
async fn take(
    reached: &Reached,
    held: Held,
    take_over: bool,
) -> Result<Option<Reservation>, ScsiError> {
    let unit = &reached.unit;
    let persist = match unit.reservation_capabilities(None).await {
        Ok((capabilities, _)) => capabilities.persist,
        Err(error) if error.is_not_known() => false,
        Err(error) => return Err(error),
    };
    unit.register(None, 0, held.key, persist).await?;
    // Another one may take it, or let it go, between two looks.
    for _ in 0..10 {
        match unit.reserve(None, held.key, held.kind).await {
            Err(error) if matches!(error.kind(), ScsiErrorKind::ReservationConflict) => {}
            reserved => return reserved.map(|_| None),
        }
        let (Some(other), _) = unit.reservation(None).await? else {
            continue;
        };
        if other.kind == held.kind && held.kind == ReservationKind::WriteExclusiveAll {
            return Ok(None);
        }
        if !take_over {
            return Ok(Some(other));
        }
        preempt(reached, held, other).await?;
    }
    unit.reservation(None).await.map(|(other, _)| other)
}

/// Takes the reservation away from who holds it, with all that he has under way.
async fn preempt(reached: &Reached, held: Held, other: Reservation) -> Result<(), ScsiError> {
    let unit = &reached.unit;
    let preempted = unit
        .preempt(None, held.key, other.key, held.kind, true)
        .await;
    match preempted {
        Err(error) if error.is_not_known() => {}
        Err(error) if matches!(error.kind(), ScsiErrorKind::ReservationConflict) => return Ok(()),
        preempted => return preempted.map(drop),
    }
    match unit
        .preempt(None, held.key, other.key, held.kind, false)
        .await
    {
        Err(error) if matches!(error.kind(), ScsiErrorKind::ReservationConflict) => return Ok(()),
        preempted => preempted.map(drop)?,
    }
    // What it had under way was not ended with that.
    let reset = reached.transport.reset_lun(unit.lun()).await;
    reset.map_err(|error| unit.transport_error(error))
}

impl Held {
    /// Takes back what is held under our key by a session that has ended: tgt does not know that the
    /// new one is of the same initiator port, though it has the same ISID.
    async fn claim(self, unit: &LogicalUnit, nexus: u64) -> Result<Standing, ScsiError> {
        if self.kind != ReservationKind::WriteExclusive {
            // Whoever took us off the list of those who share it must not be passed over.
            return Ok(Standing::Lost(
                "the target does not know this session by its registration any more".into(),
            ));
        }
        unit.register_ignoring(Some(nexus), self.key, false).await?;
        let claimed = unit
            .preempt(Some(nexus), self.key, self.key, self.kind, false)
            .await;
        let (reservation, _) = match claimed {
            Err(error) if !matches!(error.kind(), ScsiErrorKind::ReservationConflict) => {
                return Err(error);
            }
            _ => unit.reservation(Some(nexus)).await?,
        };
        match reservation {
            Some(now) if now.key == self.key && now.kind == self.kind => {
                // Only the holder may.
                unit.reserve(Some(nexus), self.key, self.kind).await?;
                Ok(Standing::Held)
            }
            _ => {
                self.give_up(unit).await;
                Ok(Standing::Lost("another writer took the unit over".into()))
            }
        }
    }

    async fn give_up(self, unit: &LogicalUnit) {
        // With the registration the reservation ends.
        if let Err(error) = unit.register(None, self.key, 0, false).await {
            tracing::debug!(%error, "a key stays registered");
        }
    }
}

#[async_trait]
impl Lease for ReservationLease {
    async fn standing(&self) -> Result<Standing> {
        // Only the target knows, and it is asked in the session.
        Ok(Standing::Held)
    }

    async fn renew(&self) -> Result<()> {
        Ok(())
    }

    async fn verify(&self, unit: &LogicalUnit, nexus: u64) -> Result<Standing, ScsiError> {
        let Some(held) = self.held else {
            return Ok(Standing::Held);
        };
        let (keys, _) = unit.registered_keys(Some(nexus)).await?;
        if !keys.keys.contains(&held.key) {
            return Ok(Standing::Lost(
                "the registration is gone: another writer took the unit over, or the target lost it \
                 in a restart"
                    .into(),
            ));
        }
        let (reservation, _) = unit.reservation(Some(nexus)).await?;
        let Some(now) = reservation else {
            return Ok(Standing::Lost(
                "the reservation is gone: the unit may have been another's".into(),
            ));
        };
        if now.kind != held.kind || (now.key != held.key && now.key != 0) {
            return Ok(Standing::Lost(format!(
                "the unit is reserved ({:?}) by the key {:#018x}",
                now.kind, now.key
            )));
        }
        match unit.reserve(Some(nexus), held.key, held.kind).await {
            Err(error) if matches!(error.kind(), ScsiErrorKind::ReservationConflict) => {
                held.claim(unit, nexus).await
            }
            reserved => reserved.map(|_| Standing::Held),
        }
    }

    fn closing(&self) -> Option<Closing> {
        None
    }

    async fn release(&self, unit: &LogicalUnit) {
        if let Some(held) = self.held {
            held.give_up(unit).await;
        }
    }

    async fn end(&self) {}

    fn unmapped_is_zero(&self) -> bool {
        false
    }

    async fn extents(&self, _: &'static str, _: ByteRange) -> Option<Result<ExtentStream>> {
        None
    }

    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn describe(&self, error: Error) -> Error {
        let error = match error.get("volume") {
            None => error.with("volume", &self.name),
            Some(_) => error,
        };
        error.with("pool", &self.pool)
    }
}

impl fmt::Debug for ReservationLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservationLease")
            .field("name", &self.name)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

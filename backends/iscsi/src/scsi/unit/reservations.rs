//! Who may write: persistent reservations.

use volmux_iscsi_initiator::Data;

use super::LogicalUnit;
use crate::scsi::cdb::{self, ReserveIn, ReserveOut};
use crate::scsi::channel::Request;
use crate::scsi::error::Result;
use crate::scsi::reservation::{
    FullStatus, RegisteredKeys, Reservation, ReservationCapabilities, ReservationKind,
    parameter_list, parse_reservation,
};
use crate::scsi::wire::Malformed;

/// Room for what is read about reservations.
const ROOM: u16 = 32768;

/// Registrations belong to the initiator and its session as the target knows them (I_T nexus): a
/// new session in place of the old one has them still, unless the target started anew in between
/// and they were not made to persist. None of these commands is repeated by itself once it may have
/// been done.
///
/// tgt 1.0.85 does less. It lets UNMAP and WRITE SAME of others through, whatever is reserved; a
/// new session has to register again, for the registration of the old one stays behind as somebody
/// else's; it keeps nothing through a restart; and it has neither READ FULL STATUS nor PREEMPT AND
/// ABORT.
impl LogicalUnit {
    /// The keys that are registered.
    ///
    /// # Errors
    /// Those of every method.
    pub async fn registered_keys(&self, nexus: Option<u64>) -> Result<(RegisteredKeys, u64)> {
        self.reserve_in(nexus, ReserveIn::Keys, RegisteredKeys::parse)
            .await
    }

    /// The reservation, if there is one.
    ///
    /// # Errors
    /// Those of every method.
    pub async fn reservation(&self, nexus: Option<u64>) -> Result<(Option<Reservation>, u64)> {
        let read = self.reserve_in(nexus, ReserveIn::Reservation, parse_reservation);
        let ((_, reservation), nexus) = read.await?;
        Ok((reservation, nexus))
    }

    /// What the target can do about reservations.
    ///
    /// # Errors
    /// Those of every method; many targets do not tell
    /// ([`IllegalRequest`](crate::scsi::ScsiErrorKind::IllegalRequest)).
    pub async fn reservation_capabilities(
        &self,
        nexus: Option<u64>,
    ) -> Result<(ReservationCapabilities, u64)> {
        let parse = ReservationCapabilities::parse;
        self.reserve_in(nexus, ReserveIn::Capabilities, parse).await
    }

    /// Who is registered, by name.
    ///
    /// # Errors
    /// Those of every method; some targets do not tell
    /// ([`IllegalRequest`](crate::scsi::ScsiErrorKind::IllegalRequest)).
    pub async fn full_reservation_status(&self, nexus: Option<u64>) -> Result<(FullStatus, u64)> {
        self.reserve_in(nexus, ReserveIn::FullStatus, FullStatus::parse)
            .await
    }

    async fn reserve_in<T>(
        &self,
        nexus: Option<u64>,
        what: ReserveIn,
        parse: impl FnOnce(&[u8]) -> std::result::Result<T, Malformed>,
    ) -> Result<(T, u64)> {
        let request = Request::ask(cdb::persistent_reserve_in(what, ROOM), ROOM.into());
        let reply = self.channel.execute(nexus, &request).await?;
        let parsed = self
            .channel
            .checked(request.cdb.name(), parse(&reply.data))?;
        Ok((parsed, reply.nexus))
    }

    async fn reserve_out(
        &self,
        nexus: Option<u64>,
        what: ReserveOut,
        kind: Option<ReservationKind>,
        keys: (u64, u64),
        persist: bool,
    ) -> Result<u64> {
        let list = parameter_list(keys.0, keys.1, persist);
        let kind = kind.map_or(0, ReservationKind::code);
        let cdb = cdb::persistent_reserve_out(what, kind, list.len() as u32);
        let request = Request::change(cdb, Data::Write(list), false);
        Ok(self.channel.execute(nexus, &request).await?.nexus)
    }

    /// Registers `new_key` in place of `key`, which is 0 if none was registered; 0 for the new one
    /// ends the registration, and with it the reservation that it holds. With `persist` (APTPL) the
    /// target keeps registrations through a loss of power.
    ///
    /// # Errors
    /// [`ReservationConflict`](crate::scsi::ScsiErrorKind::ReservationConflict) if another key than
    /// `key` is registered; `InvalidField` if the target can't make it persist; those of every
    /// method.
    pub async fn register(
        &self,
        nexus: Option<u64>,
        key: u64,
        new_key: u64,
        persist: bool,
    ) -> Result<u64> {
        let keys = (key, new_key);
        self.reserve_out(nexus, ReserveOut::Register, None, keys, persist)
            .await
    }

    /// Registers `new_key`, whatever was registered before (REGISTER AND IGNORE EXISTING KEY).
    ///
    /// # Errors
    /// `InvalidField` if the target can't make it persist; those of every method.
    pub async fn register_ignoring(
        &self,
        nexus: Option<u64>,
        new_key: u64,
        persist: bool,
    ) -> Result<u64> {
        let keys = (0, new_key);
        self.reserve_out(nexus, ReserveOut::RegisterIgnoring, None, keys, persist)
            .await
    }

    /// Reserves the unit for who has registered `key`, which is this initiator. Succeeds also if it
    /// holds that reservation already.
    ///
    /// # Errors
    /// [`ReservationConflict`](crate::scsi::ScsiErrorKind::ReservationConflict) if somebody else
    /// holds it, or it is of another kind, or the key is not registered; those of every method.
    pub async fn reserve(
        &self,
        nexus: Option<u64>,
        key: u64,
        kind: ReservationKind,
    ) -> Result<u64> {
        self.reserve_out(nexus, ReserveOut::Reserve, Some(kind), (key, 0), false)
            .await
    }

    /// Gives up the reservation of this kind. Succeeds also if this initiator does not hold it.
    ///
    /// # Errors
    /// [`ReservationConflict`](crate::scsi::ScsiErrorKind::ReservationConflict) if the key is not
    /// registered; those of every method.
    pub async fn release(
        &self,
        nexus: Option<u64>,
        key: u64,
        kind: ReservationKind,
    ) -> Result<u64> {
        self.reserve_out(nexus, ReserveOut::Release, Some(kind), (key, 0), false)
            .await
    }

    /// Ends the registrations with key `victim`, and takes the reservation if one of them held it,
    /// as `kind`. With `abort` their commands are aborted before it is done: once it has returned,
    /// none of them writes any more. Without, what the target has begun may still be going on.
    ///
    /// # Errors
    /// [`ReservationConflict`](crate::scsi::ScsiErrorKind::ReservationConflict) if `key` or
    /// `victim` is not registered; those of every method.
    pub async fn preempt(
        &self,
        nexus: Option<u64>,
        key: u64,
        victim: u64,
        kind: ReservationKind,
        abort: bool,
    ) -> Result<u64> {
        let what = match abort {
            true => ReserveOut::PreemptAndAbort,
            false => ReserveOut::Preempt,
        };
        self.reserve_out(nexus, what, Some(kind), (key, victim), false)
            .await
    }

    /// Ends all registrations and the reservation.
    ///
    /// # Errors
    /// [`ReservationConflict`](crate::scsi::ScsiErrorKind::ReservationConflict) if `key` is not
    /// registered; those of every method.
    pub async fn clear_reservations(&self, nexus: Option<u64>, key: u64) -> Result<u64> {
        self.reserve_out(nexus, ReserveOut::Clear, None, (key, 0), false)
            .await
    }
}

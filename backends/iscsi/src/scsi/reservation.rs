//! Persistent reservations (SPC-4 5.13, 6.15, 6.16): who may write.

use bytes::Bytes;

use super::wire::{Malformed, at_least, be16, be32, be64, body, text};

/// What others may not do while a reservation is held (SPC-4 table 45).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReservationKind {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 3,
    /// Only who is registered writes.
    WriteExclusiveRegistrants = 5,
    /// Only who is registered reads and writes.
    ExclusiveAccessRegistrants = 6,
    /// Only who is registered writes, and all of them hold the reservation.
    WriteExclusiveAll = 7,
    /// Only who is registered reads and writes, and all of them hold the reservation.
    ExclusiveAccessAll = 8,
}

impl ReservationKind {
    fn of(code: u8) -> Option<ReservationKind> {
        Some(match code & 0x0f {
            1 => ReservationKind::WriteExclusive,
            3 => ReservationKind::ExclusiveAccess,
            5 => ReservationKind::WriteExclusiveRegistrants,
            6 => ReservationKind::ExclusiveAccessRegistrants,
            7 => ReservationKind::WriteExclusiveAll,
            8 => ReservationKind::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// The number that the standard gives it.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// A reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// The holder's key; 0 if all who are registered hold it.
    pub key: u64,
    /// What it keeps others from.
    pub kind: ReservationKind,
}

/// READ KEYS (SPC-4 6.15.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegisteredKeys {
    /// PRGENERATION: grows with each change of registrations.
    pub generation: u32,
    /// The keys, one for each that is registered; the same one may be there more than once.
    pub keys: Vec<u64>,
    /// Whether the target has more than came.
    pub incomplete: bool,
}

impl RegisteredKeys {
    /// Reads the reply.
    ///
    /// # Errors
    /// With less than eight bytes.
    pub fn parse(bytes: &[u8]) -> Result<RegisteredKeys, Malformed> {
        let (generation, length, list) = listed(bytes, "the list of keys")?;
        Ok(RegisteredKeys {
            generation,
            keys: list
                .chunks_exact(8)
                .filter_map(|key| be64(key, 0))
                .collect(),
            incomplete: length > list.len(),
        })
    }
}

/// READ RESERVATION (SPC-4 6.15.3): PRGENERATION, and the reservation if there is one.
///
/// # Errors
/// With less than eight bytes; if the reservation is cut, or its type unknown.
pub fn parse_reservation(bytes: &[u8]) -> Result<(u32, Option<Reservation>), Malformed> {
    let (generation, length, list) = listed(bytes, "the reservation")?;
    if length == 0 {
        return Ok((generation, None));
    }
    let list = at_least(list, 14, "the reservation")?;
    let kind = ReservationKind::of(list[13]).ok_or_else(|| unknown(list[13]))?;
    let key = be64(list, 0).unwrap_or(0);
    Ok((generation, Some(Reservation { key, kind })))
}

fn unknown(code: u8) -> Malformed {
    Malformed(format!("a reservation of the unknown type {}", code & 0x0f))
}

/// PRGENERATION, the length that is told, and as much as came of it.
fn listed<'a>(bytes: &'a [u8], what: &str) -> Result<(u32, usize, &'a [u8]), Malformed> {
    let bytes = at_least(bytes, 8, what)?;
    let length = be32(bytes, 4).unwrap_or(0);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Ok((be32(bytes, 0).unwrap_or(0), length, body(bytes, 8, length)))
}

/// REPORT CAPABILITIES (SPC-4 6.15.4).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReservationCapabilities {
    /// PTPL_C: registrations can be kept through a loss of power.
    pub persist: bool,
    /// PTPL_A: they are, by now.
    pub persistent: bool,
    /// ATP_C: an initiator can be registered on all ports at once.
    pub all_ports: bool,
    /// SIP_C: others can be registered.
    pub others: bool,
    /// The kinds of reservations that there are; empty if the target does not tell.
    pub kinds: Vec<ReservationKind>,
}

impl ReservationCapabilities {
    /// Reads the reply.
    ///
    /// # Errors
    /// With less than eight bytes.
    pub fn parse(bytes: &[u8]) -> Result<ReservationCapabilities, Malformed> {
        let bytes = at_least(bytes, 8, "the capabilities of reservations")?;
        let told = bytes[3] & 0x80 != 0;
        let masks = [(4, 1), (4, 3), (4, 5), (4, 6), (4, 7), (5, 0)];
        let codes = [1, 3, 5, 6, 7, 8];
        let kinds = masks
            .into_iter()
            .zip(codes)
            .filter_map(|((byte, bit), code)| {
                let has = told && bytes[byte] >> bit & 1 == 1;
                has.then(|| ReservationKind::of(code)).flatten()
            });
        Ok(ReservationCapabilities {
            persist: bytes[2] & 0x01 != 0,
            persistent: bytes[3] & 0x01 != 0,
            all_ports: bytes[2] & 0x04 != 0,
            others: bytes[2] & 0x08 != 0,
            kinds: kinds.collect(),
        })
    }
}

/// Who is registered (SPC-4 6.15.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registrant {
    /// The key.
    pub key: u64,
    /// What it holds, if it holds the reservation.
    pub holds: Option<ReservationKind>,
    /// ALL_TG_PT: on all ports of the target.
    pub all_ports: bool,
    /// The port of the target, by its relative number.
    pub port: u16,
    /// The initiator's name, if it is one of iSCSI; without the ISID (SPC-4 7.6.4.6).
    pub initiator: Option<String>,
    /// The whole TransportID, at most 64 KiB.
    pub transport_id: Vec<u8>,
}

/// READ FULL STATUS (SPC-4 6.15.5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FullStatus {
    /// PRGENERATION.
    pub generation: u32,
    /// Who is registered.
    pub registrants: Vec<Registrant>,
    /// Whether the target has more than came.
    pub incomplete: bool,
}

impl FullStatus {
    /// Reads the reply. A descriptor that is cut is left out, and those behind it.
    ///
    /// # Errors
    /// With less than eight bytes; if a holder's type is unknown.
    pub fn parse(bytes: &[u8]) -> Result<FullStatus, Malformed> {
        let (generation, length, mut rest) = listed(bytes, "the registrations")?;
        let mut status = FullStatus {
            generation,
            registrants: Vec::new(),
            incomplete: length > rest.len(),
        };
        while let Some((head, after)) = rest.split_at_checked(24) {
            let length = usize::try_from(be32(head, 20).unwrap_or(0)).unwrap_or(usize::MAX);
            let Some((transport_id, after)) = after.split_at_checked(length) else {
                status.incomplete = true;
                break;
            };
            let holds = match head[12] & 1 {
                1 => Some(ReservationKind::of(head[13]).ok_or_else(|| unknown(head[13]))?),
                _ => None,
            };
            status.registrants.push(Registrant {
                key: be64(head, 0).unwrap_or(0),
                holds,
                all_ports: head[12] & 2 != 0,
                port: be16(head, 18).unwrap_or(0),
                initiator: initiator(transport_id),
                transport_id: transport_id.to_vec(),
            });
            rest = after;
        }
        Ok(status)
    }
}

fn initiator(transport_id: &[u8]) -> Option<String> {
    // Protocol identifier 5 is iSCSI; with format 01b the ISID is behind ",i,0x".
    let format = transport_id.first().filter(|first| *first & 0x0f == 5)? >> 6;
    let length = be16(transport_id, 2)?;
    let name = text(body(transport_id, 4, length.into()));
    let name = match format {
        0 => name,
        1 => name.split(",i,0x").next().unwrap_or_default().to_owned(),
        _ => return None,
    };
    Some(name).filter(|name| !name.is_empty())
}

/// The parameter list of PERSISTENT RESERVE OUT (SPC-4 6.16.3): the key that is registered, the key
/// of the service action, and whether registrations are kept through a loss of power (APTPL).
pub(crate) fn parameter_list(key: u64, action_key: u64, persist: bool) -> Bytes {
    let mut list = Vec::with_capacity(24);
    list.extend(key.to_be_bytes());
    list.extend(action_key.to_be_bytes());
    list.extend([0, 0, 0, 0, u8::from(persist), 0, 0, 0]);
    list.into()
}

#[cfg(test)]
#[path = "reservation_tests.rs"]
mod tests;

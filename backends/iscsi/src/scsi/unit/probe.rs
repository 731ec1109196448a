//! What a logical unit is, read when it is opened.

use bytes::Bytes;

use super::Found;
use crate::scsi::capacity::Capacity;
use crate::scsi::cdb;
use crate::scsi::channel::{Channel, Request};
use crate::scsi::designator::parse_designators;
use crate::scsi::error::{Illegal, Result, ScsiError, ScsiErrorKind};
use crate::scsi::inquiry::{Inquiry, parse_pages, parse_serial};
use crate::scsi::limits::{BlockLimits, parse_rotation};
use crate::scsi::mode::{self, Mode};
use crate::scsi::opcodes::Operation;
use crate::scsi::provisioning::LogicalBlockProvisioning;
use crate::scsi::wire::be16;

/// How often it begins anew if the session ends meanwhile.
const ATTEMPTS: u32 = 3;
/// Room for the standard INQUIRY data: what all devices know how to fill.
const INQUIRY: u16 = 96;
/// Room for a page of vital product data; devices before SPC-3 look only at the lower byte.
const PAGE: u16 = 255;

/// Looks at a unit, in one session.
pub(super) async fn probe(channel: &Channel) -> Result<Found> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        match once(channel).await {
            Err(error) if error.is_lost() && attempts > 0 => {
                tracing::debug!(%error, "looked at anew");
            }
            done => return done,
        }
    }
}

async fn once(channel: &Channel) -> Result<Found> {
    let request = Request::ask(cdb::inquiry(INQUIRY), INQUIRY.into());
    let reply = channel.execute(None, &request).await?;
    let nexus = reply.nexus;
    check_device(channel, request.cdb.name(), &reply.data)?;
    let inquiry = channel.checked(request.cdb.name(), Inquiry::parse(&reply.data))?;
    let ready = Request::ask(cdb::test_unit_ready(), 0);
    channel.execute(Some(nexus), &ready).await?;

    let pages = page(channel, nexus, 0x00).await?;
    let pages = match pages {
        Some(bytes) => channel.checked("INQUIRY", parse_pages(&bytes))?,
        None => Vec::new(),
    };
    let listed = async |code: u8| match pages.contains(&code) {
        true => page(channel, nexus, code).await,
        false => Ok(None),
    };
    let (mut serial, mut designators) = (None, Vec::new());
    if let Some(bytes) = listed(0x80).await? {
        serial = channel.checked("INQUIRY", parse_serial(&bytes))?;
    }
    if let Some(bytes) = listed(0x83).await? {
        designators = channel.checked("INQUIRY", parse_designators(&bytes))?;
    }
    let mut limits = BlockLimits::default();
    if let Some(bytes) = listed(0xb0).await? {
        limits = channel.checked("INQUIRY", BlockLimits::parse(&bytes))?;
    }
    let mut rotation = Default::default();
    if let Some(bytes) = listed(0xb1).await? {
        rotation = channel.checked("INQUIRY", parse_rotation(&bytes))?;
    }
    let mut provisioning = LogicalBlockProvisioning::default();
    if let Some(bytes) = listed(0xb2).await? {
        provisioning = channel.checked("INQUIRY", LogicalBlockProvisioning::parse(&bytes))?;
    }
    let (capacity, _) = capacity(channel, Some(nexus)).await?;
    Ok(Found {
        nexus,
        inquiry,
        serial,
        designators,
        capacity,
        limits,
        rotation,
        provisioning,
        mode: mode(channel, nexus).await?,
        write_same: operation(channel, nexus, cdb::WRITE_SAME_16).await?,
    })
}

/// Whether the first byte of INQUIRY data, or of a page, is that of a disk.
pub(super) fn check_device(channel: &Channel, command: &'static str, bytes: &Bytes) -> Result<()> {
    let Some(first) = bytes.first() else {
        let reason = "no data came".to_owned();
        return Err(channel.error(command, ScsiErrorKind::Malformed(reason)));
    };
    let (qualifier, device_type) = (first >> 5, first & 0x1f);
    let kind = match (qualifier, device_type) {
        (0, 0) => return Ok(()),
        (3, _) => ScsiErrorKind::IllegalRequest(Illegal::LunNotSupported),
        _ => ScsiErrorKind::NotADisk {
            qualifier,
            device_type,
        },
    };
    Err(channel.error(command, kind))
}

/// What came, or `None` if the unit does not know the command.
fn if_known<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_not_known() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A page of vital product data; `None` if there is no such page.
pub(super) async fn page(channel: &Channel, nexus: u64, code: u8) -> Result<Option<Bytes>> {
    let mut room = PAGE;
    loop {
        let request = Request::ask(cdb::vital_product_data(code, room), room.into());
        let Some(reply) = if_known(channel.execute(Some(nexus), &request).await)? else {
            return Ok(None);
        };
        let needed = be16(&reply.data, 2).map_or(0, |length| length.saturating_add(4));
        if needed <= room || room > PAGE {
            return Ok(Some(reply.data));
        }
        room = needed;
    }
}

/// The size now, and the session that told it.
pub(super) async fn capacity(channel: &Channel, nexus: Option<u64>) -> Result<(Capacity, u64)> {
    let request = Request::ask(cdb::read_capacity_16(32), 32);
    if let Some(reply) = if_known(channel.execute(nexus, &request).await)? {
        let capacity = channel.checked(request.cdb.name(), Capacity::parse_16(&reply.data))?;
        return Ok((capacity, reply.nexus));
    }
    let request = Request::ask(cdb::read_capacity_10(), 8);
    let reply = channel.execute(nexus, &request).await?;
    let capacity = channel.checked(request.cdb.name(), Capacity::parse_10(&reply.data))?;
    Ok((capacity, reply.nexus))
}

/// What the mode parameters say; nothing, if they are not told.
async fn mode(channel: &Channel, nexus: u64) -> Result<Mode> {
    // A reservation of others may forbid to ask (SPC-4 table 47).
    let told = |answer| match if_known(answer) {
        Err(error) if is_conflict(&error) => Ok(None),
        answer => answer,
    };
    // Not all have the caching page, and then some don't even tell whether they are protected.
    for code in [mode::CACHING, mode::ALL_PAGES] {
        let request = Request::ask(cdb::mode_sense_6(code, 255), 255);
        if let Some(reply) = told(channel.execute(Some(nexus), &request).await)? {
            return channel.checked(request.cdb.name(), Mode::parse_6(&reply.data));
        }
        let request = Request::ask(cdb::mode_sense_10(code, 512), 512);
        if let Some(reply) = told(channel.execute(Some(nexus), &request).await)? {
            return channel.checked(request.cdb.name(), Mode::parse_10(&reply.data));
        }
    }
    Ok(Mode::default())
}

/// What the unit says of a command; `Unknown` if it does not tell.
async fn operation(channel: &Channel, nexus: u64, code: u8) -> Result<Operation> {
    let request = Request::ask(cdb::report_supported_operation(code, 256), 256);
    match channel.execute(Some(nexus), &request).await {
        Ok(reply) => channel.checked(request.cdb.name(), Operation::parse(&reply.data)),
        Err(error) if is_conflict(&error) => Ok(Operation::Unknown),
        // Any refusal: many targets don't have this command, and some refuse it in their own way.
        Err(error) if matches!(error.kind(), ScsiErrorKind::IllegalRequest(_)) => {
            Ok(Operation::Unknown)
        }
        Err(error) => Err(error),
    }
}

fn is_conflict(error: &ScsiError) -> bool {
    matches!(error.kind(), ScsiErrorKind::ReservationConflict)
}

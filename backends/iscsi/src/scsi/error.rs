//! What went wrong with a SCSI command, for the caller to act on.

use std::fmt;
use std::sync::Arc;

use volmux_core::{Error as CoreError, ErrorKind as CoreKind, VolumeName};
use volmux_iscsi_initiator::{Error as TransportError, ErrorKind as TransportKind};

use super::sense::{Sense, key};

/// A result of this layer.
pub type Result<T> = std::result::Result<T, ScsiError>;

/// What a logical unit does not do (sense key ILLEGAL REQUEST).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Illegal {
    /// It does not have the command (20/00).
    InvalidOpcode,
    /// It does not have what the command asks for (24/00, 26/xx).
    InvalidField,
    /// The range goes beyond its end (21/00). Read the capacity.
    LbaOutOfRange,
    /// The target has no logical unit of that number (25/00), or it is not connected.
    LunNotSupported,
    /// Something else.
    Other,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Illegal::InvalidOpcode => "the target does not have the command",
            Illegal::InvalidField => "the target does not take what the command says",
            Illegal::LbaOutOfRange => "the range goes beyond the unit's end",
            Illegal::LunNotSupported => "the target has no such logical unit",
            Illegal::Other => "the target does not do that",
        })
    }
}

/// What sort of failure it is, and what can be done.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ScsiErrorKind {
    /// It does not work now (sense key NOT READY). Becoming ready was waited for.
    #[error("the unit is not ready")]
    NotReady,
    /// The medium failed. What was to be written there is undefined; what was to be read is lost.
    #[error("the medium failed{}", first_block(*lba))]
    Medium {
        /// The first block that failed, if the target tells.
        lba: Option<u64>,
    },
    /// The target failed.
    #[error("the target's hardware failed")]
    Hardware,
    /// The unit does not do what it was asked for. Nothing was changed.
    #[error("{0}")]
    IllegalRequest(Illegal),
    /// Writing is not allowed. Nothing was changed.
    #[error("the unit is write protected")]
    WriteProtected,
    /// The target has no space to write to. A part may have been written.
    #[error("the target has no space left")]
    NoSpace,
    /// The target aborted it, several times. It may have been done in part.
    #[error("the target aborted the command")]
    Aborted,
    /// Something else was found than was to be compared with; nothing was written.
    #[error("the blocks hold something else than was expected")]
    Miscompare {
        /// The first byte that differs, counted from the first block, if the target tells.
        offset: Option<u64>,
    },
    /// A reservation of somebody else forbids it, or this initiator's key is not the one named.
    /// Nothing was changed.
    #[error("reserved by somebody else")]
    ReservationConflict,
    /// Something changed that has to be looked at before going on: registrations or reservations
    /// (2A/03 to 2A/05), identity (3F/03), the list of units (3F/0E). The command was not done. The
    /// target tells this once.
    #[error("something has changed")]
    Attention {
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
    /// The target was busy until the deadline.
    #[error("the target is busy")]
    Busy,
    /// The command did not reach the target, or no answer came: see [`TransportError::sent`].
    #[error("the command did not go through: {}", .0.reason())]
    Transport(#[source] TransportError),
    /// What the target answered breaks the standard. A write may have been done.
    #[error("the answer breaks the standard: {0}")]
    Malformed(String),
    /// The unit can't, as it said beforehand. Nothing was sent.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The caller's argument is wrong. Nothing was sent.
    #[error("{0}")]
    InvalidInput(String),
    /// There is a device, but not a disk.
    #[error("not a disk (peripheral qualifier {qualifier}, device type {device_type:#04x})")]
    NotADisk {
        /// Peripheral qualifier.
        qualifier: u8,
        /// Peripheral device type.
        device_type: u8,
    },
    /// Under this number there is another unit than before.
    #[error("another unit is there now: {found}")]
    OtherUnit {
        /// What it is called, or how it differs.
        found: String,
    },
    /// Sense data that fit nothing above.
    #[error("the command failed")]
    Other,
}

fn first_block(lba: Option<u64>) -> String {
    lba.map_or_else(String::new, |lba| format!(" at block {lba}"))
}

/// Where a logical unit is, for errors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub portal: Option<String>,
    pub target: Option<String>,
    pub lun: u64,
}

/// An error: its kind, of which command and unit, and what the target said.
#[derive(Debug, Clone)]
pub struct ScsiError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    kind: ScsiErrorKind,
    place: Arc<Place>,
    command: &'static str,
    status: Option<u8>,
    sense: Option<Sense>,
    nexus: Option<u64>,
}

impl ScsiError {
    pub(crate) fn new(kind: ScsiErrorKind, command: &'static str, place: Arc<Place>) -> ScsiError {
        ScsiError(Box::new(Inner {
            kind,
            place,
            command,
            status: None,
            sense: None,
            nexus: None,
        }))
    }

    pub(crate) fn answered(mut self, status: u8, sense: Option<Sense>, nexus: u64) -> ScsiError {
        self.0.status = Some(status);
        self.0.sense = sense;
        self.0.nexus = Some(nexus);
        self
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> &ScsiErrorKind {
        &self.0.kind
    }

    /// The logical unit.
    pub fn lun(&self) -> u64 {
        self.0.place.lun
    }

    /// The command, such as `WRITE(16)`.
    pub fn command(&self) -> &'static str {
        self.0.command
    }

    /// The SCSI status, if the target answered.
    pub fn status(&self) -> Option<u8> {
        self.0.status
    }

    /// The sense data, if there were any.
    pub fn sense(&self) -> Option<&Sense> {
        self.0.sense.as_ref()
    }

    /// Which session answered, if the target did.
    pub fn nexus(&self) -> Option<u64> {
        self.0.nexus
    }

    /// Whether it is about an earlier command, which had been acknowledged: what that one wrote is
    /// lost. The command that the error comes with was not done.
    pub fn is_deferred(&self) -> bool {
        self.0.sense.is_some_and(|sense| sense.deferred)
    }

    /// Whether the session is over, or was never there, or did not answer in time: another one may
    /// do.
    pub fn is_lost(&self) -> bool {
        let ScsiErrorKind::Transport(error) = self.kind() else {
            return false;
        };
        matches!(error.kind(), TransportKind::Lost | TransportKind::TimedOut)
    }

    pub(crate) fn is_illegal(&self, illegal: Illegal) -> bool {
        matches!(self.kind(), ScsiErrorKind::IllegalRequest(kind) if *kind == illegal)
            && !self.is_deferred()
    }

    /// Whether the unit does not know the command, or not in this form.
    pub(crate) fn is_not_known(&self) -> bool {
        self.is_illegal(Illegal::InvalidOpcode) || self.is_illegal(Illegal::InvalidField)
    }

    /// How much it matters that the caller learns of this one, if several pieces of a request
    /// failed: what the target tells only once goes first.
    pub(crate) fn weight(&self) -> u8 {
        match self.kind() {
            _ if self.is_deferred() => 2,
            ScsiErrorKind::Attention { .. } => 1,
            _ => 0,
        }
    }

    /// As the error of operation `op` on `volume`. `Fenced` if somebody else has reserved the unit
    /// or preempted this initiator; `NotFound` if the unit, or the target, is not there, or another
    /// unit is; `Corrupt` if data are lost; `NoSpace`; `PermissionDenied` if writing is not
    /// allowed; `Unauthenticated`; `Unsupported`; `InvalidInput`; `Busy` after a miscompare;
    /// `TimedOut`; `Unavailable` for the rest.
    pub fn into_core(self, op: &'static str, volume: &VolumeName) -> CoreError {
        let (kind, help) = self.as_core();
        let place = &self.0.place;
        let transport = match self.kind() {
            ScsiErrorKind::Transport(error) => Some(error),
            _ => None,
        };
        let portal = transport
            .map(|e| e.portal())
            .filter(|portal| !portal.is_empty());
        let target = transport.and_then(|error| error.target());
        let mut error = CoreError::new(kind, op).with("volume", volume);
        if let Some(portal) = portal.or(place.portal.as_deref()) {
            error = error.with("portal", portal);
        }
        if let Some(target) = target.or(place.target.as_deref()) {
            error = error.with("target", target);
        }
        error = error.with("lun", place.lun).with("command", self.command());
        if let Some(sense) = self.sense() {
            error = error.with("sense", sense);
        }
        error = error.reason(match self.is_deferred() {
            true => "an earlier write, which had been acknowledged, failed".to_owned(),
            false => self.kind().to_string(),
        });
        if let Some(help) = help {
            error = error.help(help);
        }
        error.with_source(self)
    }

    fn as_core(&self) -> (CoreKind, Option<&'static str>) {
        use ScsiErrorKind as Kind;
        const LOST: &str = "data are lost: write no more, audit the pool, restore from a backup";
        if self.is_deferred() {
            return (CoreKind::Corrupt, Some(LOST));
        }
        match self.kind() {
            Kind::Medium { .. } => (CoreKind::Corrupt, Some(LOST)),
            Kind::NotReady | Kind::Hardware | Kind::Other => (
                CoreKind::Unavailable,
                Some("look at the target's log and its disks"),
            ),
            Kind::IllegalRequest(illegal) => of_illegal(*illegal),
            Kind::WriteProtected => (
                CoreKind::PermissionDenied,
                Some("the target exports the unit for reading only"),
            ),
            Kind::NoSpace => (
                CoreKind::NoSpace,
                Some("free or add space where the target stores the unit, and see its log"),
            ),
            Kind::Miscompare { .. } => (CoreKind::Busy, None),
            Kind::ReservationConflict => (
                CoreKind::Fenced,
                Some("find out who has reserved the unit before it is written to again"),
            ),
            Kind::Attention { asc: 0x2a, .. } => (
                CoreKind::Fenced,
                Some("find out who has taken the reservation"),
            ),
            Kind::Attention { .. } | Kind::Aborted | Kind::Busy => (CoreKind::Unavailable, None),
            Kind::Malformed(_) => (
                CoreKind::Unavailable,
                Some("report it to who made the target"),
            ),
            Kind::Unsupported(_) => (CoreKind::Unsupported, None),
            Kind::InvalidInput(_) => (CoreKind::InvalidInput, None),
            Kind::NotADisk { .. } => (
                CoreKind::Unsupported,
                Some("name the number of a logical unit that is a disk"),
            ),
            Kind::OtherUnit { .. } => (
                CoreKind::NotFound,
                Some("the target has another unit under this number: attach the volume anew"),
            ),
            Kind::Transport(error) => of_transport(error.kind()),
        }
    }
}

fn of_illegal(illegal: Illegal) -> (CoreKind, Option<&'static str>) {
    match illegal {
        Illegal::InvalidOpcode | Illegal::InvalidField => (CoreKind::Unsupported, None),
        Illegal::LbaOutOfRange => (
            CoreKind::InvalidInput,
            Some("the unit is smaller than that: read its size again"),
        ),
        Illegal::LunNotSupported => (
            CoreKind::NotFound,
            Some("see which logical units the target has, and shows to this initiator"),
        ),
        Illegal::Other => (CoreKind::Unavailable, None),
    }
}

fn of_transport(kind: TransportKind) -> (CoreKind, Option<&'static str>) {
    match kind {
        TransportKind::Unauthenticated => (
            CoreKind::Unauthenticated,
            Some("compare the CHAP secrets of both sides"),
        ),
        TransportKind::NotFound => (CoreKind::NotFound, Some("the portal has no such target")),
        TransportKind::Refused => (
            CoreKind::PermissionDenied,
            Some("let this initiator in at the target"),
        ),
        TransportKind::TimedOut => (CoreKind::TimedOut, Some("is the target overloaded?")),
        TransportKind::InvalidInput => (CoreKind::InvalidInput, None),
        TransportKind::Lost => (
            CoreKind::Unavailable,
            Some("is the target running, and the network up?"),
        ),
        _ => (
            CoreKind::Unavailable,
            Some("report it to who made the target"),
        ),
    }
}

/// A session's error as that of operation `op`, where there is no logical unit yet.
pub fn session_error(op: &'static str, error: &TransportError) -> CoreError {
    let (kind, help) = of_transport(error.kind());
    let mut told = CoreError::new(kind, op).with("portal", error.portal());
    if let Some(target) = error.target() {
        told = told.with("target", target);
    }
    let told = told.reason(error.reason());
    match help {
        Some(help) => told.help(help),
        None => told,
    }
}

impl fmt::Display for ScsiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(
            f,
            "{}: {} (lun={}",
            inner.command, inner.kind, inner.place.lun
        )?;
        if let Some(status) = inner.status {
            write!(f, ", status={status:#04x}")?;
        }
        if let Some(sense) = &inner.sense {
            write!(f, ", sense: {sense}")?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for ScsiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.kind {
            ScsiErrorKind::Transport(error) => Some(error),
            _ => None,
        }
    }
}

/// What sense data mean that no retry helps against.
pub(crate) fn classify(sense: &Sense) -> ScsiErrorKind {
    let first = sense.information;
    match (sense.key, sense.code()) {
        (key::NOT_READY, _) => ScsiErrorKind::NotReady,
        (key::MEDIUM_ERROR, _) => ScsiErrorKind::Medium { lba: first },
        (key::HARDWARE_ERROR, _) => ScsiErrorKind::Hardware,
        (key::ILLEGAL_REQUEST, code) => ScsiErrorKind::IllegalRequest(match code {
            0x2000 => Illegal::InvalidOpcode,
            0x2100 => Illegal::LbaOutOfRange,
            0x2400..=0x24ff | 0x2600..=0x26ff => Illegal::InvalidField,
            0x2500 => Illegal::LunNotSupported,
            _ => Illegal::Other,
        }),
        // SPACE ALLOCATION FAILED WRITE PROTECT (SBC-3 4.7.3.6).
        (key::DATA_PROTECT, 0x2707) => ScsiErrorKind::NoSpace,
        (key::DATA_PROTECT, _) => ScsiErrorKind::WriteProtected,
        (key::UNIT_ATTENTION, _) => ScsiErrorKind::Attention {
            asc: sense.asc,
            ascq: sense.ascq,
        },
        (key::ABORTED_COMMAND, _) => ScsiErrorKind::Aborted,
        (key::MISCOMPARE, _) => ScsiErrorKind::Miscompare { offset: first },
        _ => ScsiErrorKind::Other,
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;

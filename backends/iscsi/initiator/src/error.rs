//! What can go wrong, for the caller to act on.

use std::fmt;
use std::sync::Arc;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// One side did not prove who it is, or was not asked to: the secrets differ. Correct them.
    Unauthenticated,
    /// The portal has no such target.
    NotFound,
    /// The target does not want: an option, this initiator, or a request. Ask its administrator.
    Refused,
    /// There is no connection, or it broke. What was sent may have been done, as after
    /// [`TimedOut`](ErrorKind::TimedOut). Try again.
    Lost,
    /// No answer came in time. What was sent may have been done, wholly or in part; what is sent later
    /// is not overtaken by it. Try again.
    TimedOut,
    /// The target breaks the protocol (RFC 7143). Report it to who made it.
    Protocol,
    /// An option or an argument is wrong; nothing was sent.
    InvalidInput,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::Unauthenticated => "not authenticated",
            ErrorKind::NotFound => "no such target",
            ErrorKind::Refused => "refused",
            ErrorKind::Lost => "connection lost",
            ErrorKind::TimedOut => "no answer in time",
            ErrorKind::Protocol => "protocol error",
            ErrorKind::InvalidInput => "invalid input",
        })
    }
}

/// An error: its kind, the reason, and between whom. It can be cloned: all who wait for a connection
/// learn why it broke.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {} ({})", .0.kind, .0.reason, .0.place)]
pub struct Error(Arc<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    kind: ErrorKind,
    reason: String,
    place: Place,
    sent: bool,
}

/// Where it happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub portal: String,
    pub target: Option<String>,
    pub lun: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "portal={}", self.portal)?;
        if let Some(target) = &self.target {
            write!(f, ", target={target}")?;
        }
        if let Some(lun) = self.lun {
            write!(f, ", lun={lun:#x}")?;
        }
        Ok(())
    }
}

impl Error {
    /// A new error, not yet of any place. For who writes another transport with these errors.
    pub fn new(kind: ErrorKind, reason: impl Into<String>) -> Error {
        Error(Arc::new(Inner {
            kind,
            reason: reason.into(),
            place: Place::default(),
            sent: false,
        }))
    }

    pub(crate) fn protocol(reason: impl Into<String>) -> Error {
        Error::new(ErrorKind::Protocol, reason)
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Error {
        let mut inner = Arc::unwrap_or_clone(self.0);
        change(&mut inner);
        Error(Arc::new(inner))
    }

    pub(crate) fn at(self, place: Place) -> Error {
        self.with(|inner| inner.place = place)
    }

    /// Says between whom it happened.
    pub fn between(self, portal: impl Into<String>, target: Option<String>) -> Error {
        self.with(|inner| {
            inner.place.portal = portal.into();
            inner.place.target = target;
        })
    }

    /// Says which logical unit it was about.
    pub fn of_lun(self, lun: u64) -> Error {
        self.with(|inner| inner.place.lun = Some(lun))
    }

    /// Says that the target may have seen the command.
    pub fn was_sent(self) -> Error {
        self.with(|inner| inner.sent = true)
    }

    /// What can be done about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, without where.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The address of the portal, as in [`Options::portal`](crate::Options::portal).
    pub fn portal(&self) -> &str {
        &self.0.place.portal
    }

    /// The name of the target. Discovery has none.
    pub fn target(&self) -> Option<&str> {
        self.0.place.target.as_deref()
    }

    /// The logical unit, if a command failed.
    pub fn lun(&self) -> Option<u64> {
        self.0.place.lun
    }

    /// Whether the target may have seen the command, and so may have done what it asks, wholly or in
    /// part.
    pub fn sent(&self) -> bool {
        self.0.sent
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        let reason = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "the target closed the connection".into(),
            _ => error.to_string(),
        };
        Error::new(ErrorKind::Lost, reason)
    }
}

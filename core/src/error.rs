//! The one error type of volmux.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// `Result` with volmux's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure this is. A kind exists only if a caller would act differently on it.
///
/// The numbers are the C status codes and select the Python exception class. They are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum ErrorKind {
    /// The named object does not exist. Check the name; create it first.
    NotFound = 1,
    /// The name is taken by an object made with other arguments. Choose another name.
    AlreadyExists = 2,
    /// This pool cannot do that, as its `capabilities()` say. Use another pool or another way.
    Unsupported = 3,
    /// An argument is wrong. Correct the call; repeating it cannot help.
    InvalidInput = 4,
    /// The pool's URL, configuration file or stored configuration is wrong. Correct it.
    InvalidConfig = 5,
    /// There is no room, or the pool's [`ThinPolicy`](crate::ThinPolicy) refuses. Free or add space.
    NoSpace = 6,
    /// Somebody else uses the object. Try again once they are done.
    Busy = 7,
    /// Another writer took over; this handle is dead. Do not retry: find out who took over.
    Fenced = 8,
    /// The operating system or the store does not allow it. Grant the right, or change the user.
    PermissionDenied = 9,
    /// Credentials are missing or wrong. Correct them.
    Unauthenticated = 10,
    /// The store cannot be reached or answered with a passing fault. Try again later.
    Unavailable = 11,
    /// The operation was stopped before it finished: its deadline passed, or the caller
    /// cancelled it. Calling again converges.
    TimedOut = 12,
    /// Stored data or metadata is damaged. Stop writing, run an audit, restore from a backup.
    Corrupt = 13,
    /// A fault in volmux itself. Report it.
    Internal = 14,
}

impl ErrorKind {
    /// Every kind, in the order of its number.
    pub const ALL: [ErrorKind; 14] = [
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::Unsupported,
        ErrorKind::InvalidInput,
        ErrorKind::InvalidConfig,
        ErrorKind::NoSpace,
        ErrorKind::Busy,
        ErrorKind::Fenced,
        ErrorKind::PermissionDenied,
        ErrorKind::Unauthenticated,
        ErrorKind::Unavailable,
        ErrorKind::TimedOut,
        ErrorKind::Corrupt,
        ErrorKind::Internal,
    ];

    /// The stable number: C status code, and base of the command line's exit code.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The stable name, as used in JSON and in Python class names.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "NotFound",
            ErrorKind::AlreadyExists => "AlreadyExists",
            ErrorKind::Unsupported => "Unsupported",
            ErrorKind::InvalidInput => "InvalidInput",
            ErrorKind::InvalidConfig => "InvalidConfig",
            ErrorKind::NoSpace => "NoSpace",
            ErrorKind::Busy => "Busy",
            ErrorKind::Fenced => "Fenced",
            ErrorKind::PermissionDenied => "PermissionDenied",
            ErrorKind::Unauthenticated => "Unauthenticated",
            ErrorKind::Unavailable => "Unavailable",
            ErrorKind::TimedOut => "TimedOut",
            ErrorKind::Corrupt => "Corrupt",
            ErrorKind::Internal => "Internal",
        }
    }

    /// Whether the same call may succeed later without the caller changing anything.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::TimedOut
        )
    }

    /// The kind that fits an operating-system error.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            Io::TimedOut => ErrorKind::TimedOut,
            Io::ResourceBusy | Io::WouldBlock => ErrorKind::Busy,
            Io::Unsupported => ErrorKind::Unsupported,
            Io::InvalidInput => ErrorKind::InvalidInput,
            Io::UnexpectedEof | Io::InvalidData => ErrorKind::Corrupt,
            // EIO, ESTALE, ENOTCONN, EMFILE and the like: the store did not do its part.
            _ => ErrorKind::Unavailable,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::NotFound => "not found",
            ErrorKind::AlreadyExists => "already exists",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::InvalidInput => "invalid input",
            ErrorKind::InvalidConfig => "invalid configuration",
            ErrorKind::NoSpace => "no space",
            ErrorKind::Busy => "busy",
            ErrorKind::Fenced => "fenced",
            ErrorKind::PermissionDenied => "permission denied",
            ErrorKind::Unauthenticated => "unauthenticated",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::TimedOut => "timed out",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Internal => "internal error",
        })
    }
}

/// An error: what sort, in which operation, about which objects, and why.
///
/// [`Display`](fmt::Display) prints operation, kind and context in one line; the underlying cause
/// comes only through [`source`](StdError::source).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    op: &'static str,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error of `kind` in operation `op` (the trait method's name, such as `create_volume`).
    pub fn new(kind: ErrorKind, op: &'static str) -> Self {
        Error(Box::new(Inner {
            kind,
            op,
            context: Vec::new(),
            source: None,
        }))
    }

    /// An error from the operating system, of the kind that fits it.
    pub fn from_io(op: &'static str, error: std::io::Error) -> Self {
        Error::new(ErrorKind::of_io(&error), op).with_source(error)
    }

    /// Adds `key=value` to the context. Usual keys: `pool`, `volume`, `path`, `reason` (what is
    /// wrong, in a sentence) and `help` (what the reader can do about it).
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Short for `with("reason", …)`.
    #[must_use]
    pub fn reason(self, reason: impl fmt::Display) -> Self {
        self.with("reason", reason)
    }

    /// Short for `with("help", …)`.
    #[must_use]
    pub fn help(self, help: impl fmt::Display) -> Self {
        self.with("help", help)
    }

    /// Sets the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Changes the kind, where the caller of a helper knows better what its failure means.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Changes the operation, where that of a helper is not what the caller was asked for.
    #[must_use]
    pub fn with_op(mut self, op: &'static str) -> Self {
        self.0.op = op;
        self
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed.
    pub fn op(&self) -> &'static str {
        self.0.op
    }

    /// The context, in the order in which it was added.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0
            .context
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
    }

    /// The first context value under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.context()
            .find(|(k, _)| *k == key)
            .map(|(_, value)| value)
    }

    /// Whether the same call may succeed later. See [`ErrorKind::is_retryable`].
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }
}

/// A value as the one line of [`Error`]'s display shows it: quoted where it would be ambiguous.
fn quoted(value: &str) -> Cow<'_, str> {
    let plain = !value.is_empty()
        && value
            .chars()
            .all(|c| !c.is_whitespace() && !c.is_control() && !"\"(),=".contains(c));
    if plain {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(format!("{value:?}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.op, self.0.kind)?;
        for (i, (key, value)) in self.context().enumerate() {
            write!(
                f,
                "{}{key}={}",
                if i == 0 { " (" } else { ", " },
                quoted(value)
            )?;
        }
        if self.0.context.is_empty() {
            Ok(())
        } else {
            f.write_str(")")
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_with_context_and_without_the_cause() {
        let error = Error::new(ErrorKind::NoSpace, "create_volume")
            .with("volume", "web-1")
            .reason("pool is 97 % full\nreally")
            .with_source(std::io::Error::other("ENOSPC"));
        assert_eq!(
            error.to_string(),
            r#"create_volume: no space (volume=web-1, reason="pool is 97 % full\nreally")"#
        );
        assert_eq!(
            StdError::source(&error).map(ToString::to_string).as_deref(),
            Some("ENOSPC")
        );
        assert_eq!(error.get("volume"), Some("web-1"));
    }

    #[test]
    fn codes_are_one_to_fourteen_and_never_change() {
        let codes: Vec<i32> = ErrorKind::ALL.iter().map(|k| k.code()).collect();
        assert_eq!(codes, (1..=14).collect::<Vec<_>>());
        assert_eq!(ErrorKind::Fenced.code(), 8);
        assert_eq!(ErrorKind::Corrupt.code(), 13);
    }
}

//! What an object store's failure means: of which kind it is, and whether it may pass.
//!
//! Nothing of a failure's own text is shown but codes and the operating system's words: the rest
//! may hold addresses with signatures in them, and whatever a server chose to write.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};
use volmux_core::ErrorKind;

/// Deepest chain of causes that is looked at.
const DEPTH: usize = 16;

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What a caller is told.
    pub kind: ErrorKind,
    /// Whether the same request may succeed later.
    pub transient: bool,
    /// What happened, in lower case; free of secrets.
    pub reason: String,
    /// What can be done about it.
    pub help: Option<&'static str>,
}

impl Fault {
    pub fn new(kind: ErrorKind, transient: bool, reason: impl Into<String>) -> Self {
        Fault {
            kind,
            transient,
            reason: reason.into(),
            help: None,
        }
    }

    fn help(mut self, help: &'static str) -> Self {
        self.help = Some(help);
        self
    }

    /// A request that took longer than it may.
    pub fn timed_out(after: Duration) -> Self {
        let after = humantime::format_duration(after);
        Fault::new(
            ErrorKind::TimedOut,
            true,
            format!("the store did not answer within {after}"),
        )
        .help("see whether the store is reachable and not overloaded, or set request_timeout")
    }
}

/// Whether a create-only put failed since there is something of that name, or may be.
pub(crate) fn is_taken(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(
        error,
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. }
    )
}

/// Whether the object is not there, though what should hold it is.
pub(crate) fn is_missing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
        && !Answer::of(error).code.is_some_and(is_container)
}

impl From<object_store::Error> for Fault {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as E;
        let answer = Answer::of(&error);
        if let Some(fault) = answer.fault() {
            return fault;
        }
        match error {
            E::NotFound { .. } => Fault::new(ErrorKind::NotFound, false, "it does not exist"),
            // Two conditional requests at the same time; the next try finds out.
            E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => {
                Fault::new(ErrorKind::Unavailable, true, "the store reports a conflict")
            }
            E::PermissionDenied { .. } => denied(&answer),
            E::Unauthenticated { .. } => unauthenticated(&answer),
            E::NotSupported { .. } | E::NotImplemented { .. } => unsupported(&answer),
            E::InvalidPath { .. } => Fault::new(
                ErrorKind::InvalidConfig,
                false,
                "there is an object whose name has an empty part, as in a//b",
            )
            .help("remove that object or use another prefix"),
            E::JoinError { .. } => {
                Fault::new(ErrorKind::Internal, false, "a task of the store failed")
            }
            E::UnknownConfigurationKey { .. } => Fault::new(
                ErrorKind::InvalidConfig,
                false,
                "a setting is not one of this kind of store",
            ),
            _ => Fault::new(
                ErrorKind::Unavailable,
                true,
                format!("the store failed{answer}"),
            ),
        }
    }
}

/// What can be told from the chain of causes.
#[derive(Debug, Default)]
struct Answer {
    status: Option<u16>,
    code: Option<&'static str>,
    http: Option<HttpErrorKind>,
    io: Option<(io::ErrorKind, Option<i32>)>,
    past_end: bool,
    redirect: bool,
    no_credentials: bool,
}

/// The codes of the services that mean more than their status. Only these are ever shown.
const CODES: [&str; 45] = [
    // A bucket or container is missing.
    "NoSuchBucket",
    "ContainerNotFound",
    "ContainerBeingDeleted",
    "FilesystemNotFound",
    // An object is.
    "NoSuchKey",
    "BlobNotFound",
    // The credentials are wrong.
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "InvalidSecurity",
    "NotSignedUp",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "AccountIsDisabled",
    "MissingSecurityHeader",
    // The clock is.
    "RequestTimeTooSkewed",
    "RequestExpired",
    // A right is missing.
    "AccessDenied",
    "AllAccessDisabled",
    "AccountProblem",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "InsufficientAccountPermissions",
    "PublicAccessNotPermitted",
    // The address or the region is wrong.
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraintException",
    "InvalidBucketName",
    "InvalidResourceName",
    // No room.
    "QuotaExceeded",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "InsufficientStorage",
    // The store is busy.
    "SlowDown",
    "ServerBusy",
    "InternalError",
    "ServiceUnavailable",
    "OperationTimedOut",
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
    // It cannot do that.
    "NotImplemented",
];

fn is_container(code: &str) -> bool {
    CODES[..4].contains(&code)
}

impl Answer {
    fn of(error: &object_store::Error) -> Self {
        let mut answer = Answer::default();
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        for _ in 0..DEPTH {
            let Some(error) = cause else { break };
            answer.look(error);
            cause = error.source();
        }
        answer
    }

    fn look(&mut self, error: &(dyn StdError + 'static)) {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            self.http = Some(http.kind());
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            self.io = Some((io.kind(), io.raw_os_error()));
        }
        let text = error.to_string();
        self.past_end |= text.contains("Wanted range starting at");
        self.redirect |= text.contains("redirect without LOCATION");
        self.no_credentials |= ["169.254.169.254", "metadata.google.internal"]
            .iter()
            .any(|host| text.contains(host));
        let status = text
            .split_once("status code: ")
            .and_then(|(_, rest)| rest.get(..3)?.parse().ok());
        self.status = self.status.or(status);
        // As an answer's body has it, and as the client words it for each object of several.
        let code = [("<Code>", "</Code>"), ("(code: ", ")")]
            .iter()
            .find_map(|(before, after)| Some(text.split_once(before)?.1.split_once(after)?.0))
            .and_then(|code| CODES.iter().find(|known| **known == code));
        self.code = self.code.or(code.copied());
    }

    /// What is clear whatever sort of error object_store took it for.
    fn fault(&self) -> Option<Fault> {
        if self.past_end || self.status == Some(416) {
            return Some(Fault::new(
                ErrorKind::Corrupt,
                false,
                "the object is shorter than it must be",
            ));
        }
        if self.no_credentials {
            return Some(Fault {
                transient: true,
                ..unauthenticated(self)
            });
        }
        let place = CODES.iter().position(|code| Some(*code) == self.code);
        match place {
            Some(..4) => return Some(no_container(self)),
            Some(6..18) => return Some(unauthenticated(self)),
            Some(18..20) => {
                let reason = "the store says that this machine's clock is wrong";
                let fault = Fault::new(ErrorKind::Unauthenticated, false, reason);
                return Some(fault.help("set the clock; signatures hold for a few minutes only"));
            }
            Some(20..27) => return Some(denied(self)),
            Some(27..32) => return Some(elsewhere(self)),
            Some(32..36) => return Some(full(self)),
            Some(44) => return Some(unsupported(self)),
            _ => {}
        }
        if self.redirect {
            return Some(elsewhere(self));
        }
        match self.status {
            Some(501 | 405) => Some(unsupported(self)),
            Some(507) => Some(full(self)),
            Some(301 | 307 | 308) => Some(elsewhere(self)),
            Some(400 | 411..=415 | 417..=428 | 430..=499) if self.status != Some(412) => {
                let reason = format!("the store refuses the request{self}");
                let fault = Fault::new(ErrorKind::InvalidConfig, false, reason);
                Some(fault.help("check endpoint, region and bucket"))
            }
            None => self.local(),
            _ => None,
        }
    }

    /// A failure without an answer.
    fn local(&self) -> Option<Fault> {
        if self.http.is_some() {
            let reason = format!("the store cannot be reached{self}");
            let fault = Fault::new(ErrorKind::Unavailable, true, reason);
            return Some(fault.help("check the endpoint and the network"));
        }
        let (kind, os) = self.io.filter(|(kind, _)| *kind != io::ErrorKind::Other)?;
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) {
            return None;
        }
        let error = os.map_or_else(|| kind.into(), io::Error::from_raw_os_error);
        let kind = ErrorKind::of_io(&error);
        let fault = Fault::new(kind, kind == ErrorKind::Busy, error.to_string());
        Some(match kind {
            ErrorKind::Corrupt => Fault {
                reason: "what is stored there is not what a store holds".to_owned(),
                ..fault
            },
            ErrorKind::NoSpace => fault.help("free space there, then try again"),
            ErrorKind::PermissionDenied => fault.help("check owner and mode of the directory"),
            _ => fault,
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.code) {
            (Some(status), Some(code)) => return write!(f, ": {status} {code}"),
            (Some(status), None) => return write!(f, ": status {status}"),
            (None, Some(code)) => return write!(f, ": {code}"),
            (None, None) => {}
        }
        match (self.io, self.http) {
            (Some((_, Some(os))), _) => write!(f, ": {}", io::Error::from_raw_os_error(os)),
            (Some((kind, None)), _) if kind != io::ErrorKind::Other => write!(f, ": {kind}"),
            (_, Some(HttpErrorKind::Connect)) => f.write_str(": no connection"),
            (_, Some(HttpErrorKind::Timeout)) => f.write_str(": no answer in time"),
            (_, Some(HttpErrorKind::Decode)) => f.write_str(": its answer is not understood"),
            (_, Some(_)) => f.write_str(": the connection broke"),
            _ => Ok(()),
        }
    }
}

fn no_container(answer: &Answer) -> Fault {
    let reason = format!("there is no such bucket or container{answer}");
    Fault::new(ErrorKind::NotFound, false, reason)
        .help("create it with the store's own tools, or correct its name")
}

fn unauthenticated(answer: &Answer) -> Fault {
    let reason = if answer.no_credentials {
        "no credentials were found".to_owned()
    } else {
        format!("the store does not accept the credentials{answer}")
    };
    Fault::new(ErrorKind::Unauthenticated, false, reason)
        .help("set them in the environment (AWS_*, AZURE_*, GOOGLE_*) or in credentials_file")
}

fn denied(answer: &Answer) -> Fault {
    let reason = format!("the store does not allow it{answer}");
    Fault::new(ErrorKind::PermissionDenied, false, reason)
        .help("grant reading, writing, listing and deleting below the prefix")
}

fn elsewhere(answer: &Answer) -> Fault {
    let reason = format!("the bucket is in another region or at another address{answer}");
    Fault::new(ErrorKind::InvalidConfig, false, reason).help("correct region or endpoint")
}

fn full(answer: &Answer) -> Fault {
    let reason = format!("the store is full, or a quota is used up{answer}");
    Fault::new(ErrorKind::NoSpace, false, reason).help("free space or raise the quota")
}

fn unsupported(answer: &Answer) -> Fault {
    let reason = format!("the store cannot do that{answer}");
    Fault::new(ErrorKind::Unsupported, false, reason)
        .help("a pool needs GET with ranges, PUT with If-None-Match, LIST and DELETE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: text.into(),
        }
    }

    fn answered(status: &str, code: &str) -> object_store::Error {
        generic(&format!(
            "Error performing GET http://h/b/o?X-Amz-Signature=canary in 1ms - Server returned \
             non-2xx status code: {status}: <Error><Code>{code}</Code><Message>canary</Message>"
        ))
    }

    #[test]
    fn answers_have_the_kind_that_fits_and_only_passing_ones_are_tried_again() {
        use ErrorKind as K;
        for (status, code, kind, transient) in [
            ("404 Not Found", "NoSuchBucket", K::NotFound, false),
            ("404 Not Found", "ContainerNotFound", K::NotFound, false),
            (
                "403 Forbidden",
                "InvalidAccessKeyId",
                K::Unauthenticated,
                false,
            ),
            (
                "403 Forbidden",
                "SignatureDoesNotMatch",
                K::Unauthenticated,
                false,
            ),
            (
                "403 Forbidden",
                "AuthenticationFailed",
                K::Unauthenticated,
                false,
            ),
            ("400 Bad Request", "ExpiredToken", K::Unauthenticated, false),
            (
                "403 Forbidden",
                "RequestTimeTooSkewed",
                K::Unauthenticated,
                false,
            ),
            ("403 Forbidden", "AccessDenied", K::PermissionDenied, false),
            (
                "403 Forbidden",
                "AuthorizationFailure",
                K::PermissionDenied,
                false,
            ),
            (
                "400 Bad Request",
                "AuthorizationHeaderMalformed",
                K::InvalidConfig,
                false,
            ),
            ("301 Moved", "PermanentRedirect", K::InvalidConfig, false),
            ("400 Bad Request", "Whatever", K::InvalidConfig, false),
            ("403 Forbidden", "QuotaExceeded", K::NoSpace, false),
            ("507 Insufficient Storage", "canary", K::NoSpace, false),
            (
                "501 Not Implemented",
                "NotImplemented",
                K::Unsupported,
                false,
            ),
            ("503 Slow Down", "SlowDown", K::Unavailable, true),
            ("500 Internal", "InternalError", K::Unavailable, true),
            ("429 Too Many", "", K::Unavailable, true),
            (
                "416 Range Not Satisfiable",
                "InvalidRange",
                K::Corrupt,
                false,
            ),
        ] {
            let fault = Fault::from(answered(status, code));
            assert_eq!(
                (fault.kind, fault.transient),
                (kind, transient),
                "{status} {code}"
            );
            assert!(!format!("{fault:?}").contains("canary"), "{fault:?}");
        }
    }

    #[test]
    fn what_fails_for_one_object_of_several_is_understood() {
        let text = "DeleteObjects request failed for key x: canary (code: AccessDenied)";
        let fault = Fault::from(generic(text));
        assert_eq!(
            (fault.kind, fault.transient),
            (ErrorKind::PermissionDenied, false)
        );
        assert!(!fault.reason.contains("canary"));
    }

    #[test]
    fn every_group_of_codes_has_its_meaning() {
        // The groups are told apart by where a code stands.
        for (at, code) in [
            (4, "NoSuchKey"),
            (6, "InvalidAccessKeyId"),
            (18, "RequestTimeTooSkewed"),
            (20, "AccessDenied"),
            (27, "AuthorizationHeaderMalformed"),
            (32, "QuotaExceeded"),
            (36, "SlowDown"),
            (44, "NotImplemented"),
        ] {
            assert_eq!(CODES[at], code);
        }
    }

    #[test]
    fn a_missing_object_is_not_a_missing_bucket() {
        let not_found = |text: &str| object_store::Error::NotFound {
            path: "x".into(),
            source: text.into(),
        };
        assert!(is_missing(&not_found("no body")));
        assert!(is_missing(&not_found("<Code>NoSuchKey</Code>")));
        assert!(!is_missing(&not_found("<Code>NoSuchBucket</Code>")));
        assert!(!is_missing(&generic("x")));
    }

    #[test]
    fn the_systems_errors_keep_their_meaning() {
        for (os, kind) in [
            (28, ErrorKind::NoSpace),
            (122, ErrorKind::NoSpace),
            (13, ErrorKind::PermissionDenied),
            (30, ErrorKind::PermissionDenied),
            (5, ErrorKind::Unavailable),
        ] {
            let fault = Fault::from(object_store::Error::Generic {
                store: "local",
                source: Box::new(io::Error::from_raw_os_error(os)),
            });
            assert_eq!((fault.kind, fault.transient), (kind, false), "{fault:?}");
        }
        let refused = HttpError::new(HttpErrorKind::Connect, io::Error::from_raw_os_error(111));
        let fault = Fault::from(object_store::Error::Generic {
            store: "S3",
            source: Box::new(refused),
        });
        assert!(fault.transient && fault.kind == ErrorKind::Unavailable);
        assert!(fault.reason.contains("refused"), "{}", fault.reason);
        assert!(Fault::from(generic("anything, canary")).transient);
    }
}

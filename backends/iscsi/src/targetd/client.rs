//! targetd's JSON-RPC 2.0: calls, what they cost in time, and what their errors mean.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};
use volmux_core::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

use super::config::TargetdConfig;
use super::http::{Endpoint, Failure};

/// How long a call may take, all attempts together.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Before what may be repeated is.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];
/// So much of what the service says about an error is shown.
const LONGEST_MESSAGE: usize = 1000;

/// targetd's error codes (`TargetdError` in its targetd/utils.py, and API.md).
pub(super) mod code {
    pub const INVALID: i64 = -1;
    pub const NAME_CONFLICT: i64 = -50;
    pub const EXISTS_CLONE_NAME: i64 = -51;
    pub const EXISTS_INITIATOR: i64 = -52;
    pub const EXISTS_FS_NAME: i64 = -53;
    pub const NOT_FOUND_VOLUME: i64 = -103;
    pub const INVALID_POOL: i64 = -110;
    pub const NOT_FOUND_VOLUME_EXPORT: i64 = -151;
    pub const NOT_FOUND_VOLUME_GROUP: i64 = -152;
    pub const NO_SUPPORT: i64 = -153;
    pub const NOT_FOUND_ACCESS_GROUP: i64 = -200;
    /// A program failed on the array, or the volume is exported: both have this code.
    pub const UNEXPECTED_EXIT_CODE: i64 = -303;
    pub const NO_FREE_HOST_LUN_ID: i64 = -1000;
    pub const INVALID_REQUEST: i64 = -32600;
    pub const METHOD_NOT_FOUND: i64 = -32601;
    pub const INVALID_ARGUMENT: i64 = -32602;
    pub const PARSE_ERROR: i64 = -32700;
}

/// Whether a call may be sent again where the first one may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It only looks.
    Always,
    /// Only if nothing of it was sent.
    Unsent,
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{method} at {service}: {failure}")]
pub(super) struct CallError {
    method: &'static str,
    service: String,
    #[source]
    failure: Failure,
}

impl CallError {
    /// The code of targetd's own error, if that is what it is.
    pub fn code(&self) -> Option<i64> {
        match &self.failure {
            Failure::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the array may have done what was asked, or may do it yet.
    pub fn may_be_done(&self) -> bool {
        match &self.failure {
            Failure::Connect(_) | Failure::Certificate(_) | Failure::Tls(_) => false,
            // These targetd gives before it looks what is wanted.
            Failure::Status(status) => !matches!(status.as_u16(), 400 | 401 | 404 | 413 | 503),
            Failure::Refused { .. } => false,
            Failure::Broken(_) | Failure::TooLong => true,
            Failure::TimedOut | Failure::Malformed(_) => true,
        }
    }

    /// As an error of operation `op`.
    pub fn into_error(self, op: &'static str) -> Error {
        let (kind, help) = self.failure.meaning(self.method);
        let mut error = Error::new(kind, op)
            .with("service", &self.service)
            .with("method", self.method)
            .reason(&self.failure);
        if let Some(help) = help {
            error = error.help(help);
        }
        match self.failure {
            Failure::Connect(cause) | Failure::Tls(cause) => error.with_source(cause),
            Failure::Certificate(cause) => error.with_source(cause),
            Failure::Broken(cause) => error.with_source(cause),
            _ => error,
        }
    }
}

impl Failure {
    /// What sort of error it is, and what can be done about it.
    fn meaning(&self, method: &str) -> (ErrorKind, Option<&'static str>) {
        match self {
            Failure::Connect(_) => (
                ErrorKind::Unavailable,
                Some("see that targetd runs and can be reached"),
            ),
            Failure::Certificate(_) => (
                ErrorKind::Unauthenticated,
                Some("name as ca_file who signed it, or itself, and name the host as it does"),
            ),
            Failure::Tls(_) => (
                ErrorKind::Unavailable,
                Some("see that targetd's configuration says ssl: true"),
            ),
            Failure::Broken(_) | Failure::TooLong | Failure::Malformed(_) => (
                ErrorKind::Unavailable,
                Some("see that it is targetd that listens there, and what its log says"),
            ),
            Failure::TimedOut => (ErrorKind::TimedOut, None),
            Failure::Status(status) => of_status(*status),
            Failure::Refused { code, message } => of_code(*code, message, method),
        }
    }
}

fn of_status(status: StatusCode) -> (ErrorKind, Option<&'static str>) {
    match status.as_u16() {
        // 400: targetd could not read the header with user and password.
        400 | 401 => (
            ErrorKind::Unauthenticated,
            Some("compare user and password with targetd's configuration"),
        ),
        403 => (ErrorKind::PermissionDenied, None),
        404 => (
            ErrorKind::InvalidConfig,
            Some("the path of the URL is /targetrpc unless something stands before targetd"),
        ),
        413 => (ErrorKind::InvalidInput, None),
        503 => (
            ErrorKind::Unavailable,
            Some("targetd refuses for two seconds whoever shares an address with a wrong password"),
        ),
        _ => (ErrorKind::Unavailable, None),
    }
}

fn of_code(code: i64, message: &str, method: &str) -> (ErrorKind, Option<&'static str>) {
    const LOG: &str = "targetd's log on the array tells more";
    let says = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    let full = [
        "insufficient free space",
        "nsufficient free extents",
        "out of space",
    ];
    match code {
        code::NAME_CONFLICT | code::EXISTS_CLONE_NAME | code::EXISTS_FS_NAME => {
            (ErrorKind::AlreadyExists, None)
        }
        code::EXISTS_INITIATOR => (ErrorKind::AlreadyExists, None),
        code::NOT_FOUND_VOLUME | code::NOT_FOUND_VOLUME_EXPORT | code::NOT_FOUND_ACCESS_GROUP => {
            (ErrorKind::NotFound, None)
        }
        // Not NotFound: that would be a volume that does not exist.
        code::INVALID_POOL | code::NOT_FOUND_VOLUME_GROUP => (
            ErrorKind::InvalidConfig,
            Some("see which pools targetd's configuration names"),
        ),
        code::NO_SUPPORT => (ErrorKind::Unsupported, Some(LOG)),
        code::NO_FREE_HOST_LUN_ID => (ErrorKind::NoSpace, None),
        code::METHOD_NOT_FOUND => (
            ErrorKind::Unsupported,
            Some("it has no such method, or missed something within (KeyError): see targetd's log"),
        ),
        code::INVALID_ARGUMENT if says(&["has dependent clones"]) => (
            ErrorKind::Busy,
            Some("somebody cloned it with other tools: delete those clones first"),
        ),
        code::INVALID_ARGUMENT => (ErrorKind::InvalidInput, None),
        code::INVALID_REQUEST | code::PARSE_ERROR => (ErrorKind::Internal, None),
        code::UNEXPECTED_EXIT_CODE if method == "vol_destroy" && says(&["while exported"]) => {
            (ErrorKind::Busy, Some("detach it first"))
        }
        code::INVALID | code::UNEXPECTED_EXIT_CODE if says(&full) => (
            ErrorKind::NoSpace,
            Some("add space to the pool, or free some"),
        ),
        code::INVALID if says(&["is not a TYPE_DISK block device"]) => (
            ErrorKind::Unsupported,
            Some(
                "LVM did not activate the volume: set activation/auto_set_activation_skip = 0 in \
                 the array's lvm.conf for clones to come, and run lvchange -kn and lvchange -ay \
                 on it",
            ),
        ),
        _ => (ErrorKind::Unavailable, Some(LOG)),
    }
}

/// Talks to targetd, with a connection for each call.
pub(super) struct Client {
    endpoint: Endpoint,
    authorization: HeaderValue,
    /// What no error may tell, though the service does.
    secrets: Vec<Zeroizing<String>>,
    timeout: Duration,
    calls: AtomicU64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// As the configuration says. Sends nothing yet. Of `secrets` nothing is ever shown.
    ///
    /// # Errors
    /// `InvalidConfig`; `NotFound` or `PermissionDenied` for a file that can't be read.
    pub fn new(config: &TargetdConfig, mut secrets: Vec<Zeroizing<String>>) -> Result<Client> {
        let timeout = config.timeout.map_or(TIMEOUT, Duration::from_secs);
        let endpoint = Endpoint::new(config, timeout)?;
        let password = config.password()?;
        let user = Zeroizing::new(format!("{}:{}", config.user, password.as_str()));
        let encoded = Zeroizing::new(STANDARD.encode(user.as_bytes()));
        let header = Zeroizing::new(format!("Basic {}", encoded.as_str()));
        let mut authorization = HeaderValue::from_str(&header)
            .map_err(|_| config.wrong("password_file", "it can't be sent"))?;
        authorization.set_sensitive(true);
        secrets.extend([password, encoded]);
        Ok(Client {
            endpoint,
            authorization,
            secrets,
            timeout,
            calls: AtomicU64::new(1),
        })
    }

    /// `host:port` of the service.
    pub fn service(&self) -> &str {
        &self.endpoint.authority
    }

    /// Calls `method`. What it returns is checked against `T`; unknown fields are let be.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
        repeat: Repeat,
    ) -> Result<T, CallError> {
        let until = Instant::now() + self.timeout;
        let mut pauses = PAUSES.into_iter();
        loop {
            let attempt = timeout_at(until, self.attempt(method, &params)).await;
            let failure = match attempt.unwrap_or(Err(Failure::TimedOut)) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let may = may_repeat(&failure, repeat);
            let pause = pauses
                .next()
                .filter(|pause| may && Instant::now() + *pause < until);
            let error = CallError {
                method,
                service: self.service().to_owned(),
                failure,
            };
            let Some(pause) = pause else {
                tracing::debug!(%error, "targetd");
                return Err(error);
            };
            tracing::debug!(%error, "targetd: once more");
            sleep(pause).await;
        }
    }

    async fn attempt<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &Value,
    ) -> Result<T, Failure> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ "jsonrpc": "2.0", "id": id, "method": method });
        if params.as_object().is_some_and(|params| !params.is_empty()) {
            request["params"] = params.clone();
        }
        let body = Bytes::from(request.to_string());
        let answer = self.endpoint.ask(body, &self.authorization).await?;
        let answer: Answer<T> = serde_json::from_slice(&answer).map_err(|error| {
            // Its own words may repeat what stands there.
            let (what, column) = (error.classify(), error.column());
            Failure::Malformed(format!(
                "{what:?} error in line {}, column {column}",
                error.line()
            ))
        })?;
        self.open(id, answer)
    }

    fn open<T>(&self, id: u64, answer: Answer<T>) -> Result<T, Failure> {
        let ours = answer.id == Some(id);
        match (answer.result, answer.error) {
            (Some(result), None) if ours => Ok(result),
            // targetd has the number 0 where it could not read ours.
            (None, Some(error)) if ours || matches!(answer.id, None | Some(0)) => {
                Err(Failure::Refused {
                    code: error.code,
                    message: self.presentable(&error.message),
                })
            }
            (Some(_), Some(_)) => Err(Failure::Malformed("it is result and error".into())),
            (None, None) => Err(Failure::Malformed("it is neither result nor error".into())),
            _ => Err(Failure::Malformed("it answers another request".into())),
        }
    }

    fn presentable(&self, message: &str) -> String {
        if self
            .secrets
            .iter()
            .any(|secret| message.contains(secret.as_str()))
        {
            return "what the service says is not shown: a secret is in it".into();
        }
        let message = message.trim();
        let end = message.floor_char_boundary(LONGEST_MESSAGE);
        match end < message.len() {
            true => format!("{}…", &message[..end]),
            false => message.to_owned(),
        }
    }
}

fn may_repeat(failure: &Failure, repeat: Repeat) -> bool {
    match failure {
        Failure::Connect(_) => true,
        Failure::Broken(_) | Failure::Malformed(_) => repeat == Repeat::Always,
        Failure::Status(status) => {
            *status == StatusCode::SERVICE_UNAVAILABLE && repeat == Repeat::Always
        }
        _ => false,
    }
}

#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Answer<T> {
    id: Option<u64>,
    /// `null` is a result too.
    #[serde(default = "Option::default", deserialize_with = "present")]
    result: Option<T>,
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    code: i64,
    #[serde(default)]
    message: String,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_a_caller_can_act_on() {
        for (code, message, method, kind) in [
            (-50, "", "vol_create", ErrorKind::AlreadyExists),
            (-51, "", "fs_clone", ErrorKind::AlreadyExists),
            (-52, "", "access_group_create", ErrorKind::AlreadyExists),
            (-53, "", "fs_create", ErrorKind::AlreadyExists),
            (-103, "", "vol_copy", ErrorKind::NotFound),
            (-151, "", "export_destroy", ErrorKind::NotFound),
            (-200, "", "access_group_map_create", ErrorKind::NotFound),
            (-110, "", "vol_list", ErrorKind::InvalidConfig),
            (-152, "", "vol_list", ErrorKind::InvalidConfig),
            (-153, "", "vol_copy", ErrorKind::Unsupported),
            (-1000, "", "access_group_map_create", ErrorKind::NoSpace),
            (-32600, "", "vol_list", ErrorKind::Internal),
            (-32601, "", "vol_list", ErrorKind::Unsupported),
            (-32602, "", "vol_resize", ErrorKind::InvalidInput),
            (
                -32602,
                "x has dependent clones and",
                "vol_destroy",
                ErrorKind::Busy,
            ),
            (-32700, "", "vol_list", ErrorKind::Internal),
            (
                -303,
                "Volume 'a' cannot be removed while exported",
                "vol_destroy",
                ErrorKind::Busy,
            ),
            (
                -303,
                "cannot do it while exported",
                "vol_resize",
                ErrorKind::Unavailable,
            ),
            (
                -303,
                "Unexpected exit code",
                "vol_destroy",
                ErrorKind::Unavailable,
            ),
            (
                -303,
                "has insufficient free space",
                "vol_resize",
                ErrorKind::NoSpace,
            ),
            (
                -1,
                "Insufficient free extents (0)",
                "vol_create",
                ErrorKind::NoSpace,
            ),
            (-1, "LVMError: x", "vol_create", ErrorKind::Unavailable),
            (
                -1,
                "Device /dev/vg/c is not a TYPE_DISK block device",
                "export_create",
                ErrorKind::Unsupported,
            ),
            (-7, "", "vol_list", ErrorKind::Unavailable),
        ] {
            assert_eq!(of_code(code, message, method).0, kind, "{code} {message}");
        }
    }

    #[test]
    fn statuses_too() {
        for (status, kind) in [
            (400, ErrorKind::Unauthenticated),
            (401, ErrorKind::Unauthenticated),
            (403, ErrorKind::PermissionDenied),
            (404, ErrorKind::InvalidConfig),
            (413, ErrorKind::InvalidInput),
            (500, ErrorKind::Unavailable),
            (503, ErrorKind::Unavailable),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(of_status(status).0, kind, "{status}");
        }
    }

    #[test]
    fn only_what_was_not_sent_or_only_looks_is_repeated() {
        let refused = || Failure::Connect(std::io::Error::other("refused"));
        let malformed = || Failure::Malformed("x".into());
        let busy = || Failure::Status(StatusCode::SERVICE_UNAVAILABLE);
        assert!(may_repeat(&refused(), Repeat::Unsent) && may_repeat(&refused(), Repeat::Always));
        for failure in [malformed(), busy()] {
            assert!(may_repeat(&failure, Repeat::Always));
            assert!(!may_repeat(&failure, Repeat::Unsent));
        }
        let wrong = Failure::Status(StatusCode::UNAUTHORIZED);
        for failure in [wrong, Failure::TimedOut, Failure::TooLong] {
            assert!(!may_repeat(&failure, Repeat::Always));
        }
    }
}

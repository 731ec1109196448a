//! The management socket of tgtd: one request a connection.
//!
//! A request is a structure of 120 bytes in the machine's own byte order and alignment, and text
//! behind it. Its fields, in order, of four bytes unless told otherwise: mode, operation, the
//! driver's name (64 bytes, padded with NUL), length of everything, target, session (8), logical
//! unit (8), connection, host, type of device, direction of an account, a flag that goes unused,
//! and force. The text is `key=value,key=value`, ends with a NUL, and has at most 8 KiB; tgtd
//! closes the connection if it is longer. Some values are taken up to the end of the text, commas
//! included.
//!
//! The answer is two numbers of four bytes, an error code (0 is none) and the length of everything,
//! and after that what `tgtadm` would print, with a NUL at its end. tgtd is one thread: it does a
//! request wholly before it looks at the next one, and takes them in the order in which they came,
//! also one whose sender did not wait for the answer.
//!
//! Source: tgt 1.0.85, `usr/tgtadm.h`, `usr/mgmt.c`.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use volmux_core::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// Within which tgtd answers, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// Until it is tried again to connect to a tgtd that has no time.
const PAUSE: Duration = Duration::from_millis(20);
const HEADER: usize = 120;
const ANSWER_HEADER: usize = 8;
/// What tgtd takes as text.
const MOST_TEXT: usize = 8 << 10;
/// What it may tell: some ten thousand targets.
const MOST_ANSWER: usize = 64 << 20;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    System = 0,
    Target = 1,
    Unit = 2,
    Driver = 4,
    Connection = 6,
    Account = 7,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    New = 0,
    Delete = 1,
    Show = 2,
    Bind = 3,
    Unbind = 4,
    Update = 5,
}

/// Why tgtd does not do something (`usr/tgtadm_error.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(u32);

impl Code {
    pub const GOOD: Code = Code(0);
    pub const NO_MEMORY: Code = Code(2);
    pub const NO_DRIVER: Code = Code(3);
    pub const NO_TARGET: Code = Code(4);
    pub const NO_SESSION: Code = Code(6);
    pub const NO_CONNECTION: Code = Code(7);
    pub const TARGET_EXISTS: Code = Code(9);
    pub const NAME_BOUND: Code = Code(12);
    pub const NAME_NOT_BOUND: Code = Code(13);
    pub const NO_ACCOUNT: Code = Code(15);
    pub const TARGET_ACTIVE: Code = Code(19);
    pub const UNIT_ACTIVE: Code = Code(20);

    fn kind(self) -> ErrorKind {
        match self.0 {
            2 | 3 => ErrorKind::Unavailable,
            4..=8 | 13 | 15 => ErrorKind::NotFound,
            9..=12 | 14 | 18 => ErrorKind::AlreadyExists,
            19..=21 | 24 => ErrorKind::Busy,
            17 | 23 => ErrorKind::InvalidInput,
            22 => ErrorKind::Unsupported,
            _ => ErrorKind::Unavailable,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            "no error",
            "an unknown error",
            "it has no memory left",
            "its iSCSI driver is not ready",
            "there is no such target",
            "there is no such logical unit",
            "there is no such session",
            "there is no such connection",
            "it is not bound",
            "there is such a target",
            "there is such a logical unit",
            "it is bound already",
            "the initiator is let in already",
            "the initiator is not let in",
            "there is such an account",
            "there is no such account",
            "there are too many accounts",
            "it takes the request for wrong",
            "the target has an outgoing account",
            "the target is in use",
            "the logical unit is in use",
            "the driver is in use",
            "it does not do that",
            "it does not know the parameter",
            "its removal is prevented",
        ];
        match words.get(self.0 as usize) {
            Some(words) => f.write_str(words),
            None => write!(f, "error {}", self.0),
        }
    }
}

/// A request. What it is not about is 0.
#[derive(Clone, Debug)]
pub struct Request {
    mode: Mode,
    action: Action,
    pub target: i32,
    pub session: u64,
    pub lun: u64,
    pub connection: u32,
    /// An account: how the target proves who it is.
    pub outgoing: bool,
    /// A target: also if it has sessions.
    pub force: bool,
    text: Zeroizing<Vec<u8>>,
}

impl Request {
    pub fn new(mode: Mode, action: Action) -> Request {
        Request {
            mode,
            action,
            target: 0,
            session: 0,
            lun: 0,
            connection: 0,
            outgoing: false,
            force: false,
            text: Zeroizing::new(Vec::new()),
        }
    }

    /// About a target.
    pub fn of(mut self, target: i32) -> Request {
        self.target = target;
        self
    }

    /// With parameters: `parts` are put together. None may hold a NUL.
    pub fn text(mut self, parts: &[&[u8]]) -> Request {
        // At once as long as it gets: growing would leave copies of a secret behind.
        let length = parts.iter().map(|part| part.len()).sum::<usize>() + 1;
        let mut text = Zeroizing::new(Vec::with_capacity(length));
        for part in parts {
            text.extend_from_slice(part);
        }
        text.push(0);
        self.text = text;
        self
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let length = HEADER + self.text.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        bytes.extend((self.mode as u32).to_ne_bytes());
        bytes.extend((self.action as u32).to_ne_bytes());
        let mut driver = [0; 64];
        driver[..5].copy_from_slice(b"iscsi");
        bytes.extend(driver);
        // Texts are checked before they get here, and then fit by far.
        bytes.extend((length as u32).to_ne_bytes());
        bytes.extend(self.target.to_ne_bytes());
        bytes.extend(self.session.to_ne_bytes());
        bytes.extend(self.lun.to_ne_bytes());
        bytes.extend(self.connection.to_ne_bytes());
        let (host, disk, pack) = (0_u32, 0_u32, 0_u32);
        bytes.extend(host.to_ne_bytes());
        bytes.extend(disk.to_ne_bytes());
        bytes.extend(u32::from(self.outgoing).to_ne_bytes());
        bytes.extend(pack.to_ne_bytes());
        bytes.extend(u32::from(self.force).to_ne_bytes());
        bytes.extend_from_slice(&self.text);
        bytes
    }
}

/// What tgtd said.
#[derive(Debug)]
pub struct Answer {
    pub code: Code,
    /// Without the NUL at its end.
    pub text: Vec<u8>,
    op: &'static str,
}

impl Answer {
    /// The text of a request that succeeded.
    ///
    /// # Errors
    /// Of the kind that fits the code; `what` was not done.
    pub fn good(self, what: &str) -> Result<Vec<u8>> {
        match self.code {
            Code::GOOD => Ok(self.text),
            code => Err(self.refused(what, code)),
        }
    }

    /// Whether it succeeded, rather than failed for the one reason that is as good.
    ///
    /// # Errors
    /// As [`good`](Self::good).
    pub fn good_or(self, as_good: Code, what: &str) -> Result<bool> {
        match self.code {
            Code::GOOD => Ok(true),
            code if code == as_good => Ok(false),
            code => Err(self.refused(what, code)),
        }
    }

    fn refused(&self, what: &str, code: Code) -> Error {
        let error =
            Error::new(code.kind(), self.op).reason(format!("tgtd does not {what}: {code}"));
        match code {
            Code::NO_MEMORY | Code::NO_DRIVER => error.help("see tgtd's log, and start it again"),
            _ => error.help("see tgtd's log"),
        }
    }
}

/// The way to tgtd, for one operation.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub socket: &'a Path,
    pub op: &'static str,
    /// When the operation has to be over.
    pub until: Instant,
}

impl Client<'_> {
    /// Has tgtd do something.
    ///
    /// # Errors
    /// `Unavailable` if tgtd does not run; `PermissionDenied` if it takes no requests of this user;
    /// `TimedOut` if it does not answer: what was asked for may be done later.
    pub async fn ask(&self, request: Request) -> Result<Answer> {
        let until = self.until.min(Instant::now() + PATIENCE);
        if request.text.len() > MOST_TEXT {
            return Err(Error::new(ErrorKind::InvalidInput, self.op)
                .reason("names and paths are too long: tgtd takes 8 KiB of them"));
        }
        let talk = async {
            let mut stream = self.connect().await?;
            stream.write_all(&request.encode()).await?;
            read(stream).await
        };
        match timeout_at(until, talk).await {
            Ok(Ok((code, text))) => Ok(Answer {
                code,
                text,
                op: self.op,
            }),
            Ok(Err(error)) => Err(self.trouble(error)),
            Err(_) => Err(Error::new(ErrorKind::TimedOut, self.op)
                .with("socket", self.socket.display())
                .reason("tgtd does not answer")
                .help("see whether it hangs: a storage or an initiator may hold it up")),
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(self.socket).await {
                // Too many others wait.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(PAUSE).await,
                connected => return connected,
            }
        }
    }

    fn trouble(&self, error: io::Error) -> Error {
        let closed = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        );
        // tgtd hangs up on users other than its own, whatever group they change to.
        let stranger = closed
            && std::fs::metadata(self.socket).is_ok_and(|socket| {
                let user = rustix::process::geteuid().as_raw();
                let group = rustix::process::getegid().as_raw();
                (user, group) != (socket.uid(), socket.gid())
            });
        let (kind, reason, help) = match error.kind() {
            _ if stranger => (
                ErrorKind::PermissionDenied,
                "tgtd takes no requests of this user",
                "run this as the user and the group that tgtd runs as",
            ),
            io::ErrorKind::PermissionDenied => (
                ErrorKind::PermissionDenied,
                "this user may not talk to tgtd",
                "run this as the user and the group that tgtd runs as",
            ),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => (
                ErrorKind::Unavailable,
                "tgtd does not run, or its socket is elsewhere",
                "start tgtd",
            ),
            io::ErrorKind::InvalidData => (
                ErrorKind::Unavailable,
                "the answer is not one of tgtd",
                "see what listens on the socket",
            ),
            io::ErrorKind::InvalidInput => (
                ErrorKind::InvalidConfig,
                "the path is none of a socket",
                "correct it; a path of a socket has less than 108 bytes",
            ),
            _ => (
                ErrorKind::Unavailable,
                "tgtd hung up",
                "see whether it still runs, and its log",
            ),
        };
        Error::new(kind, self.op)
            .with("socket", self.socket.display())
            .reason(reason)
            .help(help)
            .with_source(error)
    }
}

/// An answer, whatever its length claims to be.
async fn read(mut stream: UnixStream) -> io::Result<(Code, Vec<u8>)> {
    let mut header = [0; ANSWER_HEADER];
    stream.read_exact(&mut header).await?;
    let [code, length] = [0, 4].map(|at| {
        let bytes = header[at..at + 4].try_into().unwrap_or_default();
        u32::from_ne_bytes(bytes)
    });
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let length = (length as usize).checked_sub(ANSWER_HEADER);
    let length = length.filter(|length| *length <= MOST_ANSWER);
    let length = length.ok_or_else(|| wrong("an answer of an impossible length".into()))?;
    // Grows with what comes.
    let mut text = Vec::new();
    stream.take(length as u64).read_to_end(&mut text).await?;
    if text.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if text.last() == Some(&0) {
        text.pop();
    }
    Ok((Code(code), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_tgtd_reads_it() {
        let mut request = Request::new(Mode::Account, Action::Bind).of(0x0102_0304);
        (request.session, request.lun, request.connection) = (5, 6, 7);
        (request.outgoing, request.force) = (true, true);
        let bytes = request.text(&[b"user=", b"me"]).encode();
        let number = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
        assert_eq!(bytes.len(), 128);
        assert_eq!((number(0), number(4)), (7, 3));
        assert_eq!(&bytes[8..16], b"iscsi\0\0\0");
        assert_eq!((number(72), number(76)), (128, 0x0102_0304));
        assert_eq!((long(80), long(88), number(96)), (5, 6, 7));
        assert_eq!([100, 104, 108, 112, 116].map(number), [0, 0, 1, 0, 1]);
        assert_eq!(&bytes[120..], b"user=me\0");
    }

    /// What a client says to whoever answers with `bytes` and then hangs up.
    async fn answered(bytes: Vec<u8>) -> Result<Answer> {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).expect("it listens");
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; HEADER];
            stream.read_exact(&mut request).await.expect("a request");
            // The client may have heard enough.
            let _ = stream.write_all(&bytes).await;
        };
        let client = Client {
            socket: &socket,
            op: "test",
            until: Instant::now() + Duration::from_secs(20),
        };
        let request = Request::new(Mode::Driver, Action::Show);
        tokio::join!(client.ask(request), server).0
    }

    fn answer(code: u32, length: u32, text: &[u8]) -> Vec<u8> {
        let header = [code, length].map(u32::to_ne_bytes).concat();
        [&header, text].concat()
    }

    #[tokio::test]
    async fn answers_are_read_and_garbage_is_not() {
        let good = answered(answer(0, 12, b"abc\0")).await.expect("an answer");
        assert_eq!((good.code, &good.text[..]), (Code::GOOD, &b"abc"[..]));
        let active = answered(answer(20, 8, b"")).await.expect("an answer");
        let error = active.good("delete it").expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        for garbage in [
            answer(0, 7, b""),
            answer(0, u32::MAX, b"x"),
            answer(0, 100, b"too short"),
            b"HTTP".to_vec(),
            Vec::new(),
        ] {
            let error = answered(garbage).await.expect_err("garbage");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    }

    #[tokio::test]
    async fn who_does_not_listen_does_not_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let ask = async |socket: &Path| {
            let client = Client {
                socket,
                op: "test",
                until: Instant::now() + Duration::from_secs(1),
            };
            let answer = client.ask(Request::new(Mode::Driver, Action::Show)).await;
            answer.expect_err("nobody listens")
        };
        let error = ask(&dir.path().join("none")).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let silent = dir.path().join("silent");
        let listener = std::os::unix::net::UnixListener::bind(&silent).expect("it listens");
        let error = ask(&silent).await;
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        drop(listener);
        let error = ask(&silent).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

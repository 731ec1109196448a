//! What a request asks for, whether it may, and doing it.

use std::sync::Arc;

use bytes::Bytes;
use volmux_core::{ByteRange, Error, ErrorKind, Result, ZeroOptions};

use super::extents::{self, Descriptor};
use super::wire::{Errno, Fields, Header, Mode, command, command_flag};
use crate::client::Attached;
use crate::stats::Op;

/// What a handshake agreed on, for one connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) export: Attached,
    pub(crate) mode: Mode,
    /// The size that the client was told.
    pub(crate) size: u64,
    /// The longest read or write.
    pub(crate) request_length: u64,
    pub(crate) contexts: Vec<extents::Context>,
}

/// A request that is allowed.
#[derive(Debug)]
pub(crate) enum Task {
    Read(ByteRange),
    Write {
        range: ByteRange,
        fua: bool,
    },
    Flush,
    Trim {
        range: ByteRange,
        fua: bool,
    },
    WriteZeroes {
        range: ByteRange,
        options: ZeroOptions,
        fua: bool,
    },
    Cache(ByteRange),
    BlockStatus {
        offset: u64,
        /// `None`: the payload has it.
        length: Option<u64>,
        one: bool,
    },
    Disconnect,
}

/// What a request that succeeded is answered with.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Data(Bytes),
    /// For each context, its number and what it says.
    Status(Vec<(u32, Vec<Descriptor>)>),
}

/// What a request that failed is answered with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    /// For a person to read.
    pub(crate) message: String,
}

impl Failure {
    fn new(errno: Errno, message: impl Into<String>) -> Self {
        Failure {
            errno,
            message: message.into(),
        }
    }
}

/// A `NBD_CMD_CACHE` reads so much at a time,
const CACHE_STEP: u64 = 1 << 20;
/// and no more than this: it is a hint.
const CACHE_MOST: u64 = 32 << 20;

impl Task {
    /// Checks a request before its payload is there.
    ///
    /// # Errors
    /// What to answer. The payload is still to be taken from the connection.
    pub(crate) fn check(header: &Header, session: &Session) -> Result<Task, Failure> {
        let flags = Flags::check(header, session.mode)?;
        let range = ByteRange::new(header.offset, header.length);
        Ok(match header.command {
            command::READ => {
                session.check_range(range, Errno::Inval)?;
                session.check_length(header.length, Errno::Overflow)?;
                Task::Read(range)
            }
            command::WRITE => {
                session.check_writable()?;
                session.check_length(header.length, Errno::Inval)?;
                session.check_range(range, Errno::NoSpc)?;
                Task::Write {
                    range,
                    fua: flags.has(command_flag::FUA),
                }
            }
            command::DISCONNECT => Task::Disconnect,
            command::FLUSH if header.length != 0 => {
                return Err(Failure::new(Errno::Inval, "a flush has no length"));
            }
            command::FLUSH => Task::Flush,
            command::TRIM => {
                session.check_writable()?;
                session.check_range(range, Errno::Inval)?;
                Task::Trim {
                    range,
                    fua: flags.has(command_flag::FUA),
                }
            }
            command::CACHE => {
                session.check_range(range, Errno::Inval)?;
                Task::Cache(range)
            }
            command::WRITE_ZEROES => {
                session.check_writable()?;
                session.check_range(range, Errno::NoSpc)?;
                Task::WriteZeroes {
                    range,
                    options: ZeroOptions {
                        may_discard: !flags.has(command_flag::NO_HOLE),
                        fast_only: flags.has(command_flag::FAST_ZERO),
                    },
                    fua: flags.has(command_flag::FUA),
                }
            }
            command::BLOCK_STATUS => {
                if session.contexts.is_empty() {
                    let reason = "no metadata context was selected";
                    return Err(Failure::new(Errno::Inval, reason));
                }
                let in_payload = flags.has(command_flag::PAYLOAD_LEN);
                if !in_payload {
                    session.check_status_range(range)?;
                }
                Task::BlockStatus {
                    offset: header.offset,
                    length: (!in_payload).then_some(header.length),
                    one: flags.has(command_flag::REQ_ONE),
                }
            }
            _ => return Err(Failure::new(Errno::Inval, "unknown command")),
        })
    }

    /// How it is counted; `None` for what is not answered.
    pub(crate) fn op(&self) -> Option<Op> {
        Some(match self {
            Task::Read(_) => Op::Read,
            Task::Write { .. } => Op::Write,
            Task::Flush => Op::Flush,
            Task::Trim { .. } => Op::Trim,
            Task::WriteZeroes { .. } => Op::WriteZeroes,
            Task::Cache(_) => Op::Cache,
            Task::BlockStatus { .. } => Op::BlockStatus,
            Task::Disconnect => return None,
        })
    }

    /// Bytes that it is about, for the statistics.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Task::Read(range)
            | Task::Cache(range)
            | Task::Write { range, .. }
            | Task::Trim { range, .. }
            | Task::WriteZeroes { range, .. } => range.length,
            Task::BlockStatus { length, .. } => length.unwrap_or(0),
            Task::Flush | Task::Disconnect => 0,
        }
    }

    /// Memory that it takes while it is under way, beside its payload.
    pub(crate) fn memory(&self) -> u64 {
        match self {
            Task::Read(range) => range.length,
            Task::Cache(range) => range.length.min(CACHE_STEP),
            Task::BlockStatus { one: false, .. } => extents::MOST_BYTES,
            _ => 0,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What to answer.
    pub(crate) async fn run(
        self,
        session: Arc<Session>,
        payload: Bytes,
    ) -> Result<Answer, Failure> {
        let op = self.op();
        let result = match self {
            Task::BlockStatus {
                offset,
                length,
                one,
            } => {
                let (range, contexts) = session.status_query(offset, length, &payload)?;
                extents::status(&session, range, one, contexts).await
            }
            task => task.run_on_device(&session, payload).await,
        };
        result.map_err(|error| session.failure(op.map_or("disconnect", Op::name), &error))
    }

    async fn run_on_device(self, session: &Session, payload: Bytes) -> Result<Answer> {
        let device = session.export.device();
        let fua = match self {
            Task::Read(range) => {
                // Checked against the longest request, which fits.
                let length = range.length as usize;
                return device.read_at(range.offset, length).await.map(Answer::Data);
            }
            Task::Write { range, fua } => {
                device.write_at(range.offset, payload).await?;
                fua
            }
            Task::Flush => true,
            Task::Trim { range, fua } => {
                device.discard(range).await?;
                fua
            }
            Task::WriteZeroes {
                range,
                options,
                fua,
            } => {
                device.write_zeroes(range, options).await?;
                fua
            }
            Task::Cache(range) => {
                let end = range.end().min(range.offset.saturating_add(CACHE_MOST));
                let mut at = range.offset;
                while at < end {
                    let step = CACHE_STEP.min(end - at);
                    device.read_at(at, step as usize).await?;
                    at += step;
                }
                false
            }
            Task::BlockStatus { .. } | Task::Disconnect => false,
        };
        if fua {
            device.flush().await?;
        }
        Ok(Answer::Done)
    }
}

/// The flags of a request, all of them known.
struct Flags(u16);

impl Flags {
    fn check(header: &Header, mode: Mode) -> Result<Flags, Failure> {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        // Clients are known to set FUA where nothing is written, and servers must take it.
        let mut known = FUA;
        known |= match header.command {
            command::READ if mode != Mode::Simple => DF,
            command::WRITE if mode == Mode::Extended => PAYLOAD_LEN,
            command::WRITE_ZEROES => NO_HOLE | FAST_ZERO,
            command::BLOCK_STATUS if mode == Mode::Extended => REQ_ONE | PAYLOAD_LEN,
            command::BLOCK_STATUS => REQ_ONE,
            _ => 0,
        };
        if header.flags & !known != 0 {
            return Err(Failure::new(
                Errno::Inval,
                "a flag that this command does not have",
            ));
        }
        Ok(Flags(header.flags))
    }

    fn has(&self, flag: u16) -> bool {
        self.0 & flag != 0
    }
}

impl Session {
    fn check_writable(&self) -> Result<(), Failure> {
        if self.export.writable() {
            return Ok(());
        }
        Err(Failure::new(Errno::Perm, "the export is read-only"))
    }

    fn check_length(&self, length: u64, errno: Errno) -> Result<(), Failure> {
        if length <= self.request_length {
            return Ok(());
        }
        let message = format!("the longest request has {} bytes", self.request_length);
        Err(Failure::new(errno, message))
    }

    fn check_range(&self, range: ByteRange, errno: Errno) -> Result<(), Failure> {
        let end = range.offset.checked_add(range.length);
        if end.is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let message = format!("the export ends at byte {}", self.size);
        Err(Failure::new(errno, message))
    }

    fn check_status_range(&self, range: ByteRange) -> Result<(), Failure> {
        if range.length == 0 {
            return Err(Failure::new(Errno::Inval, "an empty range has no status"));
        }
        self.check_range(range, Errno::Inval)
    }

    /// The range and contexts that a status request is about.
    fn status_query(
        &self,
        offset: u64,
        length: Option<u64>,
        payload: &[u8],
    ) -> Result<(ByteRange, Vec<usize>), Failure> {
        if let Some(length) = length {
            let all = (0..self.contexts.len()).collect();
            return Ok((ByteRange::new(offset, length), all));
        }
        let wrong = |message: &str| Failure::new(Errno::Inval, message);
        let mut fields = Fields(payload);
        let length = fields
            .u64()
            .ok_or_else(|| wrong("a payload of less than 8 bytes"))?;
        let range = ByteRange::new(offset, length);
        self.check_status_range(range)?;
        let mut chosen = Vec::new();
        while !fields.is_empty() {
            let id = fields
                .u32()
                .ok_or_else(|| wrong("a payload that is not 8 + 4n bytes long"))?;
            let index = self
                .contexts
                .iter()
                .position(|context| context.id == id)
                .ok_or_else(|| wrong("a context that was not selected"))?;
            if chosen.contains(&index) {
                return Err(wrong("a context named twice"));
            }
            chosen.push(index);
        }
        if chosen.is_empty() {
            return Err(wrong("a payload that names no context"));
        }
        Ok((range, chosen))
    }

    /// Logs that a request of the client was refused.
    pub(crate) fn log_refusal(&self, header: &Header, failure: &Failure) {
        let error = Error::new(ErrorKind::InvalidInput, "request")
            .with("command", header.command)
            .with("flags", header.flags)
            .with("offset", header.offset)
            .with("length", header.length)
            .reason(failure.message.clone());
        self.export.complain("request", &error);
    }

    /// What the client is told of `error`; the log has it in full.
    pub(crate) fn failure(&self, op: &'static str, error: &Error) -> Failure {
        let errno = match error.kind() {
            ErrorKind::NoSpace => Errno::NoSpc,
            ErrorKind::InvalidInput => Errno::Inval,
            ErrorKind::PermissionDenied => Errno::Perm,
            ErrorKind::Unsupported => Errno::NotSup,
            ErrorKind::Fenced => Errno::Shutdown,
            _ => Errno::Io,
        };
        let message = format!("{} of {}: {}", op, self.export.name(), error.kind());
        self.export.complain(op, error);
        Failure { errno, message }
    }
}

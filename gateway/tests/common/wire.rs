//! The numbers and messages of the NBD protocol, from its specification alone.

pub const GREETING: u64 = 0x4e42_444d_4147_4943;
pub const I_HAVE_OPT: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST: u32 = 0x2560_9513;
pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// Client flags: fixed newstyle, no zeroes.
pub const FIXED_NEWSTYLE: u32 = 1;
pub const NO_ZEROES: u32 = 2;

/// Options.
pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const PEEK_EXPORT: u32 = 4;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options.
pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// Kinds of information on an export.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod can {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const FLUSH: u16 = 1 << 2;
    pub const FUA: u16 = 1 << 3;
    pub const TRIM: u16 = 1 << 5;
    pub const WRITE_ZEROES: u16 = 1 << 6;
    pub const DF: u16 = 1 << 7;
    pub const MULTI_CONN: u16 = 1 << 8;
    pub const CACHE: u16 = 1 << 10;
    pub const FAST_ZERO: u16 = 1 << 11;
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands.
pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
    pub const RESIZE: u16 = 8;
}

/// Flags of commands.
pub mod flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Kinds of reply chunks.
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = (1 << 15) + 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
    /// The flag of the last chunk.
    pub const DONE: u16 = 1;
}

/// Errors.
pub mod errno {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
    pub const ALL: [u32; 8] = [1, 5, 12, 22, 28, 75, 95, 108];
}

/// How replies look, which the handshake settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Simple,
    Structured,
    Extended,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];
}

/// The bytes of an option.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    option_claiming(option, data.len() as u32, data)
}

/// The bytes of an option that says it has `length` bytes of data.
pub fn option_claiming(option: u32, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = I_HAVE_OPT.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    bytes
}

fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// The data of `INFO` and `GO`.
pub fn go(export: &str, infos: &[u16]) -> Vec<u8> {
    let mut bytes = string(export.as_bytes());
    bytes.extend((infos.len() as u16).to_be_bytes());
    bytes.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    bytes
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
pub fn meta(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = string(export.as_bytes());
    bytes.extend((queries.len() as u32).to_be_bytes());
    bytes.extend(queries.iter().flat_map(|query| string(query.as_bytes())));
    bytes
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
    pub payload: Vec<u8>,
}

impl Request {
    /// A request without payload.
    pub fn new(command: u16, offset: u64, length: u64) -> Self {
        Request {
            flags: 0,
            command,
            cookie: 0,
            offset,
            length,
            payload: Vec::new(),
        }
    }

    /// A write, with the flag that extended headers want.
    pub fn write(mode: Mode, offset: u64, data: &[u8]) -> Self {
        let flags = match mode {
            Mode::Extended => flag::PAYLOAD_LEN,
            Mode::Simple | Mode::Structured => 0,
        };
        Request {
            flags,
            payload: data.to_vec(),
            ..Request::new(cmd::WRITE, offset, data.len() as u64)
        }
    }

    /// A question for the status of `contexts` only (extended headers).
    pub fn selective_status(offset: u64, length: u64, contexts: &[u32]) -> Self {
        let mut payload = length.to_be_bytes().to_vec();
        payload.extend(contexts.iter().flat_map(|id| id.to_be_bytes()));
        Request {
            flags: flag::PAYLOAD_LEN,
            length: payload.len() as u64,
            payload,
            ..Request::new(cmd::BLOCK_STATUS, offset, 0)
        }
    }

    /// With these flags too.
    pub fn with(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// The bytes on the wire. The compact form holds the lower half of the length.
    pub fn encode(&self, mode: Mode) -> Vec<u8> {
        let magic = match mode {
            Mode::Extended => EXTENDED_REQUEST,
            Mode::Simple | Mode::Structured => REQUEST,
        };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        match mode {
            Mode::Extended => bytes.extend(self.length.to_be_bytes()),
            Mode::Simple | Mode::Structured => bytes.extend((self.length as u32).to_be_bytes()),
        }
        bytes.extend(&self.payload);
        bytes
    }
}

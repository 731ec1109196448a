//! Numbers and layouts. Everything here is pure: bytes in, values out, no input panics.

/// "NBDMAGIC".
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT".
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest string of the protocol.
pub(crate) const STRING_LENGTH: usize = 4096;

/// Handshake flags of the server, and the same bits of the client.
pub(crate) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR | 1;
    pub(crate) const ERR_POLICY: u32 = ERROR | 2;
    pub(crate) const ERR_INVALID: u32 = ERROR | 3;
    pub(crate) const ERR_TLS_REQD: u32 = ERROR | 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR | 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR | 9;
    pub(crate) const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

pub(crate) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
    pub(crate) const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

pub(crate) mod chunk {
    pub(crate) const DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    pub(crate) const ERROR: u16 = (1 << 15) | 1;
}

/// An error as the protocol numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Errno {
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
    NotSup = 95,
    Shutdown = 108,
}

/// How requests and replies are laid out, as the handshake agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Structured,
    Extended,
}

impl Mode {
    /// The length of a request's header.
    pub(crate) const fn request_length(self) -> usize {
        match self {
            Mode::Simple | Mode::Structured => 28,
            Mode::Extended => 32,
        }
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// These bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadMagic(pub(crate) u32);

impl Header {
    /// Reads the header at the beginning of `bytes`; `None` if it is not all there.
    pub(crate) fn parse(mode: Mode, bytes: &[u8]) -> Result<Option<Header>, BadMagic> {
        let Some((head, _)) = bytes.split_at_checked(mode.request_length()) else {
            return Ok(None);
        };
        let mut fields = Fields(head);
        let magic = fields.u32().unwrap_or_default();
        let expected = match mode {
            Mode::Extended => EXTENDED_REQUEST_MAGIC,
            Mode::Simple | Mode::Structured => REQUEST_MAGIC,
        };
        if magic != expected {
            return Err(BadMagic(magic));
        }
        let header = (|| {
            Some(Header {
                flags: fields.u16()?,
                command: fields.u16()?,
                cookie: fields.u64()?,
                offset: fields.u64()?,
                length: match mode {
                    Mode::Extended => fields.u64()?,
                    Mode::Simple | Mode::Structured => u64::from(fields.u32()?),
                },
            })
        })();
        Ok(header)
    }

    /// How many bytes follow the header.
    ///
    /// A write always has them: QEMU's client (seen in 10.0) leaves out the flag that extended
    /// headers want with it, and its server takes that too.
    pub(crate) fn payload(&self, mode: Mode) -> u64 {
        let flagged = mode == Mode::Extended && self.flags & command_flag::PAYLOAD_LEN != 0;
        let follows = flagged || self.command == command::WRITE;
        if follows { self.length } else { 0 }
    }
}

/// Reads one field after the other. `None`: there is no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length in 32 bits before it.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.bytes(length)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) wanted: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// `None` if `data` is not laid out like that.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u16()?;
        let mut wanted = Vec::new();
        for _ in 0..count {
            wanted.push(fields.u16()?);
        }
        fields.is_empty().then_some(InfoRequest { name, wanted })
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContextRequest<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) queries: Vec<&'a [u8]>,
}

impl<'a> ContextRequest<'a> {
    /// `None` if `data` is not laid out like that.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        // The count is not trusted with memory: each query takes four bytes at least.
        for _ in 0..count {
            queries.push(fields.string()?);
        }
        fields
            .is_empty()
            .then_some(ContextRequest { name, queries })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compact(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn a_compact_header_says_what_was_put_into_it(
            command: u16, flags: u16, cookie: u64, offset: u64, length: u32, cut in 0..28_usize
        ) {
            let bytes = compact(command, flags, cookie, offset, length);
            let header = Header { flags, command, cookie, offset, length: u64::from(length) };
            prop_assert_eq!(Header::parse(Mode::Simple, &bytes), Ok(Some(header)));
            prop_assert_eq!(Header::parse(Mode::Structured, &bytes[..cut]), Ok(None));
            let follows = if command == command::WRITE { u64::from(length) } else { 0 };
            prop_assert_eq!(header.payload(Mode::Simple), follows);
        }

        #[test]
        fn no_bytes_do_harm(bytes: Vec<u8>) {
            for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
                let _ = Header::parse(mode, &bytes);
            }
            let _ = InfoRequest::parse(&bytes);
            let _ = ContextRequest::parse(&bytes);
        }
    }

    #[test]
    fn another_magic_is_no_request() {
        let bytes = compact(0, 0, 0, 0, 0);
        assert_eq!(
            Header::parse(Mode::Extended, &[&bytes[..], &[0; 4]].concat()),
            Err(BadMagic(REQUEST_MAGIC))
        );
    }

    #[test]
    fn what_follows_the_last_field_is_wrong() {
        let mut data = 1_u32.to_be_bytes().to_vec();
        data.extend(b"v");
        data.extend(1_u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        let parsed = InfoRequest::parse(&data).expect("that is its layout");
        assert_eq!((parsed.name, parsed.wanted), (&b"v"[..], vec![3]));
        data.push(0);
        assert_eq!(InfoRequest::parse(&data), None);
    }

    #[test]
    fn a_count_of_queries_takes_no_memory_before_they_are_there() {
        let mut data = 0_u32.to_be_bytes().to_vec();
        data.extend(u32::MAX.to_be_bytes());
        assert_eq!(ContextRequest::parse(&data), None);
    }
}

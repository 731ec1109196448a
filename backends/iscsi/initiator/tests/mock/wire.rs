//! PDUs as bytes (RFC 7143 section 11), without the crate's own code: it could not find its own
//! faults.

use std::io::{self, Read};

pub const NOP_OUT: u8 = 0x00;
pub const COMMAND: u8 = 0x01;
pub const TASK: u8 = 0x02;
pub const LOGIN: u8 = 0x03;
pub const TEXT: u8 = 0x04;
pub const DATA_OUT: u8 = 0x05;
pub const LOGOUT: u8 = 0x06;
pub const NOP_IN: u8 = 0x20;
pub const RESPONSE: u8 = 0x21;
pub const TASK_RESPONSE: u8 = 0x22;
pub const LOGIN_RESPONSE: u8 = 0x23;
pub const TEXT_RESPONSE: u8 = 0x24;
pub const DATA_IN: u8 = 0x25;
pub const LOGOUT_RESPONSE: u8 = 0x26;
pub const R2T: u8 = 0x31;
pub const ASYNC: u8 = 0x32;
pub const REJECT: u8 = 0x3f;

/// The last PDU of a sequence; also the transit bit of the login.
pub const FINAL: u8 = 0x80;
/// The text goes on in the next PDU.
pub const CONTINUED: u8 = 0x40;
/// This Data-In carries the status.
pub const STATUS: u8 = 0x01;
pub const UNDERFLOW: u8 = 0x02;
pub const OVERFLOW: u8 = 0x04;

/// No tag.
pub const NONE: u32 = 0xffff_ffff;

// Where the 32-bit fields are.
pub const TAG: usize = 16;
/// Target transfer tag; expected length in a command; the referenced tag in a task request.
pub const TRANSFER_TAG: usize = 20;
/// CmdSN of a request, StatSN of a response.
pub const NUMBER: usize = 24;
/// ExpStatSN of a request, ExpCmdSN of a response.
pub const EXPECTED: usize = 28;
pub const MAXIMUM: usize = 32;
/// DataSN, or R2TSN.
pub const DATA_SN: usize = 36;
pub const OFFSET: usize = 40;
/// The residual count, or the desired length of an R2T.
pub const LENGTH: usize = 44;

#[derive(Clone, Debug)]
pub struct Pdu {
    pub head: [u8; 48],
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn new(opcode: u8, flags: u8) -> Pdu {
        let mut head = [0; 48];
        head[0] = opcode;
        head[1] = flags;
        Pdu {
            head,
            data: Vec::new(),
        }
    }

    /// An answer to `request`: the same task tag, and no transfer tag.
    pub fn to(request: &Pdu, opcode: u8, flags: u8) -> Pdu {
        Pdu::new(opcode, flags)
            .word(TAG, request.tag())
            .word(TRANSFER_TAG, NONE)
    }

    pub fn byte(mut self, at: usize, value: u8) -> Pdu {
        self.head[at] = value;
        self
    }

    pub fn word(mut self, at: usize, value: u32) -> Pdu {
        self.set(at, value);
        self
    }

    pub fn with(mut self, data: impl Into<Vec<u8>>) -> Pdu {
        self.data = data.into();
        self
    }

    pub fn set(&mut self, at: usize, value: u32) {
        self.head[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub fn get(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.head[at..at + 4].try_into().expect("four bytes"))
    }

    pub fn opcode(&self) -> u8 {
        self.head[0] & 0x3f
    }

    pub fn immediate(&self) -> bool {
        self.head[0] & 0x40 != 0
    }

    pub fn is_final(&self) -> bool {
        self.head[1] & FINAL != 0
    }

    pub fn tag(&self) -> u32 {
        self.get(TAG)
    }

    pub fn lun(&self) -> [u8; 8] {
        self.head[8..16].try_into().expect("eight bytes")
    }

    pub fn cdb(&self) -> &[u8] {
        &self.head[32..]
    }

    /// Header, data and padding, with digests of header and of data as agreed.
    pub fn bytes(&self, digests: (bool, bool)) -> Vec<u8> {
        let length = u32::try_from(self.data.len())
            .expect("short data")
            .to_be_bytes();
        let mut bytes = self.head.to_vec();
        bytes[5..8].copy_from_slice(&length[1..]);
        if digests.0 {
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        }
        let start = bytes.len();
        bytes.extend_from_slice(&self.data);
        bytes.resize(start + self.data.len().next_multiple_of(4), 0);
        if digests.1 && !self.data.is_empty() {
            bytes.extend(crc32c::crc32c(&bytes[start..]).to_le_bytes());
        }
        bytes
    }

    pub fn read(from: &mut impl Read, digests: (bool, bool)) -> io::Result<Pdu> {
        let mut head = [0; 48];
        from.read_exact(&mut head)?;
        assert_eq!(
            head[4], 0,
            "no request of these tests needs an additional header"
        );
        if digests.0 {
            check_digest(from, &head)?;
        }
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        from.read_exact(&mut data)?;
        if digests.1 && length > 0 {
            check_digest(from, &data)?;
        }
        assert!(
            data[length..].iter().all(|byte| *byte == 0),
            "padding is zeros"
        );
        data.truncate(length);
        Ok(Pdu { head, data })
    }
}

fn check_digest(from: &mut impl Read, of: &[u8]) -> io::Result<()> {
    let mut digest = [0; 4];
    from.read_exact(&mut digest)?;
    assert_eq!(digest, crc32c::crc32c(of).to_le_bytes(), "a wrong digest");
    Ok(())
}

/// `key=value` pairs of text.
pub fn pairs(text: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(text).expect("text is UTF-8");
    assert!(
        text.is_empty() || text.ends_with('\0'),
        "each pair ends with a zero: {text:?}"
    );
    text.split_terminator('\0')
        .map(|pair| {
            let (key, value) = pair.split_once('=').expect("a pair has an equals sign");
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

/// The text of pairs.
pub fn text<K: AsRef<str>, V: AsRef<str>>(pairs: &[(K, V)]) -> Vec<u8> {
    let line = |(key, value): &(K, V)| format!("{}={}\0", key.as_ref(), value.as_ref());
    pairs.iter().map(line).collect::<String>().into_bytes()
}

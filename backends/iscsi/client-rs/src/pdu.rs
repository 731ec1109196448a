//! PDUs as this crate sends them (RFC 7143 section 11): `iscsi-client-rs` would mark each of a
//! sequence as its last.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use iscsi_client_rs::client::client::ClientConnection;
use iscsi_client_rs::client::pdu_connection::ToBytes;
use volmux_iscsi_initiator::{Error, ErrorKind, Result};

/// Bytes of a basic header segment.
pub const HEADER: usize = 48;
/// The tag that stands for none.
pub const NO_TAG: u32 = 0xffff_ffff;
/// The highest number that a LUN may have here (SAM-5 section 4.7.7.3, flat space addressing).
const LAST_LUN: u64 = 0x3fff;

/// What a PDU is (the low six bits of its first byte).
pub mod opcode {
    pub const NOP_OUT: u8 = 0x00;
    pub const COMMAND: u8 = 0x01;
    pub const DATA_OUT: u8 = 0x05;
    pub const NOP_IN: u8 = 0x20;
    pub const RESPONSE: u8 = 0x21;
    pub const DATA_IN: u8 = 0x25;
    pub const R2T: u8 = 0x31;
    /// Set in requests that are not counted and don't wait for the window.
    pub const IMMEDIATE: u8 = 0x40;
}

/// Set in the last PDU of a sequence.
pub const FINAL: u8 = 0x80;

/// Where fields are.
pub mod field {
    pub const LUN: usize = 8;
    pub const ITT: usize = 16;
    pub const TTT: usize = 20;
    /// Of a command: expected data transfer length.
    pub const EXPECTED: usize = 20;
    /// Of what the initiator sends.
    pub const CMD_SN: usize = 24;
    pub const EXP_STAT_SN: usize = 28;
    /// Of what the target sends.
    pub const STAT_SN: usize = 24;
    pub const EXP_CMD_SN: usize = 28;
    pub const MAX_CMD_SN: usize = 32;
    /// Of data and R2T: their number.
    pub const DATA_SN: usize = 36;
    pub const OFFSET: usize = 40;
    /// Of R2T: what is wanted. Of responses and the last data: the residual count.
    pub const LENGTH: usize = 44;
}

/// A basic header segment.
#[derive(Clone, Copy)]
pub struct Header(pub [u8; HEADER]);

impl Header {
    pub fn new(opcode: u8, flags: u8) -> Header {
        let mut bytes = [0; HEADER];
        (bytes[0], bytes[1]) = (opcode, flags);
        Header(bytes)
    }

    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    pub fn get(&self, at: usize) -> u32 {
        let [a, b, c, d] = [self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]];
        u32::from_be_bytes([a, b, c, d])
    }

    pub fn with(mut self, at: usize, value: u32) -> Header {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub fn with_lun(mut self, lun: [u8; 8]) -> Header {
        self.0[field::LUN..field::LUN + 8].copy_from_slice(&lun);
        self
    }
}

/// Whether there are CRC32C digests: of headers, and of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

/// A PDU on its way out.
pub struct Outgoing {
    header: [u8; HEADER],
    body: Bytes,
    connection: Option<Arc<ClientConnection>>,
}

impl Outgoing {
    /// `data` has less than 2^24 bytes.
    pub fn new(mut header: Header, data: Bytes, digests: Digests) -> Outgoing {
        let length = data.len();
        let [_, high, middle, low] = (length as u32).to_be_bytes();
        header.0[5..8].copy_from_slice(&[high, middle, low]);
        let padding = length.next_multiple_of(4) - length;
        let data_digest = digests.data && length > 0;
        if !digests.header && !data_digest && padding == 0 {
            return Outgoing {
                header: header.0,
                body: data,
                connection: None,
            };
        }
        let mut body = BytesMut::with_capacity(length + padding + 8);
        if digests.header {
            body.put_u32_le(crc32c::crc32c(&header.0));
        }
        let start = body.len();
        body.extend_from_slice(&data);
        body.put_bytes(0, padding);
        if data_digest {
            let digest = crc32c::crc32c(&body[start..]);
            body.put_u32_le(digest);
        }
        Outgoing {
            header: header.0,
            body: body.freeze(),
            connection: None,
        }
    }

    /// Only while this connection has not ended.
    pub fn by(mut self, connection: &Arc<ClientConnection>) -> Outgoing {
        self.connection = Some(connection.clone());
        self
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It goes to logs, where no data belongs.
        write!(f, "PDU {:#04x}, {} bytes", self.header[0], self.body.len())
    }
}

impl ToBytes for Outgoing {
    type Header = [u8; HEADER];
    type Body = Bytes;

    fn to_bytes(&mut self, _most: usize) -> anyhow::Result<([u8; HEADER], Bytes)> {
        // The crate asks when it is this one's turn to be written. If the connection has ended by
        // then, the one before may be written by half: what follows would be taken for its data.
        let ended = self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.is_poisoned());
        anyhow::ensure!(!ended, "the connection has ended");
        Ok((self.header, self.body.clone()))
    }
}

/// A LUN as it is sent (SAM-5 section 4.7): peripheral addressing up to 255, as most targets know
/// it, else flat.
pub fn lun_field(lun: u64) -> Result<[u8; 8]> {
    let [high, low] = match lun {
        0..=0xff => (lun as u16).to_be_bytes(),
        0x100..=LAST_LUN => (lun as u16 | 0x4000).to_be_bytes(),
        _ => {
            let reason = format!("LUN {lun}: the highest is {LAST_LUN}");
            return Err(Error::new(ErrorKind::InvalidInput, reason));
        }
    };
    Ok([high, low, 0, 0, 0, 0, 0, 0])
}

/// Whether `a` comes after `b`, or is it, as serial numbers go (RFC 1982).
pub fn reached(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(data: &'static [u8], header: bool, of_data: bool) -> (Vec<u8>, Vec<u8>) {
        let digests = Digests {
            header,
            data: of_data,
        };
        let mut pdu = Outgoing::new(Header::new(0x05, FINAL), data.into(), digests);
        let (header, body) = pdu.to_bytes(0).expect("it can't fail");
        (header.to_vec(), body.to_vec())
    }

    #[test]
    fn data_is_padded_and_digested() {
        let (header, body) = encoded(b"abcde", false, false);
        assert_eq!(header[4..8], [0, 0, 0, 5]);
        assert_eq!(body, b"abcde\0\0\0");
        let (header, body) = encoded(b"abcde", true, true);
        let of_header = crc32c::crc32c(&header).to_le_bytes();
        let of_data = crc32c::crc32c(b"abcde\0\0\0").to_le_bytes();
        assert_eq!(body, [&of_header[..], b"abcde\0\0\0", &of_data].concat());
        let (_, body) = encoded(b"", true, true);
        assert_eq!(body.len(), 4, "there is no digest of no data");
        let (_, body) = encoded(b"abcd", false, false);
        assert_eq!(body, b"abcd");
    }

    #[test]
    fn luns_are_encoded() {
        assert_eq!(lun_field(255).expect("a LUN")[..2], [0, 255]);
        assert_eq!(lun_field(256).expect("a LUN")[..2], [0x41, 0]);
        let error = lun_field(0x4000).expect_err("too high");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn numbers_wrap() {
        assert!(reached(0, 0xffff_ffff) && reached(5, 5) && !reached(4, 5));
        assert!(!reached(0xffff_ffff, 0));
    }
}

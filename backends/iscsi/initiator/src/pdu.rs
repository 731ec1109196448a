//! Protocol data units: the header that all have (RFC 7143 section 11.2), and those that this side
//! sends.

use crate::error::{Error, ErrorKind, Result};

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
    pub const TASK_REQUEST: u8 = 0x02;
    pub const LOGIN_REQUEST: u8 = 0x03;
    pub const TEXT_REQUEST: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT_REQUEST: u8 = 0x06;
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
    /// Set in requests that are not counted and don't wait for the window.
    pub const IMMEDIATE: u8 = 0x40;
}

/// Set in the last PDU of a sequence, or of a text.
pub const FINAL: u8 = 0x80;
/// Set in a login or text PDU that another one continues.
pub const CONTINUE: u8 = 0x40;

/// Where fields are that several PDUs have.
pub mod field {
    pub const LUN: usize = 8;
    pub const ITT: usize = 16;
    pub const TTT: usize = 20;
    /// Of a SCSI command: expected data transfer length. Of a task request: the task meant.
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

    /// Bytes of additional header segments.
    pub fn additional(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of data, without what fills them up to four.
    pub fn data_length(&self) -> usize {
        (self.get(4) & 0x00ff_ffff) as usize
    }

    pub fn get(&self, at: usize) -> u32 {
        let [a, b, c, d] = [self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]];
        u32::from_be_bytes([a, b, c, d])
    }

    pub fn set(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub fn with(mut self, at: usize, value: u32) -> Header {
        self.set(at, value);
        self
    }

    pub fn with_lun(mut self, lun: [u8; 8]) -> Header {
        self.0[field::LUN..field::LUN + 8].copy_from_slice(&lun);
        self
    }

    pub fn lun(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.0[field::LUN..field::LUN + 8]);
        lun
    }

    /// At most 2^24 - 1.
    pub fn set_data_length(&mut self, length: usize) {
        let length = length as u32;
        self.set(4, u32::from(self.0[4]) << 24 | length & 0x00ff_ffff);
    }
}

/// A LUN as it is sent (SAM-5 section 4.7): peripheral addressing up to 255, as most targets know it,
/// else flat.
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

    #[test]
    fn luns_are_encoded() {
        assert_eq!(lun_field(0).expect("a LUN"), [0; 8]);
        assert_eq!(lun_field(255).expect("a LUN")[..2], [0, 255]);
        assert_eq!(lun_field(256).expect("a LUN")[..2], [0x41, 0]);
        assert_eq!(lun_field(0x3fff).expect("a LUN")[..2], [0x7f, 0xff]);
        let error = lun_field(0x4000).expect_err("too high");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn numbers_wrap() {
        assert!(reached(0, 0xffff_ffff) && reached(5, 5) && !reached(4, 5));
        assert!(!reached(0xffff_ffff, 0));
    }

    #[test]
    fn lengths_leave_the_rest_alone() {
        let mut header = Header::new(opcode::DATA_IN, 0);
        header.0[4] = 3;
        header.set_data_length(0x01_02_03);
        assert_eq!(
            (header.additional(), header.data_length()),
            (12, 0x01_02_03)
        );
    }
}

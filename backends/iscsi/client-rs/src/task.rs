//! One command: its data in both directions, and its answer.

use bytes::{Buf, Bytes, BytesMut};
use volmux_iscsi_initiator::{Command, Data, Error, ErrorKind, Reply, Residual, Result};

use crate::link::{Incoming, Link};
use crate::pdu::{FINAL, Header, NO_TAG, field, opcode};

/// Flags of data and responses (RFC 7143 sections 11.4.1 and 11.7).
const OVERFLOW: u8 = 0x04;
const UNDERFLOW: u8 = 0x02;
/// The data PDU has the status.
const STATUS: u8 = 0x01;

/// A command that was sent, or is about to be.
pub struct Task<'a> {
    link: &'a Link,
    lun: [u8; 8],
    command: &'a Command,
    /// Its task tag.
    pub tag: u32,
    read: BytesMut,
    /// All that was read, if it came at once.
    whole: Option<Bytes>,
    /// Data PDUs that came.
    count: u32,
    /// Bytes that were sent, or are asked for.
    written: usize,
    /// R2Ts that came.
    asked: u32,
}

fn wrong(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Protocol, format!("{what}: {reason}"))
}

impl<'a> Task<'a> {
    pub fn new(link: &'a Link, lun: [u8; 8], command: &'a Command) -> Task<'a> {
        Task {
            link,
            lun,
            command,
            tag: link.new_tag(),
            read: BytesMut::new(),
            whole: None,
            count: 0,
            written: 0,
            asked: 0,
        }
    }

    fn to_write(&self) -> Bytes {
        match &self.command.data {
            Data::Write(data) => data.clone(),
            _ => Bytes::new(),
        }
    }

    fn to_read(&self) -> usize {
        match self.command.data {
            Data::Read(length) => length as usize,
            _ => 0,
        }
    }

    /// Its header, but for its CmdSN.
    pub fn begin(&mut self) -> Header {
        let (direction, expected) = match &self.command.data {
            Data::None => (0, 0),
            Data::Read(length) => (0x40, *length),
            Data::Write(data) => (0x20, data.len() as u32),
        };
        self.written = self.immediate().len();
        // Simple: the target may reorder.
        const SIMPLE: u8 = 1;
        let mut header = Header::new(opcode::COMMAND, FINAL | direction | SIMPLE)
            .with_lun(self.lun)
            .with(field::ITT, self.tag)
            .with(field::EXPECTED, expected);
        let cdb = &self.command.cdb;
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        header
    }

    /// The data that goes with it unasked.
    pub fn immediate(&self) -> Bytes {
        let agreement = self.link.agreement();
        let most = match agreement.immediate_data {
            true => agreement.first_burst.min(agreement.segment) as usize,
            false => 0,
        };
        let data = self.to_write();
        data.slice(..data.len().min(most))
    }

    /// Takes a PDU. The reply, if that was the last one.
    pub async fn take(&mut self, pdu: Incoming) -> Result<Option<Reply>> {
        match pdu.header.opcode() {
            opcode::DATA_IN => self.data_in(&pdu.header, &pdu.data),
            opcode::RESPONSE => self.response(&pdu.header, pdu.data).map(Some),
            opcode::R2T => {
                self.ready(&pdu.header).await?;
                Ok(None)
            }
            other => Err(wrong(
                "the answer to a command",
                format!("a PDU {other:#04x}"),
            )),
        }
    }

    fn received(&self) -> usize {
        self.whole.as_ref().map_or(self.read.len(), Bytes::len)
    }

    fn data_in(&mut self, header: &Header, data: &Bytes) -> Result<Option<Reply>> {
        let wrong = |reason: String| Err(wrong("data of a read", reason));
        let (expected, received) = (self.to_read(), self.received());
        let (number, offset) = (header.get(field::DATA_SN), header.get(field::OFFSET));
        if number != self.count {
            return wrong(format!("PDU {number} where {} is next", self.count));
        }
        if offset as usize != received {
            return wrong(format!("byte {offset} where {received} is next"));
        }
        if data.len() > (expected - received).min(self.link.agreement().segment as usize) {
            return wrong(format!("{} bytes at {offset}, of {expected}", data.len()));
        }
        self.count += 1;
        if received == 0 && data.len() == expected {
            self.whole = Some(data.clone());
        } else {
            self.read.extend_from_slice(data);
        }
        match header.flags() & STATUS {
            0 => Ok(None),
            _ => Ok(Some(self.reply(header, Bytes::new()))),
        }
    }

    fn response(&mut self, header: &Header, mut data: Bytes) -> Result<Reply> {
        if header.0[2] != 0 {
            let reason = format!(
                "the target could not do the command (response {:#04x})",
                header.0[2]
            );
            return Err(Error::new(ErrorKind::Refused, reason));
        }
        let sense = match data.len() {
            0 | 1 => Bytes::new(),
            _ => {
                let length = usize::from(data.get_u16());
                data.split_to(length.min(data.len()))
            }
        };
        Ok(self.reply(header, sense))
    }

    fn reply(&mut self, header: &Header, sense: Bytes) -> Reply {
        let missing = (self.to_read() - self.received()) as u32;
        let count = header.get(field::LENGTH);
        let told = match header.flags() {
            flags if flags & UNDERFLOW != 0 => Residual::Underflow(count),
            flags if flags & OVERFLOW != 0 => Residual::Overflow(count),
            _ => Residual::None,
        };
        let read = std::mem::take(&mut self.read);
        Reply {
            status: header.0[3],
            sense,
            data: self.whole.take().unwrap_or_else(|| read.freeze()),
            // Some targets say nothing of what is missing, and one may say something else.
            residual: match told {
                Residual::None | Residual::Underflow(_) if missing > 0 => {
                    Residual::Underflow(missing)
                }
                told => told,
            },
            nexus: self.link.nexus,
        }
    }

    /// The target is ready for data of a write: sends a sequence of it.
    async fn ready(&mut self, header: &Header) -> Result<()> {
        let wrong = |reason: String| Err(wrong("the target asks for data", reason));
        let data = self.to_write();
        let (number, asked_by) = (header.get(field::DATA_SN), header.get(field::TTT));
        let (offset, length) = (header.get(field::OFFSET), header.get(field::LENGTH));
        if number != self.asked {
            return wrong(format!("R2T {number} where {} is next", self.asked));
        }
        if offset as usize != self.written {
            return wrong(format!("byte {offset} where {} is next", self.written));
        }
        let agreement = self.link.agreement();
        let end = self.written + length as usize;
        if length == 0 || length > agreement.burst || end > data.len() || asked_by == NO_TAG {
            return wrong(format!("{length} bytes at {offset}, of {}", data.len()));
        }
        self.asked += 1;
        // With the first PDU the crate expects an answer again.
        let mut expecting = self.tag;
        let segment = agreement.segment as usize;
        for (number, begin) in (self.written..end).step_by(segment).enumerate() {
            let to = end.min(begin + segment);
            let header = Header::new(opcode::DATA_OUT, if to == end { FINAL } else { 0 })
                .with_lun(self.lun)
                .with(field::ITT, self.tag)
                .with(field::TTT, asked_by)
                .with(field::DATA_SN, number as u32)
                .with(field::OFFSET, begin as u32);
            self.link
                .send(expecting, header, data.slice(begin..to))
                .await?;
            expecting = NO_TAG;
        }
        self.written = end;
        Ok(())
    }
}

//! The commands that the target knows, over a disk in memory, done by the book.

use std::io;

use crate::connection::Connection;
use crate::target::BLOCK;
use crate::wire::*;

pub const TEST_UNIT_READY: u8 = 0x00;
pub const READ_10: u8 = 0x28;
pub const WRITE_10: u8 = 0x2a;

/// Fixed format: ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
pub const SENSE: [u8; 18] = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0];

/// The response segment: a length, and so much sense.
pub fn sense_segment(sense: &[u8]) -> Vec<u8> {
    let length = u16::try_from(sense.len()).expect("short sense");
    [&length.to_be_bytes(), sense].concat()
}

/// Which bytes of the disk a command is about.
pub fn extent(command: &Pdu) -> std::ops::Range<usize> {
    let cdb = command.cdb();
    let block = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]) as usize;
    let blocks = usize::from(u16::from_be_bytes([cdb[7], cdb[8]]));
    block * BLOCK..(block + blocks) * BLOCK
}

impl Connection {
    /// Does commands until the initiator is gone.
    pub fn serve(&mut self) -> io::Result<()> {
        loop {
            let command = self.command()?;
            self.execute(&command)?;
        }
    }

    pub fn execute(&mut self, command: &Pdu) -> io::Result<()> {
        match command.cdb()[0] {
            TEST_UNIT_READY => self.status(command, 0, &[]),
            READ_10 => self.read(command),
            WRITE_10 => self.write_blocks(command),
            _ => self.status(command, 2, &sense_segment(&SENSE)),
        }
    }

    /// A SCSI response with this status.
    pub fn status(&mut self, command: &Pdu, status: u8, segment: &[u8]) -> io::Result<()> {
        let response = Pdu::to(command, RESPONSE, FINAL).word(TRANSFER_TAG, 0);
        self.send(response.byte(3, status).with(segment))
    }

    pub fn on_disk(&self, command: &Pdu) -> Vec<u8> {
        let disk = self
            .shared
            .disk
            .lock()
            .expect("nobody panics with the disk");
        disk[extent(command)].to_vec()
    }

    /// Data-In PDUs as long as they may be; the last one has the status.
    pub fn read(&mut self, command: &Pdu) -> io::Result<()> {
        let data = self.on_disk(command);
        assert_eq!(command.get(TRANSFER_TAG) as usize, data.len());
        assert_eq!(command.head[1] & 0xe0, 0xc0, "the flags of a read");
        let (segment, burst) = (
            self.terms.initiator_segment as usize,
            self.terms.burst as usize,
        );
        let mut offset = 0;
        for sn in 0.. {
            let sequence_end = data.len().min((offset / burst + 1) * burst);
            let end = sequence_end.min(offset + segment);
            let flags = match end == sequence_end {
                true if end == data.len() => FINAL | STATUS,
                true => FINAL,
                false => 0,
            };
            self.data_in(command, flags, sn, offset, &data[offset..end])?;
            offset = end;
            if offset == data.len() {
                break;
            }
        }
        Ok(())
    }

    pub fn data_in(
        &mut self,
        command: &Pdu,
        flags: u8,
        sn: usize,
        offset: usize,
        data: &[u8],
    ) -> io::Result<()> {
        let pdu = data_in(command, flags, sn, offset, data);
        self.send(pdu)
    }

    pub fn write_blocks(&mut self, command: &Pdu) -> io::Result<()> {
        let Some(data) = self.collect(command)? else {
            return Ok(());
        };
        let mut disk = self
            .shared
            .disk
            .lock()
            .expect("nobody panics with the disk");
        disk[extent(command)].copy_from_slice(&data);
        drop(disk);
        self.status(command, 0, &[])
    }

    /// All data of a write; None if it was aborted.
    pub fn collect(&mut self, command: &Pdu) -> io::Result<Option<Vec<u8>>> {
        let Some(mut data) = self.collect_unsolicited(command)? else {
            return Ok(None);
        };
        let total = command.get(TRANSFER_TAG) as usize;
        for sn in 0.. {
            if data.len() == total {
                break;
            }
            let length = (total - data.len()).min(self.terms.burst as usize);
            let ttt = self.fresh_ttt();
            self.r2t(command, ttt, sn, data.len(), length)?;
            if !self.sequence(command, ttt, &mut data, length)? {
                return Ok(None);
            }
        }
        Ok(Some(data))
    }

    /// Immediate data, and what follows it unasked (RFC 7143 sections 13.10, 13.11 and 13.14).
    pub fn collect_unsolicited(&mut self, command: &Pdu) -> io::Result<Option<Vec<u8>>> {
        let total = command.get(TRANSFER_TAG) as usize;
        let first = total.min(self.terms.first_burst as usize);
        let mut data = command.data.clone();
        assert_eq!(command.head[1] & 0x60, 0x20, "the flags of a write");
        assert!(
            data.is_empty() || self.terms.immediate_data,
            "no immediate data was agreed"
        );
        assert!(
            data.len() <= first,
            "{} bytes at first, not {first}",
            data.len()
        );
        if command.is_final() {
            return Ok(Some(data));
        }
        assert!(!self.terms.initial_r2t, "all data was to be asked for");
        let rest = first - data.len();
        assert!(rest > 0, "more data is told than may come");
        Ok(self
            .sequence(command, NONE, &mut data, rest)?
            .then_some(data))
    }

    /// A sequence of Data-Out PDUs with `length` bytes in all; false if the command was aborted.
    pub fn sequence(
        &mut self,
        command: &Pdu,
        ttt: u32,
        data: &mut Vec<u8>,
        length: usize,
    ) -> io::Result<bool> {
        let end = data.len() + length;
        for sn in 0.. {
            let Some(pdu) = self.data_out(command)? else {
                return Ok(false);
            };
            assert_eq!(pdu.get(TRANSFER_TAG), ttt, "the tag of the R2T comes back");
            assert_eq!(pdu.get(DATA_SN), sn, "DataSN counts within a sequence");
            assert_eq!(pdu.get(OFFSET) as usize, data.len(), "no gap, no overlap");
            if ttt != NONE {
                assert_eq!(pdu.lun(), command.lun(), "solicited data names its unit");
            }
            assert!(!pdu.data.is_empty(), "an empty Data-Out");
            data.extend_from_slice(&pdu.data);
            assert!(data.len() <= end, "more data than asked for");
            assert_eq!(
                pdu.is_final(),
                data.len() == end,
                "F is for the last of a sequence"
            );
            if pdu.is_final() {
                break;
            }
        }
        Ok(true)
    }

    pub fn r2t(
        &mut self,
        command: &Pdu,
        ttt: u32,
        sn: u32,
        offset: usize,
        length: usize,
    ) -> io::Result<()> {
        let pdu = r2t(command, ttt, sn, offset, length);
        self.send(pdu)
    }
}

pub fn data_in(command: &Pdu, flags: u8, sn: usize, offset: usize, data: &[u8]) -> Pdu {
    Pdu::to(command, DATA_IN, flags)
        .word(DATA_SN, u32::try_from(sn).expect("few"))
        .word(OFFSET, u32::try_from(offset).expect("small"))
        .with(data)
}

pub fn r2t(command: &Pdu, ttt: u32, sn: u32, offset: usize, length: usize) -> Pdu {
    let mut pdu = Pdu::to(command, R2T, FINAL)
        .word(TRANSFER_TAG, ttt)
        .word(DATA_SN, sn)
        .word(OFFSET, u32::try_from(offset).expect("small"))
        .word(LENGTH, u32::try_from(length).expect("small"));
    pdu.head[8..16].copy_from_slice(&command.lun());
    pdu
}

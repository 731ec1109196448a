//! A disk in memory that does what it is told to do wrong.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use volmux_iscsi::scsi::LogicalUnit;
use volmux_iscsi::transport::ScsiTransport;
use volmux_iscsi_initiator::{Command, Data, Error, ErrorKind, Replay, Reply, Residual, Result};

pub const INQUIRY: u8 = 0x12;
pub const READ: u8 = 0x88;
pub const WRITE: u8 = 0x8a;
pub const UNMAP: u8 = 0x42;
pub const WRITE_SAME: u8 = 0x93;
pub const COMPARE_AND_WRITE: u8 = 0x89;
pub const FLUSH_16: u8 = 0x91;
pub const FLUSH_10: u8 = 0x35;
pub const TEST_UNIT_READY: u8 = 0x00;
pub const SERVICE_IN: u8 = 0x9e;
pub const READ_CAPACITY_10: u8 = 0x25;
pub const MODE_SENSE_6: u8 = 0x1a;
pub const MODE_SENSE_10: u8 = 0x5a;
pub const REPORT_LUNS: u8 = 0xa0;
pub const REPORT_OPERATIONS: u8 = 0xa3;
pub const RESERVE_IN: u8 = 0x5e;
pub const RESERVE_OUT: u8 = 0x5f;

pub const LUN: u64 = 3;

/// What it does instead of what it should.
#[derive(Debug, Clone)]
pub enum Act {
    /// Answers with a status, and does nothing.
    Status(u8),
    /// Answers CHECK CONDITION with sense data, and does nothing.
    Sense(Vec<u8>),
    /// Does it, and answers CHECK CONDITION with sense data.
    DoneWithSense(Vec<u8>),
    /// Does it, and lies about how much.
    Residual(Residual),
    /// Gives other data, with GOOD.
    Data(Bytes),
    /// Fails as the transport; the second says whether it was sent.
    Fail(ErrorKind, bool),
    /// Begins a new session, which fails a command that is bound to the old one.
    NewSession,
    /// Does it after so long.
    Late(Duration),
}

/// Sense data in fixed format: key, code.
pub fn sense(key: u8, code: u16) -> Vec<u8> {
    let [asc, ascq] = code.to_be_bytes();
    vec![
        0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0,
    ]
}

/// Those of an earlier command.
pub fn deferred(key: u8, code: u16) -> Vec<u8> {
    let mut bytes = sense(key, code);
    bytes[0] = 0x71;
    bytes
}

/// A command that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub cdb: Vec<u8>,
    pub replay: Replay,
    pub nexus: Option<u64>,
    pub timeout: Duration,
    /// Bytes that came with it.
    pub written: usize,
}

impl Seen {
    /// First block and number of blocks of a command of 16 bytes.
    pub fn range(&self) -> (u64, u32) {
        (be64(&self.cdb, 2), be32(&self.cdb, 10))
    }
}

/// What it is.
#[derive(Default)]
pub struct State {
    pub block: usize,
    pub data: Vec<u8>,
    /// For each block whether it is backed.
    pub mapped: Vec<bool>,
    pub nexus: u64,
    /// First byte of INQUIRY data.
    pub device: u8,
    /// Contents of pages, without header.
    pub pages: HashMap<u8, Vec<u8>>,
    /// Mode parameters: device-specific byte, and flags of the caching page if there is one.
    pub mode: (u8, Option<u8>),
    /// Operation codes that it does not have.
    pub without: HashSet<u8>,
    /// The second byte of the usage data of WRITE SAME(16).
    pub same_usage: Option<u8>,
    pub luns: Vec<u16>,
    /// What was done to reservations: service action and parameter list.
    pub reserved: Vec<(u8, Bytes)>,
    acts: Vec<(u8, u32, Act)>,
    seen: Vec<Seen>,
    running: usize,
    most_running: usize,
}

pub struct Disk(Mutex<State>);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    /// A thin one of so many blocks, which has all commands, and no limits.
    pub fn new(blocks: usize, block: usize) -> Arc<Disk> {
        let mut limits = vec![0; 60];
        limits[1] = 16;
        limits[16..24].fill(0xff);
        let pages = [
            (0x80, b"serial-1".to_vec()),
            (0x83, vec![1, 3, 0, 8, 0x60, 0, 0, 0, 0, 0, 0, 1]),
            (0xb0, limits),
            (0xb2, vec![0, 0xe4, 2, 0]),
        ];
        Arc::new(Disk(Mutex::new(State {
            block,
            data: vec![0; blocks * block],
            mapped: vec![false; blocks],
            nexus: 1,
            pages: pages.into(),
            mode: (0x10, Some(4)),
            luns: vec![0, LUN as u16],
            ..State::default()
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panicked with it")
    }

    /// The next `times` commands with this operation code meet `act`.
    pub fn on(&self, code: u8, times: u32, act: Act) {
        self.state().acts.push((code, times, act));
    }

    pub async fn open(self: &Arc<Disk>) -> LogicalUnit {
        let unit = LogicalUnit::open(self.clone(), LUN).await.expect("a unit");
        self.seen();
        unit
    }

    /// The commands that came since the last question.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// The operation codes of those.
    pub fn codes(&self) -> Vec<u8> {
        self.seen().iter().map(|seen| seen.cdb[0]).collect()
    }

    /// How many commands it works on, and the most that it ever did.
    pub fn running(&self) -> (usize, usize) {
        let state = self.state();
        (state.running, state.most_running)
    }
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Counts a command until it is answered or dropped.
struct Running<'a>(&'a Disk);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

#[async_trait]
impl ScsiTransport for Disk {
    async fn execute(&self, lun: u64, command: Command) -> Result<Reply> {
        assert_eq!(
            lun,
            if command.cdb[0] == REPORT_LUNS {
                0
            } else {
                LUN
            }
        );
        let act = self.state().take(&command);
        let _running = Running(self);
        match &act {
            Some(Act::Late(time)) => tokio::time::sleep(*time).await,
            // Others get a turn meanwhile, as with a real one.
            _ => tokio::task::yield_now().await,
        }
        let mut state = self.state();
        if let Some(Act::NewSession) = act {
            state.nexus += 1;
        }
        if command.nexus.is_some_and(|nexus| nexus != state.nexus) {
            return Err(Error::new(ErrorKind::Lost, "that session is over"));
        }
        let mut reply = match act {
            Some(Act::Status(status)) => Reply {
                status,
                ..Reply::default()
            },
            Some(Act::Sense(sense)) => check_condition(sense),
            Some(Act::DoneWithSense(sense)) => Reply {
                sense: sense.into(),
                status: 2,
                ..state.perform(&command)
            },
            Some(Act::Residual(residual)) => Reply {
                residual,
                ..state.perform(&command)
            },
            Some(Act::Data(data)) => Reply {
                data,
                ..Reply::default()
            },
            Some(Act::Fail(kind, sent)) => {
                let error = Error::new(kind, "told to");
                return Err(if sent { error.was_sent() } else { error });
            }
            Some(Act::Late(_) | Act::NewSession) | None => state.perform(&command),
        };
        reply.nexus = state.nexus;
        Ok(reply)
    }

    async fn reset_lun(&self, _lun: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Refused, "no such thing"))
    }

    async fn logout(&self) -> Result<()> {
        Ok(())
    }
}

fn check_condition(sense: Vec<u8>) -> Reply {
    Reply {
        status: 2,
        sense: sense.into(),
        ..Reply::default()
    }
}

impl State {
    /// Notes a command, and what is to be done about it.
    fn take(&mut self, command: &Command) -> Option<Act> {
        self.running += 1;
        self.most_running = self.most_running.max(self.running);
        self.seen.push(Seen {
            cdb: command.cdb.clone(),
            replay: command.replay,
            nexus: command.nexus,
            timeout: command.timeout.expect("each command has a deadline"),
            written: match &command.data {
                Data::Write(data) => data.len(),
                _ => 0,
            },
        });
        let code = command.cdb[0];
        let at = self
            .acts
            .iter()
            .position(|(of, times, _)| *of == code && *times > 0)?;
        self.acts[at].1 -= 1;
        Some(self.acts[at].2.clone())
    }

    fn perform(&mut self, command: &Command) -> Reply {
        let cdb = &command.cdb;
        let illegal = |code| check_condition(sense(5, code));
        if self.without.contains(&cdb[0]) {
            return illegal(0x2000);
        }
        let room = match &command.data {
            Data::Read(room) => *room as usize,
            _ => 0,
        };
        let written = match &command.data {
            Data::Write(data) => data.clone(),
            _ => Bytes::new(),
        };
        let told = match cdb[0] {
            TEST_UNIT_READY | FLUSH_16 | FLUSH_10 => Ok(Vec::new()),
            INQUIRY => self.inquiry(cdb),
            READ_CAPACITY_10 => Ok(self.capacity_10()),
            SERVICE_IN if cdb[1] == 0x10 => Ok(self.capacity_16()),
            SERVICE_IN if cdb[1] == 0x12 => self.lba_status(be64(cdb, 2)),
            MODE_SENSE_6 | MODE_SENSE_10 => self.mode(cdb),
            REPORT_OPERATIONS => self.operation(cdb),
            REPORT_LUNS => Ok(self.luns()),
            READ | WRITE | WRITE_SAME => self.blocks(cdb, &written),
            UNMAP => self.unmap(&written),
            COMPARE_AND_WRITE => return self.compare_and_write(cdb, &written),
            RESERVE_OUT => {
                self.reserved.push((cdb[1] & 0x1f, written));
                Ok(Vec::new())
            }
            RESERVE_IN => Ok(vec![0; 8]),
            other => panic!("nobody sends {other:#04x}"),
        };
        match told {
            Ok(mut data) => {
                let residual = match data.len() {
                    length if length < room => Residual::Underflow((room - length) as u32),
                    length if length > room => Residual::Overflow((length - room) as u32),
                    _ => Residual::None,
                };
                data.truncate(room);
                Reply {
                    data: data.into(),
                    residual,
                    ..Reply::default()
                }
            }
            Err(code) => illegal(code),
        }
    }

    fn inquiry(&self, cdb: &[u8]) -> std::result::Result<Vec<u8>, u16> {
        if cdb[1] & 1 == 0 {
            let mut data = vec![self.device, 0, 6, 2, 31, 0, 0, 0];
            data.extend(b"VOLMUX  MEMORY          0001");
            return Ok(data);
        }
        let content = match (cdb[2], self.pages.get(&cdb[2])) {
            (0, _) if self.pages.is_empty() => return Err(0x2400),
            (0, _) => {
                let mut pages: Vec<u8> = self.pages.keys().copied().chain([0]).collect();
                pages.sort_unstable();
                pages
            }
            (_, Some(content)) => content.clone(),
            (_, None) => return Err(0x2400),
        };
        let mut data = vec![self.device, cdb[2]];
        data.extend((content.len() as u16).to_be_bytes());
        data.extend(content);
        Ok(data)
    }

    fn blocks_number(&self) -> u64 {
        (self.data.len() / self.block) as u64
    }

    fn capacity_10(&self) -> Vec<u8> {
        let last = u32::try_from(self.blocks_number() - 1).unwrap_or(u32::MAX);
        [last.to_be_bytes(), (self.block as u32).to_be_bytes()].concat()
    }

    fn capacity_16(&self) -> Vec<u8> {
        let mut data = (self.blocks_number() - 1).to_be_bytes().to_vec();
        data.extend((self.block as u32).to_be_bytes());
        data.extend([0, 3, 0xc0, 0]);
        data.resize(32, 0);
        data
    }

    fn mode(&self, cdb: &[u8]) -> std::result::Result<Vec<u8>, u16> {
        let (device, caching) = self.mode;
        let page = match (cdb[2] & 0x3f, caching) {
            (8, None) => return Err(0x2400),
            (_, None) => Vec::new(),
            (_, Some(flags)) => {
                let mut page = vec![8, 18, flags];
                page.resize(20, 0);
                page
            }
        };
        let mut data = match cdb[0] {
            MODE_SENSE_6 => vec![3 + page.len() as u8, 0, device, 0],
            _ => vec![0, 6 + page.len() as u8, 0, device, 0, 0, 0, 0],
        };
        data.extend(page);
        Ok(data)
    }

    fn operation(&self, cdb: &[u8]) -> std::result::Result<Vec<u8>, u16> {
        assert_eq!((cdb[2], cdb[3]), (1, WRITE_SAME));
        if self.without.contains(&WRITE_SAME) {
            return Ok(vec![0, 1, 0, 0]);
        }
        let usage = self.same_usage.ok_or(0x2400_u16)?;
        let mut data = vec![0, 3, 0, 16, WRITE_SAME, usage];
        data.resize(20, 0xff);
        Ok(data)
    }

    fn luns(&self) -> Vec<u8> {
        let mut data = (8 * self.luns.len() as u32).to_be_bytes().to_vec();
        data.extend([0; 4]);
        for lun in &self.luns {
            let field = if *lun > 255 { lun | 0x4000 } else { *lun };
            data.extend(field.to_be_bytes());
            data.extend([0; 6]);
        }
        data
    }

    fn blocks(&mut self, cdb: &[u8], written: &Bytes) -> std::result::Result<Vec<u8>, u16> {
        let (lba, blocks) = (be64(cdb, 2) as usize, be32(cdb, 10) as usize);
        if lba + blocks > self.mapped.len() {
            return Err(0x2100);
        }
        let bytes = lba * self.block..(lba + blocks) * self.block;
        match cdb[0] {
            READ => return Ok(self.data[bytes].to_vec()),
            WRITE => {
                assert_eq!(written.len(), bytes.len(), "as many bytes as blocks");
                self.data[bytes].copy_from_slice(written);
                self.mapped[lba..lba + blocks].fill(true);
            }
            _ => {
                let one = match cdb[1] & 1 {
                    1 => vec![0; self.block],
                    _ => written.to_vec(),
                };
                assert_eq!(one.len(), self.block, "one block");
                assert!(
                    self.same_usage.is_some() || cdb[1] & 1 == 0,
                    "it has no NDOB"
                );
                self.data[bytes].copy_from_slice(&one.repeat(blocks));
                self.mapped[lba..lba + blocks].fill(cdb[1] & 8 == 0);
            }
        }
        Ok(Vec::new())
    }

    fn unmap(&mut self, list: &[u8]) -> std::result::Result<Vec<u8>, u16> {
        assert_eq!(usize::from(be16(list, 0)) + 2, list.len());
        assert_eq!(usize::from(be16(list, 2)) + 8, list.len());
        for range in list[8..].chunks(16) {
            let (lba, blocks) = (be64(range, 0) as usize, be32(range, 8) as usize);
            let mapped = self.mapped.get_mut(lba..lba + blocks).ok_or(0x2100_u16)?;
            mapped.fill(false);
            self.data[lba * self.block..(lba + blocks) * self.block].fill(0);
        }
        Ok(Vec::new())
    }

    fn lba_status(&self, lba: u64) -> std::result::Result<Vec<u8>, u16> {
        let from = lba as usize;
        if from >= self.mapped.len() {
            return Err(0x2100);
        }
        let mut list = Vec::new();
        // Ranges need not be the longest: it tells of each block.
        for (at, mapped) in self.mapped.iter().enumerate().skip(from).take(1000) {
            list.extend((at as u64).to_be_bytes());
            list.extend(1_u32.to_be_bytes());
            list.extend([u8::from(!mapped), 0, 0, 0]);
        }
        let mut data = (4 + list.len() as u32).to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(list);
        Ok(data)
    }

    fn compare_and_write(&mut self, cdb: &[u8], written: &Bytes) -> Reply {
        let (lba, blocks) = (be64(cdb, 2) as usize, usize::from(cdb[13]));
        let (expected, data) = written.split_at(blocks * self.block);
        let there = &mut self.data[lba * self.block..(lba + blocks) * self.block];
        match there.iter().zip(expected).position(|(a, b)| a != b) {
            None => {
                there.copy_from_slice(data);
                Reply::default()
            }
            Some(at) => {
                let mut sense = sense(0xe, 0x1d00);
                sense[0] |= 0x80;
                sense[3..7].copy_from_slice(&(at as u32).to_be_bytes());
                check_condition(sense)
            }
        }
    }
}

//! One connection of the target: numbers, what is outstanding, and the answers nobody scripts.
//!
//! Whatever a script does, the requests have to be right: CmdSNs in order and within the window,
//! tags of their own, segments as short as was agreed.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::negotiation::Terms;
use crate::target::{Seen, Shared};
use crate::wire::*;

/// No script may outlive the test that it belongs to.
const PATIENCE: Duration = Duration::from_secs(15);

pub struct Connection {
    /// Counted from 1, over all of the target.
    pub number: usize,
    /// The next StatSN.
    pub stat_sn: u32,
    /// What was agreed at login.
    pub terms: Terms,
    /// Whether the initiator's pings are answered.
    pub answer_pings: bool,
    /// Whether requests for task management are.
    pub answer_tasks: bool,
    /// Of headers, and of data, once the login is done.
    pub digests: (bool, bool),
    pub shared: Arc<Shared>,
    /// The next CmdSN.
    pub expected: u32,
    maximum: u32,
    open: Vec<u32>,
    /// Data-In PDUs and R2Ts of each command.
    parts: HashMap<u32, u32>,
    backlog: VecDeque<Pdu>,
    stream: TcpStream,
    input: BufReader<TcpStream>,
    next_ttt: u32,
}

impl Connection {
    pub fn new(stream: TcpStream, number: usize, shared: Arc<Shared>) -> Connection {
        stream.set_nodelay(true).expect("a TCP socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a TCP socket");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("a TCP socket");
        let input = BufReader::new(stream.try_clone().expect("a second handle"));
        Connection {
            number,
            // It is a serial number: it soon wraps around.
            stat_sn: 0xffff_fffb,
            terms: Terms::default(),
            answer_pings: true,
            answer_tasks: true,
            digests: (false, false),
            shared,
            expected: 0,
            maximum: 0,
            open: Vec::new(),
            parts: HashMap::new(),
            backlog: VecDeque::new(),
            stream,
            input,
            next_ttt: 0x100,
        }
    }

    pub fn close(&self) {
        drop(self.stream.shutdown(Shutdown::Both));
    }

    pub fn fresh_ttt(&mut self) -> u32 {
        self.next_ttt += 1;
        self.next_ttt
    }

    /// The next CmdSN, at login.
    pub fn start_at(&mut self, cmd_sn: u32) {
        self.expected = cmd_sn;
    }

    /// Fills in the three numbers of a response; a status takes up a StatSN.
    pub fn number(&mut self, pdu: &mut Pdu) {
        let with_status = pdu.opcode() == DATA_IN && pdu.head[1] & STATUS != 0;
        if matches!(pdu.opcode(), DATA_IN | R2T) {
            *self.parts.entry(pdu.tag()).or_default() += 1;
        }
        if pdu.opcode() == RESPONSE && pdu.head[2] == 0 {
            pdu.set(
                DATA_SN,
                self.parts.get(&pdu.tag()).copied().unwrap_or_default(),
            );
        }
        if pdu.opcode() == RESPONSE || with_status {
            self.parts.remove(&pdu.tag());
            self.open.retain(|tag| *tag != pdu.tag());
        }
        let free = self
            .terms
            .window
            .saturating_sub(u32::try_from(self.open.len()).expect("few"));
        self.maximum = self.expected.wrapping_add(free).wrapping_sub(1);
        pdu.set(EXPECTED, self.expected);
        pdu.set(MAXIMUM, self.maximum);
        if pdu.opcode() == DATA_IN && !with_status {
            return;
        }
        pdu.set(NUMBER, self.stat_sn);
        let asks = pdu.opcode() == R2T || (pdu.opcode() == NOP_IN && pdu.tag() == NONE);
        if !asks {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
    }

    /// The bytes of a response, with its numbers.
    pub fn encode(&mut self, mut pdu: Pdu) -> Vec<u8> {
        self.number(&mut pdu);
        pdu.bytes(self.digests)
    }

    pub fn send(&mut self, pdu: Pdu) -> io::Result<()> {
        let bytes = self.encode(pdu);
        self.write(&bytes)
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A request, checked and recorded. Nothing is answered.
    pub fn receive(&mut self) -> io::Result<Pdu> {
        let pdu = Pdu::read(&mut self.input, self.digests)?;
        let mut record = self.shared.record();
        record.seen.push(Seen {
            connection: self.number,
            pdu: pdu.clone(),
        });
        drop(record);
        if pdu.opcode() == LOGIN {
            return Ok(pdu);
        }
        let behind = self.stat_sn.wrapping_sub(pdu.get(EXPECTED)).cast_signed();
        assert!(behind >= 0, "ExpStatSN is {} ahead: {pdu:02x?}", -behind);
        assert!(
            pdu.data.len() <= self.terms.segment as usize,
            "{} bytes",
            pdu.data.len()
        );
        if pdu.opcode() == DATA_OUT {
            return Ok(pdu);
        }
        let cmd_sn = pdu.get(NUMBER);
        assert_eq!(cmd_sn, self.expected, "CmdSNs are consecutive: {pdu:02x?}");
        if !pdu.immediate() {
            let room = self.maximum.wrapping_sub(cmd_sn).cast_signed();
            assert!(
                room >= 0,
                "CmdSN {cmd_sn} is beyond MaxCmdSN {}",
                self.maximum
            );
            self.expected = cmd_sn.wrapping_add(1);
        }
        if pdu.opcode() == COMMAND {
            assert!(!pdu.immediate(), "commands keep to the window");
            assert_ne!(pdu.tag(), NONE, "a command has a tag");
            assert!(
                !self.open.contains(&pdu.tag()),
                "a task tag is in use: {pdu:02x?}"
            );
            self.open.push(pdu.tag());
            let mut record = self.shared.record();
            record.most_open = record.most_open.max(self.open.len());
        }
        Ok(pdu)
    }

    /// The next request that is wanted. Others wait, or are answered.
    pub fn take(&mut self, wanted: impl Fn(&Pdu) -> bool) -> io::Result<Pdu> {
        if let Some(at) = self.backlog.iter().position(&wanted) {
            return Ok(self.backlog.remove(at).expect("it is there"));
        }
        loop {
            let pdu = self.receive()?;
            if wanted(&pdu) {
                return Ok(pdu);
            }
            self.manage(pdu)?;
        }
    }

    /// Whether something comes within this time; the end of the connection is something too.
    pub fn more_within(&mut self, time: Duration) -> io::Result<bool> {
        if !self.backlog.is_empty() || !self.input.buffer().is_empty() {
            return Ok(true);
        }
        self.stream.set_read_timeout(Some(time))?;
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(PATIENCE))?;
        match peeked {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads nothing any more, until the test is over.
    pub fn ignore(&self) -> io::Result<()> {
        while !self.shared.stopped() {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub fn command(&mut self) -> io::Result<Pdu> {
        self.take(|pdu| pdu.opcode() == COMMAND)
    }

    /// Until the initiator closes the connection. Commands are not answered.
    pub fn drain(&mut self) -> io::Result<()> {
        loop {
            self.take(|_| false)?;
        }
    }

    /// Data for the command; None if it was aborted.
    pub fn data_out(&mut self, command: &Pdu) -> io::Result<Option<Pdu>> {
        let tag = command.tag();
        loop {
            if !self.open.contains(&tag) {
                return Ok(None);
            }
            let ours = |pdu: &Pdu| pdu.opcode() == DATA_OUT && pdu.tag() == tag;
            let pdu = self.take(|pdu| ours(pdu) || pdu.opcode() == TASK)?;
            match pdu.opcode() {
                TASK => self.manage(pdu)?,
                _ => return Ok(Some(pdu)),
            }
        }
    }

    /// Does what no script asked for.
    pub fn manage(&mut self, pdu: Pdu) -> io::Result<()> {
        match pdu.opcode() {
            NOP_OUT if pdu.tag() != NONE && self.answer_pings => {
                let answer = Pdu::to(&pdu, NOP_IN, FINAL).with(pdu.data);
                self.send(answer)
            }
            TASK if self.answer_tasks => self.end_tasks(&pdu),
            LOGOUT => {
                self.send(Pdu::to(&pdu, LOGOUT_RESPONSE, FINAL).word(TRANSFER_TAG, 0))?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            NOP_OUT | TASK => Ok(()),
            _ => {
                self.backlog.push_back(pdu);
                Ok(())
            }
        }
    }

    /// Ends the task that is meant, or all of them, and says so.
    pub fn end_tasks(&mut self, request: &Pdu) -> io::Result<()> {
        let meant = request.get(TRANSFER_TAG);
        let abort = request.head[1] & 0x7f == 1;
        let found = !abort || self.open.contains(&meant);
        self.open.retain(|tag| abort && *tag != meant);
        let open = &self.open;
        self.backlog
            .retain(|pdu| pdu.opcode() != COMMAND || open.contains(&pdu.tag()));
        let no_such_task = u8::from(!found);
        let answer = Pdu::to(request, TASK_RESPONSE, FINAL).word(TRANSFER_TAG, 0);
        self.send(answer.byte(2, no_such_task))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

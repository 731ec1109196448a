//! What the target sends in full feature phase.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use tokio::io::AsyncRead;

use crate::command::{Data, Reply, Residual};
use crate::error::{Error, ErrorKind, Result};
use crate::params::Params;
use crate::pdu::{FINAL, Header, NO_TAG, field, opcode, reached};
use crate::shared::{Sequence, Shared, State};
use crate::tasks::{Incoming, Scsi, Task};
use crate::wire::{LONG, Receiver};

/// Flags of data and responses (RFC 7143 sections 11.4.1 and 11.7).
const OVERFLOW: u8 = 0x04;
const UNDERFLOW: u8 = 0x02;
/// The data PDU has the status.
const STATUS: u8 = 0x01;

impl Shared {
    /// Receives one PDU and takes it. An error ends the connection.
    pub async fn next<R: AsyncRead + Unpin>(&self, receiver: &mut Receiver<R>) -> Result<()> {
        let header = receiver.header().await?;
        let mut incoming = self.room(&header);
        receiver.data(&header, &mut incoming.data).await?;
        self.take(&header, incoming)
    }

    /// Where the data of a PDU goes. If that is due, and not all of a short read: to where it is to
    /// be.
    fn room(&self, header: &Header) -> Incoming {
        let short = header.data_length() <= LONG && header.get(field::OFFSET) == 0;
        if short || header.opcode() != opcode::DATA_IN {
            return Incoming::default();
        }
        let mut state = self.lock();
        match state.tasks.scsi(header.get(field::ITT)) {
            Some(scsi) if scsi.is_awaited() => match is_due(scsi, header) {
                Ok(expected) => scsi.received.lend(expected, &self.buffers),
                // Told when it is taken.
                Err(_) => Incoming::default(),
            },
            _ => Incoming::default(),
        }
    }

    fn take(&self, header: &Header, incoming: Incoming) -> Result<()> {
        let mut state = self.lock();
        if std::mem::take(&mut state.waited) {
            state.woken = 0;
            state.heard = tokio::time::Instant::now();
        }
        state.count(header)?;
        match header.opcode() {
            opcode::DATA_IN => state.data_in(header, incoming, self.nexus)?,
            opcode::RESPONSE => state.response(header, incoming.data.into(), self.nexus)?,
            opcode::R2T => state.ready(header, &self.params)?,
            opcode::NOP_IN => state.nop_in(header)?,
            opcode::TASK_RESPONSE => {
                let management = |task: &Task| matches!(task, Task::Management(_));
                let Task::Management(waiter) = state.remove(header, management)? else {
                    return Err(unasked(&state.stopped, header));
                };
                // Who no longer waits need not know; so below.
                let _ = waiter.send(Ok(header.0[2]));
            }
            opcode::LOGOUT_RESPONSE => {
                let logout = |task: &Task| matches!(task, Task::Logout(_));
                let Task::Logout(waiter) = state.remove(header, logout)? else {
                    return Err(unasked(&state.stopped, header));
                };
                let _ = waiter.send(Ok(()));
                return Err(Error::new(ErrorKind::Lost, "logged out"));
            }
            opcode::ASYNC => state.event(header)?,
            opcode::REJECT => {
                let reason = header.0[2];
                return Err(Error::protocol(format!(
                    "the target rejects a request (reason {reason:#04x}, RFC 7143 section 11.17.1)"
                )));
            }
            other => {
                return Err(Error::protocol(format!(
                    "the target sent a PDU {other:#04x}"
                )));
            }
        }
        self.begin(&mut state);
        Ok(())
    }
}

/// Whether data is that which comes next. How much is expected in all.
fn is_due(scsi: &Scsi, header: &Header) -> Result<u32> {
    let wrong = |reason: String| Err(Error::protocol(format!("data of a read: {reason}")));
    let Data::Read(expected) = scsi.data else {
        return wrong("the command reads nothing".into());
    };
    let (number, offset) = (header.get(field::DATA_SN), header.get(field::OFFSET));
    let (received, length) = (&scsi.received, header.data_length());
    if number != received.count {
        return wrong(format!("PDU {number} where {} is next", received.count));
    }
    if offset != received.length {
        return wrong(format!("byte {offset} where {} is next", received.length));
    }
    if length as u64 > u64::from(expected - offset) {
        return wrong(format!("{length} bytes at {offset}, of {expected}"));
    }
    Ok(expected)
}

/// Why the connection ends: what is answered is none of our tasks.
fn unasked(stopped: &VecDeque<u32>, header: &Header) -> Error {
    let (opcode, tag) = (header.opcode(), header.get(field::ITT));
    if stopped.contains(&tag) {
        // tgt does after a reset, with writes that wait for data.
        let reason =
            format!("the target goes on with a command that it stopped (PDU {opcode:#04x})");
        return Error::new(ErrorKind::Lost, reason);
    }
    Error::protocol(format!(
        "the target answers what it was not asked (PDU {opcode:#04x}, tag {tag:#010x})"
    ))
}

fn is_sent(task: &Task) -> bool {
    matches!(task, Task::Scsi(scsi) if scsi.sent.is_some())
}

impl State {
    /// The numbers that all PDUs have.
    fn count(&mut self, header: &Header) -> Result<()> {
        let tag = header.get(field::ITT);
        let counted = match header.opcode() {
            opcode::DATA_IN => header.flags() & STATUS != 0,
            opcode::NOP_IN => tag != NO_TAG,
            opcode::R2T => false,
            _ => true,
        };
        let stat_sn = header.get(field::STAT_SN);
        if counted {
            if stat_sn != self.stat_sn {
                return Err(Error::protocol(format!(
                    "the target's answers are numbered wrongly: StatSN {stat_sn} where {} is next",
                    self.stat_sn
                )));
            }
            self.stat_sn = stat_sn.wrapping_add(1);
        }
        let (next, last) = (header.get(field::EXP_CMD_SN), header.get(field::MAX_CMD_SN));
        // Section 4.2.2.1: nonsense is ignored, and the window never shrinks.
        if reached(last.wrapping_add(1), next) && reached(last, self.max_cmd_sn) {
            self.max_cmd_sn = last;
        }
        Ok(())
    }

    /// The task that is answered, which has to be of the kind that is answered so.
    fn remove(&mut self, header: &Header, kind: impl Fn(&Task) -> bool) -> Result<Task> {
        let tag = header.get(field::ITT);
        let right = self.tasks.get(tag).is_some_and(kind);
        let task = if right { self.tasks.remove(tag) } else { None };
        task.ok_or_else(|| unasked(&self.stopped, header))
    }

    fn scsi(&mut self, header: &Header) -> Result<&mut Scsi> {
        let State { tasks, stopped, .. } = self;
        let scsi = tasks.scsi(header.get(field::ITT));
        scsi.ok_or_else(|| unasked(stopped, header))
    }

    fn data_in(&mut self, header: &Header, incoming: Incoming, nexus: u64) -> Result<()> {
        let scsi = self.scsi(header)?;
        is_due(scsi, header)?;
        match scsi.is_awaited() {
            true => scsi.received.add(incoming),
            false => scsi.received.skip(incoming.len()),
        }
        if header.flags() & STATUS != 0 {
            let (status, residual) = (header.0[3], residual(header));
            self.finish(header, status, Bytes::new(), residual, nexus)?;
        }
        Ok(())
    }

    fn response(&mut self, header: &Header, mut data: Bytes, nexus: u64) -> Result<()> {
        self.scsi(header)?;
        if header.0[2] != 0 {
            let Task::Scsi(mut scsi) = self.remove(header, is_sent)? else {
                return Err(unasked(&self.stopped, header));
            };
            let reason = format!(
                "the target could not do the command (response {:#04x})",
                header.0[2]
            );
            scsi.tell(Err(Error::new(ErrorKind::Refused, reason).was_sent()));
            return Ok(());
        }
        let sense = match data.len() {
            0 | 1 => Bytes::new(),
            _ => {
                let length = usize::from(data.get_u16());
                data.split_to(length.min(data.len()))
            }
        };
        self.finish(header, header.0[3], sense, residual(header), nexus)
    }

    fn finish(
        &mut self,
        header: &Header,
        status: u8,
        sense: Bytes,
        residual: Residual,
        nexus: u64,
    ) -> Result<()> {
        let Task::Scsi(mut scsi) = self.remove(header, is_sent)? else {
            return Err(unasked(&self.stopped, header));
        };
        let missing = match scsi.data {
            Data::Read(expected) => expected - scsi.received.length,
            _ => 0,
        };
        // Some targets say nothing of what is missing, and one may say something else.
        let residual = match residual {
            Residual::None | Residual::Underflow(_) if missing > 0 => Residual::Underflow(missing),
            other => other,
        };
        let reply = Reply {
            status,
            sense,
            data: scsi.received.take(),
            residual,
            nexus,
        };
        if scsi.tell(Ok(reply)) {
            self.woken += 1;
        }
        Ok(())
    }

    /// The target is ready for data of a write.
    fn ready(&mut self, header: &Header, params: &Params) -> Result<()> {
        let scsi = self.scsi(header)?;
        let (number, offset) = (header.get(field::DATA_SN), header.get(field::OFFSET));
        let length = header.get(field::LENGTH);
        let asked_by = header.get(field::TTT);
        let data = scsi.to_write();
        let wrong = |reason: String| {
            Err(Error::protocol(format!(
                "the target asks for data: {reason}"
            )))
        };
        if number != scsi.asked {
            return wrong(format!("R2T {number} where {} is next", scsi.asked));
        }
        if offset != scsi.written {
            return wrong(format!("byte {offset} where {} is next", scsi.written));
        }
        let end = u64::from(offset) + u64::from(length);
        if length == 0 || length > params.max_burst || end > data.len() as u64 || asked_by == NO_TAG
        {
            return wrong(format!("{length} bytes at {offset}, of {}", data.len()));
        }
        scsi.asked += 1;
        scsi.written = offset + length;
        let sequence = Sequence {
            tag: header.get(field::ITT),
            asked_by,
            lun: scsi.lun,
            from: offset as usize,
            to: end as usize,
        };
        self.push_data(&sequence, &data, params.most_sent);
        Ok(())
    }

    fn nop_in(&mut self, header: &Header) -> Result<()> {
        let (tag, asked_by) = (header.get(field::ITT), header.get(field::TTT));
        if tag != NO_TAG {
            self.remove(header, |task| matches!(task, Task::Ping))?;
            self.pinged = false;
        } else if asked_by != NO_TAG {
            let pong = Header::new(opcode::NOP_OUT | opcode::IMMEDIATE, FINAL);
            let pong = pong.with_lun(header.lun()).with(field::ITT, NO_TAG);
            self.push(pong.with(field::TTT, asked_by), Bytes::new());
        }
        Ok(())
    }

    /// Section 11.9.1.
    fn event(&mut self, header: &Header) -> Result<()> {
        match header.0[36] {
            // It wants us to go, or to negotiate anew, for which we go too. Once what was begun is done.
            1 | 4 => self.leaving = true,
            2 | 3 => {
                return Err(Error::new(
                    ErrorKind::Lost,
                    "the target drops the connection",
                ));
            }
            event => tracing::debug!(event, "an event of the target"),
        }
        Ok(())
    }
}

fn residual(header: &Header) -> Residual {
    let count = header.get(field::LENGTH);
    match header.flags() {
        flags if flags & UNDERFLOW != 0 => Residual::Underflow(count),
        flags if flags & OVERFLOW != 0 => Residual::Overflow(count),
        _ => Residual::None,
    }
}

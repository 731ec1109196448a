//! What the parts of a connection have in common: what is sent and awaited, and the tasks that send and
//! receive it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::buffers::Buffers;
use crate::command::{Command, Data, Reply};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::outbox::Outbox;
use crate::params::Params;
use crate::pdu::{FINAL, Header, NO_TAG, field, opcode, reached};
use crate::tasks::{Received, Scsi, Task, Tasks, Waiter};
use crate::wire::Receiver;

/// While so much waits to be sent, nothing is taken from the target that would add to it.
const FULL: usize = 16 << 20;

pub(crate) struct Shared {
    pub state: Mutex<State>,
    pub params: Params,
    pub nexus: u64,
    pub place: Place,
    pub depth: usize,
    pub keep_alive: Duration,
    pub buffers: Arc<Buffers>,
    /// A command has less time than those before.
    pub sooner: Notify,
    /// There is something left to be sent.
    unsent: Notify,
    /// Something was sent.
    sent: Notify,
    /// It broke.
    ended: Notify,
}

pub(crate) struct State {
    pub broken: Option<Error>,
    /// Taken away when it breaks, so that the target sees it.
    stream: Option<Arc<OwnedWriteHalf>>,
    /// What has to end then.
    pub background: Vec<AbortHandle>,
    /// No new commands: the target wants us to log out.
    pub leaving: bool,
    /// The logout was sent.
    left: bool,
    pub cmd_sn: u32,
    pub max_cmd_sn: u32,
    /// The number of the target's next answer.
    pub stat_sn: u32,
    pub tasks: Tasks,
    /// Commands that the target said it stopped, the last of them.
    pub stopped: VecDeque<u32>,
    pub out: Outbox,
    /// The socket did not take all of it.
    blocked: bool,
    /// Those who were given answers by what came last, and have not sent the next command yet.
    pub woken: usize,
    /// More has to be waited for.
    pub waited: bool,
    /// When it is looked next whether answers are late.
    pub watched: Option<Instant>,
    /// When it was last seen to be alive.
    pub heard: Instant,
    pub pinged: bool,
}

/// Closes the session (RFC 7143 section 11.14.1).
pub fn logout() -> Header {
    Header::new(opcode::LOGOUT_REQUEST | opcode::IMMEDIATE, FINAL)
}

/// With what numbers a session begins.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub stat_sn: u32,
}

impl Shared {
    pub fn new(
        params: Params,
        numbers: Numbers,
        nexus: u64,
        stream: Option<Arc<OwnedWriteHalf>>,
    ) -> Shared {
        let Numbers {
            cmd_sn,
            max_cmd_sn,
            stat_sn,
        } = numbers;
        let state = State {
            broken: None,
            stream,
            background: Vec::new(),
            leaving: false,
            left: false,
            cmd_sn,
            max_cmd_sn,
            stat_sn,
            tasks: Tasks::default(),
            stopped: VecDeque::new(),
            out: Outbox::new(params.digests),
            blocked: false,
            woken: 0,
            waited: true,
            watched: None,
            heard: Instant::now(),
            pinged: false,
        };
        Shared {
            state: Mutex::new(state),
            params,
            nexus,
            place: Place::default(),
            depth: usize::MAX,
            keep_alive: Duration::from_secs(5),
            buffers: Arc::default(),
            sooner: Notify::new(),
            unsent: Notify::new(),
            sent: Notify::new(),
            ended: Notify::new(),
        }
    }
}

impl Shared {
    /// The CmdSN of a command that is not answered yet.
    pub fn sent(&self, tag: u32) -> Option<u32> {
        self.lock().tasks.scsi(tag)?.sent
    }

    /// Removes a command unless it was sent and is not answered yet. Whether there is nothing left of
    /// it.
    pub fn forget_unsent(&self, tag: u32) -> bool {
        let mut state = self.lock();
        if state.tasks.scsi(tag).is_some() {
            return false;
        }
        state.tasks.remove(tag);
        true
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks the connection, and tells all who wait why.
    pub fn fail(&self, error: Error) {
        let mut state = self.lock();
        if state.broken.is_some() {
            return;
        }
        let error = error.at(self.place.clone());
        tracing::debug!(%error, "the connection has ended");
        state.tasks.fail(&error);
        state.out.clear();
        state.broken = Some(error);
        state.stream = None;
        self.ended.notify_waiters();
        for task in state.background.drain(..) {
            task.abort();
        }
    }

    /// Once it has ended.
    pub async fn ended(&self) {
        let ended = self.ended.notified();
        if self.lock().broken.is_none() {
            ended.await;
        }
    }

    /// Sends a command as soon as it may be. Its tag.
    pub fn enqueue(
        &self,
        lun: [u8; 8],
        command: &Command,
        until: Instant,
        waiter: Waiter<Reply>,
    ) -> Result<u32> {
        let mut cdb = [0; 16];
        cdb[..command.cdb.len()].copy_from_slice(&command.cdb);
        let mut state = self.lock();
        self.check(&state)?;
        let alone = state.tasks.in_flight == 0 && state.woken <= 1;
        state.woken = state.woken.saturating_sub(1);
        let tag = state.tasks.add(Task::Scsi(Box::new(Scsi {
            lun,
            cdb,
            data: command.data.clone(),
            waiter: Some(waiter),
            until,
            sent: None,
            received: Received::default(),
            written: 0,
            asked: 0,
        })));
        if state.watched.is_none_or(|watched| until < watched) {
            state.watched = Some(until);
            self.sooner.notify_one();
        }
        self.begin(&mut state);
        match alone {
            true => self.write(&mut state),
            // Others are likely to come at the same time, and then one call writes all of them.
            false => self.unsent.notify_one(),
        }
        Ok(tag)
    }

    fn check(&self, state: &State) -> Result<()> {
        match &state.broken {
            Some(error) => Err(error.clone()),
            None if state.leaving => {
                let reason = "the target asked for a logout";
                Err(Error::new(ErrorKind::Lost, reason).at(self.place.clone()))
            }
            None => Ok(()),
        }
    }

    /// Sends a request that does not wait for the window.
    pub fn request(&self, header: Header, task: Task) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = &state.broken {
            return Err(error.clone());
        }
        let tag = state.tasks.add(task);
        state.push(header.with(field::ITT, tag), Bytes::new());
        self.write(&mut state);
        Ok(())
    }

    /// Adds the commands that the window lets through to what is to be sent.
    pub fn begin(&self, state: &mut State) {
        while !state.leaving
            && state.tasks.in_flight < self.depth
            && state.tasks.has_waiting()
            && reached(state.max_cmd_sn, state.cmd_sn)
        {
            state.begin(&self.params);
        }
        if state.leaving && state.tasks.in_flight == 0 && !state.left {
            state.left = true;
            // The answer ends the connection.
            let (waiter, _) = oneshot::channel();
            let tag = state.tasks.add(Task::Logout(waiter));
            state.push(logout().with(field::ITT, tag), Bytes::new());
        }
    }

    /// Writes what can be written now, and leaves the rest to the task in the background.
    pub fn write(&self, state: &mut State) {
        match state.write() {
            Ok(true) => self.sent.notify_one(),
            // That task finds the error too, and tells of it: whoever calls holds the lock.
            Ok(false) | Err(_) => self.unsent.notify_one(),
        }
    }

    pub async fn send(self: Arc<Self>) {
        loop {
            self.unsent.notified().await;
            loop {
                let Some(stream) = self.lock().stream.clone() else {
                    return;
                };
                let written = match stream.writable().await {
                    Ok(()) => self.lock().write(),
                    Err(error) => Err(error),
                };
                self.sent.notify_one();
                match written {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => return self.fail(error.into()),
                }
            }
        }
    }

    pub async fn receive(self: Arc<Self>, mut receiver: Receiver<OwnedReadHalf>) {
        loop {
            if let Err(error) = self.next(&mut receiver).await {
                return self.fail(error);
            }
            // Written before more is waited for: the target may wait for it.
            while self.answer(!receiver.has_next()) {
                self.sent.notified().await;
            }
        }
    }

    /// Writes what came of what the target sent, if it is time to or much. Whether there is too
    /// much of it.
    fn answer(&self, waits: bool) -> bool {
        let mut state = self.lock();
        state.waited |= waits;
        if state.out.length >= FULL || (waits && state.out.length > 0) {
            self.write(&mut state);
        }
        state.out.length >= FULL
    }

    /// Looks from time to time whether the target is still there.
    pub async fn keep_alive(self: Arc<Self>) {
        loop {
            let heard = self.lock().heard;
            sleep_until(heard + self.keep_alive).await;
            if !self.ping(heard) {
                continue;
            }
            tokio::time::sleep(self.keep_alive).await;
            if self.lock().heard == heard {
                let reason = format!("the target answered nothing for {:?}", 2 * self.keep_alive);
                return self.fail(Error::new(ErrorKind::Lost, reason));
            }
        }
    }
}

impl Shared {
    /// Unless something came since `heard`.
    fn ping(&self, heard: Instant) -> bool {
        let mut state = self.lock();
        if state.heard == heard && !state.pinged {
            state.pinged = true;
            let tag = state.tasks.add(Task::Ping);
            let ping = Header::new(opcode::NOP_OUT | opcode::IMMEDIATE, FINAL);
            let ping = ping.with(field::ITT, tag).with(field::TTT, NO_TAG);
            state.push(ping, Bytes::new());
            self.write(&mut state);
        }
        state.heard == heard
    }
}

impl State {
    /// Takes out a command that the target says it stopped.
    pub fn stop(&mut self, tag: u32) -> Option<Task> {
        const REMEMBERED: usize = 1024;
        if self.stopped.len() == REMEMBERED {
            self.stopped.pop_front();
        }
        self.stopped.push_back(tag);
        self.tasks.remove(tag)
    }

    /// Whether all is written.
    fn write(&mut self) -> io::Result<bool> {
        let Some(stream) = &self.stream else {
            return Ok(true);
        };
        let before = self.out.length;
        let all = self.out.write(stream)?;
        // What a full socket takes, the target has taken before. A slow one that takes data does
        // not answer pings meanwhile, and is not gone.
        if self.blocked && self.out.length < before {
            self.heard = Instant::now();
        }
        self.blocked = !all;
        Ok(all)
    }

    /// Adds a PDU to what is to be sent, with the numbers of now.
    pub fn push(&mut self, mut header: Header, data: Bytes) {
        if header.opcode() != opcode::DATA_OUT {
            header.set(field::CMD_SN, self.cmd_sn);
        }
        header.set(field::EXP_STAT_SN, self.stat_sn);
        self.out.add(header, data);
    }

    /// Sends the first command that waits, with the data that may go with it.
    fn begin(&mut self, params: &Params) {
        let cmd_sn = self.cmd_sn;
        let Some((tag, scsi)) = self.tasks.next_waiting() else {
            return;
        };
        scsi.sent = Some(cmd_sn);
        let (write, length) = (scsi.to_write(), scsi.expected());
        let direction = match scsi.data {
            Data::None => 0,
            Data::Read(_) => 0x40,
            Data::Write(_) => 0x20,
        };
        let unasked = length.min(params.first_burst);
        let immediate = match params.immediate_data {
            true => unasked.min(params.most_sent as u32) as usize,
            false => 0,
        }
        .min(write.len());
        // All that may come unasked comes at once.
        let to = if params.initial_r2t {
            immediate
        } else {
            (unasked as usize).min(write.len())
        };
        scsi.written = to as u32;
        // Simple: the target may reorder.
        const SIMPLE: u8 = 1;
        let last = if to == immediate { FINAL } else { 0 };
        let mut header = Header::new(opcode::COMMAND, last | direction | SIMPLE)
            .with_lun(scsi.lun)
            .with(field::ITT, tag)
            .with(field::EXPECTED, length);
        header.0[32..].copy_from_slice(&scsi.cdb);
        let lun = scsi.lun;
        self.tasks.in_flight += 1;
        self.push(header, write.slice(..immediate));
        self.cmd_sn = cmd_sn.wrapping_add(1);
        let unsolicited = Sequence {
            tag,
            asked_by: NO_TAG,
            lun,
            from: immediate,
            to,
        };
        self.push_data(&unsolicited, &write, params.most_sent);
    }

    /// Sends a sequence of data.
    pub fn push_data(&mut self, sequence: &Sequence, data: &Bytes, most: usize) {
        let Sequence {
            tag,
            asked_by,
            lun,
            from,
            to,
        } = *sequence;
        for (number, begin) in (from..to).step_by(most).enumerate() {
            let end = to.min(begin + most);
            let header = Header::new(opcode::DATA_OUT, if end == to { FINAL } else { 0 })
                .with_lun(lun)
                .with(field::ITT, tag)
                .with(field::TTT, asked_by)
                .with(field::DATA_SN, number as u32)
                .with(field::OFFSET, begin as u32);
            self.push(header, data.slice(begin..end));
        }
    }
}

/// A part of a write's data.
pub(crate) struct Sequence {
    pub tag: u32,
    /// The R2T's tag.
    pub asked_by: u32,
    pub lun: [u8; 8],
    pub from: usize,
    pub to: usize,
}

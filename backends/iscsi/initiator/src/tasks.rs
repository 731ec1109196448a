//! What the target was asked for and has not answered yet.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::buffers::Buffers;
use crate::command::{Data, Reply};
use crate::error::{Error, Result};
use crate::pdu::{NO_TAG, reached};

/// Bytes that a read has room for at first.
const AT_FIRST: usize = 4 << 20;

/// Who waits. Nobody, if the future was dropped.
pub type Waiter<T> = oneshot::Sender<Result<T>>;

/// A SCSI command.
pub struct Scsi {
    pub lun: [u8; 8],
    pub cdb: [u8; 16],
    pub data: Data,
    /// Until then, or until it was answered. Nobody waits any longer then.
    pub waiter: Option<Waiter<Reply>>,
    pub until: Instant,
    /// Its CmdSN, once it was sent.
    pub sent: Option<u32>,
    /// What came of a read.
    pub received: Received,
    /// Up to where a write's data was sent.
    pub written: u32,
    /// R2Ts that came.
    pub asked: u32,
}

impl Scsi {
    /// What goes to the target.
    pub fn to_write(&self) -> Bytes {
        match &self.data {
            Data::Write(bytes) => bytes.clone(),
            _ => Bytes::new(),
        }
    }

    /// Whether somebody waits.
    pub fn is_awaited(&self) -> bool {
        self.waiter
            .as_ref()
            .is_some_and(|waiter| !waiter.is_closed())
    }

    /// Answers who waits. Whether anybody did.
    pub fn tell(&mut self, answer: Result<Reply>) -> bool {
        let waiter = self.waiter.take();
        waiter.is_some_and(|waiter| waiter.send(answer).is_ok())
    }

    /// The expected data transfer length.
    pub fn expected(&self) -> u32 {
        match &self.data {
            Data::None => 0,
            Data::Read(length) => *length,
            Data::Write(bytes) => bytes.len() as u32,
        }
    }
}

/// Data of a read, in the order in which it comes.
#[derive(Default)]
pub struct Received {
    data: Vec<u8>,
    /// Where that is from.
    home: Option<Arc<Buffers>>,
    pub length: u32,
    /// PDUs.
    pub count: u32,
}

impl Received {
    /// Gives away what came, with room for the rest of `expected` bytes: of a very long read it
    /// grows as data comes.
    pub fn lend(&mut self, expected: u32, buffers: &Arc<Buffers>) -> Incoming {
        let mut data = std::mem::take(&mut self.data);
        if self.home.is_none() {
            let mut buffer = buffers.take((expected as usize).min(AT_FIRST));
            buffer.extend_from_slice(&data);
            data = buffer;
            self.home = Some(buffers.clone());
        }
        let from = data.len();
        Incoming { data, from }
    }

    /// Adds what comes next, maybe to what was lent.
    pub fn add(&mut self, incoming: Incoming) {
        self.skip(incoming.len());
        match self.data.is_empty() {
            true => self.data = incoming.data,
            false => self.data.extend_from_slice(&incoming.data),
        }
    }

    /// Counts data that nobody waits for.
    pub fn skip(&mut self, length: usize) {
        self.length += length as u32;
        self.count += 1;
    }

    pub fn take(&mut self) -> Bytes {
        let data = std::mem::take(&mut self.data);
        match self.home.take() {
            Some(home) => home.lend(data),
            None => data.into(),
        }
    }
}

/// Data of a PDU, maybe behind what came before it.
#[derive(Default)]
pub struct Incoming {
    pub data: Vec<u8>,
    /// Where it begins.
    pub from: usize,
}

impl Incoming {
    pub fn len(&self) -> usize {
        self.data.len() - self.from
    }
}

/// Anything with an initiator task tag.
pub enum Task {
    Scsi(Box<Scsi>),
    Ping,
    /// A task management request, which is answered by a number.
    Management(Waiter<u8>),
    Logout(Waiter<()>),
}

/// All tasks, and those that wait for the command window.
#[derive(Default)]
pub struct Tasks {
    /// Tags are ours: nobody can choose such that they collide.
    all: FxHashMap<u32, Task>,
    waiting: VecDeque<u32>,
    next: u32,
    /// Commands that were sent and not answered.
    pub in_flight: usize,
}

impl Tasks {
    pub fn add(&mut self, task: Task) -> u32 {
        while self.next == NO_TAG || self.all.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let tag = self.next;
        self.next = self.next.wrapping_add(1);
        if matches!(task, Task::Scsi(_)) {
            self.waiting.push_back(tag);
        }
        self.all.insert(tag, task);
        tag
    }

    /// The next command to be sent.
    pub fn next_waiting(&mut self) -> Option<(u32, &mut Scsi)> {
        let tag = self.waiting.pop_front()?;
        match self.all.get_mut(&tag) {
            Some(Task::Scsi(scsi)) => Some((tag, scsi)),
            _ => None,
        }
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn scsi(&mut self, tag: u32) -> Option<&mut Scsi> {
        match self.all.get_mut(&tag) {
            Some(Task::Scsi(scsi)) if scsi.sent.is_some() => Some(scsi),
            _ => None,
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (u32, &Task)> {
        self.all.iter().map(|(tag, task)| (*tag, task))
    }

    pub fn get(&self, tag: u32) -> Option<&Task> {
        self.all.get(&tag)
    }

    pub fn remove(&mut self, tag: u32) -> Option<Task> {
        let task = self.all.remove(&tag)?;
        if let Task::Scsi(scsi) = &task {
            match scsi.sent {
                Some(_) => self.in_flight -= 1,
                None => self.waiting.retain(|waiting| *waiting != tag),
            }
        }
        Some(task)
    }

    /// Commands that were sent to this logical unit before `cmd_sn`.
    pub fn sent_to(&self, lun: [u8; 8], cmd_sn: u32) -> Vec<u32> {
        let to_it = |task: &Task| match task {
            Task::Scsi(scsi) => {
                scsi.lun == lun && scsi.sent.is_some_and(|sent| !reached(sent, cmd_sn))
            }
            _ => false,
        };
        let all = self.all.iter().filter(|(_, task)| to_it(task));
        all.map(|(tag, _)| *tag).collect()
    }

    /// Tells all who wait.
    pub fn fail(&mut self, error: &Error) {
        self.waiting.clear();
        self.in_flight = 0;
        for (_, task) in self.all.drain() {
            // Who no longer waits need not know.
            match task {
                Task::Scsi(mut scsi) => {
                    let error = match scsi.sent {
                        Some(_) => error.clone().was_sent(),
                        None => error.clone(),
                    };
                    scsi.tell(Err(error));
                }
                Task::Management(waiter) => {
                    let _ = waiter.send(Err(error.clone()));
                }
                Task::Logout(waiter) => {
                    let _ = waiter.send(Err(error.clone()));
                }
                Task::Ping => {}
            }
        }
    }
}

//! What the target was asked for and has not answered yet.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::command::{Data, Reply};
use crate::error::{Error, Result};
use crate::pdu::{NO_TAG, reached};

/// Who waits. Nobody, if the future was dropped.
pub type Waiter<T> = oneshot::Sender<Result<T>>;

/// A SCSI command.
pub struct Scsi {
    pub lun: [u8; 8],
    pub cdb: [u8; 16],
    pub data: Data,
    pub waiter: Waiter<Reply>,
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

    /// The expected data transfer length.
    pub fn expected(&self) -> u32 {
        match &self.data {
            Data::None => 0,
            Data::Read(length) => *length,
            Data::Write(bytes) => bytes.len() as u32,
        }
    }
}

/// Data in the order in which it comes. It takes room as it comes, not as it is expected.
#[derive(Default)]
pub struct Received {
    first: Bytes,
    all: BytesMut,
    pub length: u32,
    /// PDUs.
    pub count: u32,
}

impl Received {
    /// Adds what comes next of `expected` bytes.
    pub fn add(&mut self, data: Bytes, expected: u32) {
        self.length += data.len() as u32;
        self.count += 1;
        if self.all.is_empty() && self.first.is_empty() {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            let likely = (expected as usize).min(4 << 20);
            self.all.reserve(likely);
            let first = std::mem::take(&mut self.first);
            self.all.extend_from_slice(&first);
        }
        self.all.extend_from_slice(&data);
    }

    pub fn take(&mut self) -> Bytes {
        match self.all.is_empty() {
            true => std::mem::take(&mut self.first),
            false => std::mem::take(&mut self.all).freeze(),
        }
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
    all: HashMap<u32, Task>,
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
                Task::Scsi(scsi) => {
                    let error = match scsi.sent {
                        Some(_) => error.clone().was_sent(),
                        None => error.clone(),
                    };
                    let _ = scsi.waiter.send(Err(error));
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

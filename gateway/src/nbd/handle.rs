//! The server's hand on a connection, and the place where a client's connections wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Wake;

use rustix::net::{Shutdown, shutdown};
use tokio::sync::Notify;

use crate::transport::Socket;
use crate::wakeup::Wakeup;

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;
const CUT: u8 = 2;

/// The server's hand on a connection.
#[derive(Debug)]
pub(crate) struct Handle {
    state: AtomicU8,
    socket: Socket,
    wakeup: Arc<Wakeup>,
    /// The number of checkpoints that were asked for, and of the last that was passed.
    asked: AtomicU64,
    passed: AtomicU64,
    pass: Notify,
}

/// What the server wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    GoOn,
    Drain,
    Cut,
}

impl Handle {
    pub(crate) fn new(socket: Socket, wakeup: Arc<Wakeup>) -> Self {
        Handle {
            state: AtomicU8::new(RUNNING),
            socket,
            wakeup,
            asked: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            pass: Notify::new(),
        }
    }

    /// What wakes the connection's thread.
    pub(crate) fn wakeup(&self) -> &Arc<Wakeup> {
        &self.wakeup
    }

    /// What the server wants.
    pub(crate) fn wish(&self) -> Wish {
        match self.state.load(Ordering::SeqCst) {
            RUNNING => Wish::GoOn,
            DRAINING => Wish::Drain,
            _ => Wish::Cut,
        }
    }

    /// The number of the last checkpoint that was asked for, if it is not passed.
    pub(crate) fn asked(&self) -> Option<u64> {
        let asked = self.asked.load(Ordering::SeqCst);
        (asked > self.passed.load(Ordering::SeqCst)).then_some(asked)
    }

    /// Passes the checkpoint of that number and all before it.
    pub(crate) fn pass(&self, number: u64) {
        self.passed.store(number, Ordering::SeqCst);
        self.pass.notify_waiters();
    }

    /// Waits until every change that the client has sent up to now is done, or will never begin.
    ///
    /// A client that lost its connection sends its requests again on a new one. Had an old write
    /// still been under way, or unread in the old socket, it could land on top of a newer one.
    pub(crate) async fn checkpoint(&self) {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.wakeup.wake_by_ref();
        loop {
            let passed = self.pass.notified();
            if self.passed.load(Ordering::SeqCst) >= number {
                return;
            }
            passed.await;
        }
    }

    /// Lets it answer what is under way, and end.
    pub(crate) fn drain(&self) {
        self.state.fetch_max(DRAINING, Ordering::SeqCst);
        self.wakeup.wake_by_ref();
    }

    /// Ends it now.
    pub(crate) fn cut(&self) {
        self.state.store(CUT, Ordering::SeqCst);
        let _ = shutdown(&self.socket, Shutdown::Both);
        self.wakeup.wake_by_ref();
    }
}

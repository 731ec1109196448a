//! One connection in full feature phase: what is sent, what comes, and who waits for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::command::{Command, Reply};
use crate::deadlines::late;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::login::LoggedIn;
use crate::pdu::{FINAL, Header, NO_TAG, field, lun_field, opcode};
use crate::shared::{Numbers, Shared, logout};
use crate::tasks::Task;

/// Within which a command is to be done of which nobody waits for the answer.
const GRACE: Duration = Duration::from_secs(1);
/// Within which a target is to say that it stopped a command.
const STOPPED: Duration = Duration::from_secs(5);
/// Functions of task management (RFC 7143 section 11.5.1).
const ABORT_TASK: u8 = 1;
const LOGICAL_UNIT_RESET: u8 = 5;

/// A connection, which ends when this is dropped.
pub struct Connection {
    shared: Arc<Shared>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nexus = self.shared.nexus;
        f.debug_struct("Connection")
            .field("nexus", &nexus)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub fn new(
        logged_in: LoggedIn,
        place: Place,
        depth: usize,
        keep_alive: Duration,
        nexus: u64,
    ) -> Connection {
        let LoggedIn {
            receiver,
            params,
            cmd_sn,
            max_cmd_sn,
            stat_sn,
        } = logged_in;
        let (receiver, stream) = receiver.split();
        let numbers = Numbers {
            cmd_sn,
            max_cmd_sn,
            stat_sn,
        };
        let mut shared = Shared::new(params, numbers, nexus, Some(Arc::new(stream)));
        (shared.place, shared.depth, shared.keep_alive) = (place, depth, keep_alive);
        let shared = Arc::new(shared);
        // None of them gets far before all can be stopped.
        let mut state = shared.lock();
        state.background = vec![
            tokio::spawn(shared.clone().receive(receiver)).abort_handle(),
            tokio::spawn(shared.clone().send()).abort_handle(),
            tokio::spawn(shared.clone().keep_alive()).abort_handle(),
            tokio::spawn(shared.clone().watch()).abort_handle(),
        ];
        drop(state);
        Connection { shared }
    }

    pub fn nexus(&self) -> u64 {
        self.shared.nexus
    }

    /// Where it was logged in to.
    pub fn portal_group(&self) -> Option<u32> {
        self.shared.params.portal_group
    }

    pub fn is_usable(&self) -> bool {
        let state = self.shared.lock();
        state.broken.is_none() && !state.leaving
    }

    /// It does what was begun, and logs out then.
    pub fn is_leaving(&self) -> bool {
        let state = self.shared.lock();
        state.broken.is_none() && state.leaving
    }

    /// Once it has ended.
    pub async fn ended(&self) {
        self.shared.ended().await;
    }

    /// Sends a command and waits for the answer, until then.
    pub async fn execute(
        self: &Arc<Self>,
        lun: u64,
        command: &Command,
        until: Instant,
    ) -> Result<Reply> {
        let (waiter, reply) = oneshot::channel();
        let field = lun_field(lun)?;
        let tag = self.shared.enqueue(field, command, until, waiter)?;
        let dropped = Dropped {
            connection: self,
            lun: field,
            tag,
            until,
        };
        let answer = reply.await;
        std::mem::forget(dropped);
        match answer {
            Ok(result) => result,
            Err(_) if Instant::now() < until => Err(closed().was_sent()),
            Err(_) => {
                let this = self.clone();
                let aborted = tokio::spawn(async move { this.abort(field, tag).await });
                Err(aborted.await.unwrap_or_else(|_| closed().was_sent()))
            }
        }
    }

    /// Has the target forget a command that it did not answer in time. A target that does not answer
    /// that either is left.
    async fn abort(&self, lun: [u8; 8], tag: u32) -> Error {
        let sent = self.shared.sent(tag);
        let Some(cmd_sn) = sent else {
            return late("it has now").was_sent();
        };
        let header = Header::new(opcode::TASK_REQUEST | opcode::IMMEDIATE, FINAL | ABORT_TASK)
            .with_lun(lun)
            .with(field::EXPECTED, tag)
            // RefCmdSN, section 11.5.6.
            .with(32, cmd_sn);
        let until = Instant::now() + self.shared.keep_alive.min(STOPPED);
        let why = match self.manage(header, until).await {
            Ok(0) => {
                let mut state = self.shared.lock();
                state.stop(tag);
                self.shared.begin(&mut state);
                self.shared.write(&mut state);
                return late("it was told to stop").was_sent();
            }
            // The answer was on its way, and has come.
            Ok(1) if self.shared.sent(tag).is_none() => return late("it has now").was_sent(),
            // "No such task" as well: tgt says so of a write that it goes on with.
            Ok(answer) => format!("it does not stop (response {answer:#04x})"),
            Err(error) => format!("told to stop: {}", error.reason()),
        };
        // A new session ends what this one still does. The other commands have time left.
        let lost = format!("a command was not answered in time; {why}");
        self.shared.fail(Error::new(ErrorKind::Lost, lost));
        late(&why).was_sent()
    }

    /// Has a logical unit drop all its commands.
    pub async fn reset_lun(&self, lun: u64, until: Instant) -> Result<()> {
        let lun = lun_field(lun)?;
        let header = Header::new(
            opcode::TASK_REQUEST | opcode::IMMEDIATE,
            FINAL | LOGICAL_UNIT_RESET,
        );
        let header = header.with_lun(lun).with(field::EXPECTED, NO_TAG);
        let before = self.shared.lock().cmd_sn;
        let refused = match self.manage(header, until).await? {
            0 => {
                let mut state = self.shared.lock();
                for tag in state.tasks.sent_to(lun, before) {
                    if let Some(Task::Scsi(mut scsi)) = state.stop(tag) {
                        let error = Error::new(ErrorKind::Lost, "the logical unit was reset");
                        scsi.tell(Err(error.was_sent()));
                    }
                }
                self.shared.begin(&mut state);
                self.shared.write(&mut state);
                return Ok(());
            }
            2 => (ErrorKind::NotFound, "there is no such logical unit"),
            5 => (ErrorKind::Refused, "the target can't reset logical units"),
            _ => (
                ErrorKind::Refused,
                "the target does not reset the logical unit",
            ),
        };
        Err(Error::new(refused.0, refused.1))
    }

    /// A task management request, and what the target answers (RFC 7143 section 11.6.1).
    async fn manage(&self, header: Header, until: Instant) -> Result<u8> {
        let (waiter, answer) = oneshot::channel();
        self.shared.request(header, Task::Management(waiter))?;
        self.answered(answer, until).await
    }

    async fn answered<T>(&self, answer: oneshot::Receiver<Result<T>>, until: Instant) -> Result<T> {
        match timeout_at(until, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                "the target does not answer",
            )),
        }
    }

    /// Ends the session. Commands that are not answered yet are lost.
    pub async fn logout(&self, until: Instant) -> Result<()> {
        let (waiter, answer) = oneshot::channel();
        self.shared.request(logout(), Task::Logout(waiter))?;
        self.answered(answer, until).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared
            .fail(Error::new(ErrorKind::Lost, "the session was closed"));
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Lost, "the connection was closed")
}

/// Whoever waited for this command does no longer. If it was sent, it stays until the target answers,
/// for that may still ask for its data; but not for long, for it takes a place in the window.
struct Dropped<'a> {
    connection: &'a Arc<Connection>,
    lun: [u8; 8],
    tag: u32,
    until: Instant,
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        let Dropped {
            lun, tag, until, ..
        } = *self;
        let sent = !self.connection.shared.forget_unsent(tag);
        // Without a runtime nothing is received any more either.
        if let (true, Ok(runtime)) = (sent, Handle::try_current()) {
            let connection = Arc::downgrade(self.connection);
            runtime.spawn(async move {
                sleep_until(until.min(Instant::now() + GRACE)).await;
                if let Some(connection) = connection.upgrade() {
                    connection.abort(lun, tag).await;
                }
            });
        }
    }
}

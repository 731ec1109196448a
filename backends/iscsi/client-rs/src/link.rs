//! A session while its connection lasts: what is sent, what comes, and when it is given up.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use iscsi_client_rs::models::command::response::ScsiCommandResponse;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as Turn, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use volmux_iscsi_initiator::{Command, Error, ErrorKind, Options, Reply, Result};

use crate::establish::Established;
use crate::pdu::{FINAL, Header, NO_TAG, Outgoing, field, opcode, reached};

/// Between two looks at whether the target is still there, at most.
const TICK: Duration = Duration::from_millis(250);
const LEAST_TICK: Duration = Duration::from_millis(1);
/// Answers to the target's pings that may wait to be sent.
const MOST_PONGS: usize = 1024;
/// The crate's task that receives, and ours that watches.
const OWN_TASKS: usize = 8;

/// A session with a target. Its tasks run on one thread.
pub struct Link {
    session: Established,
    /// The connection's socket, to close it at once.
    socket: TcpStream,
    /// Counted from 1.
    pub nexus: u64,
    keep_alive: Duration,
    depth: Semaphore,
    /// Held by the command that is sent next.
    turn: Turn<()>,
    /// Held by who takes a CmdSN, until that is sent.
    wire: Turn<()>,
    max_cmd_sn: watch::Sender<u32>,
    /// The number of the target's next answer. The crate has one too, which is wrong after pings.
    stat_sn: AtomicU32,
    /// Tasks that are there for commands, whatever they wait for.
    commands: Arc<AtomicUsize>,
    state: Mutex<State>,
}

struct State {
    broken: Option<Error>,
    /// When the target was last seen to be alive.
    heard: Instant,
}

/// A PDU from the target, its digests and its length checked.
pub struct Incoming {
    pub header: Header,
    pub data: Bytes,
}

impl Link {
    /// Takes a session into use, once the target has answered a ping: that tells the window.
    /// `commands` counts the tasks that the runtime has for commands.
    pub async fn begin(
        session: Established,
        nexus: u64,
        options: &Options,
        commands: Arc<AtomicUsize>,
    ) -> Result<Arc<Link>> {
        let socket = {
            let writer = session.connection.writer.lock().await;
            writer.as_ref().as_fd().try_clone_to_owned()
        };
        let socket = socket.map_err(|error| {
            let reason = format!("there is no second handle of the connection: {error}");
            Error::new(ErrorKind::Refused, reason)
        })?;
        let before = session.cmd_sn.load(Ordering::SeqCst).wrapping_sub(1);
        let stat_sn = session.stat_sn.load(Ordering::SeqCst);
        let link = Arc::new(Link {
            session,
            socket: socket.into(),
            nexus,
            keep_alive: options.keep_alive,
            depth: Semaphore::new(options.queue_depth),
            turn: Turn::new(()),
            wire: Turn::new(()),
            max_cmd_sn: watch::Sender::new(before),
            stat_sn: AtomicU32::new(stat_sn),
            commands,
            state: Mutex::new(State {
                broken: None,
                heard: Instant::now(),
            }),
        });
        // Ends the session if this future is dropped.
        let unused = Unused(&link);
        link.ping().await?;
        std::mem::forget(unused);
        tokio::spawn(watch(link.clone()));
        Ok(link)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it was logged in to.
    pub fn portal_group(&self) -> Option<&str> {
        self.session.agreement.portal_group.as_deref()
    }

    pub fn agreement(&self) -> &crate::agreement::Agreement {
        &self.session.agreement
    }

    pub fn is_usable(&self) -> bool {
        self.lock().broken.is_none() && !self.session.connection.is_poisoned()
    }

    /// Ends the session, and tells all who wait why.
    pub fn fail(&self, error: Error) {
        let mut state = self.lock();
        if state.broken.is_some() {
            return;
        }
        tracing::debug!(%error, "the connection has ended");
        let reason = error.reason().to_owned();
        state.broken = Some(error);
        drop(state);
        // First of all: what is written by half must not be followed by anything. It fails only if
        // the target has closed the connection.
        let _ = self.socket.shutdown(Shutdown::Both);
        self.session.connection.poison(reason);
        // They hold the connection, and so the socket.
        self.session.pool.sessions.clear();
        // Wakes who waits for the window.
        self.max_cmd_sn.send_modify(|_| {});
    }

    /// Ends the session, if it has not ended.
    pub fn close(&self, reason: &str) {
        self.fail(Error::new(ErrorKind::Lost, reason));
    }

    /// Why the session ended, if the crate says that something failed.
    fn lost(&self, error: &anyhow::Error) -> Error {
        if self.lock().broken.is_none() {
            let reason = match self.session.connection.is_poisoned() {
                true => "the target closed the connection, or sent what is no PDU".into(),
                false => format!("{error:#}"),
            };
            self.fail(Error::new(ErrorKind::Lost, reason));
        }
        self.broken()
    }

    fn broken(&self) -> Error {
        let broken = self.lock().broken.clone();
        broken.unwrap_or_else(|| Error::new(ErrorKind::Lost, "the connection was closed"))
    }

    fn check(&self) -> Result<()> {
        match self.is_usable() {
            true => Ok(()),
            false => Err(self.broken()),
        }
    }
}

/// Closes a session that nobody came to use.
struct Unused<'a>(&'a Link);

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        self.0
            .fail(Error::new(ErrorKind::Lost, "the login was given up"));
    }
}

/// Commands.
impl Link {
    /// Sends a command and waits for the answer, until then. What was sent and is not answered by
    /// then ends the session: the crate can't abort it. Must not be dropped: half a PDU might be
    /// sent.
    ///
    /// Nothing is sent if nobody `waits` any more.
    pub async fn execute(
        &self,
        lun: [u8; 8],
        command: &Command,
        until: Instant,
        waits: impl Fn() -> bool,
    ) -> Result<Reply> {
        let sent = AtomicBool::new(false);
        let done = timeout_at(until, self.perform(lun, command, &sent, waits)).await;
        let sent = sent.load(Ordering::SeqCst);
        let error = match done {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => error,
            Err(_) => {
                if sent {
                    self.close("a command was not answered in time, and can't be aborted");
                }
                let reason = match sent {
                    true => "the target did not answer in time",
                    false => "the target takes no more commands",
                };
                Error::new(ErrorKind::TimedOut, reason)
            }
        };
        if error.kind() == ErrorKind::Protocol {
            // What else it sends is not to be trusted.
            self.fail(error.clone());
        }
        Err(if sent { error.was_sent() } else { error })
    }

    async fn perform(
        &self,
        lun: [u8; 8],
        command: &Command,
        sent: &AtomicBool,
        waits: impl Fn() -> bool,
    ) -> Result<Reply> {
        let closed = || Error::new(ErrorKind::Lost, "the connection was closed");
        let _place = self.depth.acquire().await.map_err(|_| closed())?;
        let mut task = crate::task::Task::new(self, lun, command);
        {
            let _turn = self.turn.lock().await;
            let _wire = self.window().await?;
            if !waits() {
                return Err(Error::new(ErrorKind::Lost, "nobody waits for the answer"));
            }
            sent.store(true, Ordering::SeqCst);
            let header = task.begin().with(field::CMD_SN, self.take_cmd_sn());
            self.send(task.tag, header, task.immediate()).await?;
        }
        loop {
            let pdu = self.receive(task.tag).await?;
            if let Some(reply) = task.take(pdu).await? {
                return Ok(reply);
            }
        }
    }

    /// Waits until the target takes one more command.
    async fn window(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let mut window = self.max_cmd_sn.subscribe();
        loop {
            let wire = self.wire.lock().await;
            self.check()?;
            let last = *window.borrow_and_update();
            if reached(last, self.session.cmd_sn.load(Ordering::SeqCst)) {
                return Ok(wire);
            }
            drop(wire);
            // It fails only without a sender, which is here.
            let _ = window.changed().await;
        }
    }

    fn take_cmd_sn(&self) -> u32 {
        self.session.cmd_sn.fetch_add(1, Ordering::SeqCst)
    }

    /// A task tag that is not in use: there are never as many tasks as tags.
    pub fn new_tag(&self) -> u32 {
        loop {
            let tag = self.session.tags.fetch_add(1, Ordering::SeqCst);
            if tag != NO_TAG {
                return tag;
            }
        }
    }

    /// Sends a PDU. With `tag` the crate expects an answer from now on: only for the first PDU
    /// after which one is due, or it forgets an answer that has come already. Otherwise `NO_TAG`.
    pub async fn send(&self, tag: u32, header: Header, data: Bytes) -> Result<()> {
        let due = self.stat_sn.load(Ordering::SeqCst);
        let header = header.with(field::EXP_STAT_SN, due);
        let pdu = Outgoing::new(header, data, self.session.agreement.digests);
        let pdu = pdu.by(&self.session.connection);
        let sent = self.session.connection.send_request(tag, pdu).await;
        sent.map_err(|error| self.lost(&error))?;
        // Who takes data is alive.
        self.lock().heard = Instant::now();
        Ok(())
    }

    /// The next PDU for a task.
    async fn receive(&self, tag: u32) -> Result<Incoming> {
        // All headers have their lengths at the same places, so any type does.
        let connection = &self.session.connection;
        let received = connection
            .read_response_raw::<ScsiCommandResponse>(tag)
            .await;
        let (mut pdu, body) = received.map_err(|error| self.lost(&error))?;
        let header = Header(pdu.header_buf);
        let checked = pdu
            .parse_with_buff(&body)
            .and_then(|()| pdu.data().map(<[u8]>::len));
        let length = checked.map_err(|error| {
            let reason = format!("the target sent a PDU that is damaged: {error:#}");
            Error::new(ErrorKind::Protocol, reason)
        })?;
        let additional = usize::from(header.0[4]) * 4;
        let digest = if self.session.agreement.digests.header {
            4
        } else {
            0
        };
        let start = additional + digest;
        self.count(&header);
        Ok(Incoming {
            header,
            data: body.slice(start..start + length),
        })
    }

    /// The numbers that all PDUs have.
    fn count(&self, header: &Header) {
        const STATUS: u8 = 0x01;
        self.lock().heard = Instant::now();
        let counted = match header.opcode() {
            opcode::DATA_IN => header.flags() & STATUS != 0,
            opcode::R2T => false,
            _ => true,
        };
        if counted {
            // Answers are not taken in the order in which they came.
            let next = header.get(field::STAT_SN).wrapping_add(1);
            let later = |due| (!reached(due, next)).then_some(next);
            for stat_sn in [&self.stat_sn, &self.session.stat_sn] {
                let _ = stat_sn.fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
            }
        }
        let (next, last) = (header.get(field::EXP_CMD_SN), header.get(field::MAX_CMD_SN));
        // RFC 7143 section 4.2.2.1: nonsense is ignored, and the window never shrinks.
        if reached(last.wrapping_add(1), next) {
            self.max_cmd_sn.send_if_modified(|max_cmd_sn| {
                let wider = reached(last, *max_cmd_sn) && last != *max_cmd_sn;
                if wider {
                    *max_cmd_sn = last;
                }
                wider
            });
        }
    }
}

/// What goes on besides commands.
impl Link {
    /// Asks the target whether it is there.
    async fn ping(&self) -> Result<()> {
        let tag = self.new_tag();
        {
            let _wire = self.wire.lock().await;
            let next = self.session.cmd_sn.load(Ordering::SeqCst);
            let header = Header::new(opcode::NOP_OUT | opcode::IMMEDIATE, FINAL)
                .with(field::ITT, tag)
                .with(field::TTT, NO_TAG)
                .with(field::CMD_SN, next);
            self.send(tag, header, Bytes::new()).await?;
        }
        let answer = self.receive(tag).await?;
        match answer.header.opcode() {
            opcode::NOP_IN => Ok(()),
            other => {
                let reason = format!("the target answers a ping by a PDU {other:#04x}");
                Err(Error::new(ErrorKind::Protocol, reason))
            }
        }
    }

    /// Ends the session. Commands that are not answered yet are lost.
    pub async fn log_out(&self, until: Instant) -> Result<()> {
        let left = async {
            // The crate takes a CmdSN for it.
            let _wire = self.wire.lock().await;
            self.session.pool.logout_session(self.session.tsih).await
        };
        let left = timeout_at(until, left).await;
        let was_usable = self.is_usable();
        self.close("logged out");
        match left {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if was_usable => {
                let reason = format!("the target does not log us out: {error:#}");
                Err(Error::new(ErrorKind::Refused, reason))
            }
            Ok(Err(_)) => Err(self.broken()),
            Err(_) => {
                let reason = "the target does not answer a logout";
                Err(Error::new(ErrorKind::TimedOut, reason))
            }
        }
    }

    /// The answers to pings that the target does not take.
    fn pongs(&self) -> usize {
        let tasks = Handle::current().metrics().num_alive_tasks();
        tasks.saturating_sub(self.commands.load(Ordering::SeqCst) + OWN_TASKS)
    }
}

/// Looks from time to time whether the target is still there, and does no harm.
async fn watch(link: Arc<Link>) {
    let mut asked: Option<(Instant, tokio::task::JoinHandle<()>)> = None;
    while link.is_usable() {
        sleep(TICK.min(link.keep_alive / 4).max(LEAST_TICK)).await;
        let pongs = link.pongs();
        if pongs > MOST_PONGS {
            let reason = format!("the target pings, and takes no answers: {pongs} wait");
            return link.fail(Error::new(ErrorKind::Protocol, reason));
        }
        let heard = link.lock().heard;
        if heard.elapsed() < link.keep_alive {
            continue;
        }
        match &asked {
            Some((when, answer)) if !answer.is_finished() => {
                if when.elapsed() >= link.keep_alive && heard.elapsed() >= link.keep_alive {
                    let silence = 2 * link.keep_alive;
                    let reason = format!("the target answered nothing for {silence:?}");
                    return link.fail(Error::new(ErrorKind::Lost, reason));
                }
            }
            _ => {
                let link = link.clone();
                let ping = async move {
                    if let Err(error) = link.ping().await {
                        link.fail(error);
                    }
                };
                asked = Some((Instant::now(), tokio::spawn(ping)));
            }
        }
    }
    link.close("the target closed the connection");
}

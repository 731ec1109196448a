//! The transmission phase of one connection, on a thread of its own.
//!
//! The thread receives what is there, begins every request of it, and sends all replies that this
//! gave at once. A request that its volume answers right away never leaves the thread; the others
//! are futures that it looks at again when they call. Three system calls serve a client that sends
//! one request at a time, and many requests share them when it sends many.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind as Io};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use volmux_core::{Error, ErrorKind};

use super::handle::{Handle, Wish};
use super::input::{Admit, Input, Next};
use super::output::Output;
use super::patience::{LOOK, Patience};
use super::request::{Answer, Failure, Session, Task};
use super::wire::{Errno, Header, Mode, STRING_LENGTH, command};
use crate::budget::Budget;
use crate::options::Limits;
use crate::stats::Op;
use crate::transport::Transport;
use crate::wakeup::Wakeup;

/// A payload of this length is read over if need be, and the client goes on: it need not ask for
/// limits (proto.md, "Size constraints"). With extended headers it has to know them.
const SKIPPED: u64 = 32 << 20;

/// With so many bytes of replies waiting, they are sent before more is begun.
const SEND_AT: usize = 256 << 10;
/// While the socket takes no more, the time is used to begin requests until so many wait.
const AHEAD: usize = 2 << 20;

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said that it goes.
    Disconnected,
    /// The client closed the connection without a word.
    Vanished,
    /// The server was stopped.
    Stopped,
    /// The client broke the protocol.
    Violation(String),
    /// The connection broke.
    Lost(io::Error),
}

/// What is known of a request between its header and its end.
#[derive(Debug)]
struct Ticket {
    task: Result<Task, Failure>,
    memory: u64,
}

/// A request that is under way.
#[derive(Debug)]
struct Begun {
    header: Header,
    op: Op,
    length: u64,
    memory: u64,
    since: Instant,
    number: u64,
}

type Work = BoxFuture<'static, (Begun, Result<Answer, Failure>)>;

/// The transmission phase of one connection.
pub(crate) struct Connection {
    transport: Transport,
    session: Arc<Session>,
    handle: Arc<Handle>,
    waker: Waker,
    budget: Arc<Budget>,
    limits: Limits,
    input: Input<Ticket>,
    output: Output,
    work: FuturesUnordered<Work>,
    /// The number of the last request that began, and those in `work` that change the volume.
    number: u64,
    pending: BTreeSet<u64>,
    /// A checkpoint that is not passed.
    checkpoint: Option<Checkpoint>,
    /// A checkpoint was passed while the client took no replies. Requests that were not read by
    /// then begin only once it does, which shows that it is still there.
    silent: bool,
    patience: Patience,
    /// The socket took no more at the last try.
    blocked: bool,
    /// Memory that the requests under way have set aside, until their replies are sent.
    memory: u64,
    /// The next request waits for memory.
    waits: bool,
    /// Why no more requests are read, and until when the rest may take.
    closing: Option<(End, Instant)>,
}

/// See [`Handle::checkpoint`].
#[derive(Clone, Copy, Debug)]
struct Checkpoint {
    asked: u64,
    /// Once the socket was seen empty: the last request that had begun by then.
    last: Option<u64>,
}

impl Connection {
    /// # Errors
    /// The system has no more descriptors.
    pub(crate) fn new(
        transport: Transport,
        session: Session,
        budget: Arc<Budget>,
        limits: Limits,
    ) -> io::Result<Self> {
        let wakeup = Wakeup::new()?;
        let mode = session.mode;
        let connection = Connection {
            handle: Arc::new(Handle::new(transport.socket().clone(), wakeup.clone())),
            waker: Waker::from(wakeup),
            transport,
            session: Arc::new(session),
            budget,
            limits,
            input: Input::new(mode),
            output: Output::new(mode),
            work: FuturesUnordered::new(),
            number: 0,
            pending: BTreeSet::new(),
            checkpoint: None,
            silent: false,
            patience: Patience::default(),
            blocked: false,
            memory: 0,
            waits: false,
            closing: None,
        };
        connection.session.export.connected(&connection.handle);
        Ok(connection)
    }

    /// For the server.
    pub(crate) fn handle(&self) -> Arc<Handle> {
        self.handle.clone()
    }

    /// Serves the client to its end. The thread must be in the context of a tokio runtime.
    pub(crate) fn run(mut self) -> End {
        let end = match (self.serve(), self.closing.take()) {
            (Ok(end), _) => end,
            // It did not wait for the last replies.
            (Err(_), Some((End::Disconnected, _))) => End::Disconnected,
            (Err(error), _) => End::Lost(error),
        };
        if matches!(end, End::Disconnected) {
            self.session.export.said_goodbye();
        }
        self.transport.close_sending();
        end
    }

    fn serve(&mut self) -> io::Result<End> {
        loop {
            // Before anything that somebody may call about is looked at.
            self.handle.wakeup().begin();
            match self.handle.wish() {
                Wish::Cut => return Ok(End::Stopped),
                Wish::Drain => self.close(End::Stopped),
                Wish::GoOn => {}
            }
            self.collect();
            let more = self.begin_requests();
            let sent = self.send()?;
            self.blocked = !sent;
            let resumed = self.silent && sent;
            self.look_at_checkpoint(sent);
            if resumed || (more && self.output.pending() < self.most_pending()) {
                continue;
            }
            let idle = sent && self.work.is_empty();
            match &self.closing {
                Some((_, until)) if idle || *until <= Instant::now() => {
                    return Ok(self.closing.take().map_or(End::Stopped, |(end, _)| end));
                }
                _ => self.sleep(sent)?,
            }
            if let Some(End::Vanished) = self.closing.as_ref().map(|(end, _)| end) {
                // What is under way is dropped at once: the client may come back and send it
                // again, and a device lets nothing that was dropped overtake what begins later.
                return Ok(End::Vanished);
            }
        }
    }

    /// Passes a checkpoint if everything before it is done.
    fn look_at_checkpoint(&mut self, sent: bool) {
        self.silent &= !sent;
        if let Some(asked) = self.handle.asked()
            && self.checkpoint.is_none_or(|known| asked > known.asked)
        {
            self.checkpoint = Some(Checkpoint { asked, last: None });
        }
        let Some(checkpoint) = &mut self.checkpoint else {
            return;
        };
        if checkpoint.last.is_none() && !sent {
            checkpoint.last = Some(self.number);
            self.silent = true;
        }
        // Requests that were received but not read are never begun once it is closing.
        let last = checkpoint
            .last
            .or(self.closing.is_some().then_some(self.number));
        if last.is_some_and(|last| self.pending.first().is_none_or(|first| *first > last)) {
            self.handle.pass(checkpoint.asked);
            self.checkpoint = None;
        }
    }

    /// Reads no more requests. What is under way is answered first.
    fn close(&mut self, end: End) {
        if self.closing.is_none() {
            self.closing = Some((end, Instant::now() + self.limits.request_time));
        }
    }

    /// Takes the results of the work that is done.
    fn collect(&mut self) {
        let waker = self.waker.clone();
        let mut context = Context::from_waker(&waker);
        while let Poll::Ready(Some((begun, result))) = self.work.poll_next_unpin(&mut context) {
            self.pending.remove(&begun.number);
            self.finish(&begun, result);
        }
    }

    /// The bytes of replies that may wait before no more is begun.
    fn most_pending(&self) -> usize {
        if self.blocked { AHEAD } else { SEND_AT }
    }

    /// Begins the requests that are there; `true` if there may be more that only wait for replies to
    /// be sent.
    fn begin_requests(&mut self) -> bool {
        let (before, first) = (self.work.len(), self.number);
        let more = loop {
            let full = self.work.len() >= self.limits.in_flight_requests;
            if self.closing.is_some() || full || self.silent {
                break false;
            }
            // With the socket full, one at a time: it may have room again after each.
            if self.output.pending() >= self.most_pending() || (self.blocked && self.number > first)
            {
                break true;
            }
            let next = {
                let (session, budget, limits, waker) =
                    (&self.session, &self.budget, &self.limits, &self.waker);
                let memory = &mut self.memory;
                self.input
                    .next(|header| admit(header, session, budget, limits, memory, waker))
            };
            self.waits = matches!(next, Ok(Next::Waits));
            match next {
                Ok(Next::Request(header, ticket, payload)) => self.begin(header, ticket, payload),
                Ok(Next::Incomplete | Next::Waits) => break false,
                Ok(Next::Refused(header, ticket)) => {
                    if let Err(failure) = ticket.task {
                        self.output.reply(&header, Err(failure), 0);
                    }
                    let text = format!("a payload of {} bytes", header.length);
                    self.close(End::Violation(text));
                }
                Err(magic) => {
                    let text = format!("a request that begins with {:#010x}", magic.0);
                    self.close(End::Violation(text));
                }
            }
        };
        self.patience.came((self.number - first) as usize);
        if self.work.len() > before {
            // So that their time limits begin.
            self.collect();
        }
        more
    }

    fn begin(&mut self, header: Header, ticket: Ticket, payload: Bytes) {
        let task = match ticket.task {
            Ok(task) => task,
            Err(failure) => {
                self.session.log_refusal(&header, &failure);
                return self.output.reply(&header, Err(failure), ticket.memory);
            }
        };
        let Some(op) = task.op() else {
            return self.close(End::Disconnected);
        };
        let changes = op.changes();
        let begun = Begun {
            header,
            op,
            length: task.length(),
            memory: ticket.memory,
            since: Instant::now(),
            number: self.number + 1,
        };
        self.number += 1;
        self.session.export.counters().begun();
        let mut future = Box::pin(task.run(self.session.clone(), payload));
        match future.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(result) => self.finish(&begun, result),
            Poll::Pending => {
                let session = self.session.clone();
                let limit = self.limits.request_time;
                let limited = async move {
                    let result = match tokio::time::timeout(limit, future).await {
                        Ok(result) => result,
                        Err(_) => Err(session.failure(op.name(), &timed_out(op, limit))),
                    };
                    (begun, result)
                };
                if changes {
                    self.pending.insert(self.number);
                }
                self.work.push(limited.boxed());
            }
        }
    }

    fn finish(&mut self, begun: &Begun, result: Result<Answer, Failure>) {
        let bytes = result.is_ok().then_some(begun.length);
        self.session
            .export
            .counters()
            .answered(begun.op, bytes, begun.since.elapsed());
        self.output.reply(&begun.header, result, begun.memory);
    }

    /// Sends what can be sent now; `true` once nothing is left.
    fn send(&mut self) -> io::Result<bool> {
        while self.output.pending() > 0 {
            let transport = &mut self.transport;
            match self.output.send_with(|slices| transport.send(slices)) {
                Ok(memory) => {
                    self.memory -= memory;
                    self.budget.give_back(memory);
                }
                Err(error) if error.kind() == Io::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.transport.flush()
    }

    /// Receives what is there; `false` if there is nothing.
    fn receive(&mut self) -> io::Result<bool> {
        let (buffer, most) = self.input.room();
        match self.transport.receive(buffer, most) {
            Ok(length) => {
                if length == 0 {
                    self.close(End::Vanished);
                }
                Ok(true)
            }
            Err(error) if error.kind() == Io::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks for the next request without sleeping, if that is worth it; `true` if it came.
    fn look(&mut self) -> io::Result<bool> {
        if !self.patience.is_worth_it() {
            return Ok(false);
        }
        let begin = Instant::now();
        let (mut found, mut looks) = (self.receive()?, 0_u32);
        while !found && begin.elapsed() < LOOK {
            looks += 1;
            if looks.is_multiple_of(8) {
                // It may be that the client waits for this very processor.
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            found = self.receive()?;
        }
        self.patience.looked(found.then(|| begin.elapsed()));
        Ok(found)
    }

    /// Sleeps until there is something to do, and receives what came.
    fn sleep(&mut self, sent: bool) -> io::Result<()> {
        let wants_input = self.closing.is_none()
            && !self.waits
            && !self.silent
            && self.work.len() < self.limits.in_flight_requests
            && self.output.pending() < self.most_pending();
        if wants_input && self.transport.has_input() {
            return self.receive().map(drop);
        }
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, wants_input);
        events.set(PollFlags::OUT, !sent);
        // Whether the client is there is of interest even when nothing else is asked of it.
        events.set(PollFlags::RDHUP, self.closing.is_none());
        let looking = self.checkpoint.is_some_and(|c| c.last.is_none()) && wants_input;
        if wants_input && sent && self.work.is_empty() && self.look()? {
            return Ok(());
        }
        let limit = if !looking && self.handle.wakeup().may_sleep() {
            let until = self.closing.as_ref().map(|(_, until)| *until);
            until.map(|until| until.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        let (mut came, mut called, mut gone) = (false, false, false);
        {
            let (wakeup, socket) = (self.handle.wakeup().event(), self.transport.socket());
            let mut fds = [
                PollFd::new(&wakeup, PollFlags::IN),
                PollFd::new(socket, events),
            ];
            // A socket that has ended would wake us again and again when nothing is asked of it.
            let fds = if events.is_empty() {
                &mut fds[..1]
            } else {
                &mut fds[..]
            };
            let limit = limit.map(|limit| Timespec {
                tv_sec: limit.as_secs().min(3600) as i64,
                tv_nsec: limit.subsec_nanos().into(),
            });
            match poll(fds, limit.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => {
                    called = !fds[0].revents().is_empty();
                    let found = fds.get(1).map_or(PollFlags::empty(), PollFd::revents);
                    came = found.contains(PollFlags::IN);
                    gone = found.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if called {
            self.handle.wakeup().clear_event();
        }
        if came && wants_input {
            self.receive()?;
        } else if gone && self.closing.is_none() {
            // There is no room to read what it sent last, and nobody waits for that any more.
            self.close(End::Vanished);
        } else if looking && let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.last = Some(self.number);
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.session.export.counters().abandoned(self.work.len());
        self.budget.give_back(self.memory);
        // Dropped before the checkpoint is passed.
        self.work.clear();
        self.handle.pass(u64::MAX);
    }
}

/// Whether a request may begin.
fn admit(
    header: &Header,
    session: &Session,
    budget: &Budget,
    limits: &Limits,
    memory: &mut u64,
    waker: &Waker,
) -> Admit<Ticket> {
    let payload = header.payload(session.mode);
    let skipped = if session.mode == Mode::Extended {
        0
    } else {
        SKIPPED
    };
    if payload > u64::from(limits.request_length).max(skipped) {
        let failure = Failure {
            errno: Errno::Inval,
            message: format!("the longest request has {} bytes", limits.request_length),
        };
        return Admit::Refuse(Ticket {
            task: Err(failure),
            memory: 0,
        });
    }
    let task = match Task::check(header, session) {
        Ok(_) if header.command == command::BLOCK_STATUS && payload > STRING_LENGTH as u64 => {
            Err(Failure {
                errno: Errno::Inval,
                message: "a payload that names too many contexts".to_owned(),
            })
        }
        task => task,
    };
    let Ok(task) = task else {
        return Admit::Skip(Ticket { task, memory: 0 });
    };
    let needed = task.memory() + payload;
    // One that has nothing under way is always let in: it may be that the others never end.
    if *memory == 0 {
        budget.take(needed);
    } else if *memory + needed > limits.in_flight_per_connection || !budget.try_take(needed, waker)
    {
        return Admit::Wait;
    }
    *memory += needed;
    Admit::Take(Ticket {
        task: Ok(task),
        memory: needed,
    })
}

fn timed_out(op: Op, limit: Duration) -> Error {
    Error::new(ErrorKind::TimedOut, op.name())
        .with("seconds", limit.as_secs())
        .reason("the pool did not answer in time")
        .help("look at the pool's storage; the request may or may not have taken effect")
}

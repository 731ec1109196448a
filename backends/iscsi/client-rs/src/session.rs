//! A session that outlives its connections, on a thread of its own.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use volmux_iscsi::transport::ScsiTransport;
use volmux_iscsi_initiator::{Command, Data, Error, ErrorKind, Options, Replay, Reply, Result};

use crate::establish::establish;
use crate::link::Link;
use crate::pdu::lun_field;
use crate::refused;

/// Between two attempts to connect, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Bytes that go with one command, as with the workspace's own initiator.
const MOST_DATA: usize = 1 << 30;
/// Within which a target has to let us go.
const GOODBYE: Duration = Duration::from_secs(5);

/// A session with a target. Dropped without [`logout`](ScsiTransport::logout), its connection is
/// closed, and the target finds out.
pub struct Session {
    place: Place,
    command_timeout: Duration,
    nexus: Arc<AtomicU64>,
    requests: mpsc::UnboundedSender<Request>,
}

struct Place {
    portal: String,
    target: Option<String>,
}

/// What the thread of a session is asked to do.
enum Request {
    Execute(Box<Job>),
    LogOut(oneshot::Sender<Result<()>>),
}

struct Job {
    lun: [u8; 8],
    command: Command,
    until: Instant,
    reply: oneshot::Sender<Result<Reply>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("portal", &self.place.portal)
            .field("target", &self.place.target)
            .field("nexus", &self.nexus.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Connects and logs in, by one attempt.
    pub async fn login(options: Options) -> Result<Session> {
        let place = Place {
            portal: options.portal.clone(),
            target: options.target.clone(),
        };
        let command_timeout = options.command_timeout;
        let isid = isid(&options)?;
        let (requests, asked) = mpsc::unbounded_channel();
        let (ready, logged_in) = oneshot::channel();
        let nexus = Arc::new(AtomicU64::new(0));
        let of_thread = nexus.clone();
        let run = move || serve(options, isid, of_thread, asked, ready);
        let named = thread::Builder::new().name("iscsi-client-rs".into());
        named.spawn(run).map_err(|error| {
            let reason = format!("there is no thread for the session: {error}");
            Error::new(ErrorKind::Refused, reason)
        })?;
        logged_in.await.unwrap_or_else(|_| Err(ended()))?;
        Ok(Session {
            place,
            command_timeout,
            nexus,
            requests,
        })
    }

    fn placed(&self, error: Error) -> Error {
        error.between(&self.place.portal, self.place.target.clone())
    }
}

#[async_trait]
impl ScsiTransport for Session {
    async fn execute(&self, lun: u64, command: Command) -> Result<Reply> {
        let place = |error: Error| self.placed(error).of_lun(lun);
        let field = check(&command).and_then(|()| lun_field(lun));
        let (reply, answer) = oneshot::channel();
        let job = Job {
            lun: field.map_err(place)?,
            until: Instant::now() + command.timeout.unwrap_or(self.command_timeout),
            command,
            reply,
        };
        let taken = self.requests.send(Request::Execute(Box::new(job)));
        taken.map_err(|_| place(ended()))?;
        let answer = answer.await.unwrap_or_else(|_| Err(ended().was_sent()));
        answer.map_err(place)
    }

    async fn reset_lun(&self, lun: u64) -> Result<()> {
        Err(self.placed(refused("reset logical units")).of_lun(lun))
    }

    async fn logout(&self) -> Result<()> {
        let (gone, answer) = oneshot::channel();
        if self.requests.send(Request::LogOut(gone)).is_err() {
            return Ok(());
        }
        // Its thread is gone, and so is the connection.
        let answer = answer.await.unwrap_or(Ok(()));
        answer.map_err(|error| self.placed(error))
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Lost, "the thread of the session has ended")
}

/// Of the random kind, for who has no number of a vendor (RFC 7143 section 11.12.5).
fn isid(options: &Options) -> Result<[u8; 6]> {
    let mut isid = [0; 6];
    match options.isid_qualifier {
        Some(qualifier) => isid[4..].copy_from_slice(&qualifier.to_be_bytes()),
        None => getrandom::fill(&mut isid).map_err(|error| {
            Error::new(ErrorKind::Refused, format!("no random numbers: {error}"))
        })?,
    }
    isid[0] = 0x80;
    Ok(isid)
}

fn check(command: &Command) -> Result<()> {
    let wrong = |reason: String| Err(Error::new(ErrorKind::InvalidInput, reason));
    let length = command.cdb.len();
    if !(6..=16).contains(&length) {
        return wrong(format!("a command of {length} bytes: it has 6 to 16"));
    }
    let data = match &command.data {
        Data::None => 0,
        Data::Read(length) => *length as usize,
        Data::Write(bytes) => bytes.len(),
    };
    match data <= MOST_DATA {
        true => Ok(()),
        false => wrong(format!(
            "{data} bytes with one command: at most {MOST_DATA}"
        )),
    }
}

/// What the thread of a session does, until nobody has the session any more.
fn serve(
    options: Options,
    isid: [u8; 6],
    nexus: Arc<AtomicU64>,
    mut asked: mpsc::UnboundedReceiver<Request>,
    mut ready: oneshot::Sender<Result<()>>,
) {
    // The crate loses answers where its tasks run on several threads.
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let reason = format!("there is no runtime for the session: {error}");
            // Who no longer waits need not know; so below.
            let _ = ready.send(Err(Error::new(ErrorKind::Refused, reason)));
            return;
        }
    };
    runtime.block_on(async {
        let session = Arc::new(Links {
            options,
            isid,
            nexus,
            commands: Arc::new(AtomicUsize::new(0)),
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(Attempts {
                last: Instant::now(),
                pause: FIRST_PAUSE,
            }),
        });
        tokio::select! {
            first = session.connect() => if ready.send(first.map(drop)).is_err() {
                return session.close();
            },
            () = ready.closed() => return,
        }
        while let Some(request) = asked.recv().await {
            let session = session.clone();
            match request {
                Request::Execute(job) => {
                    session.commands.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(session.run(*job));
                }
                Request::LogOut(gone) => {
                    tokio::spawn(async move { gone.send(session.log_out().await) });
                }
            }
        }
        session.close();
    });
    // Whatever the crate still does, it may not hold up anything.
    runtime.shutdown_background();
}

/// The connections of a session, one after the other.
struct Links {
    options: Options,
    isid: [u8; 6],
    /// That of the last connection.
    nexus: Arc<AtomicU64>,
    /// Tasks that do commands.
    commands: Arc<AtomicUsize>,
    current: Mutex<Option<Arc<Link>>>,
    /// Held by who connects.
    connecting: tokio::sync::Mutex<Attempts>,
}

struct Attempts {
    last: Instant,
    pause: Duration,
}

impl Links {
    async fn run(self: Arc<Self>, mut job: Job) {
        let until = job.until;
        let (lun, command) = (job.lun, std::mem::take(&mut job.command));
        let waits = || !job.reply.is_closed();
        let reply = self.execute(lun, &command, until, &waits).await;
        let _ = job.reply.send(reply);
        self.commands.fetch_sub(1, Ordering::SeqCst);
    }

    /// As [`Session::execute`](volmux_iscsi_initiator::Session::execute).
    async fn execute(
        &self,
        lun: [u8; 8],
        command: &Command,
        until: Instant,
        waits: &impl Fn() -> bool,
    ) -> Result<Reply> {
        let mut sent: Option<(Error, Option<String>)> = None;
        loop {
            let link = match command.nexus {
                Some(nexus) => self.link_of(nexus)?,
                None => self.link(until).await?,
            };
            if let Some((error, _)) =
                sent.take_if(|(_, group)| group.as_deref() != link.portal_group())
            {
                // The old session may live on, and do it after what comes next.
                return Err(error);
            }
            let error = match link.execute(lun, command, until, waits).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let again = match error.kind() {
                _ if command.nexus.is_some() || !waits() => false,
                ErrorKind::Lost => !error.sent() || command.replay == Replay::Always,
                // Of a connection that broke before this was sent.
                ErrorKind::Protocol => !error.sent(),
                _ => false,
            };
            if !again || Instant::now() >= until {
                return Err(error);
            }
            if error.sent() {
                sent = Some((error, link.portal_group().map(str::to_owned)));
            }
        }
    }

    /// The connection, unless it broke.
    fn usable(&self) -> Option<Arc<Link>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = current.take_if(|link| !link.is_usable()) {
            link.close("the connection has ended");
        }
        current.clone()
    }

    /// The connection of that session, while it lasts.
    fn link_of(&self, nexus: u64) -> Result<Arc<Link>> {
        let current = self.usable().filter(|link| link.nexus == nexus);
        current.ok_or_else(|| {
            let reason = format!("session {nexus} is no more");
            Error::new(ErrorKind::Lost, reason)
        })
    }

    /// The connection, made anew if it broke.
    async fn link(&self, until: Instant) -> Result<Arc<Link>> {
        if let Some(link) = self.usable() {
            return Ok(link);
        }
        let late = |reason: &str| {
            let reason = format!("there is no connection: {reason}");
            Error::new(ErrorKind::TimedOut, reason)
        };
        let attempts = timeout_at(until, self.connecting.lock()).await;
        let mut attempts = attempts.map_err(|_| late("others try to connect"))?;
        let mut why = late("the last one broke just now");
        loop {
            if let Some(link) = self.usable() {
                return Ok(link);
            }
            // One that lasted is made anew at once.
            if attempts.last.elapsed() > attempts.pause {
                attempts.pause = FIRST_PAUSE;
            }
            let next = attempts.last + attempts.pause;
            if next > until {
                sleep_until(until).await;
                return Err(why);
            }
            sleep_until(next).await;
            attempts.pause = (2 * attempts.pause).min(LONGEST_PAUSE);
            let connected = timeout_at(until, self.connect()).await;
            attempts.last = Instant::now();
            match connected {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) if may_pass(&error) && Instant::now() < until => {
                    tracing::debug!(%error, "not connected yet");
                    why = error;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(late("the target does not answer a login")),
            }
        }
    }

    /// One attempt.
    async fn connect(&self) -> Result<Arc<Link>> {
        let nexus = self.nexus.load(Ordering::Relaxed) + 1;
        let connected = timeout(self.options.login_timeout, async {
            let session = establish(&self.options, self.isid).await?;
            Link::begin(session, nexus, &self.options, self.commands.clone()).await
        });
        let link = connected.await.unwrap_or_else(|_| {
            let reason = format!("no login within {:?}", self.options.login_timeout);
            Err(Error::new(ErrorKind::TimedOut, reason))
        })?;
        self.nexus.store(nexus, Ordering::Relaxed);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        Ok(link)
    }

    async fn log_out(&self) -> Result<()> {
        let Some(link) = self.usable() else {
            return Ok(());
        };
        match link.log_out(Instant::now() + GOODBYE).await {
            Err(error) if error.kind() != ErrorKind::Lost => Err(error),
            _ => Ok(()),
        }
    }

    fn close(&self) {
        if let Some(link) = self.usable() {
            link.close("the session was closed");
        }
    }
}

fn may_pass(error: &Error) -> bool {
    // A target that starts has its portal before its targets.
    let kinds = [ErrorKind::Lost, ErrorKind::TimedOut, ErrorKind::NotFound];
    kinds.contains(&error.kind())
}

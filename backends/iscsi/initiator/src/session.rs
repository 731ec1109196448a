//! A session, which outlives its connections.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::command::{Command, Data, Replay, Reply};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::login::{Purpose, log_in};
use crate::options::Options;

/// Between two attempts to connect, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Bytes that go with one command. The protocol could do more; no target takes more.
const MOST_DATA: usize = 1 << 30;
/// Within which a target has to let us go.
const GOODBYE: Duration = Duration::from_secs(5);

/// A session with a target. Dropped without [`logout`](Session::logout), its connection is closed, and
/// the target finds out.
pub struct Session {
    options: Options,
    isid: [u8; 6],
    current: Mutex<Option<Arc<Connection>>>,
    /// Held by who connects.
    connecting: tokio::sync::Mutex<Attempts>,
}

struct Attempts {
    nexus: u64,
    last: Instant,
    pause: Duration,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("portal", &self.options.portal)
            .field("target", &self.options.target)
            .field("nexus", &self.nexus())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Connects and logs in, by one attempt.
    ///
    /// Fails with every kind of [`ErrorKind`]; [`Lost`](ErrorKind::Lost) is also a portal where nobody
    /// listens.
    pub async fn login(options: Options) -> Result<Session> {
        let place = options.place();
        let checked = options.check().and_then(|()| match options.target {
            Some(_) => isid(&options),
            None => Err(Error::new(
                ErrorKind::InvalidInput,
                "which target is not told",
            )),
        });
        let isid = checked.map_err(|error| error.at(place))?;
        let connection = connect(&options, isid, 1).await?;
        Ok(Session {
            options,
            isid,
            current: Mutex::new(Some(Arc::new(connection))),
            connecting: tokio::sync::Mutex::new(Attempts {
                nexus: 1,
                last: Instant::now(),
                pause: FIRST_PAUSE,
            }),
        })
    }

    /// Sends a command to a logical unit and returns what the target answers, whatever its status.
    ///
    /// The number of commands at a time is limited by the target and by
    /// [`Options::queue_depth`]; the others wait, in order. If the connection broke it is made anew,
    /// for as long as the command has time, and the command is repeated as its [`Replay`] allows.
    ///
    /// If the future is dropped, the command may have been sent, and be done then or later: before
    /// something else is written to the same place, wait for it.
    pub async fn execute(&self, lun: u64, command: Command) -> Result<Reply> {
        let place = || self.options.place();
        check(&command).map_err(|error| error.at(place()).of_lun(lun))?;
        let until = Instant::now() + command.timeout.unwrap_or(self.options.command_timeout);
        let mut sent: Option<(Error, Option<u32>)> = None;
        loop {
            let connection = match command.nexus {
                Some(nexus) => self.connection_of(nexus),
                None => self.connection(until).await,
            };
            let connection = connection.map_err(|error| error.of_lun(lun))?;
            let group = connection.portal_group();
            if let Some((error, _)) = sent.take_if(|(_, before)| *before != group) {
                // Redirected elsewhere: the old session may live on, and do it after what comes next.
                return Err(error);
            }
            let error = match connection.execute(lun, &command, until).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let again = match error.kind() {
                _ if command.nexus.is_some() => false,
                ErrorKind::Lost => !error.sent() || command.replay == Replay::Always,
                // Of a connection that broke before this was sent.
                ErrorKind::Protocol => !error.sent(),
                _ => false,
            };
            let error = error.at(place()).of_lun(lun);
            if !again || Instant::now() >= until {
                return Err(error);
            }
            if error.sent() {
                sent = Some((error, group));
            }
        }
    }

    /// Has a logical unit drop all commands that it has not answered, of all sessions (LOGICAL UNIT
    /// RESET). Those of this session fail with [`Lost`](ErrorKind::Lost).
    ///
    /// Fails with [`NotFound`](ErrorKind::NotFound) if there is none, and with
    /// [`Refused`](ErrorKind::Refused) if the target does not do that.
    pub async fn reset_lun(&self, lun: u64) -> Result<()> {
        let until = Instant::now() + self.options.command_timeout;
        let reset = async { self.connection(until).await?.reset_lun(lun, until).await };
        let place = || self.options.place();
        reset.await.map_err(|error| error.at(place()).of_lun(lun))
    }

    /// Ends the session. It is also ended if this fails. A command that comes later begins a new one.
    pub async fn logout(&self) -> Result<()> {
        let connection = self
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(connection) = connection.filter(|connection| connection.is_usable()) else {
            return Ok(());
        };
        let gone = connection.logout(Instant::now() + GOODBYE).await;
        gone.map_err(|error| error.at(self.options.place()))
    }

    /// How often it was logged in to, as far as is known: 1, and one more with each reconnection.
    pub fn nexus(&self) -> u64 {
        self.current().map_or(0, |connection| connection.nexus())
    }

    fn current(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn usable(&self) -> Option<Arc<Connection>> {
        self.current().filter(|connection| connection.is_usable())
    }

    /// The connection of that session, while it lasts.
    fn connection_of(&self, nexus: u64) -> Result<Arc<Connection>> {
        let current = self.usable().filter(|current| current.nexus() == nexus);
        current.ok_or_else(|| {
            let reason = format!("session {nexus} is no more");
            Error::new(ErrorKind::Lost, reason).at(self.options.place())
        })
    }

    /// The connection, made anew if it broke.
    async fn connection(&self, until: Instant) -> Result<Arc<Connection>> {
        if let Some(connection) = self.usable() {
            return Ok(connection);
        }
        let late = |reason: &str| {
            let reason = format!("there is no connection: {reason}");
            Error::new(ErrorKind::TimedOut, reason).at(self.options.place())
        };
        let attempts = timeout_at(until, self.connecting.lock()).await;
        let mut attempts = attempts.map_err(|_| late("others try to connect"))?;
        if let Some(connection) = self.usable() {
            return Ok(connection);
        }
        // A new session has the target drop what the old one still does.
        if let Some(leaving) = self.current().filter(|current| current.is_leaving()) {
            let soon = until.min(Instant::now() + GOODBYE);
            // Longer than that no target is waited for.
            let _ = timeout_at(soon, leaving.ended()).await;
        }
        let mut why = late("the last one broke just now");
        loop {
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
            let nexus = attempts.nexus + 1;
            let connecting = timeout_at(until, connect(&self.options, self.isid, nexus)).await;
            attempts.last = Instant::now();
            match connecting {
                Ok(Ok(connection)) => {
                    attempts.nexus = nexus;
                    let connection = Arc::new(connection);
                    let current = connection.clone();
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
                    return Ok(connection);
                }
                Ok(Err(error)) if may_pass(&error) && Instant::now() < until => {
                    tracing::debug!(%error, "not connected yet");
                    why = error;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(late("the target does not answer a login")),
            }
        }
    }
}

fn may_pass(error: &Error) -> bool {
    // A target that starts has its portal before its targets.
    let kinds = [ErrorKind::Lost, ErrorKind::TimedOut, ErrorKind::NotFound];
    kinds.contains(&error.kind())
}

async fn connect(options: &Options, isid: [u8; 6], nexus: u64) -> Result<Connection> {
    let logged_in = timeout(
        options.login_timeout,
        log_in(options, isid, Purpose::Commands),
    )
    .await;
    let late = || {
        let reason = format!("no login within {:?}", options.login_timeout);
        Err(Error::new(ErrorKind::TimedOut, reason))
    };
    let logged_in = logged_in.unwrap_or_else(|_| late());
    let logged_in = logged_in.map_err(|error| error.at(options.place()))?;
    let (depth, keep_alive) = (options.queue_depth, options.keep_alive);
    Ok(Connection::new(
        logged_in,
        options.place(),
        depth,
        keep_alive,
        nexus,
    ))
}

/// Of the random kind, for who has no number of a vendor (RFC 7143 section 11.12.5).
pub fn isid(options: &Options) -> Result<[u8; 6]> {
    let mut isid = [0; 6];
    getrandom::fill(&mut isid)
        .map_err(|error| Error::new(ErrorKind::Refused, format!("no random numbers: {error}")))?;
    if let Some(qualifier) = options.isid_qualifier {
        isid = [0; 6];
        isid[4..].copy_from_slice(&qualifier.to_be_bytes());
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

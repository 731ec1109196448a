//! One logical unit as commands are sent to it, and what its answers let know besides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use volmux_iscsi_initiator::{Command, Data, Replay, Reply};

use super::cdb::Cdb;
use super::error::{Place, Result, ScsiError, ScsiErrorKind};
use super::retry::{Allowed, Patience, Verdict, judge, status};
use super::sense::{Sense, key};
use super::wire::Malformed;
use crate::transport::ScsiTransport;

/// A command, and what may be done with it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub cdb: Cdb,
    pub data: Data,
    pub replay: Replay,
    pub allowed: Allowed,
}

impl Request {
    /// Reads at most `length` bytes about the unit.
    pub fn ask(cdb: Cdb, length: u32) -> Request {
        Request {
            cdb,
            data: match length {
                0 => Data::None,
                _ => Data::Read(length),
            },
            replay: Replay::Always,
            allowed: Allowed {
                repeat: true,
                any_attention: false,
                exact: false,
            },
        }
    }

    /// Changes something, or transfers blocks.
    pub fn change(cdb: Cdb, data: Data, repeat: bool) -> Request {
        Request {
            cdb,
            replay: Replay::Unsent,
            allowed: Allowed {
                repeat,
                any_attention: false,
                exact: !matches!(data, Data::None),
            },
            data,
        }
    }
}

/// A way to one logical unit.
#[derive(Debug)]
pub(crate) struct Channel {
    transport: Arc<dyn ScsiTransport>,
    place: Arc<Place>,
    deadline: Duration,
    /// Set while nothing relies on how the unit was.
    pub any_attention: bool,
    /// It is tgt, which says so when there is no space.
    full_is_read_error: bool,
    pub capacity_stale: AtomicBool,
    resets: AtomicU64,
    deferred: Mutex<Option<ScsiError>>,
}

impl Channel {
    pub fn new(transport: Arc<dyn ScsiTransport>, place: Place, deadline: Duration) -> Channel {
        Channel {
            transport,
            place: Arc::new(place),
            deadline,
            any_attention: false,
            full_is_read_error: false,
            capacity_stale: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            deferred: Mutex::new(None),
        }
    }

    pub fn lun(&self) -> u64 {
        self.place.lun
    }

    /// Tells which target it is.
    pub fn know_vendor(&mut self, vendor: &str) {
        self.full_is_read_error = vendor == "IET";
    }

    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    /// The first error that told of an earlier, acknowledged command.
    pub fn deferred(&self) -> Option<ScsiError> {
        let deferred = self.deferred.lock();
        deferred.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn error(&self, command: &'static str, kind: ScsiErrorKind) -> ScsiError {
        ScsiError::new(kind, command, self.place.clone())
    }

    /// What a parser says about a reply to `command`.
    pub fn checked<T>(
        &self,
        command: &'static str,
        parsed: std::result::Result<T, Malformed>,
    ) -> Result<T> {
        parsed.map_err(|Malformed(reason)| self.error(command, ScsiErrorKind::Malformed(reason)))
    }

    /// Sends a command until it is answered in a way that repeating does not change, or its time is
    /// over. Nothing of it is in flight once this has returned.
    pub async fn execute(&self, nexus: Option<u64>, request: &Request) -> Result<Reply> {
        self.execute_within(self.deadline, nexus, request).await
    }

    /// The same, with another deadline.
    pub async fn execute_within(
        &self,
        deadline: Duration,
        nexus: Option<u64>,
        request: &Request,
    ) -> Result<Reply> {
        let name = request.cdb.name();
        let mut allowed = request.allowed;
        allowed.any_attention |= self.any_attention;
        let mut patience = Patience::new(deadline);
        loop {
            let command = Command {
                cdb: request.cdb.bytes().to_vec(),
                data: request.data.clone(),
                replay: match nexus {
                    Some(_) => Replay::Unsent,
                    None => request.replay,
                },
                nexus,
                timeout: Some(patience.left()),
            };
            let reply = self.transport.execute(self.place.lun, command).await;
            let reply = reply.map_err(|e| self.error(name, ScsiErrorKind::Transport(e)))?;
            let sense =
                Sense::parse(&reply.sense).filter(|_| reply.status == status::CHECK_CONDITION);
            let failed = |kind| {
                let kind = self.peculiar(kind, sense.as_ref(), &request.data);
                let error = self.error(name, kind);
                error.answered(reply.status, sense, reply.nexus)
            };
            if let Some(sense) = &sense {
                self.note(name, sense);
            }
            match judge(&reply, sense.as_ref(), &request.data, allowed) {
                Verdict::Done => return Ok(reply),
                Verdict::Failed(kind) => {
                    let error = failed(kind);
                    if error.is_deferred() {
                        self.remember(&error);
                    }
                    return Err(error);
                }
                Verdict::Again {
                    pause,
                    few,
                    otherwise,
                } => match patience.next(pause, few) {
                    Some(Duration::ZERO) => {}
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(failed(otherwise)),
                },
            }
        }
    }

    /// Takes note of what concerns more than one command.
    fn note(&self, command: &'static str, sense: &Sense) {
        let lun = self.place.lun;
        match (sense.key, sense.code()) {
            (key::RECOVERED_ERROR, _) => tracing::info!(lun, command, %sense, "recovered"),
            _ if sense.deferred => {
                tracing::error!(lun, command, %sense, "an acknowledged command failed");
            }
            (key::UNIT_ATTENTION, code) => {
                match code {
                    0x2900..=0x29ff => _ = self.resets.fetch_add(1, Ordering::AcqRel),
                    0x2a09 => self.capacity_stale.store(true, Ordering::Release),
                    0x3807 => {
                        tracing::warn!(lun, "the target's space for thin units runs out");
                    }
                    _ => {}
                }
                tracing::debug!(lun, command, %sense, "unit attention");
            }
            _ => {}
        }
    }

    fn remember(&self, error: &ScsiError) {
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        deferred.get_or_insert_with(|| error.clone());
    }

    /// tgt 1.0.85 has one sense for every write that its file system refuses: UNRECOVERED READ
    /// ERROR. A full file system is the usual cause.
    fn peculiar(&self, kind: ScsiErrorKind, sense: Option<&Sense>, data: &Data) -> ScsiErrorKind {
        let read_error = sense.is_some_and(|sense| sense.code() == 0x1100 && !sense.deferred);
        match (kind, data) {
            (ScsiErrorKind::Medium { .. }, Data::Write(_))
                if self.full_is_read_error && read_error =>
            {
                ScsiErrorKind::NoSpace
            }
            (kind, _) => kind,
        }
    }
}

//! How SCSI commands reach a target.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use volmux_iscsi_initiator::{
    Command, DiscoveredTarget, ErrorKind, Options, Reply, Result, Session, discover,
};

/// A session with a target.
///
/// Its errors are those of the initiator: `Unauthenticated`, `NotFound`, `Refused`, `Lost`,
/// `TimedOut`, `Protocol`, each with portal, target and logical unit.
#[async_trait]
pub trait ScsiTransport: Debug + Send + Sync + 'static {
    /// Sends a command to a logical unit and returns what the target answers, whatever its status.
    /// See [`Session::execute`] for what a dropped future leaves.
    ///
    /// # Errors
    /// Those of the session. A command that names a [`nexus`](Command::nexus) fails with `Lost`
    /// once that is over; any other makes a new session if need be.
    async fn execute(&self, lun: u64, command: Command) -> Result<Reply>;

    /// Has a logical unit drop the commands that it has not answered.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Refused` if the transport or the target does not do that.
    async fn reset_lun(&self, lun: u64) -> Result<()>;

    /// Ends the session. Commands fail from then on, or make a new one.
    ///
    /// # Errors
    /// If the target does not say goodbye; the session is ended all the same.
    async fn logout(&self) -> Result<()>;
}

/// What a transport can do, besides logging in and sending commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Listing the targets of a portal.
    pub discovery: bool,
    /// Having the target prove who it is.
    pub mutual_chap: bool,
    /// Digests.
    pub digests: bool,
    /// LOGICAL UNIT RESET.
    pub reset: bool,
    /// A session outlives its connections.
    pub reconnect: bool,
}

/// Makes sessions.
#[async_trait]
pub trait Connector: Debug + Send + Sync + 'static {
    /// How option `transport` of a pool's URL calls it.
    fn name(&self) -> &'static str;

    /// What its sessions can do.
    fn abilities(&self) -> Abilities;

    /// Logs in.
    ///
    /// # Errors
    /// Those of [`Session::login`]; `Refused` for what its [`abilities`](Self::abilities) lack.
    async fn login(&self, options: Options) -> Result<Arc<dyn ScsiTransport>>;

    /// Lists the targets of a portal.
    ///
    /// # Errors
    /// Those of [`discover`]; `Refused` if it can't.
    async fn discover(&self, options: &Options) -> Result<Vec<DiscoveredTarget>>;
}

/// The workspace's own initiator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

#[async_trait]
impl Connector for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            discovery: true,
            mutual_chap: true,
            digests: true,
            reset: true,
            reconnect: true,
        }
    }

    async fn login(&self, options: Options) -> Result<Arc<dyn ScsiTransport>> {
        Ok(Arc::new(Session::login(options).await?))
    }

    async fn discover(&self, options: &Options) -> Result<Vec<DiscoveredTarget>> {
        discover(options).await
    }
}

#[async_trait]
impl ScsiTransport for Session {
    async fn execute(&self, lun: u64, command: Command) -> Result<Reply> {
        Session::execute(self, lun, command).await
    }

    async fn reset_lun(&self, lun: u64) -> Result<()> {
        Session::reset_lun(self, lun).await
    }

    async fn logout(&self) -> Result<()> {
        match Session::logout(self).await {
            Err(error) if error.kind() != ErrorKind::Lost => Err(error),
            _ => Ok(()),
        }
    }
}

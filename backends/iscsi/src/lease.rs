//! What gives an open volume the right to its logical unit, and how it is known to have it still.

use std::fmt::Debug;

use async_trait::async_trait;
use volmux_core::{ByteRange, Error, ExtentStream, Result, VolumeName};

use crate::array::Closing;
use crate::scsi::{LogicalUnit, ScsiError};

/// Whether the volume is still this holder's.
#[derive(Debug)]
pub enum Standing {
    /// It is, as far as can be told.
    Held,
    /// Somebody else has it, or nobody: this is why, in a sentence.
    Lost(String),
}

/// The right to a logical unit, which outlives sessions.
#[async_trait]
pub trait Lease: Debug + Send + Sync + 'static {
    /// Asks whoever gave the right whether it still holds, before a new session is begun.
    ///
    /// # Errors
    /// If he can't be asked now.
    async fn standing(&self) -> Result<Standing>;

    /// Has the target let us in again after it has refused to: it may have been restarted.
    ///
    /// # Errors
    /// If that can't be done now; `Fenced` if the right is gone.
    async fn renew(&self) -> Result<()>;

    /// Looks in a new session, before anything is written in it.
    ///
    /// # Errors
    /// Those of the commands that it sends.
    async fn verify(&self, unit: &LogicalUnit, nexus: u64) -> Result<Standing, ScsiError>;

    /// Says that closing begins, until what it returns is dropped.
    fn closing(&self) -> Option<Closing>;

    /// Gives the right back. `unit` is still logged in.
    async fn release(&self, unit: &LogicalUnit);

    /// Gives back what lasts beyond the session, once that is over.
    async fn end(&self);

    /// Whether ranges that were unmapped read as zeros, whatever the logical unit says of that.
    fn unmapped_is_zero(&self) -> bool;

    /// The allocated extents, where somebody else than the logical unit knows them better.
    async fn extents(&self, op: &'static str, range: ByteRange) -> Option<Result<ExtentStream>>;

    /// The volume's name when it was opened.
    fn name(&self) -> &VolumeName;

    /// Names the volume and where it is in an error.
    fn describe(&self, error: Error) -> Error;
}

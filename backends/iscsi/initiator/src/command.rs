//! SCSI commands and their replies, as a transport sees them.

use std::time::Duration;

use bytes::Bytes;

/// What goes with a command.
#[derive(Debug, Clone, Default)]
pub enum Data {
    /// Nothing.
    #[default]
    None,
    /// At most so many bytes come from the target.
    Read(u32),
    /// This goes to the target.
    Write(Bytes),
}

/// Whether a command that was lost with its connection is sent again once there is a new one. The
/// target drops the commands of the old session before it takes the new one (RFC 7143 section
/// 6.3.5), so what is repeated can't be overtaken by itself. That holds within a portal group: if the
/// target redirects to another one, nothing that was sent is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replay {
    /// Only if nothing of it was sent.
    #[default]
    Unsent,
    /// Always: having it done twice is as good as once.
    Always,
}

/// A SCSI command for one logical unit.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// The command descriptor block: 6 to 16 bytes.
    pub cdb: Vec<u8>,
    /// What goes with it.
    pub data: Data,
    /// What happens to it if the connection breaks.
    pub replay: Replay,
    /// Only in this session, by [`Reply::nexus`]: when another one has taken its place, the command
    /// fails with [`Lost`](crate::ErrorKind::Lost), and nothing is made anew for it. For who has to
    /// look, after each reconnection, what is there now.
    pub nexus: Option<u64>,
    /// Within which it is answered, if not by [`Options::command_timeout`](crate::Options::command_timeout).
    pub timeout: Option<Duration>,
}

/// By how much the target's idea of a command's data differs from what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// Not at all.
    #[default]
    None,
    /// So many bytes were not transferred.
    Underflow(u32),
    /// So many more bytes would have been.
    Overflow(u32),
}

/// What the target answered. A status other than GOOD is an answer too.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// The SCSI status (SAM-5): 0x00 GOOD, 0x02 CHECK CONDITION, 0x08 BUSY, 0x18 RESERVATION CONFLICT,
    /// 0x28 TASK SET FULL…
    pub status: u8,
    /// Sense data with CHECK CONDITION; as the target sent it, fixed or descriptor format, maybe cut.
    pub sense: Bytes,
    /// What was read.
    pub data: Bytes,
    /// Whether that was all.
    pub residual: Residual,
    /// Which session answered, counted from 1: it grows with each reconnection. Whatever the target
    /// forgets with a session, and what it had not made durable, may be gone where this differs.
    pub nexus: u64,
}

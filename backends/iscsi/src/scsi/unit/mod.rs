//! A logical unit that is a disk: what it is, and what can be done with it.

mod blocks;
mod data;
mod probe;
mod reservations;

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use volmux_iscsi_initiator::Reply;

use super::capacity::Capacity;
use super::channel::{Channel, Request};
use super::designator::Designator;
use super::error::{Place, Result, ScsiError, ScsiErrorKind};
use super::inquiry::Inquiry;
use super::limits::{BlockLimits, Rotation};
use super::luns::Luns;
use super::mode::Mode;
use super::opcodes::Operation;
use super::provisioning::LogicalBlockProvisioning;
use super::{cdb, pieces::Cut};
use crate::transport::ScsiTransport;

/// How a logical unit is used.
#[derive(Debug, Clone)]
pub struct UnitOptions {
    /// The address of the portal, for errors.
    pub portal: Option<String>,
    /// The name of the target, for errors.
    pub target: Option<String>,
    /// Within which a command is answered, with all that makes it be asked for again. 60 s.
    pub deadline: Duration,
    /// Commands of one request that are with the target at a time; at least 1. 8.
    pub concurrency: usize,
    /// The serial number is of this unit alone, wherever it is shown, so that it is told from others
    /// by that: names that the target makes anew when it is shown again don't count.
    pub serial_is_unique: bool,
}

impl Default for UnitOptions {
    fn default() -> UnitOptions {
        UnitOptions {
            portal: None,
            target: None,
            deadline: Duration::from_secs(60),
            concurrency: 8,
            serial_is_unique: false,
        }
    }
}

/// A disk of a target.
///
/// **Sessions.** Every method that sends something has an argument `nexus`: the session in which it
/// has to be done ([`Reply::nexus`]); when that is over it fails with a
/// [`Transport`](ScsiErrorKind::Transport) error of kind `Lost`. With `None` it is done in
/// whichever there is. Every method returns the session that answered; where a request took several
/// commands, the oldest of those that did. What was written in one session is durable once a later
/// [`flush`](Self::flush) in the *same* session has returned, and [`resets`](Self::resets) has not
/// changed in between.
///
/// **Repeating.** What a target has not done because it was busy, becoming ready or had something
/// to tell (UNIT ATTENTION) is asked for again until the deadline; what it aborted, three times.
/// Reads are sent again in a new session, if they are not bound to one; what writes is not, once it
/// was sent. Registrations and reservations that others have changed, another identity and another
/// list of units are not passed over: the first command that meets them fails with
/// [`Attention`](ScsiErrorKind::Attention).
///
/// **Failing.** When a request has failed nothing of it is with the target any more, but a part may
/// have been done. If several of its commands failed, the error is that of the one with the lowest
/// blocks, unless the target told something to another that it tells only once.
///
/// **Dropping.** A future that is dropped leaves what it sent to the target: a write may be done
/// then or later, and what the target answers is not seen, be it an attention or a deferred error.
/// Before something else is written to the same place, wait for it. Nothing runs in the background
/// here.
///
/// # Errors
/// Each method: [`Transport`](ScsiErrorKind::Transport), [`NotReady`](ScsiErrorKind::NotReady),
/// [`Medium`](ScsiErrorKind::Medium), [`Hardware`](ScsiErrorKind::Hardware),
/// [`IllegalRequest`](ScsiErrorKind::IllegalRequest),
/// [`ReservationConflict`](ScsiErrorKind::ReservationConflict),
/// [`Attention`](ScsiErrorKind::Attention), [`Busy`](ScsiErrorKind::Busy),
/// [`Aborted`](ScsiErrorKind::Aborted), [`Malformed`](ScsiErrorKind::Malformed),
/// [`InvalidInput`](ScsiErrorKind::InvalidInput), [`Other`](ScsiErrorKind::Other); those that write
/// also [`WriteProtected`](ScsiErrorKind::WriteProtected) and [`NoSpace`](ScsiErrorKind::NoSpace).
#[derive(Debug)]
pub struct LogicalUnit {
    channel: Channel,
    concurrency: usize,
    serial_is_unique: bool,
    found: Found,
    capacity: Mutex<Capacity>,
    without: Without,
}

/// What was found when it was opened.
#[derive(Debug)]
struct Found {
    nexus: u64,
    inquiry: Inquiry,
    serial: Option<String>,
    designators: Vec<Designator>,
    capacity: Capacity,
    limits: BlockLimits,
    rotation: Rotation,
    provisioning: LogicalBlockProvisioning,
    mode: Mode,
    write_same: Operation,
}

/// What the target turned out not to have.
#[derive(Debug, Default)]
struct Without {
    synchronize_cache_16: AtomicBool,
    write_same: AtomicBool,
    write_same_unmap: AtomicBool,
}

impl LogicalUnit {
    /// Looks at a logical unit: what it is, its names, size, limits and abilities. Whatever it has
    /// to tell (UNIT ATTENTION) is taken note of and passed over.
    ///
    /// # Errors
    /// [`NotADisk`](ScsiErrorKind::NotADisk);
    /// [`IllegalRequest`](ScsiErrorKind::IllegalRequest)`(LunNotSupported)` if there is no such
    /// unit; those of every method.
    pub async fn open(transport: Arc<dyn ScsiTransport>, lun: u64) -> Result<LogicalUnit> {
        LogicalUnit::open_with(transport, lun, UnitOptions::default()).await
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn open_with(
        transport: Arc<dyn ScsiTransport>,
        lun: u64,
        options: UnitOptions,
    ) -> Result<LogicalUnit> {
        let place = Place {
            portal: options.portal,
            target: options.target,
            lun,
        };
        let mut channel = Channel::new(transport, place, options.deadline);
        channel.any_attention = true;
        let found = probe::probe(&channel).await?;
        channel.any_attention = false;
        channel.know_vendor(&found.inquiry.vendor);
        channel.capacity_stale.store(false, Ordering::Release);
        Ok(LogicalUnit {
            channel,
            concurrency: options.concurrency.max(1),
            serial_is_unique: options.serial_is_unique,
            capacity: Mutex::new(found.capacity),
            found,
            without: Without::default(),
        })
    }

    /// Its number.
    pub fn lun(&self) -> u64 {
        self.channel.lun()
    }

    /// The session in which it was looked at when it was opened.
    pub fn opened_in(&self) -> u64 {
        self.found.nexus
    }

    /// What it says it is.
    pub fn inquiry(&self) -> &Inquiry {
        &self.found.inquiry
    }

    /// The unit serial number, if it has one (VPD page 80h).
    pub fn serial(&self) -> Option<&str> {
        self.found.serial.as_deref()
    }

    /// Its names (VPD page 83h).
    pub fn designators(&self) -> &[Designator] {
        &self.found.designators
    }

    /// Size and blocks, as they were read last.
    pub fn capacity(&self) -> Capacity {
        *self.capacity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes a block: a power of 2, 512 to 65536. It does not change.
    pub fn block_size(&self) -> u32 {
        self.found.capacity.block_size
    }

    /// Whether the target has told (2A/09) that the size changed since
    /// [`read_capacity`](Self::read_capacity).
    pub fn capacity_stale(&self) -> bool {
        self.channel.capacity_stale.load(Ordering::Acquire)
    }

    /// Its limits (VPD page B0h); all 0 if it does not tell.
    pub fn limits(&self) -> &BlockLimits {
        &self.found.limits
    }

    /// How fast it rotates (VPD page B1h).
    pub fn rotation(&self) -> Rotation {
        self.found.rotation
    }

    /// How it takes and gives back space (VPD page B2h).
    pub fn provisioning(&self) -> &LogicalBlockProvisioning {
        &self.found.provisioning
    }

    /// Whether what is deallocated reads as zeros (LBPRZ).
    pub fn reads_zeros(&self) -> bool {
        self.found.provisioning.reads_zeros
    }

    /// Whether it has a volatile write cache (WCE) in use, as far as it told when it was opened.
    /// Without an answer take it that there is one.
    pub fn write_cache(&self) -> Option<bool> {
        self.found.mode.write_cache
    }

    /// Whether it refused writes when it was opened (WP). `false` also where it does not tell.
    pub fn write_protected(&self) -> bool {
        self.found.mode.write_protected
    }

    /// How often the unit has told that it started anew (29/xx), the first time in each session
    /// included. When this grows, what was written and not flushed may be gone, and so may be
    /// registrations and reservations.
    pub fn resets(&self) -> u64 {
        self.channel.resets()
    }

    /// The error that told of the loss of an acknowledged write, if there was one: every
    /// [`flush`](Self::flush) fails with it from then on.
    pub fn deferred(&self) -> Option<ScsiError> {
        self.channel.deferred()
    }

    /// An error of the session, as one of this unit.
    pub(crate) fn transport_error(&self, error: volmux_iscsi_initiator::Error) -> ScsiError {
        self.channel.error("reset", ScsiErrorKind::Transport(error))
    }

    /// Bytes as blocks.
    fn blocks_of(&self, command: &'static str, bytes: usize) -> Result<u64> {
        let block = self.block_size() as usize;
        match bytes > 0 && bytes.is_multiple_of(block) {
            true => Ok((bytes / block) as u64),
            false => {
                let reason = format!("{bytes} bytes are not a number of blocks of {block} bytes");
                Err(self
                    .channel
                    .error(command, ScsiErrorKind::InvalidInput(reason)))
            }
        }
    }

    /// Whether the unit has these blocks, as far as is known here.
    fn check_range(&self, command: &'static str, lba: u64, blocks: u64) -> Result<()> {
        let end = self.capacity().blocks;
        if blocks == 0 {
            let reason = "no blocks are named".to_owned();
            return Err(self
                .channel
                .error(command, ScsiErrorKind::InvalidInput(reason)));
        }
        match lba.checked_add(blocks).is_some_and(|past| past <= end) {
            true => Ok(()),
            false => {
                let kind = ScsiErrorKind::IllegalRequest(super::Illegal::LbaOutOfRange);
                Err(self.channel.error(command, kind))
            }
        }
    }

    /// So many bytes in blocks; at least one, and not more than `limit` if that is told.
    fn most_blocks(&self, bytes: u32, limit: u64) -> u32 {
        let most = (bytes / self.block_size()).max(1);
        match limit {
            0 => most,
            limit => most.min(limit.min(u32::MAX.into()) as u32),
        }
    }

    /// Where reads and writes are cut.
    fn cut(&self, most: u32) -> Cut {
        let capacity = &self.found.capacity;
        let physical = 1 << capacity.physical_exponent;
        Cut {
            most,
            step: physical.max(u32::from(self.found.limits.optimal_granularity)),
            from: capacity.lowest_aligned.into(),
        }
    }

    /// Where ranges to deallocate are cut: at multiples of the longest. What is below a unit, such as
    /// the file system that a file of LIO lies in, may have larger granules than the unit tells of,
    /// and gives back none that is cut.
    fn unmap_cut(&self, most: u32) -> Cut {
        let limits = &self.found.limits;
        let granularity = limits.unmap_granularity.max(1);
        Cut {
            most,
            step: (most / granularity * granularity).max(granularity),
            from: limits.unmap_alignment.unwrap_or(0),
        }
    }

    /// Sends what belongs to one request, some at a time, and gives each reply to `take` with its
    /// place in the order. After a failure nothing more is sent, and what was is waited for.
    /// Returns the oldest session that answered.
    async fn all(
        &self,
        nexus: Option<u64>,
        requests: impl Iterator<Item = Request>,
        mut take: impl FnMut(usize, Reply),
    ) -> Result<u64> {
        let mut waiting = requests.enumerate();
        let mut running = FuturesUnordered::new();
        let mut oldest = u64::MAX;
        let mut failed: Option<((u8, Reverse<usize>), ScsiError)> = None;
        loop {
            while failed.is_none() && running.len() < self.concurrency {
                let Some((at, request)) = waiting.next() else {
                    break;
                };
                running.push(async move { (at, self.channel.execute(nexus, &request).await) });
            }
            match running.next().await {
                Some((at, Ok(reply))) => {
                    oldest = oldest.min(reply.nexus);
                    take(at, reply);
                }
                Some((at, Err(error))) => {
                    let rank = (error.weight(), Reverse(at));
                    if failed.as_ref().is_none_or(|(before, _)| *before < rank) {
                        failed = Some((rank, error));
                    }
                }
                None => return failed.map_or(Ok(oldest), |(_, error)| Err(error)),
            }
        }
    }
}

/// The logical units of a target, by REPORT LUNS to unit 0. At most 16384.
///
/// # Errors
/// Those of every method of [`LogicalUnit`].
pub async fn report_luns(
    transport: Arc<dyn ScsiTransport>,
    options: UnitOptions,
) -> Result<Vec<u64>> {
    /// All that single-level addressing has.
    const MOST: u64 = 8 + 8 * 16384;
    let place = Place {
        portal: options.portal,
        target: options.target,
        lun: 0,
    };
    let mut channel = Channel::new(transport, place, options.deadline);
    channel.any_attention = true;
    let mut length = 4096;
    loop {
        let request = Request::ask(cdb::report_luns(length), length);
        let reply = channel.execute(None, &request).await?;
        let luns = channel.checked(request.cdb.name(), Luns::parse(&reply.data))?;
        let needed = luns.needed.min(MOST) as u32;
        if needed <= length {
            return Ok(luns.numbers);
        }
        length = needed;
    }
}

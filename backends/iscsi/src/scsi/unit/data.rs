//! Reading, writing and flushing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use volmux_iscsi_initiator::{Data, Replay};

use super::LogicalUnit;
use super::probe::{capacity, check_device, page};
use crate::scsi::capacity::Capacity;
use crate::scsi::cdb::{self, CacheBits, Cdb};
use crate::scsi::channel::Request;
use crate::scsi::designator::{Association, Designator, DesignatorKind, parse_designators};
use crate::scsi::error::{Illegal, Result, ScsiErrorKind};
use crate::scsi::inquiry::parse_serial;
use crate::scsi::pieces::Cut;

/// Bytes of one command, unless the unit takes only less.
const PIECE: u32 = 1 << 20;
/// Bytes of one command to a unit that says it takes more.
const LARGE_PIECE: u32 = 4 << 20;
/// Bytes of one read: they are held in memory.
const MOST_READ: u64 = 1 << 30;

impl LogicalUnit {
    /// How reads and writes are cut.
    fn transfers(&self) -> Cut {
        let limits = self.limits();
        let told = match (limits.max_transfer, limits.optimal_transfer) {
            (0, _) => return self.cut(self.most_blocks(PIECE, 0)),
            (most, 0) => most,
            (most, optimal) => most.min(optimal),
        };
        self.cut(self.most_blocks(LARGE_PIECE, told.into()))
    }

    /// Reads `blocks` blocks from `lba` on, 1 GiB at most. All of them come, or an error.
    ///
    /// # Errors
    /// Those of every method.
    pub async fn read(&self, nexus: Option<u64>, lba: u64, blocks: u32) -> Result<(Bytes, u64)> {
        const NAME: &str = "READ(16)";
        self.check_range(NAME, lba, blocks.into())?;
        let block = self.block_size();
        let length = u64::from(blocks) * u64::from(block);
        if length > MOST_READ {
            let reason = format!("{length} bytes at once; {MOST_READ} are the most");
            return Err(self
                .channel
                .error(NAME, ScsiErrorKind::InvalidInput(reason)));
        }
        let pieces: Vec<_> = self.transfers().pieces(lba, blocks.into()).collect();
        let mut parts = vec![Bytes::new(); pieces.len()];
        let requests = pieces.iter().map(|piece| {
            let cdb = cdb::read_16(piece.lba, piece.blocks, CacheBits::default());
            let mut request = Request::change(cdb, Data::Read(piece.blocks * block), true);
            request.replay = Replay::Always;
            request
        });
        let nexus = self
            .all(nexus, requests, |at, reply| parts[at] = reply.data)
            .await?;
        if let [part] = &mut parts[..] {
            return Ok((std::mem::take(part), nexus));
        }
        // Each has the length of its piece: the channel has looked at that.
        let mut data = BytesMut::with_capacity(length as usize);
        for part in parts {
            data.extend_from_slice(&part);
        }
        Ok((data.freeze(), nexus))
    }

    /// Writes `data`, whose length is a multiple of the block size, from `lba` on. It is durable
    /// once it was [flushed](Self::flush).
    ///
    /// # Errors
    /// Those of every method that writes. After an error each block holds what it held, or what was
    /// to be written, but for those of which a [`Medium`](ScsiErrorKind::Medium) error tells.
    pub async fn write(&self, nexus: Option<u64>, lba: u64, data: Bytes) -> Result<u64> {
        const NAME: &str = "WRITE(16)";
        let blocks = self.blocks_of(NAME, data.len())?;
        self.check_range(NAME, lba, blocks)?;
        let block = self.block_size() as usize;
        let requests = self.transfers().pieces(lba, blocks).map(|piece| {
            // Within `data`, whose length was checked.
            let from = (piece.lba - lba) as usize * block;
            let part = data.slice(from..from + piece.blocks as usize * block);
            let cdb = cdb::write_16(piece.lba, piece.blocks, CacheBits::default());
            Request::change(cdb, Data::Write(part), true)
        });
        self.all(nexus, requests, |_, _| ()).await
    }

    /// Makes durable what was written before, in the same session: SYNCHRONIZE CACHE(16), or (10)
    /// to targets that do not have it.
    ///
    /// # Errors
    /// [`Unsupported`](ScsiErrorKind::Unsupported) if the unit may have a write cache, and no way
    /// to flush it; the [deferred](Self::deferred) error; those of every method that writes. After
    /// an error, what was written since the last flush may be lost, also if another flush succeeds.
    pub async fn flush(&self, nexus: Option<u64>) -> Result<u64> {
        let answered = self.synchronize(nexus).await?;
        match self.deferred() {
            Some(error) => Err(error),
            None => Ok(answered),
        }
    }

    async fn synchronize(&self, nexus: Option<u64>) -> Result<u64> {
        let flush = |cdb: Cdb| Request::change(cdb, Data::None, true);
        let without = &self.without.synchronize_cache_16;
        if !without.load(Ordering::Relaxed) {
            let request = flush(cdb::synchronize_cache_16());
            match self.channel.execute(nexus, &request).await {
                Err(error) if error.is_illegal(Illegal::InvalidOpcode) => {
                    without.store(true, Ordering::Relaxed);
                }
                done => return Ok(done?.nexus),
            }
        }
        let request = flush(cdb::synchronize_cache_10());
        match self.channel.execute(nexus, &request).await {
            Err(error) if error.is_illegal(Illegal::InvalidOpcode) => {
                if self.write_cache() != Some(false) {
                    let kind = ScsiErrorKind::Unsupported("flushing a write cache");
                    return Err(self.channel.error(request.cdb.name(), kind));
                }
                let request = Request::ask(cdb::test_unit_ready(), 0);
                Ok(self.channel.execute(nexus, &request).await?.nexus)
            }
            done => Ok(done?.nexus),
        }
    }

    /// Reads the size, which [`capacity`](Self::capacity) gives from then on.
    ///
    /// # Errors
    /// [`OtherUnit`](ScsiErrorKind::OtherUnit) if its blocks have another size than before; those
    /// of every method. The size is then what it was.
    pub async fn read_capacity(&self, nexus: Option<u64>) -> Result<(Capacity, u64)> {
        let stale = &self.channel.capacity_stale;
        // Before it is read: it may change again meanwhile.
        let was_stale = stale.swap(false, Ordering::AcqRel);
        let read = capacity(&self.channel, nexus)
            .await
            .and_then(|(now, nexus)| match now.block_size == self.block_size() {
                true => Ok((now, nexus)),
                false => {
                    let found = format!("one with blocks of {} bytes", now.block_size);
                    let kind = ScsiErrorKind::OtherUnit { found };
                    Err(self.channel.error("READ CAPACITY(16)", kind))
                }
            });
        match &read {
            Ok((now, _)) => {
                *self
                    .capacity
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = *now;
            }
            Err(_) if was_stale => stale.store(true, Ordering::Release),
            Err(_) => {}
        }
        read
    }

    /// Has a session, a new one if the last has ended, within `deadline`, and returns it.
    ///
    /// # Errors
    /// Those of every method; those of a login.
    pub async fn reach(&self, deadline: Duration) -> Result<u64> {
        let request = Request::ask(cdb::test_unit_ready(), 0);
        let reached = self.channel.execute_within(deadline, None, &request);
        Ok(reached.await?.nexus)
    }

    /// Looks whether this is still the unit that was opened: by its serial number, and its names
    /// as far as they are of the unit itself. Returns the session in which that is so.
    ///
    /// # Errors
    /// [`OtherUnit`](ScsiErrorKind::OtherUnit) if it is another one;
    /// [`NotADisk`](ScsiErrorKind::NotADisk) or `LunNotSupported` if it is gone;
    /// [`Unsupported`](ScsiErrorKind::Unsupported) if it has neither serial number nor names; those
    /// of every method.
    pub async fn check_identity(&self, nexus: Option<u64>) -> Result<u64> {
        const NAME: &str = "INQUIRY";
        // In one session: of two, each might be of another unit.
        let nexus = match nexus {
            Some(nexus) => nexus,
            None => {
                let request = Request::ask(cdb::test_unit_ready(), 0);
                self.channel.execute(None, &request).await?.nexus
            }
        };
        let names = own_names(self.designators());
        if self.serial().is_none() && names.is_empty() {
            let kind = ScsiErrorKind::Unsupported("telling the unit from others");
            return Err(self.channel.error(NAME, kind));
        }
        let other = |found: String| self.channel.error(NAME, ScsiErrorKind::OtherUnit { found });
        if let Some(serial) = self.serial() {
            let found = match page(&self.channel, nexus, 0x80).await? {
                Some(bytes) => {
                    check_device(&self.channel, NAME, &bytes)?;
                    self.channel.checked(NAME, parse_serial(&bytes))?
                }
                None => None,
            };
            if found.as_deref() != Some(serial) {
                return Err(other(match found {
                    Some(found) => format!("serial number {found}, not {serial}"),
                    None => format!("no serial number, not {serial}"),
                }));
            }
        }
        let by_serial = self.serial_is_unique && self.serial().is_some();
        if !names.is_empty() && !by_serial {
            let found = match page(&self.channel, nexus, 0x83).await? {
                Some(bytes) => {
                    check_device(&self.channel, NAME, &bytes)?;
                    self.channel.checked(NAME, parse_designators(&bytes))?
                }
                None => Vec::new(),
            };
            let found = own_names(&found);
            if found != names {
                return Err(other(format!("names {}", found.join(", "))));
            }
        }
        Ok(nexus)
    }
}

/// The names of the unit itself, in order. Those of its ports depend on the way to it, and those of
/// groups on what the administrator puts together.
fn own_names(designators: &[Designator]) -> Vec<String> {
    use DesignatorKind::{Eui64, Naa, ScsiName, T10};
    let own = designators.iter().filter(|one| {
        let names = matches!(one.kind, T10 | Eui64 | Naa | ScsiName);
        names && one.association == Association::LogicalUnit
    });
    let mut names: Vec<String> = own.map(ToString::to_string).collect();
    names.sort();
    names
}

//! Zeroing, giving back, asking for what is allocated, comparing.

use std::sync::atomic::Ordering;

use volmux_iscsi_initiator::Data;

use super::LogicalUnit;
use crate::scsi::cdb::{self, SameBits};
use crate::scsi::channel::Request;
use crate::scsi::error::{Illegal, Result, ScsiErrorKind};
use crate::scsi::lba_status::{LbaStatus, parse_lba_status};
use crate::scsi::opcodes::Operation;
use crate::scsi::unmap;

/// Bytes that one command deallocates. tgt 1.0.85 counts them in 32 bits: of 4 GiB in one range it
/// would deallocate nothing, and say that all is well.
const DEALLOCATED: u32 = 1 << 30;
/// Bytes that one command zeroes, which the target may have to write out.
const ZEROED: u32 = 32 << 20;
/// Room for the status of some ranges of blocks.
const STATUS: u32 = 8 + 16 * 1024;

impl LogicalUnit {
    /// Whether [`unmap`](Self::unmap) is there.
    pub fn can_unmap(&self) -> bool {
        let limits = self.limits();
        let some = limits.max_unmap_blocks > 0 && limits.max_unmap_ranges > 0;
        self.provisioning().unmap && some
    }

    /// Has the unit give back the space of ranges of blocks (first, number), as far as it does:
    /// those within groups of [`unmap_granularity`](crate::scsi::BlockLimits::unmap_granularity).
    /// The others may stay as they are. What is given back reads as zeros if
    /// [`reads_zeros`](Self::reads_zeros); what is not keeps its content. Ranges of no blocks are
    /// left out, but there has to be one.
    ///
    /// # Errors
    /// [`Unsupported`](ScsiErrorKind::Unsupported) if it [can't](Self::can_unmap); those of every
    /// method that writes.
    pub async fn unmap(&self, nexus: Option<u64>, ranges: &[(u64, u64)]) -> Result<u64> {
        const NAME: &str = "UNMAP";
        if !self.can_unmap() {
            let kind = ScsiErrorKind::Unsupported("UNMAP");
            return Err(self.channel.error(NAME, kind));
        }
        for (lba, blocks) in ranges.iter().filter(|(_, blocks)| *blocks > 0) {
            self.check_range(NAME, *lba, *blocks)?;
        }
        let limits = self.limits();
        let most = self.most_blocks(DEALLOCATED, limits.max_unmap_blocks.into());
        let commands = unmap::commands(ranges, self.unmap_cut(most), limits.max_unmap_ranges);
        if commands.is_empty() {
            self.check_range(NAME, 0, 0)?;
        }
        let requests = commands.iter().map(|ranges| {
            let list = unmap::parameter_list(ranges);
            // It has 65528 bytes at most.
            let cdb = cdb::unmap(list.len() as u16);
            let mut request = Request::change(cdb, Data::Write(list), true);
            // tgt 1.0.85 says of each list that it took nothing of it.
            request.allowed.exact = false;
            request
        });
        self.all(nexus, requests, |_, _| ()).await
    }

    /// Makes blocks read as zeros, by WRITE SAME(16). With `may_unmap` their space is given back
    /// where the unit does that and reads such blocks as zeros; else they stay, or become,
    /// allocated.
    ///
    /// # Errors
    /// [`Unsupported`](ScsiErrorKind::Unsupported) if the unit has no WRITE SAME(16), with nothing
    /// changed: zeros have to be written to it. Those of every method that writes.
    pub async fn zero(
        &self,
        nexus: Option<u64>,
        lba: u64,
        blocks: u64,
        may_unmap: bool,
    ) -> Result<u64> {
        const NAME: &str = "WRITE SAME(16)";
        self.check_range(NAME, lba, blocks)?;
        let unsupported = || {
            let kind = ScsiErrorKind::Unsupported(NAME);
            self.channel.error(NAME, kind)
        };
        let told = self.found.write_same == Operation::Unsupported;
        if told || self.without.write_same.load(Ordering::Relaxed) {
            return Err(unsupported());
        }
        let provisioning = self.provisioning();
        let without = &self.without.write_same_unmap;
        if may_unmap
            && provisioning.write_same_16
            && provisioning.reads_zeros
            && !without.load(Ordering::Relaxed)
        {
            match self.write_same(nexus, lba, blocks, true).await {
                // It has promised too much.
                Err(error) if error.is_not_known() => without.store(true, Ordering::Relaxed),
                done => return done,
            }
        }
        match self.write_same(nexus, lba, blocks, false).await {
            Err(error) if error.is_not_known() => {
                if error.is_illegal(Illegal::InvalidOpcode) {
                    self.without.write_same.store(true, Ordering::Relaxed);
                }
                Err(unsupported())
            }
            done => done,
        }
    }

    async fn write_same(
        &self,
        nexus: Option<u64>,
        lba: u64,
        blocks: u64,
        unmap: bool,
    ) -> Result<u64> {
        let limit = self.limits().max_write_same;
        let cut = match unmap {
            true => self.unmap_cut(self.most_blocks(DEALLOCATED, limit)),
            false => self.cut(self.most_blocks(ZEROED, limit)),
        };
        // NDOB only to who knows it: others would write what happens to be in their memory.
        let no_data = self.found.write_same.has_flags(0x01);
        let zeros = match no_data {
            true => Data::None,
            false => Data::Write(vec![0; self.block_size() as usize].into()),
        };
        let bits = SameBits {
            unmap,
            no_data,
            anchor: false,
        };
        let requests = cut.pieces(lba, blocks).map(|piece| {
            let cdb = cdb::write_same_16(piece.lba, piece.blocks, bits);
            Request::change(cdb, zeros.clone(), true)
        });
        self.all(nexus, requests, |_, _| ()).await
    }

    /// Which of the blocks from `lba` on are backed by storage: ranges in order, without gaps, the
    /// first of which begins at `lba`. There may be more behind them: ask again from their end.
    ///
    /// # Errors
    /// [`Unsupported`](ScsiErrorKind::Unsupported) if the unit does not tell;
    /// [`Malformed`](ScsiErrorKind::Malformed) if it does not tell of `lba`; those of every method.
    pub async fn lba_status(&self, nexus: Option<u64>, lba: u64) -> Result<(Vec<LbaStatus>, u64)> {
        let request = Request::ask(cdb::get_lba_status(lba, STATUS), STATUS);
        let name = request.cdb.name();
        self.check_range(name, lba, 1)?;
        let reply = match self.channel.execute(nexus, &request).await {
            Err(error) if error.is_not_known() => {
                let kind = ScsiErrorKind::Unsupported("GET LBA STATUS");
                return Err(self.channel.error(name, kind));
            }
            reply => reply?,
        };
        let ranges = parse_lba_status(&reply.data, lba, self.capacity().blocks);
        Ok((self.channel.checked(name, ranges)?, reply.nexus))
    }

    /// Most blocks of a [`compare_and_write`](Self::compare_and_write); 0 if there is none.
    pub fn max_compare_and_write(&self) -> u8 {
        self.limits().max_compare_and_write
    }

    /// Writes `data` from `lba` on if the blocks there hold `expected`, in one step that no other
    /// command comes into. Both have the same length.
    ///
    /// # Errors
    /// [`Miscompare`](ScsiErrorKind::Miscompare) if they hold something else, with nothing written;
    /// [`Unsupported`](ScsiErrorKind::Unsupported) for more blocks than
    /// [`max_compare_and_write`](Self::max_compare_and_write); those of every method that writes.
    /// After [`Transport`](ScsiErrorKind::Transport) and [`Aborted`](ScsiErrorKind::Aborted) it may
    /// have been done: read the blocks.
    pub async fn compare_and_write(
        &self,
        nexus: Option<u64>,
        lba: u64,
        expected: &[u8],
        data: &[u8],
    ) -> Result<u64> {
        const NAME: &str = "COMPARE AND WRITE";
        let blocks = self.blocks_of(NAME, data.len())?;
        if expected.len() != data.len() {
            let reason = format!(
                "{} bytes to compare, {} to write",
                expected.len(),
                data.len()
            );
            return Err(self
                .channel
                .error(NAME, ScsiErrorKind::InvalidInput(reason)));
        }
        self.check_range(NAME, lba, blocks)?;
        let most = self.max_compare_and_write();
        let Some(blocks) = u8::try_from(blocks).ok().filter(|blocks| *blocks <= most) else {
            let kind = ScsiErrorKind::Unsupported("COMPARE AND WRITE of so many blocks");
            return Err(self.channel.error(NAME, kind));
        };
        let both = Data::Write([expected, data].concat().into());
        // Done twice, the second one finds what the first one wrote.
        let request = Request::change(cdb::compare_and_write(lba, blocks), both, false);
        match self.channel.execute(nexus, &request).await {
            // tgt 1.0.85 tells of 128 blocks, and does not have the command.
            Err(error) if error.is_illegal(Illegal::InvalidOpcode) => {
                Err(self.channel.error(NAME, ScsiErrorKind::Unsupported(NAME)))
            }
            done => Ok(done?.nexus),
        }
    }
}

//! Snapshot, clone, copy and revert: new data that starts as other data.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use tokio::sync::OwnedRwLockWriteGuard;
use volmux_core::{
    ByteRange, ByteSize, Error, ErrorKind, Origin, OriginKind, Provisioning, Result, SpaceRequest,
    Volume, VolumeName,
};

use crate::abilities::Abilities;
use crate::content::Content;
use crate::extents::GRANULARITY;
use crate::handle::Open;
use crate::inner::Inner;
use crate::inuse;
use crate::layout::{PoolDirs, file_error};
use crate::lifecycle::check_not_snapshot;
use crate::queue::Stop;
use crate::record::VolumeRecord;
use crate::staged::StagedData;
use crate::sys::{self, Locked};

/// One read and one write.
const CHUNK: u64 = 1 << 20;
/// What a server is asked to copy at a time: each such request waits until it is durable.
const ON_SERVER: u64 = 8 << 20;
/// Written data that is sent on its way to the disk at a time, so that the last fsync is short.
const WRITEBACK: u64 = 8 << 20;

/// Keeps the source of a copy still: no write through this pool object is half done while it is
/// held, and its exclusive writer, if there is one, keeps all others out.
#[derive(Debug, Default)]
pub struct Quiet {
    pub writer: Option<Arc<Open>>,
    pub _gate: Option<OwnedRwLockWriteGuard<()>>,
}

impl Inner {
    pub fn duplicate(
        &self,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
        quiet: &Quiet,
        stop: &Stop,
    ) -> Result<Volume> {
        self.check_writable(op)?;
        if source == name {
            return Err(Error::new(ErrorKind::InvalidInput, op)
                .with("volume", name)
                .reason("source and target have the same name"));
        }
        let from = self.find(op, source)?;
        let same = |record: &VolumeRecord| {
            record.origin.as_ref().is_some_and(|origin| {
                let same_parent = match &from {
                    Some(from) => origin.parent_id == from.id,
                    None => origin.parent_name == *source,
                };
                origin.kind == kind && same_parent
            })
        };
        if let Some(existing) = self.existing(op, name, same)? {
            return Ok(existing);
        }
        let shares = kind != OriginKind::Copy;
        let (_, record) = self.get(op, source)?;
        stop.check(op)?;
        if shares && self.chains(record.data) {
            return self.share(op, kind, source, name, quiet, same);
        }
        let pool = self.pool(op)?;
        let (from, content) = self.content_to_copy(op, source, quiet)?;
        let provisioning = match kind {
            OriginKind::Copy => from.provisioning,
            _ => Provisioning::Thin,
        };
        let size = from.virtual_size;
        let reserved = self.bytes_to_move(op, &content, shares, provisioning)?;
        // Dropped here: held through a long copy it would stop everybody else's work.
        drop(self.admit(
            op,
            pool,
            SpaceRequest {
                provisioned: size,
                reserved,
            },
        )?);

        let data = self.stage_like(op, pool, &content, shares, quiet, stop)?;
        if provisioning == Provisioning::Thick {
            sys::reserve(data.file(), ByteRange::new(0, size.bytes()))
                .map_err(|e| self.data_error(op, e))?;
        }
        let mut record = VolumeRecord::new(data.node, size, provisioning);
        record.origin = Some(Origin {
            kind,
            parent_id: from.id,
            parent_name: source.clone(),
        });
        let new = pool.lock_new(name, op)?;
        let _admission = self.admit_growth(op, pool, size)?;
        self.publish(op, pool, &new, &record, Some(data), same)
    }

    /// What new data will occupy at once.
    fn bytes_to_move(
        &self,
        op: &'static str,
        content: &Content,
        shares: bool,
        provisioning: Provisioning,
    ) -> Result<ByteSize> {
        let thick = provisioning == Provisioning::Thick;
        match content.raw_file() {
            _ if thick => Ok(ByteSize::new(content.size)),
            _ if shares => Ok(ByteSize::ZERO),
            Some(file) => {
                let metadata = file.metadata().map_err(|e| self.data_error(op, e))?;
                Ok(ByteSize::new((metadata.blocks() * 512).min(content.size)))
            }
            None => self.bytes_to_copy(op, content, thick),
        }
    }

    /// New raw data with what `content` is at this moment.
    fn stage_like(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        content: &Content,
        shares: bool,
        quiet: &Quiet,
        stop: &Stop,
    ) -> Result<StagedData> {
        let failed = |error| self.data_error(op, error);
        stop.check(op)?;
        let data = pool.stage_data().map_err(failed)?;
        let size = ByteSize::new(content.size);
        let Some(file) = content.raw_file() else {
            self.copy_data(op, content, data.file(), size, stop)?;
            return Ok(data);
        };
        if shares {
            sys::clone_file(file, data.file()).map_err(|e| self.reflink_error(op, e))?;
        } else if quiet.writer.is_some() || self.lock(op, file, inuse::lock_against_writers)? {
            self.copy_data(op, content, data.file(), size, stop)?;
        } else if self.abilities.clone {
            // Somebody writes: a moment's image first, and the copy from that.
            let moment = pool.stage_data().map_err(failed)?;
            sys::clone_file(file, moment.file()).map_err(|e| self.reflink_error(op, e))?;
            let still = moment.file().try_clone().map_err(failed)?;
            let still = Content::raw(moment.node, still.into(), content.size);
            self.copy_data(op, &still, data.file(), size, stop)?;
        } else {
            return Err(self.busy(op, file).help(
                "this file system has no reflinks, so a volume that another process writes can't \
                 be copied at one moment: stop that writer, or use XFS or btrfs",
            ));
        }
        let length = data.file().metadata().map_err(failed)?.len();
        if length < size.bytes() {
            return Err(Error::new(ErrorKind::Busy, op)
                .reason("the source was made smaller meanwhile")
                .help("call again"));
        }
        // Only after a resize that was cut short is the source's file longer than its volume.
        if length > size.bytes() {
            data.file().set_len(size.bytes()).map_err(failed)?;
        }
        Ok(data)
    }

    fn reflink_error(&self, op: &'static str, error: io::Error) -> Error {
        if sys::is_clone_unsupported(&error) {
            return Error::new(ErrorKind::Unsupported, op)
                .reason("the file system makes reflinks, but not of this volume's file")
                .help("see that the file is not a swap file, on DAX, or set to no copy-on-write")
                .with_source(error);
        }
        self.data_error(op, error)
    }

    /// Copies the data, not the holes, of the first `size` bytes.
    pub fn copy_data(
        &self,
        op: &'static str,
        from: &Content,
        to: &File,
        size: ByteSize,
        stop: &Stop,
    ) -> Result<()> {
        let failed = |error| self.data_error(op, error);
        to.set_len(size.bytes()).map_err(failed)?;
        let mut ranges = Vec::new();
        let whole = ByteRange::new(0, size.bytes());
        let listed = from.data(whole, &mut |data| {
            ranges.push(data);
            Ok(())
        });
        listed.map_err(failed)?;
        let total = ranges.iter().map(|r| r.length).sum();
        let mut buffer = vec![0; CHUNK as usize];
        let Abilities {
            clone,
            punch,
            remote,
            ..
        } = self.abilities;
        // A server that clones would share the blocks, and a copy has its own. One that can't make
        // holes does not tell of them either: all of the file looks like data.
        let mut on_server = from.raw_file().filter(|_| remote && !clone && punch);
        let sparse = remote && !punch;
        let (mut done, mut behind) = (0, ByteRange::new(0, 0));
        stop.report(0, total);
        for range in ranges {
            let mut at = range.offset;
            while at < range.end() {
                stop.check(op)?;
                let most = if on_server.is_some() {
                    ON_SERVER
                } else {
                    CHUNK
                };
                let piece = ByteRange::new(at, (range.end() - at).min(most));
                if let Some(file) = on_server {
                    if !sys::copy_on_server(file, to, piece).map_err(failed)? {
                        on_server = None;
                        continue;
                    }
                } else {
                    let part = &mut buffer[..piece.length as usize];
                    from.read(part, at).map_err(failed)?;
                    let written = if sparse {
                        write_without_zeros(to, part, at)
                    } else {
                        to.write_all_at(part, at)
                    };
                    written.map_err(failed)?;
                }
                at += piece.length;
                done += piece.length;
                behind = ByteRange::from_to(behind.offset, at);
                if behind.length >= WRITEBACK {
                    sys::start_writeback(to, behind);
                    behind = ByteRange::new(at, 0);
                }
                stop.report(done, total);
            }
        }
        Ok(())
    }

    pub fn revert(&self, name: &VolumeName, snapshot: &VolumeName, stop: &Stop) -> Result<Volume> {
        const OP: &str = "revert_volume";
        self.check_writable(OP)?;
        let (pool, record) = self.get(OP, name)?;
        let (from, content) = self.content(OP, snapshot)?;
        check_not_snapshot(OP, &record, "reverted")?;
        let is_own = from.origin.as_ref().is_some_and(|origin| {
            origin.kind == OriginKind::Snapshot && origin.parent_id == record.id
        });
        if !is_own {
            return Err(Error::new(ErrorKind::InvalidInput, OP)
                .with("snapshot", snapshot)
                .reason("that is not a snapshot of this volume")
                .help("list the volume's own snapshots, or clone the other one"));
        }
        // Before the work, for an early answer; again below, where it counts.
        drop(self.open_alone(OP, pool, &record)?);
        let size = from.virtual_size;
        let growth = size.bytes().saturating_sub(record.virtual_size.bytes());
        let chains = self.chains(from.data);
        let shares = record.provisioning == Provisioning::Thin || !chains;
        let reserved = self.bytes_to_move(OP, &content, shares, record.provisioning)?;
        let request = SpaceRequest {
            provisioned: ByteSize::new(growth),
            reserved,
        };
        drop(self.admit(OP, pool, request)?);
        stop.check(OP)?;
        if chains && shares {
            return self.revert_above(OP, pool, name, &record, &from);
        }
        let quiet = Quiet::default();
        let data = self.stage_like(OP, pool, &content, shares, &quiet, stop)?;
        if record.provisioning == Provisioning::Thick {
            sys::reserve(data.file(), ByteRange::new(0, size.bytes()))
                .map_err(|e| self.data_error(OP, e))?;
        }
        self.exchange(OP, pool, name, &record, size, data, None)
    }

    /// Gives a volume other data, if it is still as `before`, and removes the old. Where what is in the
    /// old counts, the caller has had it `alone` since before it was read.
    #[expect(
        clippy::too_many_arguments,
        reason = "three callers, and nothing that belongs together"
    )]
    pub fn exchange(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        name: &VolumeName,
        before: &VolumeRecord,
        size: ByteSize,
        mut data: StagedData,
        alone: Option<Arc<Locked>>,
    ) -> Result<Volume> {
        let (_locks, moves) = (pool.lock_names(&[name], op)?, pool.lock_move(op)?);
        let (_, mut record) = self.get(op, name)?;
        let same = match alone {
            Some(_) => record == *before,
            None => (record.id, record.data) == (before.id, before.data),
        };
        if !same {
            return Err(Error::new(ErrorKind::Busy, op)
                .reason("another process reverted, replaced or took the volume meanwhile"));
        }
        let _alone = match alone {
            Some(alone) => alone,
            None => Arc::new(self.open_alone(op, pool, &record)?),
        };
        let growth = size.bytes().saturating_sub(record.virtual_size.bytes());
        let _admission = self.admit_growth(op, pool, ByteSize::new(growth))?;
        let old = record.data;
        record.set_data(data.node);
        record.virtual_size = size;
        // The new data no longer is the file that was adopted.
        record.adopted_from = None;
        pool.publish_over(name, &record, Some(&mut data), &moves)
            .map_err(|e| file_error(op, self.layout.full("volumes"), e))?;
        if let Err(error) = pool.remove_data(old) {
            tracing::warn!(volume = %name, data = %old, %error, "data file left behind");
        }
        self.describe(op, name, &record, data.file())
    }
}

/// Writes what is not zero, by the block, where a new file has nothing yet.
fn write_without_zeros(to: &File, data: &[u8], at: u64) -> io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut blocks = data.chunks(GRANULARITY as usize).peekable();
    let mut start = 0;
    while let Some(block) = blocks.next() {
        let mut end = start + block.len();
        if !is_zero(block) {
            while let Some(more) = blocks.next_if(|block| !is_zero(block)) {
                end += more.len();
            }
            to.write_all_at(&data[start..end], at + start as u64)?;
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn without_its_zeros_data_reads_the_same(
            blocks in proptest::collection::vec(any::<bool>(), 0..12),
            rest in 0..5000usize,
            at in 0..9000u64,
        ) {
            let mut data: Vec<u8> = Vec::new();
            for (number, full) in blocks.iter().enumerate() {
                let fill = if *full { number as u8 + 1 } else { 0 };
                data.extend([fill; GRANULARITY as usize]);
            }
            data.extend(vec![7; rest]);
            let file = tempfile::tempfile().expect("a file");
            file.set_len(at + data.len() as u64).expect("its length");
            write_without_zeros(&file, &data, at).expect("write");
            let mut found = vec![1; data.len()];
            file.read_exact_at(&mut found, at).expect("read");
            prop_assert!(found == data);
        }
    }
}

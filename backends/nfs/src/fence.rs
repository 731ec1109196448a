//! Taking a volume from a writer that holds it, dead or alive.
//!
//! A server goes on taking writes into a file that somebody has open, whatever locks say by then. So
//! the volume gets another file, with what the old one holds, and whatever the old writer still writes
//! goes to a file that nobody has any more. It learns of that by its next flush at the latest: each
//! flush looks, after it made everything durable, whether the volume's epoch is still the one that the
//! handle was opened in. The epoch is raised before the old file is copied. So of a flush that
//! succeeded the copy holds everything, and one that came too late fails.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use volmux_core::{
    Access, ByteRange, ByteSize, Error, ErrorKind, Provisioning, Result, Sharing, SpaceRequest,
    VolumeName,
};

use crate::chain::{self, is_frozen};
use crate::content::Content;
use crate::handle::Open;
use crate::inuse;
use crate::layout::file_error;
use crate::lifecycle::check_not_snapshot;
use crate::node::Node;
use crate::pool::Inner;
use crate::queue::Stop;
use crate::staged::StagedData;
use crate::sys;

impl Inner {
    /// Takes a volume from whoever has it open for writing or attached.
    pub fn take_over(&self, op: &'static str, name: &VolumeName, stop: &Stop) -> Result<()> {
        self.check_writable(op)?;
        let pool = self.pool(op)?;
        let (locks, moves) = (pool.lock_names(&[name], op)?, pool.lock_move(op)?);
        let (_, mut record, file) = self.get_data(op, name, OFlags::RDWR)?;
        check_not_snapshot(op, &record, "taken over")?;
        let failed = |error| self.data_error(op, error);
        let free = inuse::lock_for(&file, Access::ReadWrite, Sharing::Exclusive).map_err(failed)?;
        if free && record.attachments.is_empty() {
            return Ok(());
        }
        if free {
            inuse::release(&file).map_err(failed)?;
        }
        let published = |error| file_error(op, self.layout.full("volumes"), error);
        let old = record.data;
        record.set_epoch(record.epoch + 1);
        pool.publish_over(name, &record, None, &moves)
            .map_err(published)?;
        for open in self.open_volumes.handles(record.id) {
            open.fence();
        }

        if self.abilities.remote {
            sys::look_again(&*file).map_err(failed)?;
        }
        let metadata = file.metadata().map_err(failed)?;
        let reserved = match self.abilities.clone {
            true => ByteSize::ZERO,
            false => ByteSize::new(metadata.blocks() * 512),
        };
        let provisioned = ByteSize::ZERO;
        let request = SpaceRequest {
            provisioned,
            reserved,
        };
        let _admission = self.admit(op, pool, request)?;
        let mut data = StagedData::create(&pool.data, old.format).map_err(failed)?;
        if self.abilities.clone {
            sys::clone_file(&file, data.file()).map_err(failed)?;
        } else {
            // All that is in the file, whatever it is: of an image it is as after a power cut, and is
            // counted anew when it is opened.
            let length = metadata.len();
            let tables = chain::tables(old, &file).map_err(|error| self.chain_error(op, error))?;
            let content = Content::raw(Node::raw(old.id), file, length);
            self.copy_data(op, &content, data.file(), ByteSize::new(length), stop)?;
            // As they were before the copy: all that they point to was there then.
            for (offset, table) in tables {
                data.file().write_all_at(&table, offset).map_err(failed)?;
            }
        }
        if old.is_qcow2() {
            chain::set_dirty(data.file(), true).map_err(failed)?;
        }
        if record.provisioning == Provisioning::Thick && !old.is_qcow2() {
            let whole = ByteRange::new(0, record.virtual_size.bytes());
            sys::reserve(data.file(), whole).map_err(failed)?;
        }
        record.set_data(data.node);
        record.adopted_from = None;
        // They had the old file.
        let attachments = std::mem::take(&mut record.attachments);
        pool.publish_over(name, &record, Some(&mut data), &moves)
            .map_err(published)?;
        for attachment in attachments {
            self.release(record.id, &attachment.holder);
        }
        let before = pool.open_data(old, OFlags::RDONLY).map_err(failed)?;
        let frozen = is_frozen(&before).map_err(failed)?;
        if !frozen && let Err(error) = pool.remove_data(old) {
            tracing::warn!(volume = %name, data = %old, %error, "data file left behind");
        }
        drop(locks);
        Ok(())
    }

    /// Fails with `Fenced` if the volume was taken from this handle. For after a flush.
    pub fn check_epoch(&self, op: &'static str, open: &Open) -> Result<()> {
        let pool = self.pool(op)?;
        let called = open.called();
        pool.look_again()
            .map_err(|e| file_error(op, self.layout.full("volumes"), e))?;
        if open.stamp_is_known(pool.stamp(&called)) {
            return Ok(());
        }
        let now = std::time::SystemTime::now();
        let stamp = pool.stamp(&called);
        let record = match self.find(op, &called)? {
            Some(record) if record.id == open.id => record,
            _ => {
                let (name, record) = self.find_renamed(op, pool, open.id)?;
                open.seen_as(name);
                record
            }
        };
        if record.epoch != open.epoch {
            open.fence();
            return Err(fenced(op));
        }
        open.know_stamp(stamp.filter(|stamp| stamp.is_settled(now)));
        Ok(())
    }
}

/// The error of a writer whose volume was taken.
pub fn fenced(op: &'static str) -> Error {
    Error::new(ErrorKind::Fenced, op)
        .reason("another writer has taken the volume over")
        .help("stop using it here; what was flushed before is in the volume")
}

impl Open {
    /// Has all later requests fail.
    pub fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Whether the volume was taken from this handle, as far as it knows.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }
}

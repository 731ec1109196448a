//! Attach and detach: a note in the volume's record of who has it, which outlives this process.

use std::fs::File;

use rustix::fs::OFlags;
use volmux_core::{
    Access, AttachOptions, AttachTarget, Attachment, Error, ErrorKind, Holder, Result, Sharing,
    VolumeId, VolumeName,
};

use crate::chain::is_snapshot;
use crate::identity::act_as_root;
use crate::inner::Inner;
use crate::inuse;
use crate::layout::file_error;
use crate::lifecycle::check_not_snapshot;
use crate::node::Format;
use crate::record::{AttachRecord, VolumeRecord};
use crate::users;

impl Inner {
    pub fn attach(&self, name: &VolumeName, options: &AttachOptions) -> Result<Attachment> {
        const OP: &str = "attach_volume";
        let AttachOptions {
            holder,
            access,
            sharing,
        } = options;
        self.check_writable(OP)?;
        let (pool, _) = self.get(OP, name)?;
        let (_locks, moves) = (pool.lock_names(&[name], OP)?, pool.lock_move(OP)?);
        let (_, mut record) = self.get(OP, name)?;
        if *access == Access::ReadWrite {
            check_not_snapshot(OP, &record, "attached for writing")?;
        }
        let wanted = AttachRecord {
            holder: holder.clone(),
            access: *access,
            sharing: *sharing,
        };
        let against = record
            .attachments
            .iter()
            .find(|other| stands_against(other, &wanted));
        if let Some(other) = against {
            return Err(Error::new(ErrorKind::Busy, OP)
                .reason("the volume is attached in a way that does not go together with this")
                .with("attached_to", &other.holder)
                .help("detach it from there first"));
        }
        if *access == Access::ReadWrite {
            self.check_not_being_taken(OP, &record)?;
        }
        if record.data.is_qcow2() {
            if *sharing == Sharing::Shared && *access == Access::ReadWrite {
                return Err(Error::new(ErrorKind::Unsupported, OP)
                    .reason("a volume that shares data files with a snapshot or a clone has one writer at a time")
                    .help("flatten it first, and it can be shared again"));
            }
            if record.attachments.is_empty() && *access == Access::ReadWrite {
                // A host sees the size that the image has.
                self.fit(OP, pool, &record)?;
            }
        }
        let file = self.open_data(OP, pool, &record, flags_of(&record))?;
        if !record.attachments.contains(&wanted) {
            // Locked until the record says so: whoever opens the volume reads the record after the
            // lock is his.
            // A host that reads a chain would not see a writer's tables.
            let keep_writers_out = record.data.is_qcow2() && *access == Access::ReadOnly;
            let lock = |file: &File| match keep_writers_out {
                true => inuse::lock_against_writers(file),
                false => inuse::lock_for(file, *access, *sharing),
            };
            if !self.lock(OP, &file, lock)? {
                return Err(self.busy(OP, &file));
            }
            record.attachments.push(wanted);
            pool.publish_over(name, &record, None, &moves)
                .map_err(|e| file_error(OP, self.layout.full("volumes"), e))?;
        }
        if let Some(mount) = &self.mount {
            let _root = act_as_root(self.identity).map_err(|e| self.data_error(OP, e))?;
            let kept = mount.keep(record.id, holder.as_str());
            kept.map_err(|e| file_error(OP, &mount.path, e))?;
        }
        let path = self.layout.full("data").join(record.data.to_string());
        Ok(Attachment {
            volume: name.clone(),
            id: record.id,
            holder: holder.clone(),
            access: *access,
            target: match record.data.format {
                Format::Raw => AttachTarget::File { path },
                Format::Qcow2 => AttachTarget::Qcow2 { path },
            },
        })
    }

    pub fn detach(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        const OP: &str = "detach_volume";
        self.check_writable(OP)?;
        if self.find(OP, name)?.is_none() {
            return Ok(());
        }
        let pool = self.pool(OP)?;
        let (_locks, moves) = (pool.lock_names(&[name], OP)?, pool.lock_move(OP)?);
        let Some(mut record) = self.find(OP, name)? else {
            return Ok(());
        };
        let Some(at) = record.attachments.iter().position(|a| a.holder == *holder) else {
            self.release(record.id, holder);
            return Ok(());
        };
        let removed = record.attachments.remove(at);
        if removed.access == Access::ReadWrite {
            let file = self.open_data(OP, pool, &record, flags_of(&record))?;
            self.check_unwritten(OP, &file, &record)?;
            file.sync_all()
                .map_err(|e| file_error(OP, self.layout.full("data"), e))?;
        }
        pool.publish_over(name, &record, None, &moves)
            .map_err(|e| file_error(OP, self.layout.full("volumes"), e))?;
        self.release(record.id, holder);
        Ok(())
    }

    /// Lets the mount go that was kept for an attachment.
    pub fn release(&self, id: VolumeId, holder: &Holder) {
        if let Some(mount) = &self.mount {
            let _root = act_as_root(self.identity);
            mount.release(id, holder.as_str());
        }
    }

    /// `Busy` if the file has a writer, on this host also one that does not say so, and no attachment is
    /// left to account for it.
    fn check_unwritten(&self, op: &'static str, file: &File, left: &VolumeRecord) -> Result<()> {
        let accounted = left
            .attachments
            .iter()
            .any(|a| a.access == Access::ReadWrite);
        if accounted {
            return Ok(());
        }
        let failed = |e| file_error(op, self.layout.full("data"), e);
        let said = inuse::has_writer(file).map_err(failed)?;
        let silent = || {
            // A reader's program may have it open for writing all the same: tgtd has.
            if !left.attachments.is_empty() {
                return false;
            }
            // Root sees the processes of all.
            let _root = act_as_root(self.identity);
            users::write(file)
        };
        if said || silent() {
            Err(self.busy(op, file))
        } else {
            Ok(())
        }
    }
}

/// A snapshot's file may be one that is never written again.
fn flags_of(record: &VolumeRecord) -> OFlags {
    if is_snapshot(record) {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    }
}

/// Whether `other` keeps `wanted` from being attached.
fn stands_against(other: &AttachRecord, wanted: &AttachRecord) -> bool {
    if other.holder == wanted.holder {
        return other != wanted;
    }
    let both_write = (other.access, wanted.access) == (Access::ReadWrite, Access::ReadWrite);
    both_write && (other.sharing, wanted.sharing) != (Sharing::Shared, Sharing::Shared)
}

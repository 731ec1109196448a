//! What the operations of a pool have in common: its parts, a volume's record and its files.

use rustix::fs::OFlags;
use volmux_core::{Error, ErrorKind, Names, Result, ThinPolicy, VolumeName};

use crate::abilities::Abilities;
use crate::handle::OpenVolumes;
use crate::identity::{Acting, Identity, act_as, act_as_root};
use crate::known::KnownRecords;
use crate::layout::{Layout, PoolDirs, file_error};
use crate::mount::Mount;
use crate::record::VolumeRecord;
use crate::sys::Locked;
use crate::{chain, users};

/// What the operations work on.
pub(crate) struct Inner {
    pub layout: Layout,
    pub policy: ThinPolicy,
    pub read_only: bool,
    /// Who the files belong to. Whatever opens or changes any acts as that.
    pub identity: Option<Identity>,
    pub abilities: Abilities,
    pub open_volumes: OpenVolumes,
    pub names: Names,
    pub known_records: KnownRecords,
    /// What the pool is called in messages.
    pub label: String,
    /// Last, so that nothing of it is open any more when it is unmounted.
    pub mount: Option<Mount>,
}

/// Acts as who the files belong to.
pub(crate) fn act(op: &'static str, identity: Option<Identity>) -> Result<Acting> {
    act_as(identity).map_err(|error| {
        let (uid, gid) = identity.map_or((0, 0), |Identity { uid, gid }| (uid, gid));
        Error::new(ErrorKind::PermissionDenied, op)
            .with("uid", uid)
            .with("gid", gid)
            .reason("only root may act as another user")
            .help("run this as root, or as that user and without uid and gid")
            .with_source(error)
    })
}

impl Inner {
    /// Refuses what would change the pool where that was asked for.
    pub fn check_writable(&self, op: &'static str) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::PermissionDenied, op)
                .reason("the pool was opened with read_only=true"));
        }
        Ok(())
    }

    /// The pool, which must be there already.
    pub fn pool(&self, op: &'static str) -> Result<&PoolDirs> {
        self.layout.pool(op)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, op).reason("the directory holds no pool yet")
        })
    }

    /// A volume's record, if there is such a volume.
    pub fn find(&self, op: &'static str, name: &VolumeName) -> Result<Option<VolumeRecord>> {
        let Some(pool) = self.layout.pool(op)? else {
            return Ok(None);
        };
        pool.read(name).map_err(|e| {
            self.layout
                .record_error(op, &format!("volumes/{name}.json"), e)
                .with("volume", name)
        })
    }

    /// A volume's record and the pool.
    pub fn get(&self, op: &'static str, name: &VolumeName) -> Result<(&PoolDirs, VolumeRecord)> {
        match (self.layout.pool(op)?, self.find(op, name)?) {
            (Some(pool), Some(record)) => {
                if record.data.is_qcow2() {
                    self.open_volumes.wait_closed(record.id);
                }
                Ok((pool, record))
            }
            _ => Err(Error::new(ErrorKind::NotFound, op)
                .with("volume", name)
                .reason("there is no such volume in this pool")),
        }
    }

    /// A volume's record, and its data as the record says.
    pub fn get_data(
        &self,
        op: &'static str,
        name: &VolumeName,
        flags: OFlags,
    ) -> Result<(&PoolDirs, VolumeRecord, Locked)> {
        loop {
            let (pool, record) = self.get(op, name)?;
            match self.open_data(op, pool, &record, flags) {
                Ok(file) => return Ok((pool, record, file)),
                // Damage only if it is not that the volume was reverted or deleted in between.
                Err(error) if self.find(op, name)?.is_some_and(|now| now == record) => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }

    /// Opens a record's data and checks that it is all there. For those who know that the record
    /// can't change meanwhile; others call [`get_data`](Self::get_data).
    pub fn open_data(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        record: &VolumeRecord,
        flags: OFlags,
    ) -> Result<Locked> {
        let path = self.layout.full("data").join(record.data.to_string());
        let damaged = |reason: String| {
            Error::new(ErrorKind::Corrupt, op)
                .with("path", path.display())
                .reason(reason)
                .help("restore the data file from a backup, or delete the volume")
        };
        let file = match pool.open_data(record.data, flags) {
            Ok(file) => file,
            // Made to be never written again, just before that came to nothing.
            Err(error)
                if error.kind() == std::io::ErrorKind::PermissionDenied
                    && flags.contains(OFlags::RDWR)
                    && !chain::is_snapshot(record) =>
            {
                let thawed = chain::open_thawed(pool, record.data);
                thawed.map_err(|error| file_error(op, &path, error))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged("the volume's data file is missing".into()));
            }
            Err(error) => return Err(file_error(op, path, error)),
        };
        let metadata = file
            .metadata()
            .map_err(|error| file_error(op, &path, error))?;
        if !metadata.is_file() {
            return Err(damaged(
                "the volume's data file is not a regular file".into(),
            ));
        }
        if record.data.is_qcow2() {
            let header = chain::header_of(record.data, &file);
            let header = header.map_err(|error| self.chain_error(op, error))?;
            let size = header.map_or(0, |header| header.size);
            if size < record.virtual_size.bytes() {
                return Err(damaged(format!(
                    "the volume's data file is an image of {size} bytes and the volume has {}",
                    record.virtual_size.bytes()
                )));
            }
        } else if metadata.len() < record.virtual_size.bytes() {
            return Err(damaged(format!(
                "the volume's data file has {} bytes and the volume {}",
                metadata.len(),
                record.virtual_size.bytes()
            )));
        }
        Ok(file)
    }

    /// `Busy`, naming who has `file` open.
    pub fn busy(&self, op: &'static str, file: &std::fs::File) -> Error {
        // Whose processes they are, root may see.
        let _root = act_as_root(self.identity);
        Error::new(ErrorKind::Busy, op)
            .reason("the volume is in use")
            .with("used_by", users::of(file))
            .help("close or detach it there first")
    }

    /// `Busy` if the volume is attached to anybody.
    pub fn check_detached(&self, op: &'static str, record: &VolumeRecord) -> Result<()> {
        let holders: Vec<&str> = record
            .attachments
            .iter()
            .map(|a| a.holder.as_str())
            .collect();
        if holders.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, op)
            .reason("the volume is attached")
            .with("attached_to", holders.join(", "))
            .help("detach it from there first"))
    }
}

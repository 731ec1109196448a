//! Create, look up, open, resize, rename, delete, adopt.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use volmux_core::{
    Access, ByteRange, ByteSize, CreateOptions, Error, ErrorKind, OpenOptions, Provisioning,
    ResizeOptions, Result, Sharing, SpaceRequest, Volume, VolumeName,
};

use crate::handle::Data;
use crate::inner::Inner;
use crate::layout::{NewName, OWN_NAMES, PoolDirs, file_error, open_beneath};
use crate::node::Format;
use crate::record::{SECTOR, VolumeRecord};
use crate::staged::StagedData;
use crate::sys::Locked;
use crate::{chain, extents, inuse, sys};

/// A size as it will be made.
pub fn checked_size(op: &'static str, size: ByteSize) -> Result<ByteSize> {
    let wrong = |reason| {
        Err(Error::new(ErrorKind::InvalidInput, op)
            .with("size", size.bytes())
            .reason(reason))
    };
    if size == ByteSize::ZERO {
        return wrong("a volume can't have no bytes");
    }
    match size.round_up(SECTOR) {
        Some(size) if i64::try_from(size.bytes()).is_ok() => Ok(size),
        _ => wrong("no file can be that large"),
    }
}

/// Sets a new file's length, and reserves its space if it is thick.
fn set_size(file: &File, size: ByteSize, provisioning: Provisioning, from: u64) -> io::Result<()> {
    file.set_len(size.bytes())?;
    if provisioning == Provisioning::Thick {
        sys::reserve(file, ByteRange::from_to(from, size.bytes()))?;
    }
    Ok(())
}

impl Inner {
    fn size_error(&self, op: &'static str, size: ByteSize, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EFBIG | libc::EINVAL) => Error::new(ErrorKind::InvalidInput, op)
                .with("size", size.bytes())
                .reason("the file system can't hold a file that large")
                .with_source(error),
            _ => self.data_error(op, error),
        }
    }

    /// An error about a data file.
    pub fn data_error(&self, op: &'static str, error: io::Error) -> Error {
        file_error(op, self.layout.full("data"), error)
    }

    pub fn create(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        const OP: &str = "create_volume";
        let size = checked_size(OP, options.size)?;
        self.check_writable(OP)?;
        let provisioning = options.provisioning;
        let same = |record: &VolumeRecord| {
            record.origin.is_none()
                && record.adopted_from.is_none()
                && (record.virtual_size, record.provisioning) == (size, provisioning)
        };
        if let Some(existing) = self.existing(OP, name, same)? {
            return Ok(existing);
        }
        if provisioning == Provisioning::Thick && !self.abilities.reserve {
            return Err(Error::new(ErrorKind::Unsupported, OP)
                .reason("the file system can't reserve space")
                .help("make it a thin volume; over NFS, reserving takes version 4.2"));
        }
        let pool = self.layout.pool_or_init(OP)?;
        let reserved = if provisioning == Provisioning::Thick {
            size
        } else {
            ByteSize::ZERO
        };
        let new = pool.lock_new(name, OP)?;
        let _admission = self.admit(
            OP,
            pool,
            SpaceRequest {
                provisioned: size,
                reserved,
            },
        )?;
        let data = pool.stage_data().map_err(|e| self.data_error(OP, e))?;
        set_size(data.file(), size, provisioning, 0).map_err(|e| self.size_error(OP, size, e))?;
        let record = VolumeRecord::new(data.node, size, provisioning);
        self.publish(OP, pool, &new, &record, Some(data), same)
    }

    /// The volume `name` if there is one and it is the `same` as the caller wants.
    pub fn existing(
        &self,
        op: &'static str,
        name: &VolumeName,
        same: impl Fn(&VolumeRecord) -> bool,
    ) -> Result<Option<Volume>> {
        match self.find(op, name)? {
            None => Ok(None),
            Some(record) if same(&record) => match self.get_data(op, name, OFlags::RDONLY) {
                Ok((pool, record, file)) => {
                    pool.settle().map_err(|e| self.data_error(op, e))?;
                    self.describe(op, name, &record, &file).map(Some)
                }
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Some(record) => Err(Error::new(ErrorKind::AlreadyExists, op)
                .with("volume", name)
                .reason(format!("the name is taken by {}", what_it_is(&record)))
                .help("choose another name, or delete that volume first")),
        }
    }

    /// Publishes a new volume, with `data` unless it shares another one's. If another process was faster with the same, that one it is.
    pub fn publish(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        new: &NewName<'_>,
        record: &VolumeRecord,
        mut data: Option<StagedData>,
        same: impl Fn(&VolumeRecord) -> bool,
    ) -> Result<Volume> {
        let name = new.name;
        loop {
            match pool.publish_new(new, record, data.as_mut()) {
                Ok(()) => {
                    return match &data {
                        Some(data) => self.describe(op, name, record, data.file()),
                        None => {
                            let file = self.open_data(op, pool, record, OFlags::RDONLY)?;
                            self.describe(op, name, record, &file)
                        }
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if let Some(existing) = self.existing(op, name, &same)? {
                        return Ok(existing);
                    }
                    // Deleted again meanwhile: the name is free once more.
                }
                Err(error) => return Err(file_error(op, self.layout.full("volumes"), error)),
            }
        }
    }

    /// What the record and the data file's metadata say.
    pub fn describe(
        &self,
        op: &'static str,
        name: &VolumeName,
        record: &VolumeRecord,
        file: &File,
    ) -> Result<Volume> {
        // Of a chain, only a walk through all of its files would tell.
        let allocated = match record.data.format {
            Format::Raw => {
                let metadata = file.metadata().map_err(|e| self.data_error(op, e))?;
                Some(ByteSize::new(metadata.blocks() * 512))
            }
            Format::Qcow2 => None,
        };
        Ok(record.to_volume(name.clone(), allocated))
    }

    pub fn volume(&self, name: &VolumeName) -> Result<Volume> {
        const OP: &str = "volume";
        let (pool, record, file) = self.get_data(OP, name, OFlags::RDONLY)?;
        let mut volume = self.describe(OP, name, &record, &file)?;
        volume.exclusive = volume.allocated;
        if self.chains(record.data) {
            return self.describe_chain(OP, pool, &record, volume);
        }
        if self.abilities.clone && self.abilities.map {
            let size = record.virtual_size.bytes();
            let found = extents::fragments_and_exclusive(&file, size)
                .map_err(|e| self.data_error(OP, e))?;
            volume.fragments = found.map(|(fragments, _)| fragments);
            volume.exclusive = found.map(|(_, exclusive)| ByteSize::new(exclusive));
        }
        Ok(volume)
    }

    /// Opens and locks a volume's data.
    pub fn open(
        &self,
        op: &'static str,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<(VolumeRecord, Data)> {
        let writes = options.access == Access::ReadWrite;
        if writes {
            self.check_writable(op)?;
        }
        let flags = if writes { OFlags::RDWR } else { OFlags::RDONLY };
        loop {
            let (pool, record, file) = self.get_data(op, name, flags)?;
            if writes {
                check_not_snapshot(op, &record, "opened for writing")?;
                self.check_may_write(op, &record, options.sharing)?;
            }
            let data = if record.data.is_qcow2() {
                let OpenOptions {
                    access, sharing, ..
                } = options;
                match self.open_chain(op, pool, &record, access, sharing) {
                    Ok(image) => Data::Chain(image),
                    // Collected or reverted in between: not an error of this volume as it is now.
                    Err(_)
                        if self
                            .find(op, name)?
                            .is_some_and(|now| now.data != record.data) =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            } else {
                let lock = |file: &File| inuse::lock_for(file, options.access, options.sharing);
                if !self.lock(op, &file, lock)? {
                    return Err(self.busy(op, &file));
                }
                Data::Raw(record.data, Arc::new(file))
            };
            // The record may have changed before the lock was ours: a revert gives other data, an
            // attachment forbids writing. From here on neither can happen.
            let now = self.get(op, name).and_then(|(pool, now)| {
                if writes && now.data == record.data {
                    self.check_may_write(op, &now, options.sharing)?;
                    // Who made, reverted or grew it may have been killed before that was durable,
                    // and what is written from now on must not be lost with it.
                    pool.settle().map_err(|e| self.data_error(op, e))?;
                }
                Ok(now)
            });
            match now {
                Ok(now) if now.data == record.data => return Ok((now, data)),
                refused => {
                    if let Data::Chain(image) = data
                        && writes
                    {
                        image.end_writing().map_err(|e| self.data_error(op, e))?;
                    }
                    refused?;
                }
            }
        }
    }

    /// `Busy` if the volume is attached for writing, or being taken over.
    fn check_may_write(
        &self,
        op: &'static str,
        record: &VolumeRecord,
        sharing: Sharing,
    ) -> Result<()> {
        self.check_not_being_taken(op, record)?;
        let other_writer = record.attachments.iter().find(|a| {
            a.access == Access::ReadWrite
                && (a.sharing, sharing) != (Sharing::Shared, Sharing::Shared)
        });
        match other_writer {
            Some(attached) => Err(Error::new(ErrorKind::Busy, op)
                .reason("the volume is attached for writing")
                .with("attached_to", &attached.holder)
                .help("detach it from there first, or open it read-only")),
            None => Ok(()),
        }
    }

    /// The volume's data, locked for oneself alone; `Busy` if it is attached or open.
    pub fn open_alone(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        record: &VolumeRecord,
    ) -> Result<Locked> {
        self.check_detached(op, record)?;
        self.check_not_being_taken(op, record)?;
        let file = self.open_data(op, pool, record, OFlags::RDWR)?;
        if self.lock(op, &file, inuse::lock_alone)? {
            Ok(file)
        } else {
            Err(self.busy(op, &file))
        }
    }

    /// Takes a lock of a data file; waits for who keeps others from it for a moment only.
    pub fn lock(
        &self,
        op: &'static str,
        file: &File,
        lock: impl Fn(&File) -> io::Result<bool>,
    ) -> Result<bool> {
        inuse::patiently(file, lock).map_err(|e| self.data_error(op, e))
    }

    pub fn resize(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        const OP: &str = "resize_volume";
        let size = checked_size(OP, options.size)?;
        self.check_writable(OP)?;
        let (pool, _) = self.get(OP, name)?;
        let (_locks, moves) = (pool.lock_names(&[name], OP)?, pool.lock_move(OP)?);
        let (_, mut record) = self.get(OP, name)?;
        check_not_snapshot(OP, &record, "resized")?;
        let old = record.virtual_size;
        if record.data.is_qcow2() {
            return self.resize_chain(OP, pool, name, record, size, options, &moves);
        }
        let file = self.open_data(OP, pool, &record, OFlags::RDWR)?;
        let failed = |error| self.size_error(OP, size, error);
        if size > old {
            let growth = ByteSize::new(size.bytes() - old.bytes());
            let thick = record.provisioning == Provisioning::Thick;
            let reserved = if thick { growth } else { ByteSize::ZERO };
            let _admission = self.admit(
                OP,
                pool,
                SpaceRequest {
                    provisioned: growth,
                    reserved,
                },
            )?;
            // What a shrink that was cut short left past the end must not come back.
            file.set_len(old.bytes()).map_err(failed)?;
            if let Err(error) = set_size(&file, size, record.provisioning, old.bytes()) {
                file.set_len(old.bytes()).map_err(failed)?;
                return Err(failed(error));
            }
            file.sync_all().map_err(failed)?;
            record.virtual_size = size;
            pool.publish_over(name, &record, None, &moves)
                .map_err(failed)?;
        } else if size < old {
            check_may_shrink(OP, size, old, options)?;
            let _alone = self.open_alone(OP, pool, &record)?;
            record.virtual_size = size;
            // The record first: a file that is too long is trimmed later, one too short is damage.
            pool.publish_over(name, &record, None, &moves)
                .map_err(failed)?;
            file.set_len(size.bytes())
                .and_then(|()| file.sync_all())
                .map_err(failed)?;
        }
        self.open_volumes.grown(record.id, size.bytes());
        self.describe(OP, name, &record, &file)
    }

    pub fn rename(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        const OP: &str = "rename_volume";
        self.check_writable(OP)?;
        let (pool, record, file) = self.get_data(OP, name, OFlags::RDONLY)?;
        if name == to {
            return self.describe(OP, name, &record, &file);
        }
        let (locks, moves) = (pool.lock_names(&[name, to], OP)?, pool.lock_move(OP)?);
        let (_, record, file) = self.get_data(OP, name, OFlags::RDONLY)?;
        // Who does that knows it by its name.
        self.check_not_being_taken(OP, &record)?;
        self.existing(OP, to, |_| false)?;
        pool.rename(name, to, &locks, &moves)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    Error::new(ErrorKind::AlreadyExists, OP).with("volume", to)
                }
                _ => file_error(OP, self.layout.full("volumes"), error),
            })?;
        self.describe(OP, to, &record, &file)
    }

    pub fn delete(&self, name: &VolumeName) -> Result<()> {
        const OP: &str = "delete_volume";
        self.check_writable(OP)?;
        let Some(pool) = self.layout.pool(OP)? else {
            return Ok(());
        };
        if self.find(OP, name)?.is_none() {
            return pool
                .settle()
                .map_err(|e| file_error(OP, self.layout.full("volumes"), e));
        }
        let _locks = pool.lock_names(&[name], OP)?;
        let Some(record) = self.find(OP, name)? else {
            return Ok(());
        };
        self.check_detached(OP, &record)?;
        // Locked while the volume goes, so that nobody opens what is about to vanish. Data that is
        // damaged or gone must not keep a volume from being deleted.
        // Others may have a snapshot's file below theirs, and use it: it stays, for a collection.
        let is_frozen = |file: &File| Ok(chain::is_snapshot(&record) && chain::is_frozen(file)?);
        let opened = pool.open_data(record.data, OFlags::RDWR);
        let opened = opened.or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied if chain::is_snapshot(&record) => {
                pool.open_data(record.data, OFlags::RDONLY)
            }
            io::ErrorKind::PermissionDenied => chain::open_thawed(pool, record.data),
            _ => Err(error),
        });
        let file = match opened {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.data_error(OP, error)),
        };
        let frozen = match &file {
            Some(file) if is_frozen(file).map_err(|e| self.data_error(OP, e))? => true,
            Some(file) if !self.lock(OP, file, inuse::lock_alone)? => {
                return Err(self.busy(OP, file));
            }
            _ => false,
        };
        if frozen {
            self.check_unopened(OP, &record)?;
        }
        pool.unpublish(name)
            .map_err(|e| file_error(OP, self.layout.full("volumes"), e))?;
        if frozen {
            return Ok(());
        }
        if let Err(error) = pool.remove_data(record.data) {
            // The volume is gone; its space waits for an audit.
            tracing::warn!(volume = %name, data = %record.data, %error, "data file left behind");
        }
        Ok(())
    }

    pub fn adopt(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        const OP: &str = "adopt_volume";
        self.check_writable(OP)?;
        let same = |record: &VolumeRecord| record.adopted_from.as_deref() == Some(what);
        let candidate = self.adoptable(OP, what);
        if matches!(&candidate, Err(e) if e.kind() == ErrorKind::NotFound)
            && let Some(existing) = self.existing(OP, name, same)?
        {
            return Ok(existing);
        }
        let (file, size) = candidate?;
        self.existing(OP, name, |_| false)?;
        let pool = self.layout.pool_or_init(OP)?;
        let request = SpaceRequest {
            provisioned: size,
            reserved: ByteSize::ZERO,
        };
        let new = pool.lock_new(name, OP)?;
        let _admission = self.admit(OP, pool, request)?;
        let data = StagedData::link(pool, file).map_err(|e| file_error(OP, what, e))?;
        let mut record = VolumeRecord::new(data.node, size, Provisioning::Thin);
        record.adopted_from = Some(what.to_owned());
        let volume = self.publish(OP, pool, &new, &record, Some(data), |_| false)?;
        self.finish_adoption(pool, &record)
            .map_err(|e| file_error(OP, what, e))?;
        Ok(volume)
    }

    /// Opens what is to be adopted, if it can be.
    fn adoptable(&self, op: &'static str, what: &str) -> Result<(Locked, ByteSize)> {
        let wrong = |reason: &str, help: &str| {
            Err(Error::new(ErrorKind::InvalidInput, op)
                .with("path", what)
                .reason(reason)
                .help(help))
        };
        let first = what.split('/').next().unwrap_or_default();
        if OWN_NAMES.contains(&first) {
            return wrong(
                "that is the pool's own",
                "name a file that is not part of the pool",
            );
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let fd = match open_beneath(self.layout.root(), what, flags) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::XDEV | Errno::ISDIR | Errno::NOTDIR | Errno::NXIO) => {
                return wrong(
                    "only a regular file below the pool's root can be adopted",
                    "give its path relative to the root, without .. and symbolic links",
                );
            }
            Err(errno) => return Err(file_error(op, self.layout.full(what), errno)),
        };
        let file = Locked::from(File::from(fd));
        let metadata = file.metadata().map_err(|e| file_error(op, what, e))?;
        if !metadata.is_file() {
            return wrong("it is not a regular file", "name a raw image file");
        }
        if metadata.nlink() != 1 {
            return wrong(
                "it has other hard links",
                "remove them, or copy the file first",
            );
        }
        let start = chain::read_start(&file).map_err(|e| file_error(op, what, e))?;
        if chain::header::looks_like_an_image(&start) {
            return wrong(
                "it is a qcow2 image, and a volume begins as a raw one",
                "convert it: qemu-img convert -f qcow2 -O raw FILE RAW",
            );
        }
        let size = metadata.len();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return wrong(
                "its size is not a multiple of 512 bytes, so it is no raw disk image",
                "convert it to raw, or pad it: truncate -s %512 FILE",
            );
        }
        match inuse::lock_alone(&file) {
            Ok(true) => Ok((file, ByteSize::new(size))),
            Ok(false) => Err(self.busy(op, &file)),
            Err(error) => Err(file_error(op, what, error)),
        }
    }

    /// Removes the name under which an adopted file was found, if it still is that file's.
    pub fn finish_adoption(&self, pool: &PoolDirs, record: &VolumeRecord) -> io::Result<bool> {
        let Some(what) = &record.adopted_from else {
            return Ok(false);
        };
        let (parent, file_name) = what.rsplit_once('/').unwrap_or((".", what));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(parent) = open_beneath(self.layout.root(), parent, flags) else {
            return Ok(false);
        };
        let Ok(found) = rustix::fs::statat(&parent, file_name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(false);
        };
        let data = pool.open_data(record.data, OFlags::RDONLY)?.metadata()?;
        if (found.st_dev, found.st_ino) != (data.dev(), data.ino()) {
            return Ok(false);
        }
        rustix::fs::unlinkat(&parent, file_name, AtFlags::empty())?;
        rustix::fs::fsync(&parent)?;
        Ok(true)
    }
}

/// Refuses to shrink without the explicit leave for it.
pub fn check_may_shrink(
    op: &'static str,
    size: ByteSize,
    old: ByteSize,
    options: ResizeOptions,
) -> Result<()> {
    if options.allow_shrink {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, op)
        .with("size", size.bytes())
        .with("present_size", old.bytes())
        .reason("the new size is smaller: what lies past it would be lost")
        .help("allow shrinking explicitly if that is meant"))
}

/// A record in words.
fn what_it_is(record: &VolumeRecord) -> String {
    let made = match &record.origin {
        Some(origin) => format!("{} of {}", origin.kind, origin.parent_name),
        None if record.adopted_from.is_some() => "adopted volume".into(),
        None => format!("{} volume", record.provisioning),
    };
    format!("a {made} of {} bytes", record.virtual_size.bytes())
}

/// `InvalidInput` for what can't be done to a snapshot.
pub fn check_not_snapshot(op: &'static str, record: &VolumeRecord, done: &str) -> Result<()> {
    use volmux_core::OriginKind;
    match &record.origin {
        Some(origin) if origin.kind == OriginKind::Snapshot => {
            Err(Error::new(ErrorKind::InvalidInput, op)
                .reason(format!("a snapshot is read-only and can't be {done}"))
                .help("clone it and use the clone"))
        }
        _ => Ok(()),
    }
}

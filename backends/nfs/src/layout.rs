//! The files of a directory pool, and how they are made, published and removed.
//!
//! ```text
//! ROOT/pool.json            the pool's record; its presence makes the directory a pool
//! ROOT/lock                 empty; its byte ranges are locked per volume name
//! ROOT/volumes/NAME.json    a volume's record; its presence is the volume's existence
//! ROOT/data/ID.raw          a volume's data, named by the id in the record
//! ROOT/data/ID.qcow2        the same, as what differs from another file there (see `chain`)
//! ROOT/tmp/ID.json          records on their way to volumes/
//! ROOT/merge.json           which data file is about to take another one's place, if one is
//! ```
//!
//! Every operation takes effect by one rename or unlink in `volumes/`. Whatever else a crash leaves
//! is not referred to by any record, and so is found by an audit. Files in the making carry a lock
//! that ends with the process, which is how an audit tells them from leftovers.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use volmux_core::{ByteRange, Error, ErrorKind, Result, VolumeId, VolumeName};

use crate::abilities::is_trial;
use crate::identity::Identity;
use crate::inner::act;
use crate::node::{Format, Node};
use crate::record::{
    self, FIRST_VERSION, MAX_RECORD_BYTES, MergeRecord, PoolRecord, Record, VolumeRecord,
};
use crate::staged::{Staged, StagedData, rename_new};
use crate::sys::{self, Lock, Locked};

const POOL_FILE: &str = "pool.json";
const LOCK_FILE: &str = "lock";
/// A merge of data files that has yet to be ended.
const MERGE_FILE: &str = "merge.json";
const DIRS: [&str; 3] = ["volumes", "data", "tmp"];
/// Names in the root that are the pool's own.
pub const OWN_NAMES: [&str; 6] = [POOL_FILE, LOCK_FILE, MERGE_FILE, "volumes", "data", "tmp"];

/// Bytes of the lock file past those of the names.
const ADMISSION: u64 = 1 << 62;
const MOVES: u64 = ADMISSION + 1;
const MOVES_GATE: u64 = ADMISSION + 2;
const COLLECTION: u64 = ADMISSION + 3;
/// How long to wait for another process that changes the same volume's record.
const NAME_LOCK_WAIT: Duration = Duration::from_secs(30);

/// The root directory, and the pool in it if there is one yet.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    root: OwnedFd,
    may_init: bool,
    pool: OnceLock<PoolDirs>,
}

/// The open directories of an initialised pool.
#[derive(Debug)]
pub struct PoolDirs {
    /// `volumes/`.
    pub volumes: OwnedFd,
    /// `data/`.
    pub data: OwnedFd,
    /// `tmp/`.
    pub tmp: OwnedFd,
    root: OwnedFd,
    /// Whether it is on an NFS server, where other hosts change it too.
    remote: bool,
}

/// Opens `path` below `dir`; no symbolic link is followed, and nothing outside is reached.
pub fn open_beneath(dir: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mode = if flags.contains(OFlags::CREATE) {
        Mode::RUSR | Mode::WUSR
    } else {
        Mode::empty()
    };
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // A rename elsewhere in the tree made the kernel give up its check; it says to retry.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// An error about a file of the pool.
pub fn file_error(op: &'static str, path: impl AsRef<Path>, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    let path = path.as_ref().display();
    match error.raw_os_error() {
        Some(libc::ELOOP) => Error::new(ErrorKind::Corrupt, op)
            .with("path", path)
            .reason("there is a symbolic link where the pool keeps a file of its own")
            .help("find out who put it there; remove it or put the file back"),
        Some(libc::EISDIR | libc::ENXIO | libc::ENOTDIR) => Error::new(ErrorKind::Corrupt, op)
            .with("path", path)
            .reason("where the pool keeps a file of its own there is something else")
            .help("find out who put it there; remove it or put the file back"),
        Some(libc::EROFS) => Error::from_io(op, error)
            .with("path", path)
            .reason("the file system is read-only")
            .help("mount it read-write (if it turned read-only by itself, see the kernel's log)"),
        Some(libc::EACCES | libc::EPERM) => Error::from_io(op, error)
            .with("path", path)
            .reason("this user may not do that there")
            .help("see who owns it (ls -l); an NFS server takes root for nobody unless the export says no_root_squash: give the directory to that user (chown nobody)"),
        Some(libc::ESTALE) => Error::new(ErrorKind::Unavailable, op)
            .with("path", path)
            .reason("the server no longer knows this file (stale handle)")
            .help(
                "see whether the export was moved, replaced or restored; then open the pool again",
            )
            .with_source(error),
        Some(libc::ENOSPC | libc::EDQUOT) => Error::from_io(op, error)
            .with("path", path)
            .reason("the file system is full")
            .help("delete volumes or snapshots, run an audit, or enlarge the file system"),
        _ => Error::from_io(op, error).with("path", path),
    }
}

/// `NAME.json`.
pub fn record_file(name: &VolumeName) -> String {
    format!("{name}.json")
}

impl Layout {
    /// Opens the root and the pool in it, if there is one. Changes nothing.
    pub fn open(
        path: &Path,
        may_init: bool,
        identity: Option<Identity>,
        op: &'static str,
    ) -> Result<Layout> {
        let shown = path.display();
        if !path.is_absolute() {
            return Err(Error::new(ErrorKind::InvalidConfig, op)
                .with("path", shown)
                .reason("a directory pool needs an absolute path"));
        }
        // The way there is this host's, and root's; what is there belongs to somebody else.
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let way = rustix::fs::open(path, flags | OFlags::PATH, Mode::empty());
        let canonical = path.canonicalize();
        let _acting = act(op, identity)?;
        let root =
            way.and_then(|way| rustix::fs::openat(way, ".", flags | OFlags::RDONLY, Mode::empty()));
        let root = root.map_err(|errno| match errno {
            Errno::NOTDIR => Error::new(ErrorKind::InvalidConfig, op)
                .with("path", shown)
                .reason("this is not a directory")
                .help("name the directory that is to hold the volumes"),
            Errno::NOENT => Error::new(ErrorKind::NotFound, op)
                .with("path", shown)
                .reason("there is no such directory")
                .help(format!("make it first: mkdir -p {}", path.display())),
            errno => file_error(op, path, errno),
        })?;
        let path = canonical.map_err(|error| file_error(op, path, error))?;
        let layout = Layout {
            path,
            root,
            may_init,
            pool: OnceLock::new(),
        };
        layout.load(op)?;
        Ok(layout)
    }

    /// The root's absolute path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root directory.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The pool, or `None` while the directory is not one yet.
    pub fn pool(&self, op: &'static str) -> Result<Option<&PoolDirs>> {
        match self.pool.get() {
            Some(pool) => Ok(Some(pool)),
            // Another process may have made it meanwhile.
            None => self.load(op),
        }
    }

    /// The pool, which is made if the directory is not one yet and may become one.
    pub fn pool_or_init(&self, op: &'static str) -> Result<&PoolDirs> {
        if let Some(pool) = self.pool(op)? {
            return Ok(pool);
        }
        self.init(op)?;
        self.load(op)?.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, op)
                .with("pool", self.path.display())
                .reason("the pool's record vanished while it was made")
        })
    }

    /// A name below the root, as the whole path for messages.
    pub fn full(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    fn load(&self, op: &'static str) -> Result<Option<&PoolDirs>> {
        let record = read_record::<PoolRecord>(&self.root, POOL_FILE)
            .map_err(|error| self.record_error(op, POOL_FILE, error))?;
        if record.is_none() {
            return Ok(None);
        }
        let dir = |name: &str| {
            open_beneath(&self.root, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|errno| {
                let error = file_error(op, self.full(name), errno);
                match errno {
                    Errno::NOENT | Errno::NOTDIR => error
                        .with_kind(ErrorKind::Corrupt)
                        .reason("the pool lacks one of its directories")
                        .help("restore it from a backup, or make it again if it was empty"),
                    _ => error,
                }
            })
        };
        let [volumes, data, tmp] = [dir(DIRS[0])?, dir(DIRS[1])?, dir(DIRS[2])?];
        let failed = |error| file_error(op, &self.path, error);
        let root = self.root.try_clone().map_err(failed)?;
        let remote = sys::is_remote(&root).map_err(failed)?;
        Ok(Some(self.pool.get_or_init(|| PoolDirs {
            volumes,
            data,
            tmp,
            root,
            remote,
        })))
    }

    /// Makes the pool. Two processes may do so at once; one record wins.
    fn init(&self, op: &'static str) -> Result<()> {
        if !self.may_init {
            self.check_empty(op)?;
        }
        let at = |name: &str, error: io::Error| file_error(op, self.full(name), error);
        for name in DIRS {
            match rustix::fs::mkdirat(&self.root, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(at(name, errno.into())),
            }
        }
        open_beneath(&self.root, LOCK_FILE, OFlags::WRONLY | OFlags::CREATE)
            .map_err(|errno| at(LOCK_FILE, errno.into()))?;
        let tmp = open_beneath(&self.root, DIRS[2], OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| at(DIRS[2], errno.into()))?;
        let record = PoolRecord {
            version: FIRST_VERSION,
            id: VolumeId::random(),
            created: record::now(),
        };
        let staged = Staged::record(&tmp, &record).map_err(|error| at("tmp", error))?;
        match staged.publish_new(&self.root, POOL_FILE) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(POOL_FILE, error)),
            // Also where another process was faster: it may have died before it came to this.
            _ => rustix::fs::fsync(&self.root).map_err(|errno| at(POOL_FILE, errno.into())),
        }
    }

    fn check_empty(&self, op: &'static str) -> Result<()> {
        let dir = Dir::read_from(&self.root).map_err(|errno| file_error(op, &self.path, errno))?;
        for entry in dir {
            let entry = entry.map_err(|errno| file_error(op, &self.path, errno))?;
            let name = entry.file_name().to_string_lossy();
            // lost+found is in every new ext4; our own names may be left of an init cut short.
            let known = [".", "..", "lost+found"].contains(&&*name)
                || OWN_NAMES.contains(&&*name)
                || name.starts_with(".nfs")
                || is_trial(&name);
            if !known {
                return Err(Error::new(ErrorKind::InvalidConfig, op)
                    .with("pool", self.path.display())
                    .reason(format!(
                        "the directory is not a volmux pool and holds {name:?}"
                    ))
                    .help("name an empty directory, or add ?init=true to make this one a pool"));
            }
        }
        Ok(())
    }

    /// What a failure to read the record `file` means.
    pub fn record_error(&self, op: &'static str, file: &str, error: ReadRecordError) -> Error {
        match error {
            ReadRecordError::Io(error) => file_error(op, self.full(file), error),
            ReadRecordError::Record(error @ record::RecordError::Version(_)) => {
                Error::new(ErrorKind::InvalidConfig, op)
                    .with("path", self.full(file).display())
                    .reason(error)
                    .help("use a newer volmux")
            }
            ReadRecordError::Record(error) => Error::new(ErrorKind::Corrupt, op)
                .with("path", self.full(file).display())
                .reason(error)
                .help("put the file back from a backup; the data itself is not touched"),
        }
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadRecordError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Record(#[from] record::RecordError),
}

/// Reads a record; `None` if there is no such file.
fn read_record<T: Record>(
    dir: &OwnedFd,
    name: &str,
) -> std::result::Result<Option<T>, ReadRecordError> {
    // One component, so O_NOFOLLOW is all that is needed; O_NONBLOCK because a FIFO may stand there.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(io::Error::from(errno).into()),
    };
    let mut buffer = [0; 4096];
    let read = loop {
        match (&file).read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    // A regular file gives all that fits, so there is no more; and the record's checksum would tell.
    if read < buffer.len() {
        return Ok(Some(record::decode(&buffer[..read])?));
    }
    let mut bytes = buffer.to_vec();
    (&file)
        .take((MAX_RECORD_BYTES - bytes.len()) as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(record::RecordError::Incomplete.into());
    }
    Ok(Some(record::decode(&bytes)?))
}

impl PoolDirs {
    /// One of the pool's directories by its name.
    ///
    /// # Panics
    /// For any other name.
    pub fn dir(&self, name: &str) -> &OwnedFd {
        match name {
            "volumes" => &self.volumes,
            "data" => &self.data,
            "tmp" => &self.tmp,
            _ => unreachable!("{name} is not a directory of a pool"),
        }
    }

    /// Reads a volume's record; `None` if there is no such volume.
    pub fn read(
        &self,
        name: &VolumeName,
    ) -> std::result::Result<Option<VolumeRecord>, ReadRecordError> {
        self.look_again()?;
        read_record(&self.volumes, &record_file(name))
    }

    /// Lets go of what this host remembers of `volumes/`, where others may have changed it.
    pub fn look_again(&self) -> io::Result<()> {
        if self.remote {
            sys::look_again(&self.volumes)?;
        }
        Ok(())
    }

    /// `volumes/`, with a position of its own.
    pub fn record_dir(&self) -> io::Result<Dir> {
        self.look_again()?;
        let fd = open_beneath(&self.volumes, ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Dir::new(fd)?)
    }

    /// Opens a data file.
    pub fn open_data(&self, node: Node, flags: OFlags) -> io::Result<Locked> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(
            &self.data,
            node.to_string(),
            flags,
            Mode::empty(),
        )?)
        .into())
    }

    /// Removes a data file; one that is gone is fine.
    pub fn remove_data(&self, node: Node) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.data, node.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes a data file, empty and marked as in the making.
    pub fn stage_data(&self) -> io::Result<StagedData> {
        StagedData::create(&self.data, Format::Raw)
    }

    /// Writes `record` for a name that must be free. `AlreadyExists` otherwise.
    ///
    /// `data`, if it is new, is made durable first: a record must never be without its data.
    pub fn publish_new(
        &self,
        new: &NewName<'_>,
        record: &VolumeRecord,
        data: Option<&mut StagedData>,
    ) -> io::Result<()> {
        // On a journalling file system the first of these writes the journal up to here, data file
        // included, and the others find nothing left to write.
        let staged = Staged::record(&self.tmp, record)?;
        if let Some(data) = &data {
            data.staged.file.sync_all()?;
            rustix::fs::fsync(&self.data)?;
        }
        staged.publish_new(&self.volumes, &record_file(new.name))?;
        // From here on the record refers to it, even should the next step fail.
        if let Some(data) = data {
            data.staged.remove = false;
        }
        Ok(rustix::fs::fsync(&self.volumes)?)
    }

    /// Replaces the record of `name`; with `data`, that too is made durable first. The caller holds
    /// [`lock_move`](Self::lock_move).
    pub fn publish_over(
        &self,
        name: &VolumeName,
        record: &VolumeRecord,
        data: Option<&mut StagedData>,
        _moves: &NameLock,
    ) -> io::Result<()> {
        let staged = Staged::record(&self.tmp, record)?;
        if let Some(data) = &data {
            data.staged.file.sync_all()?;
            rustix::fs::fsync(&self.data)?;
        }
        staged.publish_over(&self.volumes, &record_file(name))?;
        if let Some(data) = data {
            data.staged.remove = false;
        }
        Ok(rustix::fs::fsync(&self.volumes)?)
    }

    /// The merge that has yet to be ended, if there is one.
    pub fn merge(&self) -> std::result::Result<Option<MergeRecord>, ReadRecordError> {
        if self.remote {
            sys::look_again(&self.root)?;
        }
        read_record(&self.root, MERGE_FILE)
    }

    /// Notes that a merge has to be ended, durably.
    pub fn begin_merge(&self, record: &MergeRecord) -> io::Result<()> {
        let staged = Staged::record(&self.tmp, record)?;
        staged.publish_over(&self.root, MERGE_FILE)?;
        Ok(rustix::fs::fsync(&self.root)?)
    }

    /// Takes that note away, durably.
    pub fn end_merge(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.root, MERGE_FILE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(rustix::fs::fsync(&self.root)?)
    }

    /// The data files.
    pub fn nodes(&self) -> io::Result<Vec<Node>> {
        if self.remote {
            sys::look_again(&self.data)?;
        }
        let dir = Dir::new(open_beneath(
            &self.data,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY,
        )?)?;
        let mut nodes = Vec::new();
        for entry in dir {
            let name = entry?.file_name().to_string_lossy().into_owned();
            nodes.extend(name.parse::<Node>());
        }
        Ok(nodes)
    }

    /// Removes the record of `name`, durably.
    pub fn unpublish(&self, name: &VolumeName) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.volumes, record_file(name), AtFlags::empty()) {
            // A server that was asked again, because its answer was lost, has done it already.
            Err(Errno::NOENT) if self.remote => {}
            removed => removed?,
        }
        Ok(rustix::fs::fsync(&self.volumes)?)
    }

    /// Renames a volume, durably; `to` must be free. The caller has locked both names, and holds
    /// [`lock_move`](Self::lock_move).
    pub fn rename(
        &self,
        name: &VolumeName,
        to: &VolumeName,
        _names: &[NameLock],
        _moves: &NameLock,
    ) -> io::Result<()> {
        let (dir, from, new) = (&self.volumes, record_file(name), record_file(to));
        match rename_new(dir, &from, dir, &new) {
            // NFS has no such thing, and all who would take the name are kept out.
            Err(Errno::INVAL) if self.remote => {
                sys::look_again(dir)?;
                match rustix::fs::statat(dir, &new, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => rustix::fs::renameat(dir, &from, dir, &new)?,
                    Ok(_) => return Err(Errno::EXIST.into()),
                    Err(errno) => return Err(errno.into()),
                }
            }
            renamed => renamed?,
        }
        Ok(rustix::fs::fsync(dir)?)
    }

    /// Keeps a name from being given to two volumes at once, one that is new and one that is
    /// renamed, where the file system itself does not see to that.
    pub fn lock_new<'a>(&self, name: &'a VolumeName, op: &'static str) -> Result<NewName<'a>> {
        let locks = if self.remote {
            self.lock_names(&[name], op)?
        } else {
            Vec::new()
        };
        Ok(NewName {
            name,
            _locks: locks,
        })
    }

    /// Locks names against other processes (and other pools of this one) that would change their
    /// records. Held until the guards are dropped.
    pub fn lock_names(&self, names: &[&VolumeName], op: &'static str) -> Result<Vec<NameLock>> {
        let mut bytes: Vec<u64> = names.iter().map(|n| name_hash(n.as_str()) >> 2).collect();
        // In one order everywhere, so that two operations never wait for each other.
        bytes.sort_unstable();
        bytes.dedup();
        bytes
            .into_iter()
            .map(|byte| self.lock_byte(byte, Lock::Exclusive, op))
            .collect()
    }

    /// As [`lock_names`](Self::lock_names), if nobody else has them now.
    pub fn try_lock_name(&self, name: &VolumeName, op: &'static str) -> Result<Option<NameLock>> {
        self.try_lock_byte(name_hash(name.as_str()) >> 2, Lock::Exclusive, op)
    }

    /// Makes this the only one that collects garbage, if no other one does.
    pub fn try_lock_collection(&self, op: &'static str) -> Result<Option<NameLock>> {
        self.try_lock_byte(COLLECTION, Lock::Exclusive, op)
    }

    /// Locks the decision whether there is room for a new volume.
    pub fn lock_admission(&self, op: &'static str) -> Result<NameLock> {
        self.lock_byte(ADMISSION, Lock::Exclusive, op)
    }

    /// Keeps records from being renamed or replaced. A directory may be read past such a record
    /// without ever showing it, and what no record refers to is removed.
    pub fn lock_moves(&self, op: &'static str) -> Result<[NameLock; 2]> {
        let gate = self.lock_byte(MOVES_GATE, Lock::Exclusive, op)?;
        Ok([self.lock_byte(MOVES, Lock::Exclusive, op)?, gate])
    }

    /// For those who rename or replace a record.
    pub fn lock_move(&self, op: &'static str) -> Result<NameLock> {
        // Through the gate, so that many who move one after the other don't keep out for ever the
        // one that waits for all of them.
        let _gate = self.lock_byte(MOVES_GATE, Lock::Shared, op)?;
        self.lock_byte(MOVES, Lock::Shared, op)
    }

    /// Makes what is seen in `volumes/` durable: who made it may have been killed just before.
    pub fn settle(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.volumes)?)
    }

    fn lock_byte(&self, byte: u64, lock: Lock, op: &'static str) -> Result<NameLock> {
        let file = self.lock_file(op)?;
        let deadline = Instant::now() + NAME_LOCK_WAIT;
        let mut pause = Duration::from_micros(100);
        while !try_lock_in(&file, byte, lock, op)? {
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::Busy, op)
                    .reason("another process has been at work on the pool's records for 30 s")
                    .help("see who has the pool's lock file open: fuser -v ROOT/lock"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(NameLock { _file: file })
    }

    fn try_lock_byte(&self, byte: u64, lock: Lock, op: &'static str) -> Result<Option<NameLock>> {
        let file = self.lock_file(op)?;
        let locked = try_lock_in(&file, byte, lock, op)?;
        Ok(locked.then_some(NameLock { _file: file }))
    }

    fn lock_file(&self, op: &'static str) -> Result<Locked> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
        let fd = open_beneath(&self.root, LOCK_FILE, flags);
        let fd = fd.map_err(|errno| file_error(op, LOCK_FILE, errno))?;
        Ok(Locked::from(File::from(fd)))
    }
}

fn try_lock_in(file: &File, byte: u64, lock: Lock, op: &'static str) -> Result<bool> {
    sys::try_lock(file, lock, ByteRange::new(byte, 1))
        .map_err(|error| file_error(op, LOCK_FILE, error))
}

/// FNV-1a: the same in every process and version, which is all that is asked of it here (names
/// that collide merely wait for each other).
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A name that is about to be a volume's. Taken before [`lock_admission`](PoolDirs::lock_admission).
#[derive(Debug)]
pub struct NewName<'a> {
    /// The name.
    pub name: &'a VolumeName,
    _locks: Vec<NameLock>,
}

impl<'a> NewName<'a> {
    /// A name whose lock the caller has, among others.
    pub fn locked(name: &'a VolumeName, locks: Vec<NameLock>) -> NewName<'a> {
        NewName {
            name,
            _locks: locks,
        }
    }
}

/// A locked name. The lock ends with the file descriptor.
#[derive(Debug)]
pub struct NameLock {
    _file: Locked,
}

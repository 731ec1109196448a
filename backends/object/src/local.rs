//! A directory as an object store, each object a file.
//!
//! What a put has answered outlives a power cut: the file, its name, and every directory above it
//! that the put made. Files in the making are in `.tmp/`, each with a lock that ends with the
//! process, by which [`LocalStore::leftovers`] tells them from those that a crash left.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::store::READ_LIMIT;
use crate::walk::Walk;

/// Where files are made.
pub(crate) const MAKING: &str = ".tmp";
const STORE: &str = "directory";
/// A directory may be removed by whoever empties it, between being found and being used.
const TRIES: u32 = 16;
/// Names of directories that are remembered as durable.
const REMEMBERED: usize = 4096;

/// A directory as an object store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LocalStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: OwnedFd,
    path: PathBuf,
    durable: Mutex<BTreeSet<String>>,
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.path.display())
    }
}

/// How much a file system holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// In all.
    pub total: u64,
    /// Occupied, by anybody.
    pub used: u64,
    /// Left for this user.
    pub free: u64,
}

impl LocalStore {
    /// The store in an existing directory. Blocks, as every method that is not async does.
    pub fn open(path: &FsPath) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(LocalStore(Arc::new(Inner {
            root,
            path: path.to_owned(),
            durable: Mutex::default(),
        })))
    }

    /// What the file system holds.
    pub fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.0.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space {
            total: bytes(stat.f_blocks),
            used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
            free: bytes(stat.f_bavail),
        })
    }

    /// The files that a crash left in the making, and their lengths; removes them with `remove`.
    pub fn leftovers(&self, remove: bool) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        let Some(making) = self.0.directory(MAKING)? else {
            return Ok(found);
        };
        for entry in rustix::fs::Dir::read_from(&making)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(&making, name, flags, Mode::empty()) {
                Ok(file) => File::from(file),
                // Finished meanwhile; or a symbolic link, which is not ours to judge.
                Err(Errno::NOENT | Errno::LOOP) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let meta = file.metadata()?;
            if remove && meta.is_file() {
                ignore_missing(rustix::fs::unlinkat(&making, name, AtFlags::empty()))?;
            }
            let name = format!("{MAKING}/{}", name.to_string_lossy());
            found.push((name, meta.len()));
        }
        found.sort();
        Ok(found)
    }

    /// One of its directories; `None` if there is none of that name.
    pub fn directory(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        self.0.directory(name)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await?
    }
}

/// A name as the file system has it; only what is safe below the root.
pub(crate) fn relative(location: &Path) -> Result<String> {
    let name = location.as_ref();
    let fits = |part: &str| !matches!(part, "" | "." | "..") && part.len() < 256;
    if !name.split('/').all(fits) || name.contains('\0') || name.split('/').next() == Some(MAKING) {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    Ok(name.to_owned())
}

pub(crate) fn failed(error: impl Into<io::Error>) -> Error {
    let mut error: io::Error = error.into();
    if let Some(errno) = Errno::from_io_error(&error)
        && matches!(
            errno,
            Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::NOTDIR
        )
    {
        error = io::Error::new(
            io::ErrorKind::InvalidData,
            "there is something else where a file of the store belongs",
        );
    }
    Error::Generic {
        store: STORE,
        source: Box::new(error),
    }
}

fn missing(name: &str) -> Error {
    Error::NotFound {
        path: name.to_owned(),
        source: Box::new(io::Error::from(io::ErrorKind::NotFound)),
    }
}

fn ignore_missing(done: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// The directory that a name is in, and its name there.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

impl Inner {
    /// Opens what is below the root without following a symbolic link.
    fn open_beneath(&self, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let name = if name.is_empty() { "." } else { name };
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve) {
                // A rename elsewhere made the kernel give up its check.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
    }

    fn directory(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match self.open_beneath(name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A directory, with those above it, made durable once.
    fn durable_directory(&self, name: &str) -> io::Result<OwnedFd> {
        let known = |name: &str| self.durable().contains(name);
        if (name.is_empty() || known(name))
            && let Some(dir) = self.directory(name)?
        {
            return Ok(dir);
        }
        let (above, own) = split(name);
        if own.is_empty() {
            return Err(Errno::NOENT.into());
        }
        let parent = self.durable_directory(above)?;
        match rustix::fs::mkdirat(&parent, own, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Also where it was there: whoever made it may not have come to this yet.
        rustix::fs::fsync(&parent)?;
        let dir = self.directory(name)?.ok_or(Errno::NOENT)?;
        let mut durable = self.durable();
        if durable.len() >= REMEMBERED {
            durable.clear();
        }
        durable.insert(name.to_owned());
        Ok(dir)
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, name: &str, payload: &PutPayload, create: bool) -> Result<()> {
        for _ in 0..TRIES {
            match self.try_put(name, payload, create) {
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                    let (dir, _) = split(name);
                    self.durable()
                        .retain(|known| !dir.starts_with(known.as_str()) && known != MAKING);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(Error::AlreadyExists {
                        path: name.to_owned(),
                        source: Box::new(error),
                    });
                }
                done => return done.map_err(failed),
            }
        }
        Err(missing(name))
    }

    fn try_put(&self, name: &str, payload: &PutPayload, create: bool) -> io::Result<()> {
        let making = self.durable_directory(MAKING)?;
        let making = Making::new(making)?;
        for part in payload {
            (&making.file).write_all(part)?;
        }
        making.file.sync_all()?;
        let (dir, own) = split(name);
        let dir = self.durable_directory(dir)?;
        let published = making.publish(&dir, own, create);
        if matches!(published, Ok(()) | Err(Errno::EXIST)) {
            // Also what another one put is only there for good with this.
            rustix::fs::fsync(&dir)?;
        }
        Ok(published?)
    }

    fn get(&self, location: &Path, options: &GetOptions) -> Result<GetResult> {
        let name = relative(location)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match self.open_beneath(&name, flags) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Err(missing(&name)),
            Err(errno) => return Err(failed(errno)),
        };
        let meta = file.metadata().map_err(failed)?;
        if meta.is_dir() {
            return Err(missing(&name));
        }
        if !meta.is_file() {
            return Err(failed(Errno::NXIO));
        }
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: meta.modified().map_err(failed)?.into(),
            size: meta.size(),
            e_tag: None,
            version: None,
        };
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            None => 0..meta.size,
            Some(range) => range.as_range(meta.size).map_err(|error| Error::Generic {
                store: STORE,
                source: Box::new(error),
            })?,
        };
        let range = if options.head { 0..0 } else { range };
        let bytes = read_range(file, &range).map_err(failed)?;
        let part = Ok(Bytes::from(bytes));
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::iter([part]).boxed()),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Extensions::default(),
        })
    }

    fn delete(&self, location: &Path) -> Result<()> {
        let name = relative(location)?;
        let (mut dir, mut own) = split(&name);
        let open = self.directory(dir).map_err(failed)?;
        let open = open.ok_or_else(|| missing(&name))?;
        match rustix::fs::unlinkat(&open, own, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::ISDIR) => return Err(missing(&name)),
            Err(errno) => return Err(failed(errno)),
        }
        // What holds nothing any more goes too, as in a store that has no directories.
        while !dir.is_empty() {
            (dir, own) = split(dir);
            let Ok(Some(open)) = self.directory(dir) else {
                break;
            };
            if rustix::fs::unlinkat(&open, own, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn read_range(mut file: File, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let length = range.end - range.start;
    if length > READ_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // Not zeroed first, as a buffer for a read of an exact length would have to be.
    let mut bytes = Vec::with_capacity(length as usize);
    file.seek(SeekFrom::Start(range.start))?;
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// A file in the making; removed when dropped.
struct Making {
    dir: OwnedFd,
    name: String,
    file: File,
}

impl Making {
    fn new(dir: OwnedFd) -> io::Result<Self> {
        let name = Uuid::new_v4().simple().to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(&dir, &name, flags, mode)?);
        let making = Making { dir, name, file };
        rustix::fs::flock(&making.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(making)
    }

    /// Gives the file its name; fails with `EXIST` for `create` if there is one.
    fn publish(&self, dir: &OwnedFd, name: &str, create: bool) -> rustix::io::Result<()> {
        if !create {
            return rustix::fs::renameat(&self.dir, &self.name, dir, name);
        }
        match rustix::fs::linkat(&self.dir, &self.name, dir, name, AtFlags::empty()) {
            // A file system without hard links.
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) => {
                let flags = RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(&self.dir, &self.name, dir, name, flags)
            }
            linked => linked,
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let removed = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        if let Err(error) = ignore_missing(removed) {
            tracing::warn!(file = self.name, %error, "left behind, for an audit to remove");
        }
    }
}

fn not_needed(operation: &str) -> Error {
    Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: STORE.to_owned(),
    }
}

#[async_trait::async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let name = relative(location)?;
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return Err(not_needed("a put over a certain version")),
        };
        self.blocking(move |inner| inner.put(&name, &payload, create))
            .await?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Extensions::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(not_needed("a put in parts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let location = location.clone();
        self.blocking(move |inner| inner.get(&location, &options))
            .await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .map(move |location| {
                let store = store.clone();
                async move {
                    let location = location?;
                    store
                        .blocking(move |inner| inner.delete(&location).map(|()| location))
                        .await
                }
            })
            .buffered(8)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        Walk::new(self.clone(), prefix, None).stream()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        Walk::new(self.clone(), prefix, Some(offset)).stream()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(not_needed("a list of one level"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(not_needed("a copy"))
    }
}

#[cfg(test)]
mod tests;

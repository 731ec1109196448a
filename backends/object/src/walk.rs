//! Lists a directory as an object store does: by the whole names, in their order.

use std::io;
use std::os::fd::OwnedFd;

use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, Result};
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use crate::local::{LocalStore, MAKING, failed};

/// What is still to be listed, the next last.
#[derive(Debug)]
pub(crate) struct Walk {
    store: LocalStore,
    ahead: Vec<Ahead>,
    offset: Option<String>,
}

#[derive(Debug)]
enum Ahead {
    /// A directory whose entries have yet to be read; its name, empty for the root.
    Directory(String),
    /// A file.
    File(Box<ObjectMeta>),
}

impl Walk {
    /// What is below `prefix` and past `offset`.
    pub fn new(store: LocalStore, prefix: Option<&Path>, offset: Option<&Path>) -> Self {
        let start = prefix.map(Path::to_string).unwrap_or_default();
        Walk {
            store,
            ahead: vec![Ahead::Directory(start)],
            offset: offset.map(Path::to_string),
        }
    }

    pub fn stream(self) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::try_unfold(self, |mut walk| async move {
            while let Some(ahead) = walk.ahead.pop() {
                match ahead {
                    Ahead::File(meta) => return Ok(Some((*meta, walk))),
                    Ahead::Directory(name) => {
                        let (store, offset) = (walk.store.clone(), walk.offset.clone());
                        let read = move || entries(&store, &name, offset.as_deref());
                        let found = tokio::task::spawn_blocking(read).await??;
                        walk.ahead.extend(found);
                    }
                }
            }
            Ok(None)
        })
        .boxed()
    }
}

/// The entries of a directory that may hold names past `offset`, in reverse order.
fn entries(store: &LocalStore, dir: &str, offset: Option<&str>) -> Result<Vec<Ahead>> {
    let open = match store.directory(dir) {
        Ok(Some(open)) => open,
        Ok(None) => return Ok(Vec::new()),
        // A file, below which there is nothing.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found: Vec<(String, Ahead)> = Vec::new();
    for entry in Dir::read_from(&open).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Names of ours are plain; of others, only that they are there is of interest.
        let own = entry.file_name().to_string_lossy();
        let ours = dir.is_empty() && own == MAKING;
        // The file system's own, which only root may look into.
        let system = dir.is_empty() && own == "lost+found";
        if own == "." || own == ".." || ours || system {
            continue;
        }
        let name = match dir {
            "" => own.into_owned(),
            dir => format!("{dir}/{own}"),
        };
        let past = |name: &str| offset.is_none_or(|offset| name > offset);
        let within = |name: &str| offset.is_some_and(|offset| offset.starts_with(name));
        let is_directory = match entry.file_type() {
            FileType::Unknown => None,
            other => Some(other == FileType::Directory),
        };
        // A directory's place in the order is that of its name with a slash.
        let with_slash = format!("{name}/");
        if is_directory == Some(false) && !past(&name)
            || is_directory == Some(true) && !past(&with_slash) && !within(&with_slash)
        {
            continue;
        }
        match meta(&open, entry.file_name(), &name)? {
            None => {}
            Some(None) if past(&with_slash) || within(&with_slash) => {
                found.push((with_slash, Ahead::Directory(name)));
            }
            Some(Some(meta)) if past(&name) => found.push((name, Ahead::File(Box::new(meta)))),
            Some(_) => {}
        }
    }
    found.sort_unstable_by(|a, b| b.0.cmp(&a.0));
    Ok(found.into_iter().map(|(_, ahead)| ahead).collect())
}

/// `None` if it is gone, `Some(None)` for a directory.
fn meta(dir: &OwnedFd, own: &std::ffi::CStr, name: &str) -> Result<Option<Option<ObjectMeta>>> {
    let stat = match rustix::fs::statat(dir, own, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(Some(None));
    }
    let since = std::time::Duration::from_secs(stat.st_mtime.try_into().unwrap_or(0));
    Ok(Some(Some(ObjectMeta {
        location: Path::from(name),
        last_modified: (std::time::UNIX_EPOCH + since).into(),
        size: stat.st_size.try_into().unwrap_or(0),
        e_tag: None,
        version: None,
    })))
}

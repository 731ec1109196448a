//! Snapshots and clones that share data files.

use std::sync::Arc;

use rustix::fs::OFlags;
use volmux_core::{
    Access, ByteSize, Error, ErrorKind, Origin, OriginKind, Provisioning, Result, Sharing,
    SpaceRequest, Volume, VolumeName,
};

use super::image::{self, ChainError, Image, MOST_LAYERS, Part, header_of};
use super::refcounts;
use crate::content::Content;
use crate::duplicate::Quiet;
use crate::handle::{Data, Open};
use crate::inner::Inner;
use crate::inuse;
use crate::layout::{NameLock, NewName, PoolDirs, file_error};
use crate::node::{Format, Node};
use crate::record::VolumeRecord;
use crate::staged::StagedData;
use crate::sys::Locked;

impl Inner {
    /// What a failure of a chain means.
    pub fn chain_error(&self, op: &'static str, error: ChainError) -> Error {
        let at = |node: &Node| self.layout.full("data").join(node.to_string());
        match error {
            ChainError::Io(node, error) => file_error(op, at(&node), error),
            ChainError::Busy(_, file) => self.busy(op, &file),
            ChainError::Missing(node) => Error::new(ErrorKind::Corrupt, op)
                .with("path", at(&node).display())
                .reason("a data file that the volume needs is missing")
                .help("restore the file from a backup, or delete the volume"),
            ChainError::Header(node, error) => Error::new(ErrorKind::Corrupt, op)
                .with("path", at(&node).display())
                .reason(format!("the data file can't be used: {error}"))
                .help("find out who changed it (qemu-img info tells what it is); restore it from a backup"),
            ChainError::TooDeep(node) => Error::new(ErrorKind::Corrupt, op)
                .with("path", at(&node).display())
                .reason(ChainError::TooDeep(node).to_string())
                .help("find out who changed the files' headers (qemu-img info --backing-chain)"),
        }
    }

    /// Whether snapshots and clones of such a volume share data files.
    pub fn chains(&self, data: Node) -> bool {
        data.is_qcow2() || !self.abilities.clone
    }

    /// Opens a volume's chain, or joins those who have it open through this pool object.
    pub fn open_chain(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        record: &VolumeRecord,
        access: Access,
        sharing: Sharing,
    ) -> Result<Arc<Image>> {
        let failed = |error| self.chain_error(op, error);
        if (access, sharing) == (Access::ReadWrite, Sharing::Shared) {
            return Err(Error::new(ErrorKind::Unsupported, op)
                .reason("a volume that shares data files with a snapshot or a clone has one writer at a time")
                .help("flatten it first, and it can be shared again"));
        }
        let others = self.open_volumes.handles(record.id);
        let shared = others.iter().find_map(|open| match open.data() {
            Data::Chain(image) if image.node() == record.data => Some(image),
            _ => None,
        });
        let image = match shared {
            Some(image) if access == Access::ReadOnly => return Ok(image),
            Some(image) if others.iter().any(|open| open.writes()) => {
                return Err(self.busy(op, image.head()));
            }
            Some(image) => {
                // The readers here keep out all writers, this one too.
                inuse::release(image.head()).map_err(|e| self.data_error(op, e))?;
                let opened = Image::open(pool, record.data, access);
                if opened.is_err() {
                    let again = inuse::lock_against_writers(image.head());
                    if !again.map_err(|e| self.data_error(op, e))? {
                        // Somebody else came first, whose tables the readers here don't know.
                        for open in &others {
                            open.fence();
                        }
                    }
                }
                opened.map_err(failed)?
            }
            None => Image::open(pool, record.data, access).map_err(failed)?,
        };
        if image.size() < record.virtual_size.bytes() {
            return Err(Error::new(ErrorKind::Corrupt, op)
                .with(
                    "path",
                    self.layout
                        .full("data")
                        .join(record.data.to_string())
                        .display(),
                )
                .reason(format!(
                    "the data file is an image of {} bytes and the volume has {}",
                    image.size(),
                    record.virtual_size.bytes()
                ))
                .help("restore the data file from a backup, or delete the volume"));
        }
        let image = Arc::new(image);
        for open in others {
            open.set_data(Data::Chain(image.clone()));
        }
        Ok(image)
    }

    /// A volume's content as it is now.
    pub fn content(&self, op: &'static str, name: &VolumeName) -> Result<(VolumeRecord, Content)> {
        loop {
            let (pool, record, file) = self.get_data(op, name, OFlags::RDONLY)?;
            let size = record.virtual_size.bytes();
            if !record.data.is_qcow2() {
                return Ok((record.clone(), Content::raw(record.data, file, size)));
            }
            match self.open_chain(op, pool, &record, Access::ReadOnly, Sharing::Exclusive) {
                Ok(image) => return Ok((record, Content::chain(image, size))),
                Err(error) if self.find(op, name)?.is_some_and(|now| now == record) => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }

    /// A volume's content at one moment, to be copied: kept from all writers, or held back in `quiet`.
    /// Of a raw file the caller sees to that.
    pub fn content_to_copy(
        &self,
        op: &'static str,
        name: &VolumeName,
        quiet: &Quiet,
    ) -> Result<(VolumeRecord, Content)> {
        loop {
            let (pool, record, file) = self.get_data(op, name, OFlags::RDONLY)?;
            let size = record.virtual_size.bytes();
            if !record.data.is_qcow2() {
                return Ok((record.clone(), Content::raw(record.data, file, size)));
            }
            let own = quiet.writer.as_ref().map(|open| open.data());
            let image = match own {
                Some(Data::Chain(image)) if image.node() == record.data => Ok(image),
                // Not that of readers here, who would let a writer in.
                _ => Image::open(pool, record.data, Access::ReadOnly).map(Arc::new),
            };
            match image {
                Ok(image) => return Ok((record, Content::chain(image, size))),
                Err(error) if self.find(op, name)?.is_some_and(|now| now == record) => {
                    return Err(self.chain_error(op, error));
                }
                Err(_) => {}
            }
        }
    }

    /// How many files a volume's data is made of.
    pub fn depth(&self, op: &'static str, pool: &PoolDirs, data: Node) -> Result<usize> {
        Ok(self.chain_of(op, pool, data)?.len())
    }

    /// The data files of a volume, the top first.
    pub fn chain_of(&self, op: &'static str, pool: &PoolDirs, data: Node) -> Result<Vec<Node>> {
        let failed = |error| self.chain_error(op, error);
        image::patiently(|| {
            let mut nodes = vec![data];
            loop {
                let node = nodes[nodes.len() - 1];
                if nodes.len() > MOST_LAYERS {
                    return Err(ChainError::TooDeep(data));
                }
                let file = image::open_node(pool, node, OFlags::RDONLY)?;
                match header_of(node, &file)? {
                    Some(header) => nodes.push(header.parent),
                    None => return Ok(nodes),
                }
            }
        })
        .map_err(failed)
    }

    /// Makes a snapshot or a clone that shares the data files of its source.
    pub fn share(
        &self,
        op: &'static str,
        kind: OriginKind,
        source: &VolumeName,
        name: &VolumeName,
        quiet: &Quiet,
        same: impl Fn(&VolumeRecord) -> bool,
    ) -> Result<Volume> {
        let pool = self.pool(op)?;
        let locks = pool.lock_names(&[source, name], op)?;
        let moves = pool.lock_move(op)?;
        if let Some(existing) = self.existing(op, name, &same)? {
            return Ok(existing);
        }
        let (_, from, _) = self.get_data(op, source, OFlags::RDONLY)?;
        let size = from.virtual_size;
        let request = SpaceRequest {
            provisioned: size,
            reserved: ByteSize::ZERO,
        };
        let _admission = self.admit(op, pool, request)?;
        let base = if is_snapshot(&from) {
            self.hold(op, pool, from.data)?
        } else {
            self.begin_new_file(op, pool, source, from.clone(), quiet, &moves)?
        };
        let staged = match kind {
            OriginKind::Snapshot => None,
            _ => Some(self.stage_above(op, pool, base.node, size)?),
        };
        let data = staged.as_ref().map_or(base.node, |staged| staged.node);
        let mut record = VolumeRecord::new(data, size, Provisioning::Thin);
        record.origin = Some(Origin {
            kind,
            parent_id: from.id,
            parent_name: source.clone(),
        });
        let new = NewName::locked(name, locks);
        self.publish(op, pool, &new, &record, staged, same)
    }

    /// A frozen file, locked so that nobody drops it or merges anything into it.
    pub fn hold(&self, op: &'static str, pool: &PoolDirs, node: Node) -> Result<Part> {
        let held = image::patiently(|| {
            let file = image::open_node(pool, node, OFlags::RDONLY)?;
            let io = |error| ChainError::Io(node, error);
            if !inuse::lock_for(&file, Access::ReadOnly, Sharing::Exclusive).map_err(io)? {
                return Err(ChainError::Busy(node, file));
            }
            let header = header_of(node, &file)?;
            image::freeze(&*file).map_err(io)?;
            let file = Arc::new(file);
            Ok(Part { node, file, header })
        });
        let held = held.map_err(|error| self.chain_error(op, error))?;
        self.check_depth(op, pool, node)?;
        Ok(held)
    }

    fn check_depth(&self, op: &'static str, pool: &PoolDirs, node: Node) -> Result<()> {
        let depth = self.depth(op, pool, node)?;
        if depth < MOST_LAYERS {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, op)
            .with("files", depth)
            .reason(format!(
                "the volume's data is a chain of {depth} files, and {MOST_LAYERS} are the most"
            ))
            .help(
                "delete snapshots that are not needed and collect garbage, or flatten the volume",
            ))
    }

    /// A new image above `base`, durable and in the making.
    pub fn stage_above(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        base: Node,
        size: ByteSize,
    ) -> Result<StagedData> {
        let staged = StagedData::create(&pool.data, Format::Qcow2);
        let staged = staged.map_err(|e| self.data_error(op, e))?;
        match image::write_empty(staged.file(), size.bytes(), base) {
            Ok(()) => Ok(staged),
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                Err(Error::new(ErrorKind::Unsupported, op)
                    .with("size", size.bytes())
                    .reason(format!(
                        "snapshots and clones here are qcow2 images, of at most {} bytes",
                        super::header::MOST_SIZE
                    ))
                    .help("copy the volume instead"))
            }
            Err(error) => Err(self.data_error(op, error)),
        }
    }

    /// Freezes the file that `source` writes and gives it a new one above that. Returns the frozen
    /// one. Whoever has the volume open through this pool object goes on with the new one.
    fn begin_new_file(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        source: &VolumeName,
        mut record: VolumeRecord,
        quiet: &Quiet,
        moves: &NameLock,
    ) -> Result<Part> {
        let failed = |error| self.chain_error(op, error);
        if !record.attachments.is_empty() {
            let holders: Vec<&str> = record
                .attachments
                .iter()
                .map(|a| a.holder.as_str())
                .collect();
            return Err(Error::new(ErrorKind::Busy, op)
                .reason("the volume is attached, and would go on in another file: who has it open would not know")
                .with("attached_to", holders.join(", "))
                .help("detach it from there first; an NFS 4.2 server on XFS or btrfs needs none of this"));
        }
        self.check_not_being_taken(op, &record)?;
        let old = record.data;
        self.check_depth(op, pool, old)?;
        let handles = self.open_volumes.handles(record.id);
        let still = Still::new(self, op, pool, old, &handles, quiet)?;
        still.make_durable().map_err(|e| self.data_error(op, e))?;

        let size = record.virtual_size;
        let mut staged = self.stage_above(op, pool, old, size)?;
        let io = |e| self.data_error(op, e);
        if handles.iter().any(|open| open.writes()) {
            // It is open from the beginning.
            refcounts::set_dirty(staged.file(), true).map_err(io)?;
        }
        let above = self.above(op, pool, &still, staged.node, &handles)?;
        record.set_data(staged.node);
        // Not the file that was adopted, any more.
        record.adopted_from = None;
        image::freeze(&**still.base.file).map_err(io)?;
        if let Err(error) = pool.publish_over(source, &record, Some(&mut staged), moves) {
            // It may have taken effect all the same: then the mark is right, and else it does no harm.
            return Err(file_error(op, self.layout.full("volumes"), error));
        }
        if let Some(above) = above {
            let above = Arc::new(above);
            for open in &handles {
                open.set_data(Data::Chain(above.clone()));
            }
        }
        still.release().map_err(failed)
    }

    /// The chain with the new image on top, for those who have the volume open.
    fn above(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        still: &Still<'_>,
        node: Node,
        handles: &[Arc<Open>],
    ) -> Result<Option<Image>> {
        if handles.is_empty() {
            return Ok(None);
        }
        let failed = |error| self.chain_error(op, error);
        let writes = handles.iter().any(|open| open.writes());
        let file = image::open_node(pool, node, OFlags::RDWR).map_err(failed)?;
        let locked = if writes {
            inuse::lock_for(&file, Access::ReadWrite, Sharing::Exclusive)
        } else {
            inuse::lock_against_writers(&file)
        };
        if !locked.map_err(|e| self.data_error(op, e))? {
            return Err(self.busy(op, &file));
        }
        let header = header_of(node, &file).map_err(failed)?;
        let part = Part {
            node,
            file: Arc::new(file),
            header,
        };
        let image = match &still.image {
            Some(below) => below.with_top(part),
            None => Image::of(vec![part, still.base.again()], writes),
        };
        let image = image.map_err(failed)?;
        if !writes {
            image.end_writing().map_err(|e| self.data_error(op, e))?;
        }
        Ok(Some(image))
    }
}

/// Whether a volume is one, and so never changes.
pub fn is_snapshot(record: &VolumeRecord) -> bool {
    let origin = record.origin.as_ref();
    origin.is_some_and(|origin| origin.kind == OriginKind::Snapshot)
}

/// A volume's file that nobody but this process has open, and nobody writes.
struct Still<'a> {
    base: Part,
    /// The file, as it is open by whose locks all of that is so.
    locked: Arc<Locked>,
    /// The chain of which it is the top, where that is open here.
    image: Option<Arc<Image>>,
    /// The files of handles that have it open here, and say no more that they read it.
    readers: Vec<Arc<Locked>>,
    handles: &'a [Arc<Open>],
    released: bool,
}

impl<'a> Still<'a> {
    fn new(
        inner: &Inner,
        op: &'static str,
        pool: &PoolDirs,
        node: Node,
        handles: &'a [Arc<Open>],
        quiet: &Quiet,
    ) -> Result<Still<'a>> {
        let io = |e| inner.data_error(op, e);
        let image = handles.iter().find_map(|open| match open.data() {
            Data::Chain(image) => Some(image),
            Data::Raw(..) => None,
        });
        let opened = image::patiently(|| {
            let file = image::open_node(pool, node, OFlags::RDWR)?;
            let error = |error| ChainError::Io(node, error);
            if image.is_none() {
                // Nobody may begin to use it now; who tries is told to try again in a moment.
                if !inuse::begin_changing(&file).map_err(error)? {
                    return Err(ChainError::Busy(node, file));
                }
                if quiet.writer.is_none() && !inuse::lock_against_writers(&file).map_err(error)? {
                    inuse::end_changing(&file).map_err(error)?;
                    return Err(ChainError::Busy(node, file));
                }
            }
            let header = header_of(node, &file)?;
            let file = Arc::new(file);
            Ok(Part { node, file, header })
        });
        let base = opened.map_err(|error| match error {
            ChainError::Busy(_, file) => inner.busy(op, &file).help(
                "here a snapshot begins a new file, of which another process that has the volume open \
                 would not know: close it there, or take the snapshot there",
            ),
            error => inner.chain_error(op, error),
        })?;
        let written = image.as_ref().filter(|image| image.is_writable());
        let written = written.map(|image| image.head().clone());
        let locked = written.as_ref().unwrap_or(&base.file).clone();
        let mut still = Still {
            base,
            locked,
            readers: Vec::new(),
            image,
            handles,
            released: false,
        };
        // Who writes a chain has kept readers out already.
        if written.is_none() {
            inuse::begin_changing(&still.locked).map_err(io)?;
            still.keep_readers_out().map_err(io)?.ok_or_else(|| {
                inner.busy(op, &still.base.file).help(
                    "here a snapshot begins a new file, of which another process that reads the \
                     volume would not know: close it there first",
                )
            })?;
        }
        Ok(still)
    }

    /// Own handles read it too, so they don't say so for the moment. `None` if another process does.
    fn keep_readers_out(&mut self) -> std::io::Result<Option<()>> {
        for open in self.handles {
            let file = open.data().file().clone();
            inuse::set_reading(&file, false)?;
            self.readers.push(file);
        }
        inuse::set_reading(&self.locked, false)?;
        if inuse::lock_readers_out(&self.locked)? {
            return Ok(Some(()));
        }
        Ok(None)
    }

    fn make_durable(&self) -> std::io::Result<()> {
        match &self.image {
            Some(image) if image.is_writable() => {
                image.flush()?;
                refcounts::set_dirty(image.head(), false)
            }
            _ => self.base.file.sync_all(),
        }
    }

    /// The frozen file, locked as one that is read; it is no longer kept from others.
    fn release(mut self) -> std::result::Result<Part, ChainError> {
        self.released = true;
        let error = |error| ChainError::Io(self.base.node, error);
        // At no moment is it unlocked: nobody may merge anything into it now.
        inuse::set_reading(&self.locked, true).map_err(error)?;
        inuse::set_reading(&self.base.file, true).map_err(error)?;
        let head = self.image.as_ref().map(|image| image.head());
        for file in head.into_iter().chain([&self.locked]) {
            inuse::set_reading(file, true).map_err(error)?;
            inuse::only_read(file).map_err(error)?;
        }
        inuse::end_changing(&self.locked).map_err(error)?;
        Ok(self.base.again())
    }
}

impl Drop for Still<'_> {
    /// Those who go on with the file say again that they read it.
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let mut locked = inuse::set_reading(&self.locked, true);
        for file in &self.readers {
            locked = locked.and_then(|()| inuse::set_reading(file, true));
        }
        locked = locked.and_then(|()| inuse::end_changing(&self.locked));
        if let Err(error) = locked {
            tracing::error!(file = %self.base.node, %error, "a reader's lock could not be taken again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use volmux_core::{CreateOptions, OpenOptions, Pool};

    use super::*;
    use crate::{DirConfig, DirPool};

    fn n(name: &str) -> VolumeName {
        VolumeName::new(name).expect("a good name")
    }

    async fn a_chain(path: &Path) -> DirPool {
        let pool = DirPool::opened(DirConfig::new(path), None, None)
            .await
            .expect("open");
        let options = CreateOptions::thin(ByteSize::new(1 << 20));
        let (a, s) = (n("a"), n("s"));
        pool.create_volume(&a, options).await.expect("create");
        let made = pool.snapshot_volume(&a, &s, Default::default());
        made.await.expect("snapshot");
        pool
    }

    /// The readers' image of this pool object is not enough: it lets a writer in.
    #[tokio::test]
    async fn nobody_writes_what_is_copied_although_it_is_read_here() {
        // Files in memory never share blocks.
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let (pool, a) = (a_chain(dir.path()).await, n("a"));
        assert!(!pool.0.abilities.clone);
        let reader = pool.open_volume(&a, OpenOptions::read_only()).await;
        let reader = reader.expect("open");
        let copied = pool.0.content_to_copy("test", &a, &Quiet::default());
        let copied = copied.expect("the content");
        let refused = pool.open_volume(&a, OpenOptions::read_write()).await;
        let error = refused.map(|_| ()).expect_err("it is copied");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
        drop(copied);
        let writer = pool.open_volume(&a, OpenOptions::read_write()).await;
        let writer = writer.expect("nobody copies it any more");
        let data = Bytes::from(vec![1; 512]);
        writer.write_at(0, data.clone()).await.expect("write");
        assert_eq!(reader.read_at(0, 512).await.expect("read"), data);
    }
}

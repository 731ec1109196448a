//! What other operations do where a volume's data is a chain.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use volmux_core::{
    Access, ByteRange, ByteSize, Error, ErrorKind, Provisioning, ResizeOptions, Result, Sharing,
    SpaceRequest, Volume, VolumeName,
};

use super::header::CLUSTER;
use super::image::{self, Image, Part};
use crate::content::Content;
use crate::handle::Data;
use crate::inner::Inner;
use crate::inuse;
use crate::layout::{NameLock, PoolDirs, file_error};
use crate::lifecycle::{check_may_shrink, check_not_snapshot};
use crate::queue::Stop;
use crate::record::VolumeRecord;
use crate::sys;

/// A chain that is written, and closed again unless somebody else has it open.
struct Writer<'a> {
    inner: &'a Inner,
    image: Option<Arc<Image>>,
    borrowed: bool,
}

impl Writer<'_> {
    fn image(&self) -> &Arc<Image> {
        self.image.as_ref().expect("taken out only when dropped")
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        let Some(image) = self.image.take().filter(|_| !self.borrowed) else {
            return;
        };
        let ended = image
            .end_writing()
            .and_then(|()| inuse::only_read(image.head()));
        if let Err(error) = ended {
            let pool = self.inner.layout.path().display();
            tracing::error!(%pool, file = %image.node(), %error, "its last changes may be lost");
        }
    }
}

impl Inner {
    fn writer(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        record: &VolumeRecord,
    ) -> Result<Writer<'_>> {
        let handles = self.open_volumes.handles(record.id);
        let open = handles.iter().find(|open| open.writes());
        let image = match open.map(|open| open.data()) {
            Some(Data::Chain(image)) => image,
            _ => self.open_chain(op, pool, record, Access::ReadWrite, Sharing::Exclusive)?,
        };
        Ok(Writer {
            inner: self,
            image: Some(image),
            borrowed: open.is_some(),
        })
    }

    /// `Busy` if this pool object has the volume open.
    pub fn check_unopened(&self, op: &'static str, record: &VolumeRecord) -> Result<()> {
        match self.open_volumes.handles(record.id).first() {
            Some(open) => Err(self.busy(op, open.data().file())),
            None => Ok(()),
        }
    }

    /// Space and depth of a volume's files, down to the first that it may share.
    pub fn describe_chain(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        record: &VolumeRecord,
        mut volume: Volume,
    ) -> Result<Volume> {
        let (mut allocated, mut exclusive) = (0, 0);
        let nodes = self.chain_of(op, pool, record.data)?;
        for node in &nodes {
            let file = image::open_node(pool, *node, OFlags::RDONLY);
            let file = file.map_err(|error| self.chain_error(op, error))?;
            let metadata = file.metadata().map_err(|e| self.data_error(op, e))?;
            allocated += metadata.blocks() * 512;
            if !image::is_frozen(&file).map_err(|e| self.data_error(op, e))? {
                exclusive += metadata.blocks() * 512;
            }
        }
        volume.allocated = Some(ByteSize::new(allocated));
        volume.exclusive = Some(ByteSize::new(exclusive));
        volume.depth = Some(nodes.len() as u64);
        Ok(volume)
    }

    /// Changes the size of a volume that is a chain. The caller has locked its name.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, and nothing that belongs together"
    )]
    pub fn resize_chain(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        name: &VolumeName,
        mut record: VolumeRecord,
        size: ByteSize,
        options: ResizeOptions,
        moves: &NameLock,
    ) -> Result<Volume> {
        let failed = |error| self.data_error(op, error);
        let published = |error| file_error(op, self.layout.full("volumes"), error);
        let old = record.virtual_size;
        if size > old {
            if size.bytes() > super::header::MOST_SIZE {
                return Err(Error::new(ErrorKind::InvalidInput, op)
                    .with("size", size.bytes())
                    .reason("a volume that shares data files with a snapshot or a clone is a qcow2 image, which can't be that large")
                    .help("flatten it first"));
            }
            let request = SpaceRequest {
                provisioned: ByteSize::new(size.bytes() - old.bytes()),
                reserved: ByteSize::ZERO,
            };
            let _admission = self.admit(op, pool, request)?;
            let writer = self.writer(op, pool, &record)?;
            let image = writer.image();
            // What lies there of a larger past, in this file or below it, must not come back.
            let stale = image.size().max(image.size_below());
            let stale = stale.max(old.bytes().next_multiple_of(CLUSTER));
            if size.bytes() > image.size() {
                image.grow(size.bytes()).map_err(failed)?;
            }
            let zeros = ByteRange::from_to(old.bytes(), size.bytes().min(stale).max(old.bytes()));
            if !zeros.is_empty() {
                image.zero(zeros, false).map_err(failed)?;
            }
            image.flush().map_err(failed)?;
            record.virtual_size = size;
            pool.publish_over(name, &record, None, moves)
                .map_err(published)?;
        } else if size < old {
            check_may_shrink(op, size, old, options)?;
            self.check_detached(op, &record)?;
            self.check_unopened(op, &record)?;
            self.check_not_being_taken(op, &record)?;
            let image = Image::open(pool, record.data, Access::ReadWrite);
            let mut image = image.map_err(|error| self.chain_error(op, error))?;
            record.virtual_size = size;
            // The record first: an image that is too large is made smaller later.
            pool.publish_over(name, &record, None, moves)
                .map_err(published)?;
            image.shrink(size.bytes()).map_err(failed)?;
            image.end_writing().map_err(failed)?;
        }
        self.open_volumes.grown(record.id, size.bytes());
        let file = self.open_data(op, pool, &record, OFlags::RDONLY)?;
        self.describe(op, name, &record, &file)
    }

    /// Makes an image as large as its volume, where a resize was cut short. The caller has locked the
    /// volume's name. Whether there was anything to do.
    pub fn fit(&self, op: &'static str, pool: &PoolDirs, record: &VolumeRecord) -> Result<bool> {
        let failed = |error| self.chain_error(op, error);
        let file = self.open_data(op, pool, record, OFlags::RDONLY)?;
        let header = image::header_of(record.data, &file).map_err(failed)?;
        let size = record.virtual_size.bytes();
        if header.is_none_or(|header| header.size == size) {
            return Ok(false);
        }
        self.check_unopened(op, record)?;
        let image = Image::open(pool, record.data, Access::ReadWrite);
        let mut image = image.map_err(failed)?;
        image.shrink(size).map_err(|e| self.data_error(op, e))?;
        image.end_writing().map_err(|e| self.data_error(op, e))?;
        Ok(true)
    }

    /// Gives a volume a raw file of its own with the same content.
    pub fn flatten(&self, name: &VolumeName, stop: &Stop) -> Result<Volume> {
        const OP: &str = "flatten_volume";
        self.check_writable(OP)?;
        let (pool, record, file) = self.get_data(OP, name, OFlags::RDONLY)?;
        check_not_snapshot(OP, &record, "flattened")?;
        if !record.data.is_qcow2() {
            return self.describe(OP, name, &record, &file);
        }
        self.check_unopened(OP, &record)?;
        let size = record.virtual_size;
        // From here on to the exchange nobody else opens it: what is written meanwhile would be lost.
        let alone = Arc::new(self.open_alone(OP, pool, &record)?);
        let (_, now) = self.get(OP, name)?;
        if now != record {
            return Err(Error::new(ErrorKind::Busy, OP)
                .reason("the volume was changed meanwhile")
                .help("call again"));
        }
        let top = Part {
            node: record.data,
            header: image::header_of(record.data, &alone)
                .map_err(|error| self.chain_error(OP, error))?,
            file: alone.clone(),
        };
        let parts = image::patiently(|| image::parts_below(pool, top.again()));
        let opened = parts.and_then(|parts| Image::of(parts, false));
        let opened = opened.map_err(|error| self.chain_error(OP, error))?;
        let content = Content::chain(Arc::new(opened), size.bytes());
        let thick = record.provisioning == Provisioning::Thick;
        let reserved = self.bytes_to_copy(OP, &content, thick)?;
        let request = SpaceRequest {
            provisioned: ByteSize::ZERO,
            reserved,
        };
        drop(self.admit(OP, pool, request)?);
        let data = pool.stage_data().map_err(|e| self.data_error(OP, e))?;
        self.copy_data(OP, &content, data.file(), size, stop)?;
        if thick {
            sys::reserve(data.file(), ByteRange::new(0, size.bytes()))
                .map_err(|e| self.data_error(OP, e))?;
        }
        self.exchange(OP, pool, name, &record, size, data, Some(alone))
    }

    /// What a copy of `content` will occupy at once.
    pub fn bytes_to_copy(
        &self,
        op: &'static str,
        content: &Content,
        thick: bool,
    ) -> Result<ByteSize> {
        if thick {
            return Ok(ByteSize::new(content.size));
        }
        let mut bytes = 0;
        let whole = ByteRange::new(0, content.size);
        let counted = content.data(whole, &mut |data| {
            bytes += data.length;
            Ok(())
        });
        counted.map_err(|e| self.data_error(op, e))?;
        Ok(ByteSize::new(bytes))
    }

    /// Puts a volume back to a snapshot by a new image above that one's file.
    pub fn revert_above(
        &self,
        op: &'static str,
        pool: &PoolDirs,
        name: &VolumeName,
        record: &VolumeRecord,
        from: &VolumeRecord,
    ) -> Result<Volume> {
        let base = self.hold(op, pool, from.data)?;
        let data = self.stage_above(op, pool, base.node, from.virtual_size)?;
        self.exchange(op, pool, name, record, from.virtual_size, data, None)
    }
}

//! A volume's data as a chain of data files: qcow2 images on top, each with what differs from the
//! one below, and a raw file at the bottom.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Mapping, ShallowMapping};
use rustix::fs::OFlags;
use volmux_core::{Access, ByteRange, Sharing};

use super::header::{self, CLUSTER, Header, HeaderError};
use super::refcounts;
use super::storage::{NodeFile, data_or_hole, read_start};
use crate::inuse::{self, PAUSE, Patience};
use crate::layout::PoolDirs;
use crate::node::Node;
use crate::sys::{self, Locked};

/// The most files in a chain: a read may have to look through all of them.
pub const MOST_LAYERS: usize = 256;

type Layer = Arc<FormatAccess<NodeFile>>;

/// An open chain.
#[derive(Debug)]
pub struct Image {
    /// The top first.
    layers: Vec<(Node, Layer)>,
    /// The top, which holds the volume's lock.
    head: Arc<Locked>,
    writable: AtomicBool,
}

/// Why a chain can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("{0}: {1}")]
    Io(Node, #[source] io::Error),
    #[error("the file is missing")]
    Missing(Node),
    #[error("{1}")]
    Header(Node, HeaderError),
    #[error("it is a chain of more than {MOST_LAYERS} files, or of files that lead in a circle")]
    TooDeep(Node),
    #[error("the file is in use")]
    Busy(Node, Locked),
}

/// A data file and, for an image, its header.
#[derive(Debug)]
pub struct Part {
    /// Which.
    pub node: Node,
    /// Open, and locked.
    pub file: Arc<Locked>,
    /// `None` for a raw file.
    pub header: Option<Header>,
}

impl Part {
    /// The same open file.
    pub fn again(&self) -> Part {
        Part {
            node: self.node,
            file: self.file.clone(),
            header: self.header.clone(),
        }
    }
}

/// Reads and checks the header of `node`, if it is an image.
pub fn header_of(node: Node, file: &File) -> Result<Option<Header>, ChainError> {
    if !node.is_qcow2() {
        return Ok(None);
    }
    let failed = |error| ChainError::Io(node, error);
    let bytes = read_start(file).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    match header::check(&bytes, length) {
        Ok(header) => Ok(Some(header)),
        Err(error) => Err(ChainError::Header(node, error)),
    }
}

/// Marks an image as open; one that has the mark was not closed, and its reference counts are made
/// anew. The caller has locked it for writing.
pub fn begin_writing(part: &Part) -> Result<(), ChainError> {
    let failed = |error| ChainError::Io(part.node, error);
    let Some(header) = &part.header else {
        return Ok(());
    };
    if header.dirty {
        refcounts::repair(&part.file, header).map_err(failed)?;
    }
    refcounts::set_dirty(&part.file, true).map_err(failed)
}

/// The file below `node`, if it is an image.
pub fn parent_of(pool: &PoolDirs, node: Node) -> Result<Option<Node>, ChainError> {
    let file = open_node(pool, node, OFlags::RDONLY)?;
    Ok(header_of(node, &file)?.map(|header| header.parent))
}

/// Opens one data file, which has to be a regular one.
pub fn open_node(pool: &PoolDirs, node: Node, flags: OFlags) -> Result<Locked, ChainError> {
    let file = pool
        .open_data(node, flags)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ChainError::Missing(node),
            _ => ChainError::Io(node, error),
        })?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => {
            let error = io::Error::from_raw_os_error(libc::EISDIR);
            Err(ChainError::Io(node, error))
        }
        Err(error) => Err(ChainError::Io(node, error)),
    }
}

/// Tries until nobody keeps a file from others for a moment only (see `inuse`), and tells who does
/// that it is waited for.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T, ChainError>) -> Result<T, ChainError> {
    let (mut patience, mut missing) = (Patience::default(), 0);
    loop {
        match attempt() {
            Err(ChainError::Busy(node, file)) => {
                let again = patience.again(&file);
                if !again.map_err(|error| ChainError::Io(node, error))? {
                    return Err(ChainError::Busy(node, file));
                }
            }
            // What was merged into the file below it is gone, and the one above names that by now.
            // Or that name is just being written.
            Err(ChainError::Missing(_) | ChainError::Header(..)) if missing < 3 => {
                missing += 1;
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// The files below `top`, which has been opened and locked, each locked as one that is read.
pub fn parts_below(pool: &PoolDirs, top: Part) -> Result<Vec<Part>, ChainError> {
    let mut parts = vec![top];
    while let Some(header) = &parts[parts.len() - 1].header {
        let node = header.parent;
        if parts.len() == MOST_LAYERS {
            return Err(ChainError::TooDeep(parts[0].node));
        }
        let file = open_node(pool, node, OFlags::RDONLY)?;
        lock(node, file, Access::ReadOnly, &mut parts)?;
    }
    Ok(parts)
}

/// Keeps the files below `node` from being merged or dropped, whoever has that one.
pub fn hold_below(pool: &PoolDirs, node: Node) -> Result<Vec<Part>, ChainError> {
    patiently(|| {
        let file = open_node(pool, node, OFlags::RDONLY)?;
        let header = header_of(node, &file)?;
        let file = Arc::new(file);
        parts_below(pool, Part { node, file, header })
    })
}

fn lock(node: Node, file: Locked, access: Access, parts: &mut Vec<Part>) -> Result<(), ChainError> {
    let top = parts.is_empty();
    let locked = match access {
        Access::ReadOnly if top => inuse::lock_against_writers(&file),
        access => inuse::lock_for(&file, access, Sharing::Exclusive),
    };
    if !locked.map_err(|error| ChainError::Io(node, error))? {
        return Err(ChainError::Busy(node, file));
    }
    parts.push(Part {
        header: header_of(node, &file)?,
        node,
        file: Arc::new(file),
    });
    Ok(())
}

impl Image {
    /// Opens the chain that ends in `node`. Who opens it for reading keeps writers out, for they
    /// would not see each other's tables.
    pub fn open(pool: &PoolDirs, node: Node, access: Access) -> Result<Image, ChainError> {
        patiently(|| {
            let flags = match access {
                Access::ReadOnly => OFlags::RDONLY,
                Access::ReadWrite => OFlags::RDWR,
            };
            let mut top = Vec::new();
            lock(node, open_node(pool, node, flags)?, access, &mut top)?;
            let parts = parts_below(pool, top.remove(0))?;
            let writable = access == Access::ReadWrite;
            if writable {
                begin_writing(&parts[0])?;
            }
            Image::of(parts, writable)
        })
    }

    /// Of files that are open and locked.
    pub fn of(parts: Vec<Part>, writable: bool) -> Result<Image, ChainError> {
        let head = parts[0].file.clone();
        let top = parts[0].node;
        let mut layers: Vec<(Node, Layer)> = Vec::with_capacity(parts.len());
        for part in parts.into_iter().rev() {
            let node = part.node;
            let below = layers.last().map(|(_, layer)| layer.clone());
            let layer = layer(part, below, writable && node == top)
                .map_err(|error| ChainError::Io(node, error))?;
            layers.push((node, layer));
        }
        layers.reverse();
        Ok(Image {
            layers,
            head,
            writable: AtomicBool::new(writable),
        })
    }

    /// With another image on top, which is written from now on. This one must not be, any more.
    pub fn with_top(&self, part: Part) -> Result<Image, ChainError> {
        let (node, head) = (part.node, part.file.clone());
        let below = Some(self.top().clone());
        let top = layer(part, below, true).map_err(|error| ChainError::Io(node, error))?;
        let mut layers = vec![(node, Arc::clone(&top))];
        layers.extend(self.layers.iter().cloned());
        Ok(Image {
            layers,
            head,
            writable: AtomicBool::new(true),
        })
    }

    fn top(&self) -> &Layer {
        &self.layers[0].1
    }

    /// The data files, the top first.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = Node> + ExactSizeIterator + '_ {
        self.layers.iter().map(|(node, _)| *node)
    }

    /// The top's.
    pub fn node(&self) -> Node {
        self.layers[0].0
    }

    /// The top's file, with the volume's lock.
    pub fn head(&self) -> &Arc<Locked> {
        &self.head
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.top().size()
    }

    /// Whether it is written.
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Fills `into` with what is at `offset`.
    pub fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.top().read(into, offset)
    }

    /// Writes `data` at `offset`.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.top().write(data, offset)
    }

    /// Makes `range` read as zeros; with `punch`, the space that it took is given back.
    pub fn zero(&self, range: ByteRange, punch: bool) -> io::Result<()> {
        let mut held = Vec::new();
        if punch {
            each(self.top(), range, |mapping, part| {
                if let ShallowMapping::Raw { offset, .. } = mapping {
                    held.push(ByteRange::new(offset, part.length));
                }
                Ok(part.length)
            })?;
        }
        // Not imago's own write_zeroes: it takes a cluster of which the rest is zeros just now for one
        // that it may zero as a whole, and so loses what another request writes to the rest.
        let end = match range.end() == self.size() {
            true => range.end(),
            false => range.end() / CLUSTER * CLUSTER,
        };
        let start = range.offset.next_multiple_of(CLUSTER).min(range.end());
        let end = end.max(start);
        self.write_zeros(ByteRange::from_to(range.offset, start))?;
        let mut at = start;
        while at < end {
            let zeroed = self.top().inner().ensure_zero_mapping(at, end - at)?;
            if zeroed.1 == 0 || zeroed.0 != at {
                return Err(io::Error::other("a cluster could not be zeroed"));
            }
            at += zeroed.1;
        }
        self.write_zeros(ByteRange::from_to(end, range.end()))?;
        for held in held {
            // Should the tables be lost before they are durable, this reads as zeros all the same.
            sys::punch_hole(&self.head, held)?;
        }
        Ok(())
    }

    /// Writes zeros to a part of a cluster, where there are none.
    fn write_zeros(&self, range: ByteRange) -> io::Result<()> {
        let mut at = range.offset;
        while at < range.end() {
            let (mapping, length) = self.top().get_mapping(at, range.end() - at)?;
            if !matches!(mapping, Mapping::Zero { .. }) {
                self.write(&vec![0; length as usize], at)?;
            }
            at += length;
        }
        Ok(())
    }

    /// Writes the tables out, and with them all that was written becomes durable.
    pub fn flush(&self) -> io::Result<()> {
        self.top().flush()?;
        self.top().sync()
    }

    /// Writes all out, and takes the mark of an open image away.
    pub fn end_writing(&self) -> io::Result<()> {
        self.writable.store(false, Ordering::Release);
        self.flush()?;
        refcounts::set_dirty(&self.head, false)
    }

    /// Makes it larger. What the files below hold there must not show, so it is zeroed by the caller.
    pub fn grow(&self, size: u64) -> io::Result<()> {
        self.top()
            .resize_grow(size, imago::format::PreallocateMode::None)
    }

    /// Makes it smaller. Nobody else has it.
    pub fn shrink(&mut self, size: u64) -> io::Result<()> {
        let top = Arc::get_mut(&mut self.layers[0].1).ok_or(io::ErrorKind::ResourceBusy)?;
        top.resize_shrink(size)?;
        top.flush()?;
        top.sync()
    }

    /// Bytes in the file below the top, of which some may lie past the top's end.
    pub fn size_below(&self) -> u64 {
        self.layers.get(1).map_or(0, |(_, layer)| layer.size())
    }

    /// Tells the ranges of `range` that hold data, in whichever file.
    pub fn data(
        &self,
        range: ByteRange,
        found: &mut dyn FnMut(ByteRange) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = range.offset;
        while at < range.end() {
            let (mapping, length) = self.top().get_mapping(at, range.end() - at)?;
            let (is_data, length) = match mapping {
                Mapping::Raw {
                    storage, offset, ..
                } if !storage.node.is_qcow2() => {
                    data_or_hole(&storage.file, ByteRange::new(offset, length))?
                }
                Mapping::Zero { .. } => (false, length),
                Mapping::Eof { .. } => return Ok(()),
                _ => (true, length),
            };
            if is_data {
                found(ByteRange::new(at, length))?;
            }
            at += length;
        }
        Ok(())
    }

    /// Tells what `range` has in the `layers` upper files themselves, zeros included.
    pub fn changed_in(
        &self,
        layers: usize,
        range: ByteRange,
        found: &mut dyn FnMut(ByteRange) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = range.offset;
        while at < range.end() {
            let (mut inside, mut length) = (false, range.end() - at);
            for (_, layer) in &self.layers[..layers] {
                let (mapping, part) = layer.get_shallow_mapping(at, length)?;
                match mapping {
                    // Past the end of a file that was smaller: as if that held nothing there.
                    ShallowMapping::Eof { .. } => {
                        inside = true;
                        break;
                    }
                    ShallowMapping::Indirect { .. } => length = part,
                    _ => {
                        (inside, length) = (true, part);
                        break;
                    }
                }
            }
            if inside {
                found(ByteRange::new(at, length))?;
            }
            at += length;
        }
        Ok(())
    }

    /// Tells what the top file holds itself.
    pub fn own(
        &self,
        range: ByteRange,
        mut found: impl FnMut(ByteRange, Own) -> io::Result<()>,
    ) -> io::Result<()> {
        each(self.top(), range, |mapping, part| {
            match mapping {
                ShallowMapping::Indirect { .. }
                | ShallowMapping::Eof { .. }
                | ShallowMapping::Zero {
                    explicit: false, ..
                } => {}
                ShallowMapping::Zero { .. } => found(part, Own::Zeros)?,
                _ => found(part, Own::Data)?,
            }
            Ok(part.length)
        })
    }
}

/// What a file of a chain has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Data.
    Data,
    /// Zeros, whatever lies below.
    Zeros,
}

/// Walks through the mappings of one layer.
fn each(
    layer: &Layer,
    range: ByteRange,
    mut visit: impl FnMut(ShallowMapping<'_, NodeFile>, ByteRange) -> io::Result<u64>,
) -> io::Result<()> {
    let mut at = range.offset;
    while at < range.end() {
        let (mapping, length) = layer.get_shallow_mapping(at, range.end() - at)?;
        if length == 0 {
            return Ok(());
        }
        at += visit(mapping, ByteRange::new(at, length))?;
    }
    Ok(())
}

fn layer(part: Part, below: Option<Layer>, writable: bool) -> io::Result<Layer> {
    let Part { node, file, header } = part;
    let Some(header) = header else {
        let raw = Raw::open_image(NodeFile::read_only(node, file), false)?;
        return Ok(Arc::new(FormatAccess::new(raw)));
    };
    let file = if writable {
        NodeFile::writable(node, file, &header)?
    } else {
        NodeFile::read_only(node, file)
    };
    let mut image = Qcow2::<NodeFile, Layer>::open_image(file, writable)?;
    // Nothing that the header names is opened, but what was locked.
    image.set_data_file(None);
    image.set_backing(below);
    Ok(Arc::new(FormatAccess::new(image)))
}

/// The header and the tables of an image, each with its offset; none of a raw file.
pub fn tables(node: Node, file: &File) -> Result<Vec<(u64, Vec<u8>)>, ChainError> {
    let Some(header) = header_of(node, file)? else {
        return Ok(Vec::new());
    };
    refcounts::tables(file, &header).map_err(|error| ChainError::Io(node, error))
}

/// Writes a new image that holds nothing yet into an empty file.
pub fn write_empty(file: &File, size: u64, parent: Node) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let empty = header::empty(size, parent).ok_or(io::ErrorKind::FileTooLarge)?;
    for (offset, bytes) in &empty.pieces {
        file.write_all_at(bytes, *offset)?;
    }
    file.set_len(empty.length)
}

/// Marks a file as one that is never written again (mode 0400), and that others may build on.
pub fn freeze(file: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, rustix::fs::Mode::RUSR)?)
}

/// Whether a file has the mark of [`freeze`].
pub fn is_frozen(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.mode() & 0o200 == 0)
}

/// Opens for writing what has the mark of [`freeze`], which it must not have: making it was cut short.
pub fn open_thawed(pool: &PoolDirs, node: Node) -> io::Result<Locked> {
    let frozen = pool.open_data(node, OFlags::RDONLY)?;
    thaw(&*frozen)?;
    pool.open_data(node, OFlags::RDWR)
}

/// Takes the mark of [`freeze`] away.
pub fn thaw(file: impl AsFd) -> io::Result<()> {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    Ok(rustix::fs::fchmod(file, mode)?)
}

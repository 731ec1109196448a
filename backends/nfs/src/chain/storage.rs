//! A data file as imago sees it, with its writes in an order that a power cut can't spoil.
//!
//! imago writes reference counts before the tables that need them, but makes nothing durable in
//! between. A disk may keep any of what it was not yet told to keep: then a table could point to a
//! cluster whose data, or whose copy of what lay below, never arrived, and data that had been
//! flushed long ago would be gone. So what is written is told apart here by where it lies, and
//! before a table is written all that it may point to is made durable, as QEMU does.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use volmux_core::ByteRange;

use super::header::{self, CLUSTER, Header, MOST_BYTES};
use super::refcounts;
use crate::node::Node;
use crate::sys::{self, Locked};

/// The offset in an entry of an L1 or L2 table or of a table of reference counts.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// A data file of a chain. Its locks last as long as it.
#[derive(Debug)]
pub struct NodeFile {
    /// Which.
    pub node: Node,
    /// Locked by who made this.
    pub file: Arc<Locked>,
    order: Option<Order>,
    helper: CommonStorageHelper,
}

/// What was written and is not durable yet, and where what lies.
#[derive(Debug)]
struct Order {
    layout: RwLock<Layout>,
    /// Data and reference counts.
    below: Pending,
    /// Tables that name them.
    tables: Pending,
    /// Once something could not be made durable, nothing that needs it may be written.
    broken: AtomicBool,
}

/// How many writes were done, and how many of them are durable. Two numbers, for others write while
/// a sync runs.
#[derive(Debug, Default)]
struct Pending {
    written: AtomicU64,
    durable: AtomicU64,
}

impl Pending {
    fn is_any(&self) -> bool {
        self.durable.load(Ordering::Acquire) < self.written.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
struct Layout {
    l1: header::Table,
    refcounts: header::Table,
    l2: HashSet<u64>,
    refcount_blocks: HashSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Refcounts,
    L2,
    L1,
    Header,
}

impl NodeFile {
    /// A file that is only read.
    pub fn read_only(node: Node, file: Arc<Locked>) -> NodeFile {
        NodeFile {
            node,
            file,
            order: None,
            helper: CommonStorageHelper::default(),
        }
    }

    /// An image that is written, with the header that was checked.
    pub fn writable(node: Node, file: Arc<Locked>, header: &Header) -> io::Result<NodeFile> {
        let layout = Layout::read(&file, header)?;
        Ok(NodeFile {
            order: Some(Order {
                layout: RwLock::new(layout),
                below: Pending::default(),
                tables: Pending::default(),
                broken: AtomicBool::new(false),
            }),
            ..NodeFile::read_only(node, file)
        })
    }

    fn write(&self, data: &[&[u8]], offset: u64) -> io::Result<()> {
        let Some(order) = &self.order else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        let length = data.iter().map(|part| part.len() as u64).sum();
        let kind = order.layout().kind(ByteRange::new(offset, length))?;
        order.before(kind, &self.file)?;
        let mut at = offset;
        for part in data {
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        order.after(kind);
        #[cfg(test)]
        trace(|| Event::Write(offset, data.concat()));
        match kind {
            Kind::L1 | Kind::Refcounts => order.learn(&data.concat(), offset, kind),
            Kind::Header => {
                let bytes = read_start(&self.file)?;
                let header = header::check(&bytes, self.file.metadata()?.len());
                let header = header.map_err(io::Error::other)?;
                let layout = Layout::read(&self.file, &header)?;
                *order.layout.write().unwrap_or_else(|e| e.into_inner()) = layout;
            }
            Kind::L2 | Kind::Data => {}
        }
        Ok(())
    }
}

/// The bytes in which a header lies.
pub fn read_start(file: &std::fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MOST_BYTES];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

impl Order {
    fn layout(&self) -> std::sync::RwLockReadGuard<'_, Layout> {
        self.layout.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes durable what must be before such a write.
    fn before(&self, kind: Kind, file: &std::fs::File) -> io::Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let first = match kind {
            Kind::Data => return Ok(()),
            // A cluster is free only once no table on the disk points to it.
            Kind::Refcounts => &self.tables,
            Kind::L2 | Kind::L1 | Kind::Header => &self.below,
        };
        if first.is_any() {
            self.sync(file)?;
        }
        Ok(())
    }

    /// Set when the write is done: until then nothing refers to it.
    fn after(&self, kind: Kind) {
        let written = match kind {
            Kind::Data | Kind::Refcounts => &self.below,
            Kind::L2 | Kind::L1 | Kind::Header => &self.tables,
        };
        written.written.fetch_add(1, Ordering::AcqRel);
    }

    fn sync(&self, file: &std::fs::File) -> io::Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let both = [&self.below, &self.tables];
        let before = both.map(|pending| pending.written.load(Ordering::Acquire));
        if let Err(error) = file.sync_data() {
            // The kernel reports a lost write once and then forgets it (fsync(2)).
            self.broken.store(true, Ordering::Release);
            return Err(error);
        }
        #[cfg(test)]
        trace(|| Event::Sync);
        for (pending, before) in both.iter().zip(before) {
            pending.durable.fetch_max(before, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Remembers the tables that a table now names.
    fn learn(&self, bytes: &[u8], offset: u64, kind: Kind) {
        let mut layout = self.layout.write().unwrap_or_else(|e| e.into_inner());
        let table = match kind {
            Kind::L1 => layout.l1.bytes(),
            _ => layout.refcounts.bytes(),
        };
        if !table.contains(&offset) {
            return;
        }
        let named = entries(bytes);
        match kind {
            Kind::L1 => layout.l2.extend(named),
            _ => layout.refcount_blocks.extend(named),
        }
    }
}

/// What a test looks at.
#[cfg(test)]
#[derive(Clone, Debug)]
pub enum Event {
    Write(u64, Vec<u8>),
    Sync,
}

#[cfg(test)]
thread_local! {
    static TRACE: std::cell::RefCell<Option<Vec<Event>>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
fn trace(event: impl FnOnce() -> Event) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            trace.push(event());
        }
    });
}

/// What is written and made durable while `work` runs, by this thread.
#[cfg(test)]
pub fn traced<T>(work: impl FnOnce() -> T) -> (T, Vec<Event>) {
    TRACE.set(Some(Vec::new()));
    let done = work();
    (done, TRACE.take().unwrap_or_default())
}

/// The offsets in a table.
fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|entry| u64::from_be_bytes(*entry) & OFFSET)
        .filter(|offset| *offset != 0)
}

impl Layout {
    fn read(file: &std::fs::File, header: &Header) -> io::Result<Layout> {
        let table = |table: &header::Table| -> io::Result<HashSet<u64>> {
            let mut bytes = vec![0; (table.entries * 8) as usize];
            let mut done = 0;
            while done < bytes.len() {
                // A new image may end within its last cluster.
                match file.read_at(&mut bytes[done..], table.offset + done as u64)? {
                    0 => break,
                    read => done += read,
                }
            }
            Ok(entries(&bytes).collect())
        };
        Ok(Layout {
            l1: header.l1,
            refcounts: header.refcounts,
            l2: table(&header.l1)?,
            refcount_blocks: table(&header.refcounts)?,
        })
    }

    /// What lies in `range`: one thing, or imago is not what it was taken for.
    fn kind(&self, range: ByteRange) -> io::Result<Kind> {
        let cluster = range.offset / CLUSTER * CLUSTER;
        let (kind, end) = if range.offset < CLUSTER {
            (Kind::Header, CLUSTER)
        } else if self.l1.bytes().contains(&range.offset) {
            (Kind::L1, self.l1.bytes().end.next_multiple_of(CLUSTER))
        } else if self.refcounts.bytes().contains(&range.offset) {
            (Kind::Refcounts, self.refcounts.bytes().end)
        } else if self.l2.contains(&cluster) {
            (Kind::L2, cluster + CLUSTER)
        } else if self.refcount_blocks.contains(&cluster) {
            (Kind::Refcounts, cluster + CLUSTER)
        } else {
            (Kind::Data, u64::MAX)
        };
        if range.end() > end {
            return Err(io::Error::other("a write reaches past the table it is for"));
        }
        Ok(kind)
    }
}

impl fmt::Display for NodeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.node, f)
    }
}

impl Storage for NodeFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    // SAFETY: no rule is broken that the callers of these have to keep: they are unsafe because
    // requests may have to be aligned, which these need not be, and because nothing here orders
    // writes to the same place, which imago's own callers do.
    unsafe fn pure_readv(&self, into: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut part in into.into_inner() {
            let mut done = 0;
            while done < part.len() {
                match self.file.read_at(&mut part[done..], at + done as u64) {
                    Ok(0) => {
                        part[done..].fill(0);
                        break;
                    }
                    Ok(read) => done += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if self.node.is_qcow2() {
                refcounts::hide_dirty(&mut part, at);
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    // SAFETY: as `pure_readv`.
    unsafe fn pure_writev(&self, from: IoVector<'_>, offset: u64) -> io::Result<()> {
        let parts = from.into_inner();
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        self.write(&parts, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match &self.order {
            Some(order) => order.sync(&self.file),
            None => Ok(()),
        }
    }

    // SAFETY: there are no buffers here that could be dropped.
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

/// Whether a file holds data in `range`, and how far that goes: a hole in a raw file is not data.
pub fn data_or_hole(file: &std::fs::File, range: ByteRange) -> io::Result<(bool, u64)> {
    match sys::next_data(file, range)? {
        Some(data) if data.offset == range.offset => Ok((true, data.length)),
        Some(data) => Ok((false, data.offset - range.offset)),
        None => Ok((false, range.length)),
    }
}

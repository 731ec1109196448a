//! Extents of volumes: allocated by SEEK_DATA and SEEK_HOLE or by the tables of a chain's images,
//! changed by comparing what FIEMAP or those tables don't show to be the same.

use std::fs::File;
use std::io;

use tokio::sync::mpsc;
use volmux_core::{ByteRange, Error, ExtentStream, Grade, Result, VolumeName};

use crate::content::Content;
use crate::queue::received;
use crate::sys::{self, FileExtent};

/// The unit in which blocks are told apart.
pub const GRANULARITY: u64 = 4096;
/// Extents that wait for the reader at most.
const AHEAD: usize = 1024;
/// Bytes compared at a time.
const COMPARE: u64 = 1 << 20;
/// Bytes of which is found out at a time what may differ.
const WINDOW: u64 = 256 << 20;

/// Where a walk sends what it finds. Sending fails once nobody listens, which ends the walk.
type Sink = mpsc::Sender<Result<ByteRange>>;

/// Runs `walk` on a thread that may block, as a stream.
fn stream(
    op: &'static str,
    grade: Grade,
    name: VolumeName,
    walk: impl FnOnce(&mut dyn FnMut(ByteRange) -> io::Result<()>) -> io::Result<()> + Send + 'static,
) -> ExtentStream {
    let (sink, source) = mpsc::channel(AHEAD);
    let worker = tokio::task::spawn_blocking(move || {
        let mut joined = Joined { sink, last: None };
        let result = walk(&mut |extent| joined.push(extent)).and_then(|()| joined.finish());
        match result {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                let error = Error::from_io(op, error).with("volume", name);
                // Nobody listens any more: then nobody misses the error.
                let _ = joined.sink.blocking_send(Err(error));
            }
            _ => {}
        }
    });
    ExtentStream::new(grade, GRANULARITY, received(op, source, vec![worker]))
}

/// Joins extents that touch before they are sent.
struct Joined {
    sink: Sink,
    last: Option<ByteRange>,
}

impl Joined {
    fn push(&mut self, extent: ByteRange) -> io::Result<()> {
        match &mut self.last {
            _ if extent.is_empty() => Ok(()),
            Some(last) if last.end() == extent.offset => {
                last.length += extent.length;
                Ok(())
            }
            last => last.replace(extent).map_or(Ok(()), |done| self.send(done)),
        }
    }

    fn send(&self, extent: ByteRange) -> io::Result<()> {
        self.sink
            .blocking_send(Ok(extent))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.last.take().map_or(Ok(()), |done| self.send(done))
    }
}

/// Rounds outwards to whole blocks, then cuts to `range`.
fn to_blocks(extent: ByteRange, range: ByteRange) -> ByteRange {
    let start = extent.offset / GRANULARITY * GRANULARITY;
    let end = extent
        .end()
        .checked_next_multiple_of(GRANULARITY)
        .unwrap_or(u64::MAX);
    ByteRange::from_to(start, end).intersect(&range)
}

/// The ranges of `content` that hold data, within `range`: more than that, where XFS counts cached zeros
/// beside blocks that it copied on write, where an image has its data by the cluster, and where it is
/// not known what lies below an NFS server.
pub fn allocated(content: Content, range: ByteRange, name: VolumeName) -> ExtentStream {
    let range = range.intersect(&ByteRange::new(0, content.size));
    stream("extents", Grade::Superset, name, move |found| {
        content.data(range, &mut |data| found(to_blocks(data, range)))
    })
}

/// The ranges in which `volume` differs from `since`, within `range`.
pub fn changed(
    volume: Content,
    since: Content,
    range: ByteRange,
    name: VolumeName,
) -> ExtentStream {
    let range = range.intersect(&ByteRange::new(0, volume.size));
    stream("extents", Grade::Exact, name, move |found| {
        let mut compare = Comparison::new(&volume, &since, range);
        let (Some(left), Some(right)) = (volume.raw_file(), since.raw_file()) else {
            return by_tables(&volume, &since, range, &mut |part| {
                compare.differing_blocks(part, found)
            });
        };
        // `since` is normally a snapshot, whose blocks stay where they are while it exists: a block
        // that both maps show at one place is shared, however long ago either was read.
        let mut left = Map::new(left, volume.size, range);
        let mut right = Map::new(right, since.size, range);
        let mut at = range.offset;
        while at < range.end() {
            let (a, b) = (left.at(at)?, right.at(at)?);
            let end = a.end.min(b.end).min(range.end());
            if !a.same_as(&b, at) {
                compare.differing_blocks(ByteRange::from_to(at, end), found)?;
            }
            at = end;
        }
        Ok(())
    })
}

/// Tells what may differ where at least one side is a chain: what the files above the first one
/// that both have in common hold themselves.
fn by_tables(
    volume: &Content,
    since: &Content,
    range: ByteRange,
    may_differ: &mut dyn FnMut(ByteRange) -> io::Result<()>,
) -> io::Result<()> {
    let (ours, theirs) = (volume.nodes(), since.nodes());
    let common = ours.iter().enumerate().find_map(|(above, node)| {
        let at = theirs.iter().position(|other| other == node)?;
        Some((above, at))
    });
    let both = volume.size.min(since.size);
    let mut at = range.offset;
    while at < range.end() {
        let window = ByteRange::new(at, (range.end() - at).min(WINDOW));
        let mut parts = Vec::new();
        let mut add = |part| {
            parts.push(part);
            Ok(())
        };
        let (shared, rest) = split(window, both);
        match common {
            Some((above, below)) => {
                volume.changed_in(above, shared, &mut add)?;
                since.changed_in(below, shared, &mut add)?;
            }
            None => {
                volume.data(shared, &mut add)?;
                since.data(shared, &mut add)?;
            }
        }
        // Past the end of one side that reads as zeros.
        volume.data(rest, &mut add)?;
        parts.sort_unstable_by_key(|part| part.offset);
        let mut done = at;
        for part in parts {
            let new = ByteRange::from_to(part.offset.max(done), part.end().max(done));
            if !new.is_empty() {
                may_differ(new)?;
            }
            done = new.end();
        }
        at = window.end();
    }
    Ok(())
}

/// What of `range` lies before `at`, and the rest.
fn split(range: ByteRange, at: u64) -> (ByteRange, ByteRange) {
    let at = at.clamp(range.offset, range.end());
    (
        ByteRange::from_to(range.offset, at),
        ByteRange::from_to(at, range.end()),
    )
}

/// What a map says of the bytes from some offset to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    held: Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Zeros,
    At { physical: u64 },
    Unknown,
}

impl Piece {
    fn same_as(&self, other: &Piece, at: u64) -> bool {
        match (self.held, other.held) {
            (Held::Zeros, Held::Zeros) => true,
            (Held::At { physical: a }, Held::At { physical: b }) => {
                a + (at - self.start) == b + (at - other.start)
            }
            _ => false,
        }
    }
}

/// A file's pieces, asked for in batches and in ascending order.
struct Map<'a> {
    file: &'a File,
    size: u64,
    range: ByteRange,
    batch: std::vec::IntoIter<FileExtent>,
    next_batch: Option<u64>,
    current: Option<FileExtent>,
    fiemap: bool,
}

impl<'a> Map<'a> {
    fn new(file: &'a File, size: u64, range: ByteRange) -> Self {
        let next_batch = Some(range.offset);
        let batch = Vec::new().into_iter();
        Map {
            file,
            size,
            range,
            batch,
            next_batch,
            current: None,
            fiemap: true,
        }
    }

    /// The piece that holds byte `at`, which must not go down from call to call.
    fn at(&mut self, at: u64) -> io::Result<Piece> {
        let size = self.size;
        let zeros = |end: u64| Piece {
            start: at,
            end,
            held: Held::Zeros,
        };
        if at >= size {
            return Ok(zeros(u64::MAX));
        }
        while self.current.is_none_or(|e| e.range.end() <= at) {
            self.current = self.next()?;
            if self.current.is_none() {
                return Ok(zeros(u64::MAX));
            }
        }
        let extent = self.current.expect("the loop ends with one");
        if at < extent.range.offset {
            return Ok(zeros(extent.range.offset.min(size).max(at + 1)));
        }
        let held = match extent {
            FileExtent {
                unwritten: true, ..
            } => Held::Zeros,
            FileExtent {
                physical: Some(physical),
                ..
            } => Held::At { physical },
            _ => Held::Unknown,
        };
        Ok(Piece {
            start: extent.range.offset,
            end: extent.range.end().min(size),
            held,
        })
    }

    fn next(&mut self) -> io::Result<Option<FileExtent>> {
        loop {
            if let Some(extent) = self.batch.next() {
                return Ok(Some(extent));
            }
            let Some(from) = self.next_batch.take() else {
                return Ok(None);
            };
            let rest = ByteRange::from_to(from, self.range.end().min(self.size));
            if rest.is_empty() {
                return Ok(None);
            }
            if self.fiemap {
                match sys::file_extents(self.file, rest, true) {
                    Ok(found) => {
                        self.batch = found.extents.into_iter();
                        self.next_batch = found.next;
                        continue;
                    }
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                        self.fiemap = false;
                    }
                    Err(error) => return Err(error),
                }
            }
            let Some(data) = sys::next_data(self.file, rest)? else {
                return Ok(None);
            };
            self.next_batch = Some(data.end());
            let (unwritten, shared) = (false, false);
            return Ok(Some(FileExtent {
                range: data,
                physical: None,
                unwritten,
                shared,
            }));
        }
    }
}

/// Compares bytes where the maps don't tell.
struct Comparison<'a> {
    sides: [&'a Content; 2],
    buffers: [Vec<u8>; 2],
    range: ByteRange,
    /// Blocks before this are decided.
    done: u64,
}

impl<'a> Comparison<'a> {
    fn new(volume: &'a Content, since: &'a Content, range: ByteRange) -> Self {
        let buffers = [vec![0; COMPARE as usize], vec![0; COMPARE as usize]];
        Comparison {
            sides: [volume, since],
            buffers,
            range,
            done: 0,
        }
    }

    /// Tells `found` the blocks that touch `part` and differ.
    fn differing_blocks(
        &mut self,
        part: ByteRange,
        found: &mut dyn FnMut(ByteRange) -> io::Result<()>,
    ) -> io::Result<()> {
        // Whole blocks, since extents of the file system may begin within one.
        let whole = ByteRange::new(0, self.sides[0].size.max(self.range.end()));
        let blocks = to_blocks(part, whole);
        let mut at = blocks.offset.max(self.done);
        while at < blocks.end() {
            let length = (blocks.end() - at).min(COMPARE);
            for (side, buffer) in self.sides.iter().zip(&mut self.buffers) {
                side.read(&mut buffer[..length as usize], at)?;
            }
            let [a, b] = &self.buffers;
            let (a, b) = (&a[..length as usize], &b[..length as usize]);
            if a != b {
                let pairs = a
                    .chunks(GRANULARITY as usize)
                    .zip(b.chunks(GRANULARITY as usize));
                for (i, (a, b)) in pairs.enumerate() {
                    if a != b {
                        let block = ByteRange::new(at + i as u64 * GRANULARITY, a.len() as u64);
                        found(block.intersect(&self.range))?;
                    }
                }
            }
            at += length;
        }
        self.done = self.done.max(blocks.end());
        Ok(())
    }
}

/// Number of extents of a file and bytes that no other file shares; `None` without FIEMAP.
pub fn fragments_and_exclusive(file: &File, size: u64) -> io::Result<Option<(u64, u64)>> {
    let (mut fragments, mut exclusive, mut from) = (0, 0, Some(0));
    while let Some(start) = from {
        let found = match sys::file_extents(file, ByteRange::from_to(start, size), false) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                return Ok(None);
            }
            found => found?,
        };
        fragments += found.extents.len() as u64;
        exclusive += found
            .extents
            .iter()
            .filter(|e| !e.shared)
            .map(|e| e.range.length)
            .sum::<u64>();
        from = found.next;
    }
    Ok(Some((fragments, exclusive)))
}

//! Extents of data files: allocated by SEEK_DATA and SEEK_HOLE, changed by comparing what FIEMAP
//! does not show to be the same blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tokio::sync::mpsc;
use volmux_core::{ByteRange, Error, ExtentStream, Grade, Result, VolumeName};

use crate::abilities::Abilities;
use crate::queue::received;
use crate::sys::{self, FileExtent, Locked};

/// The unit in which blocks are told apart.
pub const GRANULARITY: u64 = 4096;
/// Extents that wait for the reader at most.
const AHEAD: usize = 1024;
/// Bytes compared at a time.
const COMPARE: u64 = 1 << 20;

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

/// The ranges of `file` that hold data, within `range`.
pub fn allocated(
    file: Locked,
    range: ByteRange,
    size: u64,
    abilities: Abilities,
    name: VolumeName,
) -> ExtentStream {
    // XFS keeps unwritten blocks in reserve beside those that it copied on write, and where such were
    // read, counts the cached zeros as data. What lies below an NFS server is not known.
    let grade = if abilities.clone || abilities.remote {
        Grade::Superset
    } else {
        Grade::Exact
    };
    let range = range.intersect(&ByteRange::new(0, size));
    stream("extents", grade, name, move |found| {
        let mut rest = range;
        while let Some(data) = sys::next_data(&file, rest)? {
            found(to_blocks(data, range))?;
            rest = ByteRange::from_to(data.end(), range.end());
        }
        Ok(())
    })
}

/// One side of a comparison: a data file of which only the first `size` bytes count.
#[derive(Debug)]
pub struct Side {
    /// The file.
    pub file: Locked,
    /// The volume's size.
    pub size: u64,
}

/// The ranges in which `volume` differs from `since`, within `range`.
pub fn changed(volume: Side, since: Side, range: ByteRange, name: VolumeName) -> ExtentStream {
    let range = range.intersect(&ByteRange::new(0, volume.size));
    stream("extents", Grade::Exact, name, move |found| {
        let mut compare = Comparison::new(&volume, &since, range);
        // `since` is normally a snapshot, whose blocks stay where they are while it exists: a block
        // that both maps show at one place is shared, however long ago either was read.
        let mut left = Map::new(&volume, range);
        let mut right = Map::new(&since, range);
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

/// What a map says of the bytes from some offset to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Zeros,
    At { physical: u64 },
    Unknown,
}

impl Piece {
    fn same_as(&self, other: &Piece, at: u64) -> bool {
        match (self.content, other.content) {
            (Content::Zeros, Content::Zeros) => true,
            (Content::At { physical: a }, Content::At { physical: b }) => {
                a + (at - self.start) == b + (at - other.start)
            }
            _ => false,
        }
    }
}

/// A file's pieces, asked for in batches and in ascending order.
struct Map<'a> {
    side: &'a Side,
    range: ByteRange,
    batch: std::vec::IntoIter<FileExtent>,
    next_batch: Option<u64>,
    current: Option<FileExtent>,
    fiemap: bool,
}

impl<'a> Map<'a> {
    fn new(side: &'a Side, range: ByteRange) -> Self {
        let next_batch = Some(range.offset);
        let batch = Vec::new().into_iter();
        Map {
            side,
            range,
            batch,
            next_batch,
            current: None,
            fiemap: true,
        }
    }

    /// The piece that holds byte `at`, which must not go down from call to call.
    fn at(&mut self, at: u64) -> io::Result<Piece> {
        let size = self.side.size;
        let zeros = |end: u64| Piece {
            start: at,
            end,
            content: Content::Zeros,
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
        let content = match extent {
            FileExtent {
                unwritten: true, ..
            } => Content::Zeros,
            FileExtent {
                physical: Some(physical),
                ..
            } => Content::At { physical },
            _ => Content::Unknown,
        };
        Ok(Piece {
            start: extent.range.offset,
            end: extent.range.end().min(size),
            content,
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
            let rest = ByteRange::from_to(from, self.range.end().min(self.side.size));
            if rest.is_empty() {
                return Ok(None);
            }
            if self.fiemap {
                match sys::file_extents(&self.side.file, rest, true) {
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
            let Some(data) = sys::next_data(&self.side.file, rest)? else {
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
    sides: [&'a Side; 2],
    buffers: [Vec<u8>; 2],
    range: ByteRange,
    /// Blocks before this are decided.
    done: u64,
}

impl<'a> Comparison<'a> {
    fn new(volume: &'a Side, since: &'a Side, range: ByteRange) -> Self {
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
                read_or_zeros(side, at, &mut buffer[..length as usize])?;
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

fn read_or_zeros(side: &Side, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let held = side.size.saturating_sub(at).min(buffer.len() as u64) as usize;
    side.file.read_exact_at(&mut buffer[..held], at)?;
    buffer[held..].fill(0);
    Ok(())
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

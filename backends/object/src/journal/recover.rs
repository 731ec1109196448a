//! What a journal holds when it is opened: which of its records count.
//!
//! A power cut leaves everything that was synced, and of the rest any part in any order. So the
//! journal ends where the first record is missing, and what may still follow is ignored: nobody
//! was told that it is there. Each opening goes on in a segment of its own, so that what was
//! ignored once can never come back behind newer records. If on the other hand something says
//! that more was synced than can be read, then the disk has lost it: that is an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use uuid::Uuid;
use volmux_core::{Error, ErrorKind, Result};

use super::files::{Dir, OPEN, cannot};
use super::format::{ALIGN, HEAD, HEADER, Header, Op, RECORDS, Records};
use crate::keys::LogId;
use crate::seal::{Damage, Seal};

/// How much is read at a time.
const WINDOW: usize = 256 << 10;

/// A file that holds a segment.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) file: Arc<File>,
    pub(super) header: Header,
    pub(super) records: Records,
}

/// A journal as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) journal: Uuid,
    /// With the records from `start` on, in order.
    pub(super) segments: Vec<Segment>,
    /// Files that nothing in them is needed of.
    pub(super) spares: Vec<(u32, File)>,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The highest there is.
    pub(super) generation: u64,
    /// Number of the next file to be made.
    pub(super) next: u32,
}

/// Looks through the files in `dir`, of `size` bytes each. `mark` says which journal counts, and
/// the position up to which it is not needed; any other is as good as none.
pub(super) fn recover(
    dir: &Dir,
    size: u64,
    log: LogId,
    seal: &Seal,
    mark: Option<(Uuid, u64)>,
    new: Uuid,
) -> Result<Found> {
    let mut found = Found {
        journal: new,
        segments: Vec::new(),
        spares: Vec::new(),
        start: 0,
        end: 0,
        generation: 0,
        next: 0,
    };
    let mut stale = 0;
    for number in dir.files().map_err(|e| cannot(dir.path(), e))? {
        found.next = number.saturating_add(1);
        let file = dir.open(number).map_err(|e| cannot(dir.path(), e))?;
        let header = read_header(dir, &file, log, seal)?;
        match header {
            Some(header) if mark.is_some_and(|(id, _)| id == header.journal) => {
                let records = Records::new(seal, &header).map_err(|d| damaged(dir, d))?;
                found.generation = found.generation.max(header.generation);
                found.segments.push(Segment {
                    number,
                    file: Arc::new(file),
                    header,
                    records,
                });
            }
            header => {
                stale += usize::from(header.is_some());
                discard(dir, number, file, size, &mut found.spares)?;
            }
        }
    }
    if stale > 0 {
        let path = dir.path().display();
        tracing::warn!(%path, segments = stale, "a journal was thrown away: another writer has \
            gone on from what was committed, and what was only in this journal is not in the volume");
    }
    if let Some((journal, start)) = mark.filter(|_| !found.segments.is_empty()) {
        (found.journal, found.start) = (journal, start);
        choose(dir, size, &mut found)?;
    }
    Ok(found)
}

fn read_header(dir: &Dir, file: &File, log: LogId, seal: &Seal) -> Result<Option<Header>> {
    let mut bytes = [0; HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(|e| cannot(dir.path(), e))?,
    }
    let wrong = |reason: String| {
        let error = Error::new(ErrorKind::InvalidConfig, OPEN);
        error.with("path", dir.path().display()).reason(reason)
    };
    match (Header::decode(&bytes), Header::later_version(&bytes)) {
        (None, None) => Ok(None),
        (None, Some(version)) => Err(wrong(format!("the journal has format version {version}"))
            .help("use the volmux that wrote it, or a later one")),
        (Some(header), _) if (header.pool, header.log) == (seal.pool(), log) => Ok(Some(header)),
        (Some(_), _) => Err(wrong("this is another volume's journal".to_owned())),
    }
}

/// Keeps a file for later use, or removes it where its size is not what it must be.
fn discard(
    dir: &Dir,
    number: u32,
    file: File,
    size: u64,
    spares: &mut Vec<(u32, File)>,
) -> Result<()> {
    let length = file.metadata().map_err(|e| cannot(dir.path(), e))?.len();
    if length == size {
        spares.push((number, file));
        return Ok(());
    }
    dir.remove(number).map_err(|e| cannot(dir.path(), e))
}

/// Leaves only the segments whose records count from the start on, and finds the end.
fn choose(dir: &Dir, size: u64, found: &mut Found) -> Result<()> {
    let mut all = std::mem::take(&mut found.segments);
    all.sort_by_key(|segment| segment.header.generation);
    // What begins where a later segment has begun already, was ignored at an opening.
    let mut chain: Vec<Segment> = Vec::new();
    let mut unused = Vec::new();
    for segment in all {
        let first = segment.header.first;
        while let Some(last) = chain.pop_if(|last| last.header.first >= first) {
            unused.push(last);
        }
        chain.push(segment);
    }
    let begin = chain
        .iter()
        .rposition(|segment| segment.header.first <= found.start);
    let Some(begin) = begin else {
        return Err(lost(dir, found.start, chain[0].header.first));
    };
    unused.extend(chain.drain(..begin));
    let (mut end, mut synced) = (found.start, 0);
    let mut whole = 0;
    for (n, segment) in chain.iter().enumerate() {
        synced = synced.max(segment.header.synced);
        if whole < n || segment.header.first > end {
            continue;
        }
        let next = chain.get(n + 1).map(|next| next.header.first);
        let scan = scan(segment, end, next).map_err(|e| cannot(dir.path(), e))?;
        (end, synced) = (scan.end, synced.max(scan.synced));
        whole += usize::from(next == Some(end));
        // It may be there only because the system still has it in memory.
        segment
            .file
            .sync_data()
            .map_err(|e| cannot(dir.path(), e))?;
    }
    if end < synced {
        return Err(lost(dir, end, synced));
    }
    unused.extend(chain.drain(whole + 1..));
    for segment in unused {
        let file = File::try_clone(&segment.file).map_err(|e| cannot(dir.path(), e))?;
        discard(dir, segment.number, file, size, &mut found.spares)?;
    }
    (found.segments, found.end) = (chain, end);
    Ok(())
}

struct Scan {
    /// Where the first record is missing.
    end: u64,
    /// The furthest that a record says was synced.
    synced: u64,
}

/// Reads a segment from position `start` up to where a record is missing, or up to `stop`, where
/// the next segment goes on.
fn scan(segment: &Segment, start: u64, stop: Option<u64>) -> io::Result<Scan> {
    let mut window = Window::new(&segment.file);
    let mut scan = Scan {
        end: start,
        synced: 0,
    };
    let first = segment.header.first;
    while stop.is_none_or(|stop| scan.end < stop) {
        let Some((head, _)) = window.record(segment, scan.end)? else {
            break;
        };
        let end = scan.end + head.size() as u64;
        if stop.is_some_and(|stop| end > stop) {
            break;
        }
        scan.synced = scan.synced.max(head.synced);
        scan.end = end;
    }
    if stop == Some(scan.end) {
        return Ok(scan);
    }
    // Records that were written later may be there; what they say of earlier ones is true.
    let mut at = RECORDS + scan.end - first;
    while let Some(bytes) = window.get(at, HEAD)? {
        let zeros = bytes[..ALIGN].iter().all(|byte| *byte == 0);
        if !zeros && let Some(head) = segment.records.head(first + (at - RECORDS), bytes) {
            scan.synced = scan.synced.max(head.synced);
        }
        at += ALIGN as u64;
    }
    Ok(scan)
}

/// Reads a file in large pieces.
#[derive(Debug)]
struct Window {
    file: Arc<File>,
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn new(file: &Arc<File>) -> Self {
        Window {
            file: Arc::clone(file),
            at: 0,
            bytes: Vec::new(),
        }
    }

    /// `length` bytes at `at`, if the file has so many.
    fn get(&mut self, at: u64, length: usize) -> io::Result<Option<&[u8]>> {
        let end = self.at + self.bytes.len() as u64;
        if at < self.at || at + length as u64 > end {
            self.bytes.resize(WINDOW.max(length), 0);
            let mut read = 0;
            while read < self.bytes.len() {
                match self.file.read_at(&mut self.bytes[read..], at + read as u64) {
                    Ok(0) => break,
                    Ok(count) => read += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.bytes.clear();
                        return Err(error);
                    }
                }
            }
            self.bytes.truncate(read);
            self.at = at;
        }
        let start = (at - self.at) as usize;
        Ok(self.bytes.get(start..start + length))
    }

    /// The record at `position`, if it is whole.
    fn record(
        &mut self,
        segment: &Segment,
        position: u64,
    ) -> io::Result<Option<(super::format::Head, &[u8])>> {
        let at = RECORDS + position - segment.header.first;
        let Some(bytes) = self.get(at, HEAD)? else {
            return Ok(None);
        };
        let Some(head) = segment.records.head(position, bytes) else {
            return Ok(None);
        };
        let body = self.get(at + HEAD as u64, head.body)?;
        Ok(body
            .filter(|body| segment.records.fits(&head, body))
            .map(|body| (head, body)))
    }
}

/// What is to be done again: the records that a journal held when it was opened, in order, each
/// with the position after it. Reads from the disk: not for an async thread.
#[derive(Debug)]
pub(crate) struct Replay {
    segments: std::vec::IntoIter<Segment>,
    current: Option<(Segment, Window)>,
    position: u64,
    end: u64,
}

impl Replay {
    pub(super) fn new(found: &Found) -> Self {
        Replay {
            segments: found.segments.clone().into_iter(),
            current: None,
            position: found.start,
            end: found.end,
        }
    }

    /// Bytes of records that are left.
    pub(crate) fn left(&self) -> u64 {
        self.end - self.position
    }

    fn step(&mut self) -> Result<(u64, Op)> {
        let next = self
            .segments
            .as_slice()
            .first()
            .map(|next| next.header.first);
        if self.current.is_none() || next.is_some_and(|first| first <= self.position) {
            self.current = self.segments.next().map(|segment| {
                let window = Window::new(&segment.file);
                (segment, window)
            });
        }
        let Some((segment, window)) = &mut self.current else {
            return Err(gone(self.position));
        };
        let record = window.record(segment, self.position);
        let record = record.map_err(|error| Error::from_io(OPEN, error))?;
        let (head, body) = record.ok_or_else(|| gone(self.position))?;
        let op = segment.records.decode(self.position, body);
        let op = op.map_err(|damage| gone(self.position).with_source(damage))?;
        self.position += head.size() as u64;
        Ok((self.position, op))
    }
}

impl Iterator for Replay {
    type Item = Result<(u64, Op)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.end {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.end = self.position;
        }
        Some(step)
    }
}

fn gone(position: u64) -> Error {
    Error::new(ErrorKind::Corrupt, OPEN)
        .with("position", position)
        .reason("a record of the journal can't be read any more")
}

fn lost(dir: &Dir, from: u64, to: u64) -> Error {
    Error::new(ErrorKind::Corrupt, OPEN)
        .with("path", dir.path().display())
        .with("from", from)
        .with("to", to)
        .reason("the journal has lost records that were synced: its disk is damaged")
        .help("restore the directory; or move it away to go on with what is in the store, without the last writes")
}

fn damaged(dir: &Dir, damage: Damage) -> Error {
    Error::new(ErrorKind::Corrupt, OPEN)
        .with("path", dir.path().display())
        .reason("the journal can't be read")
        .with_source(damage)
}

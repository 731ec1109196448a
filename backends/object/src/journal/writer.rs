//! The thread that writes a journal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::format::{Header, Op, RECORDS, Records};
use super::shared::Shared;
use crate::seal::Damage;

/// How much is written by one call.
const CHUNK: usize = 1 << 20;

/// What is to be written.
#[derive(Debug)]
pub(super) enum Item {
    /// What follows goes to this file.
    Segment {
        file: Arc<File>,
        header: Header,
        records: Records,
    },
    /// A record, at its position.
    Record { position: u64, op: Op },
}

/// What the thread does next.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) items: Vec<Item>,
    /// Bytes of records in `items`.
    pub(super) bytes: u64,
    /// Position after the last item.
    pub(super) end: u64,
    /// Everything before this is synced.
    pub(super) synced: u64,
    /// Whether everything has to be synced.
    pub(super) sync: bool,
    /// Whether it is the last.
    pub(super) last: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Damage(#[from] Damage),
}

/// Writes until the journal is closed.
pub(super) fn run(shared: &Arc<Shared>) {
    // However this ends, nobody may go on waiting for it.
    let _ended = Ended(shared);
    let mut output = Output::default();
    let mut failed = false;
    loop {
        let work = shared.next_work();
        let (bytes, end, sync, last) = (work.bytes, work.end, work.sync, work.last);
        if !failed {
            let written = output.write(work);
            let written = written.and_then(|()| if sync { output.sync() } else { Ok(()) });
            failed = written.is_err();
            shared.done(bytes, sync.then_some(end), written.err());
        }
        if last {
            return;
        }
    }
}

struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.ended();
    }
}

#[derive(Debug, Default)]
struct Output {
    segment: Option<Target>,
    buffer: Vec<u8>,
    /// Whether something was written since the last sync.
    dirty: bool,
}

#[derive(Debug)]
struct Target {
    file: Arc<File>,
    records: Records,
    /// Where in the file the buffer goes.
    at: u64,
}

impl Output {
    fn write(&mut self, work: Work) -> Result<(), WriteError> {
        for item in work.items {
            match item {
                Item::Segment {
                    file,
                    header,
                    records,
                } => {
                    // Only the last segment is synced with what follows.
                    self.sync()?;
                    file.write_all_at(&header.encode(), 0)?;
                    self.dirty = true;
                    let at = RECORDS;
                    self.segment = Some(Target { file, records, at });
                }
                Item::Record { position, op } => {
                    let Some(target) = &self.segment else {
                        continue;
                    };
                    target
                        .records
                        .encode(position, work.synced, &op, &mut self.buffer)?;
                    if self.buffer.len() >= CHUNK {
                        self.flush()?;
                    }
                }
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        if let Some(target) = &mut self.segment
            && !self.buffer.is_empty()
        {
            target.file.write_all_at(&self.buffer, target.at)?;
            target.at += self.buffer.len() as u64;
            self.dirty = true;
            self.buffer.clear();
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WriteError> {
        self.flush()?;
        if let Some(target) = self.segment.as_ref().filter(|_| self.dirty) {
            target.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }
}

//! Requests and replies. Each reply is held against the specification.

use std::collections::BTreeMap;

use super::client::Client;
use super::wire::{self, Mode, Request, chunk, cmd, errno, flag};

/// Ranges and their flags, one after the other.
pub type Extents = Vec<(u64, u64)>;

const COOKIE_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub cookie: u64,
    /// 0 for success.
    pub error: u32,
    /// The text of the error.
    pub message: String,
    /// What was read.
    pub data: Vec<u8>,
    /// The status of each context.
    pub status: BTreeMap<u32, Extents>,
    /// Number of messages.
    pub chunks: usize,
}

/// A request that has no full reply yet.
#[derive(Debug)]
pub struct Pending {
    request: Request,
    /// The contexts whose status must come.
    contexts: Vec<u32>,
    /// What of the data has come.
    covered: Vec<(u64, u64)>,
    done: Done,
}

impl Pending {
    fn new(request: &Request, selected: impl Iterator<Item = u32>) -> Pending {
        let mut request = request.clone();
        let mut contexts = Vec::new();
        if request.command == cmd::BLOCK_STATUS {
            contexts = selected.collect();
            if request.flags & flag::PAYLOAD_LEN != 0 && request.payload.len() >= 8 {
                let (length, ids) = request.payload.split_at(8);
                request.length = u64::from_be_bytes(length.try_into().expect("8 bytes"));
                let id = |id: &[u8]| u32::from_be_bytes(id.try_into().expect("4 bytes"));
                contexts = ids.chunks_exact(4).map(id).collect();
            }
        }
        request.payload = Vec::new();
        Pending {
            contexts,
            covered: Vec::new(),
            done: Done {
                cookie: request.cookie,
                ..Done::default()
            },
            request,
        }
    }

    /// Takes a content chunk of a read.
    fn content(&mut self, offset: u64, length: u64, data: Option<&[u8]>) {
        assert_eq!(self.request.command, cmd::READ, "data for a read only");
        let (start, end) = (
            self.request.offset,
            self.request.offset + self.request.length,
        );
        assert!(
            length > 0 && offset >= start,
            "{offset}+{length} is before {start}"
        );
        assert!(offset + length <= end, "{offset}+{length} is past {end}");
        for &(from, to) in &self.covered {
            assert!(offset + length <= from || offset >= to, "content overlaps");
        }
        if self.request.flags & flag::DF != 0 {
            assert!(self.covered.is_empty(), "DF allows for one content chunk");
        }
        if self.covered.is_empty() {
            // Not before: a read that is refused may be of any length.
            self.done.data = vec![0xee; self.request.length as usize];
        }
        self.covered.push((offset, offset + length));
        let at = (offset - start) as usize;
        let place = &mut self.done.data[at..at + length as usize];
        match data {
            Some(data) => place.copy_from_slice(data),
            None => place.fill(0),
        }
    }

    fn extents(&mut self, context: u32, extents: Extents, size: u64) {
        assert_eq!(self.request.command, cmd::BLOCK_STATUS);
        assert!(
            self.contexts.contains(&context),
            "context {context} was not asked for"
        );
        assert!(!extents.is_empty(), "at least one extent");
        assert!(extents.len() <= 1 << 20, "at most 2^20 extents");
        assert!(
            extents.iter().all(|(length, _)| *length > 0),
            "no empty extent"
        );
        let total: u64 = extents.iter().map(|(length, _)| length).sum();
        let last = extents.last().expect("not empty").0;
        assert!(
            total - last < self.request.length,
            "all but the last begin in the range"
        );
        assert!(self.request.offset + total <= size, "nothing past the end");
        if self.request.flags & flag::REQ_ONE != 0 {
            assert_eq!(extents.len(), 1, "REQ_ONE");
            assert!(
                total <= self.request.length,
                "REQ_ONE: no longer than asked"
            );
        }
        let before = self.done.status.insert(context, extents);
        assert_eq!(before, None, "one chunk for each context");
    }

    fn error(&mut self, error: u32, message: &[u8]) {
        assert!(
            errno::ALL.contains(&error),
            "{error} is no error of the protocol"
        );
        assert!(message.len() <= 4096, "a text has 4096 bytes at most");
        assert_eq!(self.done.error, 0, "one error is enough");
        self.done.error = error;
        self.done.message = String::from_utf8(message.to_vec()).expect("a text is UTF-8");
    }

    /// The last message has come.
    fn finish(mut self) -> Done {
        if self.done.error != 0 {
            self.done.data.clear();
            return self.done;
        }
        match self.request.command {
            cmd::READ => {
                let covered: u64 = self.covered.iter().map(|(from, to)| to - from).sum();
                assert_eq!(covered, self.request.length, "all that was asked for came");
            }
            cmd::BLOCK_STATUS => {
                let came: Vec<u32> = self.done.status.keys().copied().collect();
                let mut wanted = self.contexts.clone();
                wanted.sort_unstable();
                assert_eq!(came, wanted, "one chunk for each context");
            }
            _ => assert!(self.covered.is_empty()),
        }
        self.done
    }
}

impl Client {
    /// Gives a request its cookie and sends it.
    #[track_caller]
    pub fn submit(&mut self, request: Request) -> u64 {
        let (cookie, bytes) = self.prepare(request);
        self.send(&bytes);
        cookie
    }

    /// Gives a request its cookie and expects its reply; the caller sends the bytes.
    pub fn prepare(&mut self, mut request: Request) -> (u64, Vec<u8>) {
        // All different, and every byte of them matters.
        self.next_cookie = self.next_cookie.wrapping_add(COOKIE_STEP);
        request.cookie = self.next_cookie;
        let pending = Pending::new(&request, self.contexts.keys().copied());
        assert!(self.pending.insert(request.cookie, pending).is_none());
        (request.cookie, request.encode(self.mode))
    }

    /// The next request has this cookie.
    pub fn next_cookie_is(&mut self, cookie: u64) {
        self.next_cookie = cookie.wrapping_sub(COOKIE_STEP);
    }

    /// Reads messages until one request is answered in full.
    #[track_caller]
    pub fn next_done(&mut self) -> Done {
        loop {
            if let Some(done) = self.message() {
                return done;
            }
        }
    }

    /// Sends one request and waits for its answer.
    #[track_caller]
    pub fn ask(&mut self, request: Request) -> Done {
        let cookie = self.submit(request);
        let done = self.next_done();
        assert_eq!(done.cookie, cookie, "nothing else is under way");
        done
    }

    #[track_caller]
    fn message(&mut self) -> Option<Done> {
        let magic = self.u32();
        match (magic, self.mode) {
            (wire::SIMPLE_REPLY, Mode::Simple | Mode::Structured) => Some(self.simple_reply()),
            (wire::STRUCTURED_REPLY, Mode::Structured) => {
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                let length = u64::from(self.u32());
                self.chunk(flags, kind, cookie, None, length)
            }
            (wire::EXTENDED_REPLY, Mode::Extended) => {
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                let (offset, length) = (self.u64(), self.u64());
                self.chunk(flags, kind, cookie, Some(offset), length)
            }
            _ => panic!("no reply begins with {magic:#x} in mode {:?}", self.mode),
        }
    }

    #[track_caller]
    fn simple_reply(&mut self) -> Done {
        let (error, cookie) = (self.u32(), self.u64());
        let mut pending = self.take(cookie);
        assert_eq!(pending.done.chunks, 0, "a simple reply stands alone");
        pending.done.chunks = 1;
        let Request {
            command,
            offset,
            length,
            ..
        } = pending.request;
        if self.mode == Mode::Structured {
            assert_ne!(command, cmd::READ, "a read is answered by chunks");
        }
        if error != 0 {
            pending.error(error, b"");
        } else if command == cmd::READ && length > 0 {
            let data = self.receive(length as usize);
            pending.content(offset, length, Some(&data));
        }
        pending.finish()
    }

    #[track_caller]
    fn chunk(
        &mut self,
        flags: u16,
        kind: u16,
        cookie: u64,
        offset: Option<u64>,
        length: u64,
    ) -> Option<Done> {
        assert_eq!(flags & !chunk::DONE, 0, "unknown flags {flags:#x}");
        assert!(length <= (64 << 20) + 4096, "a chunk of {length} bytes");
        let payload = self.receive(length as usize);
        let mut pending = self.take(cookie);
        pending.done.chunks += 1;
        if let Some(offset) = offset {
            assert_eq!(offset, pending.request.offset, "the offset is repeated");
        }
        let short = |at: usize| u16::from_be_bytes(payload[at..at + 2].try_into().expect("2"));
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("4"));
        let long = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("8"));
        match kind {
            chunk::NONE => {
                assert_eq!((flags, length), (chunk::DONE, 0), "NONE is last and empty");
            }
            chunk::OFFSET_DATA => {
                assert!(length >= 9);
                pending.content(long(0), length - 8, Some(&payload[8..]));
            }
            chunk::OFFSET_HOLE => {
                assert_eq!(length, 12);
                pending.content(long(0), u64::from(word(8)), None);
            }
            chunk::BLOCK_STATUS => {
                assert_eq!(self.mode, Mode::Structured);
                assert!(length >= 12 && (length - 4).is_multiple_of(8));
                let extents = (4..length as usize).step_by(8);
                let extents = extents.map(|at| (word(at).into(), word(at + 4).into()));
                pending.extents(word(0), extents.collect(), self.export.size);
            }
            chunk::BLOCK_STATUS_EXT => {
                assert_eq!(self.mode, Mode::Extended);
                assert_eq!(length, 8 + 16 * u64::from(word(4)));
                let extents = (8..length as usize).step_by(16);
                let extents = extents.map(|at| (long(at), long(at + 8)));
                pending.extents(word(0), extents.collect(), self.export.size);
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                let fixed = if kind == chunk::ERROR { 6 } else { 14 };
                assert!(length >= fixed, "{length}");
                let text = u64::from(short(4));
                assert_eq!(length, fixed + text, "the text has the rest of the chunk");
                pending.error(word(0), &payload[6..6 + text as usize]);
                if kind == chunk::ERROR_OFFSET {
                    let (at, request) = (long(6 + text as usize), &pending.request);
                    assert!(at >= request.offset && at - request.offset <= request.length);
                }
            }
            _ => panic!("there is no chunk of type {kind}"),
        }
        if flags == chunk::DONE {
            return Some(pending.finish());
        }
        self.pending.insert(cookie, pending);
        None
    }

    #[track_caller]
    fn take(&mut self, cookie: u64) -> Pending {
        let pending = self.pending.remove(&cookie);
        pending.unwrap_or_else(|| panic!("no request with cookie {cookie:#x} is under way"))
    }

    // The usual requests, with the error's number if they fail.

    #[track_caller]
    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, u32> {
        result(self.ask(Request::new(cmd::READ, offset, length))).map(|done| done.data)
    }

    #[track_caller]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        result(self.ask(Request::write(self.mode, offset, data))).map(drop)
    }

    #[track_caller]
    pub fn flush(&mut self) -> Result<(), u32> {
        result(self.ask(Request::new(cmd::FLUSH, 0, 0))).map(drop)
    }

    #[track_caller]
    pub fn trim(&mut self, offset: u64, length: u64) -> Result<(), u32> {
        result(self.ask(Request::new(cmd::TRIM, offset, length))).map(drop)
    }

    #[track_caller]
    pub fn zero(&mut self, offset: u64, length: u64, flags: u16) -> Result<(), u32> {
        let request = Request::new(cmd::WRITE_ZEROES, offset, length).with(flags);
        result(self.ask(request)).map(drop)
    }

    /// The status of one selected context.
    #[track_caller]
    pub fn status(&mut self, context: &str, offset: u64, length: u64) -> Result<Extents, u32> {
        let id = self.context(context);
        let done = result(self.ask(Request::new(cmd::BLOCK_STATUS, offset, length)))?;
        Ok(done.status[&id].clone())
    }

    /// The status of one selected context over the whole export, with neighbours joined; as many
    /// requests as it takes.
    #[track_caller]
    pub fn whole_status(&mut self, context: &str) -> Extents {
        let mut whole: Extents = Vec::new();
        let mut at = 0;
        while at < self.export.size {
            let most = match self.mode {
                Mode::Extended => u64::MAX,
                Mode::Simple | Mode::Structured => 0xffff_f000,
            };
            let length = (self.export.size - at).min(most);
            for (length, flags) in self.status(context, at, length).expect("status") {
                at += length;
                match whole.last_mut() {
                    Some(last) if last.1 == flags => last.0 += length,
                    _ => whole.push((length, flags)),
                }
            }
        }
        assert_eq!(at, self.export.size, "the status ends with the export");
        whole
    }

    /// Says goodbye; the server answers with nothing but the end.
    #[track_caller]
    pub fn disconnect(mut self) {
        assert!(
            self.pending.is_empty(),
            "{} replies are missing",
            self.pending.len()
        );
        self.send(&Request::new(cmd::DISC, 0, 0).encode(self.mode));
        self.expect_end();
    }
}

fn result(done: Done) -> Result<Done, u32> {
    match done.error {
        0 => Ok(done),
        error => Err(error),
    }
}

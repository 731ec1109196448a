//! Replies on their way to the client.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use super::request::{Answer, Failure};
use super::wire::{
    EXTENDED_REPLY_MAGIC, Errno, Header, Mode, SIMPLE_REPLY_MAGIC, STRING_LENGTH,
    STRUCTURED_REPLY_MAGIC, chunk,
};

/// More parts than this are not sent at once (UIO_MAXIOV is 1024).
const MOST_SLICES: usize = 512;

/// The header of a reply or of one chunk of it, and a data's offset.
const HEAD: usize = 40;

/// A head and what follows it.
#[derive(Debug)]
struct Part {
    head: [u8; HEAD],
    head_length: usize,
    body: Bytes,
    /// Memory that was set aside for the request, given back when this is sent.
    memory: u64,
}

impl Part {
    fn length(&self) -> usize {
        self.head_length + self.body.len()
    }
}

/// Replies that wait to be sent.
#[derive(Debug)]
pub(crate) struct Output {
    mode: Mode,
    parts: VecDeque<Part>,
    /// How much of the first part is sent.
    sent: usize,
    /// Bytes that are not sent.
    pending: usize,
}

impl Output {
    pub(crate) fn new(mode: Mode) -> Self {
        Output {
            mode,
            parts: VecDeque::new(),
            sent: 0,
            pending: 0,
        }
    }

    /// Bytes that wait.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// Calls `send` with what waits. `send` returns how much it took.
    ///
    /// # Errors
    /// Those of `send`.
    pub(crate) fn send_with(
        &mut self,
        send: impl FnOnce(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> std::io::Result<u64> {
        let mut slices = Vec::with_capacity((self.parts.len() * 2).min(MOST_SLICES));
        let mut skip = self.sent;
        for part in &self.parts {
            if slices.len() + 2 > MOST_SLICES {
                break;
            }
            for bytes in [&part.head[..part.head_length], &part.body[..]] {
                let rest = &bytes[skip.min(bytes.len())..];
                skip -= bytes.len() - rest.len();
                if !rest.is_empty() {
                    slices.push(IoSlice::new(rest));
                }
            }
        }
        let took = send(&slices)?;
        Ok(self.advance(took))
    }

    /// Drops what is sent and returns the memory that this gives back.
    fn advance(&mut self, took: usize) -> u64 {
        self.pending -= took;
        self.sent += took;
        let mut memory = 0;
        while let Some(part) = self.parts.pop_front_if(|part| part.length() <= self.sent) {
            self.sent -= part.length();
            memory += part.memory;
        }
        memory
    }

    /// Appends the reply to `request`, which has `memory` set aside.
    pub(crate) fn reply(&mut self, request: &Header, result: Result<Answer, Failure>, memory: u64) {
        match result {
            Ok(Answer::Done) => self.done(request, memory),
            Ok(Answer::Data(data)) => self.data(request, data, memory),
            Ok(Answer::Status(contexts)) => {
                let last = contexts.len();
                for (number, (id, descriptors)) in contexts.into_iter().enumerate() {
                    let done = number + 1 == last;
                    let mut body = Vec::with_capacity(8 + descriptors.len() * 16);
                    body.extend(id.to_be_bytes());
                    let extended = self.mode == Mode::Extended;
                    if extended {
                        body.extend((descriptors.len() as u32).to_be_bytes());
                    }
                    for descriptor in descriptors {
                        if extended {
                            body.extend(descriptor.length.to_be_bytes());
                            body.extend(u64::from(descriptor.flags).to_be_bytes());
                        } else {
                            // Within the range that was asked for, whose length has 32 bits here.
                            body.extend((descriptor.length as u32).to_be_bytes());
                            body.extend(descriptor.flags.to_be_bytes());
                        }
                    }
                    let kind = if extended {
                        chunk::BLOCK_STATUS_EXT
                    } else {
                        chunk::BLOCK_STATUS
                    };
                    let memory = if done { memory } else { 0 };
                    self.chunk(request, kind, done, &[], body.into(), memory);
                }
            }
            Err(failure) => self.failure(request, failure, memory),
        }
    }

    fn done(&mut self, request: &Header, memory: u64) {
        match self.mode {
            // Shorter, and allowed where there is no data.
            Mode::Simple | Mode::Structured => self.simple(request, 0, Bytes::new(), memory),
            Mode::Extended => {
                self.chunk(request, chunk::NONE, true, &[], Bytes::new(), memory);
            }
        }
    }

    fn data(&mut self, request: &Header, data: Bytes, memory: u64) {
        if self.mode == Mode::Simple {
            return self.simple(request, 0, data, memory);
        }
        if data.is_empty() {
            // A chunk with data has one byte at least.
            return self.chunk(request, chunk::NONE, true, &[], data, memory);
        }
        let offset = request.offset.to_be_bytes();
        self.chunk(request, chunk::OFFSET_DATA, true, &offset, data, memory);
    }

    fn failure(&mut self, request: &Header, failure: Failure, memory: u64) {
        let errno: Errno = failure.errno;
        if self.mode == Mode::Simple {
            return self.simple(request, errno as u32, Bytes::new(), memory);
        }
        let mut message = failure.message;
        while message.len() > STRING_LENGTH {
            message.pop();
        }
        let mut body = Vec::with_capacity(6 + message.len());
        body.extend((errno as u32).to_be_bytes());
        body.extend((message.len() as u16).to_be_bytes());
        body.extend(message.as_bytes());
        self.chunk(request, chunk::ERROR, true, &[], body.into(), memory);
    }

    fn simple(&mut self, request: &Header, errno: u32, data: Bytes, memory: u64) {
        let mut head = Head::default();
        head.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head.put(&errno.to_be_bytes());
        head.put(&request.cookie.to_be_bytes());
        self.push(&head, data, memory);
    }

    /// A structured or extended chunk. `first` is the beginning of the payload, 8 bytes at most.
    fn chunk(
        &mut self,
        request: &Header,
        kind: u16,
        done: bool,
        first: &[u8],
        body: Bytes,
        memory: u64,
    ) {
        let length = first.len() + body.len();
        let flags = if done { chunk::DONE } else { 0 };
        let extended = self.mode == Mode::Extended;
        let mut head = Head::default();
        head.put(
            &if extended {
                EXTENDED_REPLY_MAGIC
            } else {
                STRUCTURED_REPLY_MAGIC
            }
            .to_be_bytes(),
        );
        head.put(&flags.to_be_bytes());
        head.put(&kind.to_be_bytes());
        head.put(&request.cookie.to_be_bytes());
        if extended {
            head.put(&request.offset.to_be_bytes());
            head.put(&(length as u64).to_be_bytes());
        } else {
            // The longest request is far below 4 GiB.
            head.put(&(length as u32).to_be_bytes());
        }
        head.put(first);
        self.push(&head, body, memory);
    }

    fn push(&mut self, head: &Head, body: Bytes, memory: u64) {
        self.pending += head.length + body.len();
        self.parts.push_back(Part {
            head: head.bytes,
            head_length: head.length,
            body,
            memory,
        });
    }
}

/// A head under construction.
struct Head {
    bytes: [u8; HEAD],
    length: usize,
}

impl Default for Head {
    fn default() -> Self {
        Head {
            bytes: [0; HEAD],
            length: 0,
        }
    }
}

impl Head {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cookie: u64) -> Header {
        Header {
            flags: 0,
            command: 0,
            cookie,
            offset: 0x1122,
            length: 5,
        }
    }

    /// Sends all, `step` bytes at a time.
    fn sent(output: &mut Output, step: usize) -> (Vec<u8>, u64) {
        let (mut bytes, mut memory) = (Vec::new(), 0);
        while output.pending() > 0 {
            memory += output
                .send_with(|slices| {
                    let whole: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
                    let took = whole.len().min(step);
                    bytes.extend(&whole[..took]);
                    Ok(took)
                })
                .expect("nothing fails here");
        }
        (bytes, memory)
    }

    #[test]
    fn what_is_sent_in_pieces_is_the_same_as_at_once() {
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let fill = || {
                let mut output = Output::new(mode);
                output.reply(
                    &header(1),
                    Ok(Answer::Data(Bytes::from_static(b"hello"))),
                    5,
                );
                output.reply(&header(2), Ok(Answer::Done), 0);
                let failure = Failure {
                    errno: Errno::NoSpc,
                    message: "full".to_owned(),
                };
                output.reply(&header(3), Err(failure), 7);
                output
            };
            let whole = sent(&mut fill(), usize::MAX);
            assert_eq!(whole.1, 12);
            for step in 1..50 {
                assert_eq!(sent(&mut fill(), step), whole, "{mode:?} {step}");
            }
        }
    }

    #[test]
    fn memory_comes_back_when_the_last_byte_is_sent() {
        let mut output = Output::new(Mode::Simple);
        output.reply(
            &header(1),
            Ok(Answer::Data(Bytes::from_static(b"hello"))),
            5,
        );
        assert_eq!(output.send_with(|_| Ok(20)).expect("sent"), 0);
        assert_eq!(output.send_with(|_| Ok(1)).expect("sent"), 5);
        assert_eq!(output.pending(), 0);
    }

    #[test]
    fn a_structured_read_has_the_layout_of_the_specification() {
        let mut output = Output::new(Mode::Structured);
        output.reply(
            &header(7),
            Ok(Answer::Data(Bytes::from_static(b"hello"))),
            0,
        );
        let mut expected = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1];
        expected.extend(7_u64.to_be_bytes());
        expected.extend(13_u32.to_be_bytes());
        expected.extend(0x1122_u64.to_be_bytes());
        expected.extend(b"hello");
        assert_eq!(sent(&mut output, usize::MAX).0, expected);
    }
}

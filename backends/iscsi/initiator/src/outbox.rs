//! What is to be sent, in order. It is written as far as the socket takes it, without waiting, and
//! the rest by a task in the background: so nothing is half sent when a future is dropped.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;
use tokio::net::tcp::OwnedWriteHalf;

use crate::pdu::Header;
use crate::wire::{After, Before, Digests, encode};

/// Pieces that are written by one call.
const AT_ONCE: usize = 64;

pub struct Outbox {
    pdus: VecDeque<Pdu>,
    /// Bytes of the first that were written.
    written: usize,
    /// Bytes that were not.
    pub length: usize,
    digests: Digests,
}

struct Pdu {
    before: Before,
    data: Bytes,
    after: After,
}

impl Pdu {
    fn pieces(&self) -> [&[u8]; 3] {
        [&self.before, &self.data, &self.after]
    }

    fn len(&self) -> usize {
        self.before.len() + self.data.len() + self.after.len()
    }
}

impl Outbox {
    pub fn new(digests: Digests) -> Outbox {
        Outbox {
            pdus: VecDeque::new(),
            written: 0,
            length: 0,
            digests,
        }
    }

    pub fn add(&mut self, header: Header, data: Bytes) {
        let (before, after) = encode(header, &data, self.digests);
        let pdu = Pdu {
            before,
            data,
            after,
        };
        self.length += pdu.len();
        self.pdus.push_back(pdu);
    }

    /// Writes what can be written at once. Whether that was all.
    pub fn write(&mut self, stream: &OwnedWriteHalf) -> io::Result<bool> {
        while self.length > 0 {
            match self.write_once(stream) {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn write_once(&self, stream: &OwnedWriteHalf) -> io::Result<usize> {
        if let (1, Some(only)) = (self.pdus.len(), self.pdus.front())
            && only.data.is_empty()
        {
            // As most are, and it takes the kernel less time.
            return stream.try_write(&only.before[self.written..]);
        }
        let mut before = self.written;
        let pieces = self.pdus.iter().flat_map(Pdu::pieces).filter_map(|piece| {
            let left = piece.get(before..).unwrap_or_default();
            before = before.saturating_sub(piece.len());
            (!left.is_empty()).then_some(left)
        });
        let mut slices = [IoSlice::new(&[]); AT_ONCE];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        stream.try_write_vectored(&slices[..count])
    }

    fn advance(&mut self, written: usize) {
        self.length -= written;
        self.written += written;
        while let Some(pdu) = self.pdus.front()
            && self.written >= pdu.len()
        {
            self.written -= pdu.len();
            self.pdus.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.pdus.clear();
        (self.written, self.length) = (0, 0);
    }
}

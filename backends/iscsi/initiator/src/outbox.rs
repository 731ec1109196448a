//! What is to be sent, in order. It is written as far as the socket takes it by whoever adds something,
//! and the rest by a task in the background: so nothing is half sent when a future is dropped.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};
use tokio::net::tcp::OwnedWriteHalf;

use crate::pdu::Header;
use crate::wire::{Digests, encode};

/// Pieces that are written by one call.
const AT_ONCE: usize = 64;

pub struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Bytes in them.
    pub length: usize,
    digests: Digests,
}

impl Outbox {
    pub fn new(digests: Digests) -> Outbox {
        Outbox {
            pieces: VecDeque::new(),
            length: 0,
            digests,
        }
    }

    pub fn add(&mut self, header: Header, data: &Bytes) {
        let (before, after) = encode(header, data, self.digests);
        for piece in [before, data.clone(), after] {
            if !piece.is_empty() {
                self.length += piece.len();
                self.pieces.push_back(piece);
            }
        }
    }

    /// Writes what can be written at once. Whether that was all.
    pub fn write(&mut self, stream: &OwnedWriteHalf) -> io::Result<bool> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); AT_ONCE];
            let pieces = self.pieces.iter().zip(&mut slices);
            let count = pieces
                .map(|(piece, slice)| *slice = IoSlice::new(piece))
                .count();
            match stream.try_write_vectored(&slices[..count]) {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn advance(&mut self, mut written: usize) {
        self.length -= written;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > written {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.pieces.clear();
        self.length = 0;
    }
}

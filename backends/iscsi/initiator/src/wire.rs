//! PDUs on a connection: where they begin and end, and their digests.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::{Error, ErrorKind, Result};
use crate::pdu::{HEADER, Header};

/// Data up to here is copied out of the buffer, so that keeping it does not keep the buffer.
const COPIED: usize = 16 << 10;
const BUFFER: usize = 64 << 10;

/// Which digests PDUs carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

/// What came from the target.
pub struct Pdu {
    pub header: Header,
    pub data: Bytes,
}

/// Takes PDUs from a stream.
pub struct Receiver<R> {
    stream: R,
    buffer: BytesMut,
    pub digests: Digests,
    /// Bytes of data that a PDU may have.
    pub most: usize,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    pub fn new(stream: R, most: usize) -> Receiver<R> {
        Receiver {
            stream,
            buffer: BytesMut::new(),
            digests: Digests::default(),
            most,
        }
    }

    pub fn stream(&mut self) -> &mut R {
        &mut self.stream
    }

    /// The next PDU.
    ///
    /// Fails with `Lost` at the end of the stream and for a wrong digest, after which nothing can be
    /// told any more; with `Protocol` if it is longer than agreed, before any of it is awaited.
    pub async fn next(&mut self) -> Result<Pdu> {
        self.fill(HEADER).await?;
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(&self.buffer[..HEADER]);
        let header = Header(bytes);
        let length = header.data_length();
        if length > self.most {
            let (opcode, most) = (header.opcode(), self.most);
            return Err(Error::protocol(format!(
                "a PDU {opcode:#04x} of {length} bytes, where {most} were agreed"
            )));
        }
        if header.additional() > 0 {
            // They go with commands only (RFC 7143 section 11.2.2).
            return Err(Error::protocol(format!(
                "a PDU {:#04x} with {} bytes of additional headers",
                header.opcode(),
                header.additional()
            )));
        }
        let digest = |wanted: bool| if wanted { 4 } else { 0 };
        let begin = HEADER + digest(self.digests.header);
        let padded = length.next_multiple_of(4);
        let has_digest = self.digests.data && length > 0;
        self.fill(begin).await?;
        if self.digests.header {
            check_digest("header", &self.buffer[..HEADER], &self.buffer[HEADER..])?;
        }
        self.fill(begin + padded + digest(has_digest)).await?;
        if has_digest {
            let (data, rest) = self.buffer[begin..].split_at(padded);
            check_digest("data", data, rest)?;
        }
        self.buffer.advance(begin);
        let data = match length {
            0 => Bytes::new(),
            1..=COPIED => Bytes::copy_from_slice(&self.buffer[..length]),
            _ => self.buffer.split_to(length).freeze(),
        };
        let left = if length > COPIED { 0 } else { length };
        self.buffer
            .advance(left + padded - length + digest(has_digest));
        Ok(Pdu { header, data })
    }

    async fn fill(&mut self, length: usize) -> io::Result<()> {
        while self.buffer.len() < length {
            self.buffer
                .reserve((length - self.buffer.len()).max(BUFFER));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

impl Receiver<TcpStream> {
    /// So that PDUs can be sent meanwhile.
    pub fn split(self) -> (Receiver<OwnedReadHalf>, OwnedWriteHalf) {
        let (stream, write) = self.stream.into_split();
        let receiver = Receiver {
            stream,
            buffer: self.buffer,
            digests: self.digests,
            most: self.most,
        };
        (receiver, write)
    }
}

fn check_digest(of: &str, bytes: &[u8], rest: &[u8]) -> Result<()> {
    let due = crc32c::crc32c(bytes).to_le_bytes();
    match rest[..4] == due {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Lost,
            format!("the {of} digest is wrong: something between here and there changes data"),
        )),
    }
}

/// A PDU as it is sent: what comes before its data, and what comes after.
pub fn encode(mut header: Header, data: &[u8], digests: Digests) -> (Bytes, Bytes) {
    header.set_data_length(data.len());
    let mut before = BytesMut::with_capacity(HEADER + 4);
    before.put_slice(&header.0);
    if digests.header {
        before.put_u32_le(crc32c::crc32c(&header.0));
    }
    let mut after = BytesMut::new();
    after.put_bytes(0, data.len().next_multiple_of(4) - data.len());
    if digests.data && !data.is_empty() {
        let digest = crc32c::crc32c_append(crc32c::crc32c(data), &after);
        after.put_u32_le(digest);
    }
    (before.freeze(), after.freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pdu::opcode;

    fn wire(pdus: &[Vec<u8>], digests: Digests) -> Vec<u8> {
        let mut bytes = Vec::new();
        for data in pdus {
            let (before, after) = encode(Header::new(opcode::DATA_IN, 0), data, digests);
            bytes.extend_from_slice(&[&before[..], data, &after].concat());
        }
        bytes
    }

    fn receive(bytes: &[u8], digests: Digests, most: usize) -> Result<Vec<Bytes>> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.build().expect("a runtime").block_on(async {
            let mut receiver = Receiver::new(bytes, most);
            receiver.digests = digests;
            let mut found = Vec::new();
            while !receiver.buffer.is_empty() || !receiver.stream.is_empty() {
                found.push(receiver.next().await?.data);
            }
            Ok(found)
        })
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives(
            sizes in prop::collection::vec(prop_oneof![0..300_usize, 16_000..40_000_usize], 1..8),
            header: bool, data: bool,
        ) {
            let digests = Digests { header, data };
            let pdus: Vec<Vec<u8>> = sizes
                .iter()
                .map(|size| (0..*size).map(|i| (i * 7 + size) as u8).collect())
                .collect();
            let found = receive(&wire(&pdus, digests), digests, 40_000).expect("all arrive");
            prop_assert_eq!(found, pdus);
        }

        #[test]
        fn a_changed_bit_is_seen(size in 1..3000_usize, at: prop::sample::Index, bit in 0..8_u32) {
            let digests = Digests { header: true, data: true };
            let mut bytes = wire(&[vec![7; size]], digests);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(receive(&bytes, digests, 1 << 24).is_err());
        }
    }

    #[test]
    fn what_is_too_long_is_not_awaited() {
        let mut header = Header::new(opcode::DATA_IN, 0);
        header.set_data_length(4097);
        let error = receive(&header.0, Digests::default(), 4096).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}

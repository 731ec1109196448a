//! PDUs on a connection: where they begin and end, and their digests.

use std::io;
use std::ops::Deref;

use bytes::{BufMut, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::{Error, ErrorKind, Result};
use crate::pdu::{HEADER, Header};

/// Longer data is read to where it is to be, shorter with what comes before and after it.
pub const LONG: usize = 16 << 10;
const BUFFER: usize = 64 << 10;
/// What is read at a time where long data is likely to follow, all of which would be copied.
const LITTLE: usize = 1 << 10;

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
    buffer: Box<[u8]>,
    /// Where in the buffer what came and was not taken yet begins, and where it ends.
    begin: usize,
    end: usize,
    /// The last data was long.
    long: bool,
    pub digests: Digests,
    /// Bytes of data that a PDU may have.
    pub most: usize,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    pub fn new(stream: R, most: usize) -> Receiver<R> {
        Receiver {
            stream,
            buffer: vec![0; BUFFER].into(),
            begin: 0,
            end: 0,
            long: false,
            digests: Digests::default(),
            most,
        }
    }

    pub fn stream(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Whether the next PDU is here already, as a whole.
    pub fn has_next(&self) -> bool {
        let Some((header, rest)) = self.came().split_first_chunk() else {
            return false;
        };
        let length = Header(*header).data_length();
        let digest = if self.digests.data { 4 } else { 0 };
        rest.len() >= self.header_digest() + length.next_multiple_of(4) + digest
    }

    /// The next PDU. Fails as its two parts do.
    pub async fn next(&mut self) -> Result<Pdu> {
        let header = self.header().await?;
        let mut data = Vec::new();
        self.data(&header, &mut data).await?;
        let data = data.into();
        Ok(Pdu { header, data })
    }

    /// The header of the next PDU, after which its [`data`](Self::data) has to be taken.
    ///
    /// Fails with `Lost` at the end of the stream and for a wrong digest, after which nothing can
    /// be told any more; with `Protocol` if the PDU is longer than agreed, before any of it is
    /// awaited.
    pub async fn header(&mut self) -> Result<Header> {
        self.fill(HEADER).await?;
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(&self.came()[..HEADER]);
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
        let all = HEADER + self.header_digest();
        self.fill(all).await?;
        if self.digests.header {
            let digest = crc32c::crc32c(&header.0);
            check_digest("header", digest, &self.came()[HEADER..])?;
        }
        self.begin += all;
        Ok(header)
    }

    /// Adds the data that belongs to this header. Fails with `Lost`, as the header.
    pub async fn data(&mut self, header: &Header, data: &mut Vec<u8>) -> Result<()> {
        let (length, from) = (header.data_length(), data.len());
        if length == 0 {
            return Ok(());
        }
        self.long = length > LONG;
        data.reserve(length);
        loop {
            let missing = from + length - data.len();
            let came = self.came().len().min(missing);
            data.extend_from_slice(&self.came()[..came]);
            self.begin += came;
            let missing = missing - came;
            if missing == 0 {
                break;
            }
            if missing <= LONG {
                self.fill(1).await?;
            } else if self
                .stream
                .read_buf(&mut (&mut *data).limit(missing))
                .await?
                == 0
            {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        let padding = length.next_multiple_of(4) - length;
        let digest = if self.digests.data { 4 } else { 0 };
        self.fill(padding + digest).await?;
        let (padded, rest) = self.came().split_at(padding);
        if self.digests.data {
            let digest = crc32c::crc32c_append(crc32c::crc32c(&data[from..]), padded);
            check_digest("data", digest, rest)?;
        }
        self.begin += padding + digest;
        Ok(())
    }

    fn header_digest(&self) -> usize {
        if self.digests.header { 4 } else { 0 }
    }

    /// What came and was not taken yet.
    fn came(&self) -> &[u8] {
        &self.buffer[self.begin..self.end]
    }

    /// Waits until so many bytes are in the buffer, which are a few.
    async fn fill(&mut self, length: usize) -> io::Result<()> {
        if self.end - self.begin >= length {
            return Ok(());
        }
        self.buffer.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let most = if self.long { LITTLE } else { BUFFER };
        while self.end < length {
            let read = self.stream.read(&mut self.buffer[self.end..most]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.end += read;
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
            begin: self.begin,
            end: self.end,
            long: self.long,
            digests: self.digests,
            most: self.most,
        };
        (receiver, write)
    }
}

/// Whether a digest is that which comes next.
fn check_digest(of: &str, digest: u32, rest: &[u8]) -> Result<()> {
    match rest[..4] == digest.to_le_bytes() {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Lost,
            format!("the {of} digest is wrong: something between here and there changes data"),
        )),
    }
}

/// Up to `N` bytes, kept where this is.
#[derive(Clone, Copy)]
pub struct Few<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Few<N> {
    fn new() -> Few<N> {
        Few {
            bytes: [0; N],
            length: 0,
        }
    }

    /// Adds what there is room for.
    fn add(&mut self, bytes: &[u8]) {
        self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

impl<const N: usize> Deref for Few<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What comes before the data of a PDU: its header, maybe with a digest.
pub type Before = Few<{ HEADER + 4 }>;
/// What comes after it: up to 3 bytes to fill it, maybe a digest.
pub type After = Few<8>;

/// A PDU as it is sent: what comes before its data, and what comes after.
pub fn encode(mut header: Header, data: &[u8], digests: Digests) -> (Before, After) {
    header.set_data_length(data.len());
    let (mut before, mut after) = (Before::new(), After::new());
    before.add(&header.0);
    if digests.header {
        before.add(&crc32c::crc32c(&header.0).to_le_bytes());
    }
    after.add(&[0; 3][..data.len().next_multiple_of(4) - data.len()]);
    if digests.data && !data.is_empty() {
        let digest = crc32c::crc32c_append(crc32c::crc32c(data), &after);
        after.add(&digest.to_le_bytes());
    }
    (before, after)
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
            while !receiver.came().is_empty() || !receiver.stream.is_empty() {
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

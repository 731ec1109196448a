//! The bytes of one connection, plain or through TLS, for a thread of its own.

use std::io::{self, BufRead, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::BytesMut;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};
use rustls::ServerConnection;

/// What rustls may hold of data that is not sent. More is left with us.
const TLS_BUFFER: usize = 256 << 10;

/// A socket of one connection.
pub(crate) type Socket = Arc<OwnedFd>;

/// The bytes of one connection.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: Socket,
    tls: Option<Box<ServerConnection>>,
}

impl Transport {
    /// `socket` blocks, and has had its TLS handshake if `tls` is given.
    pub(crate) fn new(socket: Socket, mut tls: Option<ServerConnection>) -> Self {
        if let Some(tls) = &mut tls {
            tls.set_buffer_limit(Some(TLS_BUFFER));
        }
        Transport {
            socket,
            tls: tls.map(Box::new),
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Appends at most `most` bytes to `buffer` without waiting and returns how many; 0 at the end,
    /// `WouldBlock` if there are none now.
    pub(crate) fn receive(&mut self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        match &mut self.tls {
            None => receive_into(&self.socket, buffer, most),
            Some(tls) => receive_tls(tls, &self.socket, buffer, most),
        }
    }

    /// Sends some of `slices` without waiting and returns how much; `WouldBlock` if nothing can be
    /// sent now.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return send_on(&self.socket, slices);
        };
        let took = tls.writer().write_vectored(slices)?;
        match flush_tls(tls, &self.socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ if took == 0 && !slices.is_empty() => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(took),
        }
    }

    /// Sends on what TLS has taken; `true` once all is gone.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else {
            return Ok(true);
        };
        match flush_tls(tls, &self.socket) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether there is something for [`receive`](Self::receive) that the socket does not show.
    pub(crate) fn has_input(&mut self) -> bool {
        self.tls
            .as_mut()
            .is_some_and(|tls| tls.reader().fill_buf().is_ok_and(|bytes| !bytes.is_empty()))
    }

    /// Says that nothing more will be sent.
    pub(crate) fn close_sending(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = flush_tls(tls, &self.socket);
        }
        let _ = shutdown(&self.socket, Shutdown::Write);
    }
}

fn receive_into(socket: &OwnedFd, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    let most = most.min(spare.len());
    let spare: &mut [MaybeUninit<u8>] = &mut spare[..most];
    let filled = rustix::io::retry_on_intr(|| {
        let ((filled, _), _) = recv(socket, &mut *spare, RecvFlags::DONTWAIT)?;
        Ok(filled.len())
    })?;
    let length = buffer.len() + filled;
    // SAFETY: recv has written `filled` bytes from the beginning of the spare capacity, so the
    // first `length` bytes are initialised, and `length` is within the capacity.
    unsafe { buffer.set_len(length) };
    Ok(filled)
}

fn receive_tls(
    tls: &mut ServerConnection,
    socket: &OwnedFd,
    buffer: &mut BytesMut,
    most: usize,
) -> io::Result<usize> {
    loop {
        let mut reader = tls.reader();
        match reader.fill_buf() {
            Ok(plain) if !plain.is_empty() => {
                let length = plain.len().min(most);
                buffer.extend_from_slice(&plain[..length]);
                reader.consume(length);
                return Ok(length);
            }
            // Closed in order, or cut off: in both cases nothing more comes, and what is not
            // whole is not done.
            Ok(_) => return Ok(0),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if tls.read_tls(&mut Receiving(socket))? == 0 {
            return Ok(0);
        }
        let processed = tls.process_new_packets();
        // An alert, or the answer to a key update.
        if let Err(error) = flush_tls(tls, socket)
            && error.kind() != ErrorKind::WouldBlock
        {
            return Err(error);
        }
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    }
}

fn flush_tls(tls: &mut ServerConnection, socket: &OwnedFd) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut Sending(socket))?;
    }
    Ok(())
}

fn send_on(socket: &OwnedFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::io::retry_on_intr(|| {
        sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags)
    })?)
}

struct Receiving<'a>(&'a OwnedFd);

impl Read for Receiving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (length, _) =
            rustix::io::retry_on_intr(|| recv(self.0, &mut *buffer, RecvFlags::DONTWAIT))?;
        Ok(length)
    }
}

struct Sending<'a>(&'a OwnedFd);

impl Write for Sending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send_on(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send_on(self.0, &slices[..slices.len().min(512)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_received_is_appended_within_the_limit() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut transport = Transport::new(Arc::new(ours.into()), None);
        let mut buffer = BytesMut::from(&b"ab"[..]);
        buffer.reserve(100);
        let empty = transport.receive(&mut buffer, 10);
        assert_eq!(empty.map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
        theirs.write_all(b"cdefg").expect("write");
        assert_eq!(transport.receive(&mut buffer, 3).expect("some"), 3);
        assert_eq!(&buffer[..], b"abcde");
        assert_eq!(transport.receive(&mut buffer, 99).expect("rest"), 2);
        drop(theirs);
        assert_eq!(transport.receive(&mut buffer, 99).expect("end"), 0);
        assert_eq!(&buffer[..], b"abcdefg");
    }

    #[test]
    fn a_client_that_is_gone_is_an_error_and_not_a_signal() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(theirs);
        let mut transport = Transport::new(Arc::new(ours.into()), None);
        let sent = transport.send(&[IoSlice::new(b"x")]);
        assert_eq!(sent.map_err(|e| e.kind()), Err(ErrorKind::BrokenPipe));
    }
}

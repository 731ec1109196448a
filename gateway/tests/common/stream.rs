//! The other end of a connection: bytes over a Unix socket, TCP or TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use volmux_gateway::Address;

use super::client::PATIENCE;

/// The other end, as bytes.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, Stream>>),
    /// While TLS is being begun.
    None,
}

impl Stream {
    pub fn connect(address: &Address) -> io::Result<Stream> {
        let stream = match address {
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            Address::Tcp(address) => Stream::Tcp(TcpStream::connect_timeout(address, PATIENCE)?),
        };
        match &stream {
            Stream::Unix(socket) => {
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
            }
            Stream::Tcp(socket) => {
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
            }
            Stream::Tls(_) | Stream::None => unreachable!("just connected"),
        }
        Ok(stream)
    }

    /// Sends nothing more.
    pub fn end_writing(&self) -> io::Result<()> {
        match self {
            Stream::Unix(socket) => socket.shutdown(Shutdown::Write),
            Stream::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Stream::Tls(tls) => tls.sock.end_writing(),
            Stream::None => Ok(()),
        }
    }

    /// A second handle, to write in one thread and read in another.
    pub fn second(&self) -> Stream {
        match self {
            Stream::Unix(socket) => Stream::Unix(socket.try_clone().expect("dup")),
            Stream::Tcp(socket) => Stream::Tcp(socket.try_clone().expect("dup")),
            Stream::Tls(_) | Stream::None => panic!("a TLS stream has one handle"),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(socket) => socket.read(buffer),
            Stream::Tcp(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
            Stream::None => Ok(0),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(socket) => socket.write(buffer),
            Stream::Tcp(socket) => socket.write(buffer),
            Stream::Tls(tls) => tls.write(buffer),
            Stream::None => Err(ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Tls(tls) => tls.flush(),
            Stream::Unix(_) | Stream::Tcp(_) | Stream::None => Ok(()),
        }
    }
}

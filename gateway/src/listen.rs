//! Sockets to listen on.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use tokio::io::{AsyncRead, AsyncWrite};
use volmux_core::{Error, ErrorKind, Result};

use crate::client::Peer;
use crate::options::{Address, Listen};

const OP: &str = "listen";
static STRANGERS: AtomicU64 = AtomicU64::new(1);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A stream of bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) enum Accepted {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

/// A socket that is listened on.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

impl Listener {
    /// The next connection, and who it is.
    pub(crate) async fn accept_from(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                let peer = match pid {
                    Some(pid) if pid > 0 => Peer::Process(pid),
                    _ => Peer::Stranger(STRANGERS.fetch_add(1, Ordering::Relaxed)),
                };
                Ok((Accepted::Unix(stream), peer))
            }
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((
                    Accepted::Tcp(stream),
                    Peer::Host(address.ip().to_canonical()),
                ))
            }
        }
    }

    /// The next connection, and who it is in words.
    pub(crate) async fn accept(&self) -> io::Result<(Box<dyn Stream>, String)> {
        let (stream, peer) = self.accept_from().await?;
        let stream: Box<dyn Stream> = match stream {
            Accepted::Unix(stream) => Box::new(stream),
            Accepted::Tcp(stream) => Box::new(stream),
        };
        Ok((stream, peer.to_string()))
    }
}

/// A listener, and where it can be reached.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Listener,
    pub(crate) address: Address,
    /// The socket's file, if we made it. Removed when this is dropped.
    pub(crate) file: Option<SocketFile>,
}

/// The file of a Unix socket that we made. Removed when this is dropped, if it is still the same.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Against another server that replaces what it takes for left over.
        let _lock = lock_directory(&self.path);
        let same = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if same && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

/// Listens.
///
/// # Errors
/// `Busy` if somebody listens there already; `AlreadyExists` if a file is there that is no socket;
/// `InvalidInput`; `NotFound` for a missing directory; `PermissionDenied`.
pub(crate) fn open(place: Listen) -> Result<Bound> {
    match place {
        Listen::Unix(path) => open_unix(&path).map_err(|e| e.with("socket", path.display())),
        Listen::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address);
            let listener = listener.map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => Error::new(ErrorKind::Busy, OP)
                    .with("address", address)
                    .reason("somebody listens there already")
                    .with_source(error),
                io::ErrorKind::AddrNotAvailable => Error::new(ErrorKind::InvalidInput, OP)
                    .with("address", address)
                    .reason("this host does not have that address")
                    .with_source(error),
                _ => Error::from_io(OP, error).with("address", address),
            })?;
            tcp(listener)
        }
        Listen::TcpListener(listener) => tcp(listener),
        Listen::UnixListener(listener) => {
            let wrong = |e| Error::from_io(OP, e);
            let address = listener.local_addr().map_err(wrong)?;
            let path = address.as_pathname().unwrap_or(Path::new("")).to_owned();
            unix(listener, path, None)
        }
    }
}

fn tcp(listener: std::net::TcpListener) -> Result<Bound> {
    let wrong = |e| Error::from_io(OP, e);
    let address: SocketAddr = listener.local_addr().map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(wrong)?;
    Ok(Bound {
        listener: Listener::Tcp(listener),
        address: Address::Tcp(address),
        file: None,
    })
}

fn unix(
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    file: Option<SocketFile>,
) -> Result<Bound> {
    let wrong = |e| Error::from_io(OP, e);
    listener.set_nonblocking(true).map_err(wrong)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(wrong)?;
    Ok(Bound {
        listener: Listener::Unix(listener),
        address: Address::Unix(path),
        file,
    })
}

fn open_unix(path: &Path) -> Result<Bound> {
    let wrong = |e: io::Error| Error::from_io(OP, e);
    let address = SocketAddrUnix::new(path).map_err(|e| {
        Error::new(ErrorKind::InvalidInput, OP)
            .reason("a socket's path has 107 bytes at most and no zero byte")
            .with_source(io::Error::from(e))
    })?;
    let _lock = lock_directory(path).map_err(wrong)?;
    remove_stale(path, &address)?;
    let socket = unix_socket(SocketFlags::empty()).map_err(wrong)?;
    // bind(2) gives the file the mode of the socket: so nobody else can connect in between.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|e| wrong(e.into()))?;
    bind(&socket, &address).map_err(|e| wrong(e.into()))?;
    let made = std::fs::symlink_metadata(path).map_err(wrong)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (made.dev(), made.ino()),
    };
    listen(&socket, BACKLOG).map_err(|e| wrong(e.into()))?;
    unix(OwnedFd::into(socket), path.to_owned(), Some(file))
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// One server at a time replaces or removes sockets of a directory.
fn lock_directory(path: &Path) -> io::Result<File> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = File::open(parent)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let wrong = |e: io::Error| Error::from_io(OP, e);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(wrong(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(ErrorKind::AlreadyExists, OP)
                .reason("there is a file that is no socket")
                .help("choose another path"));
        }
        Ok(_) => {}
    }
    // Without waiting: a server that hangs, with more connections than it has accepted, listens too.
    let probe = unix_socket(SocketFlags::NONBLOCK).map_err(wrong)?;
    match connect(&probe, address) {
        Ok(()) | Err(Errno::AGAIN) => Err(Error::new(ErrorKind::Busy, OP)
            .reason("somebody listens there already")
            .help("stop that server, or choose another path")),
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing a socket that was left over");
            std::fs::remove_file(path).map_err(wrong)
        }
        Err(error) => Err(wrong(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn path() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        (directory, path)
    }

    fn kind(result: Result<Bound>) -> ErrorKind {
        result.expect_err("must fail").kind()
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_goes_with_the_server() {
        let (_directory, path) = path();
        let bound = open(Listen::Unix(path.clone())).expect("listen");
        let mode = std::fs::symlink_metadata(&path)
            .expect("there")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert_eq!(kind(open(Listen::Unix(path.clone()))), ErrorKind::Busy);
        drop(bound);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_dead_server_left_is_replaced_and_anothers_file_is_not() {
        let (_directory, path) = path();
        drop(std::os::unix::net::UnixListener::bind(&path).expect("left over"));
        let first = open(Listen::Unix(path.clone())).expect("replaced");
        std::fs::remove_file(&path).expect("somebody removes it");
        let second = open(Listen::Unix(path.clone())).expect("listen");
        drop(first);
        assert!(path.exists(), "it belongs to the second");
        drop(second);
        std::fs::write(&path, "precious").expect("write");
        assert_eq!(
            kind(open(Listen::Unix(path.clone()))),
            ErrorKind::AlreadyExists
        );
        assert_eq!(std::fs::read(&path).expect("read"), b"precious");
    }

    #[tokio::test]
    async fn a_server_that_accepts_nobody_is_there_all_the_same() {
        let (_directory, path) = path();
        let deaf = unix_socket(SocketFlags::empty()).expect("a socket");
        let address = SocketAddrUnix::new(&path).expect("a short path");
        bind(&deaf, &address).expect("bind");
        listen(&deaf, 0).expect("listen");
        let waiting: Vec<OwnedFd> = (0..4)
            .map(|_| unix_socket(SocketFlags::NONBLOCK).expect("a socket"))
            .take_while(|socket| connect(socket, &address).is_ok())
            .collect();
        assert!(waiting.len() < 4, "no more fit");
        assert_eq!(kind(open(Listen::Unix(path.clone()))), ErrorKind::Busy);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn bad_places_are_refused() {
        let (directory, _) = path();
        let missing = directory.path().join("none").join("s");
        assert_eq!(kind(open(Listen::Unix(missing))), ErrorKind::NotFound);
        let long = directory.path().join("x".repeat(200));
        assert_eq!(kind(open(Listen::Unix(long))), ErrorKind::InvalidInput);
        let elsewhere = "192.0.2.1:1".parse().expect("an address");
        assert_eq!(kind(open(Listen::Tcp(elsewhere))), ErrorKind::InvalidInput);
    }
}

//! Where to listen: sockets by path, TCP addresses, and what systemd hands over.

use std::net::SocketAddr;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use volmux::{Error, ErrorKind, Result};
use volmux_gateway::{Address, Listen};

use super::args::ServeArgs;

const OP: &str = "listen";
/// What a service manager calls this kind of trouble.
const BY_SYSTEMD: &str = "LISTEN_FDS";

/// Everything that is to be listened on.
///
/// # Errors
/// `InvalidInput` if that is nothing, something unsafe, or no listening socket.
pub fn listen(args: &ServeArgs, mut handed_over: ListenFd) -> Result<Vec<Listen>> {
    let mut all = Vec::new();
    for path in &args.socket {
        all.push(Listen::Unix(absolute(path)?));
    }
    for address in &args.listen {
        check_reach(*address, args.insecure || args.tls.is_some())?;
        all.push(Listen::Tcp(*address));
    }
    for index in 0..handed_over.len() {
        all.push(take(&mut handed_over, index, args).map_err(|e| e.with(BY_SYSTEMD, index))?);
    }
    if all.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, OP)
            .reason("no address is given")
            .help("say --socket PATH or --listen IP:PORT"));
    }
    Ok(all)
}

/// Where statistics are answered.
///
/// # Errors
/// `InvalidInput` for what is no address, or an unsafe one.
pub fn statistics(args: &ServeArgs) -> Result<Option<Listen>> {
    let Some(text) = &args.statistics else {
        return Ok(None);
    };
    let address = address(text)?;
    if let Address::Tcp(address) = address {
        // TLS does not extend to them.
        check_reach(address, args.insecure)?;
    }
    Ok(Some(address.into()))
}

/// An address; a relative path is one from here.
///
/// # Errors
/// `InvalidInput`.
pub fn address(text: &str) -> Result<Address> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => {
            let path = absolute(path.as_ref())?;
            format!("unix:{}", path.display()).parse()
        }
        _ => text.parse(),
    }
}

fn absolute(path: &std::path::Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path).map_err(|e| Error::from_io(OP, e).with("path", path.display()))
}

/// One socket of the service manager's.
fn take(from: &mut ListenFd, index: usize, args: &ServeArgs) -> Result<Listen> {
    let refuse = |reason: &str| {
        Error::new(ErrorKind::InvalidInput, OP)
            .reason(reason)
            .help("in the socket unit use ListenStream= and Accept=no")
    };
    let broken = |e| Error::from_io(OP, e);
    if let Ok(Some(listener)) = from.take_unix_listener(index) {
        return match socket_acceptconn(&listener) {
            Ok(true) => Ok(Listen::UnixListener(listener)),
            _ => Err(refuse("the Unix socket does not listen")),
        };
    }
    let listener = match from.take_tcp_listener(index) {
        Ok(Some(listener)) => listener,
        _ => return Err(refuse("it is neither a Unix nor a TCP stream socket")),
    };
    if !socket_acceptconn(&listener).unwrap_or(false) {
        return Err(refuse("the TCP socket does not listen"));
    }
    let address = listener.local_addr().map_err(broken)?;
    check_reach(address, args.insecure || args.tls.is_some())?;
    Ok(Listen::TcpListener(listener))
}

/// Refuses an address that others than this machine's users reach, unless that is `safe`.
fn check_reach(address: SocketAddr, safe: bool) -> Result<()> {
    if safe || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, OP)
        .with("address", address)
        .reason(
            "other machines reach this address, and nothing here asks who they are: \
             they would get at the volumes",
        )
        .help(
            "use --tls DIR --tls-verify-clients (not for statistics), a loopback address or a \
             Unix socket; --insecure allows it",
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_safe_by_itself() {
        for (address, safe) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:0", true),
            ("[::1]:10809", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
            ("[2001:db8::1]:1", false),
            ("[::ffff:192.0.2.1]:1", false),
        ] {
            let address = address.parse().expect("address");
            assert_eq!(check_reach(address, false).is_ok(), safe, "{address}");
            check_reach(address, true).expect("allowed");
        }
    }

    #[test]
    fn relative_paths_are_from_here() {
        let here = std::env::current_dir().expect("here");
        assert_eq!(
            address("unix:a.sock").expect("address"),
            Address::Unix(here.join("a.sock"))
        );
        assert_eq!(
            address("unix:/a.sock").expect("address"),
            Address::Unix("/a.sock".into())
        );
        for wrong in ["", "unix:", "a.sock", "tcp:x", "http://127.0.0.1:1/"] {
            let error = address(wrong).expect_err(wrong);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong}");
        }
    }
}

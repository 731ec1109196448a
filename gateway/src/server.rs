//! The server: listens, lets clients in, stops.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::net::sockopt;
use rustls::ServerConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use volmux_core::{
    Access, AttachTarget, Attachment, Error, ErrorKind, Holder, Pool, Result, VolumeName,
};

use crate::budget::Budget;
use crate::client::Peer;
use crate::export::Catalog;
use crate::http::{self, Answering};
use crate::listen::{self, Accepted, Listener, SocketFile, Stream};
use crate::nbd::handle::Handle;
use crate::nbd::handshake::{self, Chosen, Failed, Terms};
use crate::nbd::request::Session;
use crate::nbd::transmission::{Connection, End};
use crate::options::{Address, Limits, ServeOptions};
use crate::stats::ServerCounters;
use crate::status::{ExportStatus, Status};
use crate::transport::Transport;

/// For what runs in a connection's thread: the protocol, and what a volume does inline.
const STACK: usize = 1 << 20;
/// What a Unix socket takes of replies that the client has not read (the system doubles it for its
/// own use, and may allow less). With less, long replies cost a sleep for each few pages. TCP finds
/// its own measure.
const SEND_BUFFER: usize = 512 << 10;
/// How long connections that were cut may take to notice.
const CUT_TIME: Duration = Duration::from_secs(2);
/// A dead client of a TCP connection is noticed after the idle time and three probes, and
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// after this time if there are replies on the way that it does not confirm, or does not read.
const UNCONFIRMED: Duration = Duration::from_secs(60);

/// A running server.
///
/// Dropping it ends it at once: nothing is flushed, and requests under way are not answered.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    accepting: JoinSet<()>,
    statistics: Option<(Answering, Address, Option<SocketFile>)>,
    files: Vec<SocketFile>,
}

/// What the connections of a server have in common.
#[derive(Debug)]
struct Shared {
    catalog: Arc<Catalog>,
    limits: Limits,
    tls: Option<Tls>,
    budget: Arc<Budget>,
    counters: ServerCounters,
    addresses: Vec<Address>,
    started: SystemTime,
    /// One permit for each connection.
    room: Arc<Semaphore>,
    connections: Mutex<Connections>,
    next: AtomicU64,
    /// Ends the handshakes.
    stopping: CancellationToken,
    turned_away: Mutex<Option<Instant>>,
}

struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

#[derive(Debug, Default)]
struct Connections {
    stopping: bool,
    handles: HashMap<u64, Arc<Handle>>,
}

/// Serves volumes of `pool` over NBD. To be called inside a tokio runtime with its time and I/O
/// drivers, which must outlive the server.
///
/// # Errors
/// Those of opening the volumes and of listening; `InvalidInput` for limits out of range, no place
/// to listen, or no volume. Then nothing is served and nothing stays open.
pub async fn serve(pool: Arc<dyn Pool>, options: ServeOptions) -> Result<Server> {
    options.limits.check()?;
    if options.listen.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "serve")
            .reason("there is no place to listen")
            .help("name a Unix socket or a TCP address"));
    }
    let catalog = Arc::new(Catalog::new(pool, &options.exports, options.limits)?);
    // Volumes first: a client that gets through finds them.
    catalog.open_pinned().await?;
    let (mut listeners, mut addresses, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for place in options.listen {
        let bound = listen::open(place)?;
        listeners.push(bound.listener);
        addresses.push(bound.address);
        files.extend(bound.file);
    }
    let statistics = options.statistics.map(listen::open).transpose()?;
    let shared = Arc::new(Shared {
        catalog,
        limits: options.limits,
        tls: options.tls.map(|tls| Tls(tls.acceptor())),
        budget: Arc::new(Budget::new(options.limits.in_flight_total)),
        counters: ServerCounters::default(),
        addresses,
        started: SystemTime::now(),
        room: Arc::new(Semaphore::new(options.limits.connections)),
        connections: Mutex::default(),
        next: AtomicU64::new(0),
        stopping: CancellationToken::new(),
        turned_away: Mutex::default(),
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(shared.clone(), listener));
    }
    let statistics = statistics.map(|bound| {
        let shared = shared.clone();
        let answering = http::answer(bound.listener, move || shared.status());
        (answering, bound.address, bound.file)
    });
    Ok(Server {
        shared,
        accepting,
        statistics,
        files,
    })
}

impl Server {
    /// Where it listens; a port 0 is replaced by the real one.
    pub fn addresses(&self) -> &[Address] {
        &self.shared.addresses
    }

    /// Where it answers `/metrics` and `/status`, if it does.
    pub fn statistics_address(&self) -> Option<&Address> {
        self.statistics.as_ref().map(|(_, address, _)| address)
    }

    /// How a host reaches a served volume at one of the [`addresses`](Self::addresses), as of a volume
    /// that is attached: to be rendered for a hypervisor. It attaches nothing; `holder` is whom it is
    /// meant for. What is returned does not borrow the server.
    ///
    /// # Errors
    /// `NotFound` for a volume that is not served; `InvalidInput` if there are not so many addresses.
    pub fn attachment(
        &self,
        address: usize,
        volume: &VolumeName,
        holder: Holder,
    ) -> impl Future<Output = Result<Attachment>> + Send + use<> {
        let (shared, volume) = (self.shared.clone(), volume.clone());
        async move {
            let listening = shared.addresses.get(address).ok_or_else(|| {
                Error::new(ErrorKind::InvalidInput, "export_attachment")
                    .with("address", address)
                    .with("addresses", shared.addresses.len())
                    .reason("it does not listen at so many addresses")
            })?;
            let seen = shared.catalog.preview(&volume).await?;
            Ok(Attachment {
                id: seen.volume.id,
                holder,
                access: match seen.writable {
                    true => Access::ReadWrite,
                    false => Access::ReadOnly,
                },
                target: AttachTarget::Nbd {
                    address: listening.into(),
                    export: volume.to_string(),
                    tls: shared.tls.is_some(),
                },
                volume,
            })
        }
    }

    /// What it does now.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Ends in order: nobody is let in any more, requests under way are answered, and every
    /// volume is flushed and closed. What was answered is then durable.
    ///
    /// # Errors
    /// `TimedOut` if clients or the pool took longer than `within` and were cut off; those of the
    /// last flush.
    pub async fn stop(mut self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        self.accepting.shutdown().await;
        self.files.clear();
        self.shared.stopping.cancel();
        for handle in self.shared.begin_stopping() {
            handle.drain();
        }
        let everybody = self.shared.limits.connections as u32;
        let gone = self.shared.room.acquire_many(everybody);
        let mut result = Ok(());
        if tokio::time::timeout_at(until, gone).await.is_err() {
            let handles = self.shared.begin_stopping();
            result = Err(Error::new(ErrorKind::TimedOut, "stop")
                .with("connections", handles.len())
                .reason("clients did not end in time and were cut off"));
            for handle in handles {
                handle.cut();
            }
            let gone = self.shared.room.acquire_many(everybody);
            if timeout(CUT_TIME, gone).await.is_err() {
                tracing::error!("connections hang in the pool's storage");
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        let closed = self.shared.catalog.close(left.max(CUT_TIME)).await;
        closed.and(result)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        for handle in self.shared.begin_stopping() {
            handle.cut();
        }
    }
}

impl Shared {
    fn status(&self) -> Status {
        let slots = self.catalog.slots();
        let exports = slots.iter().map(|slot| {
            let about = (slot.access, slot.sharing);
            ExportStatus::new(
                &slot.name,
                about,
                slot.size(),
                slot.clients(),
                &slot.counters,
            )
        });
        let exports = exports.collect();
        let in_flight = &self.counters.in_flight_bytes;
        in_flight.store(self.budget.taken(), Ordering::Relaxed);
        let addresses = self.addresses.iter().map(Address::to_string).collect();
        let place = (addresses, self.tls.is_some());
        Status::new(self.started, place, &self.limits, &self.counters, exports)
    }

    /// Lets no more connections begin, and returns those that there are.
    fn begin_stopping(&self) -> Vec<Arc<Handle>> {
        let mut connections = self.lock();
        connections.stopping = true;
        connections.handles.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs that a client was turned away, but not each one of a flood.
    fn log_turned_away(&self, peer: Peer) {
        let mut last = self
            .turned_away
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.is_none_or(|last| now - last > Duration::from_secs(10)) {
            *last = Some(now);
            let limit = self.limits.connections;
            tracing::warn!(%peer, limit, "turned away: there are too many connections");
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: Listener) {
    loop {
        let (stream, peer) = match listener.accept_from().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // No descriptors left, say. It passes, and must not be a busy loop.
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let counters = &shared.counters;
        counters.connections_total.fetch_add(1, Ordering::Relaxed);
        let Ok(permit) = shared.room.clone().try_acquire_owned() else {
            counters.turned_away.fetch_add(1, Ordering::Relaxed);
            shared.log_turned_away(peer);
            continue;
        };
        let place = Place::new(&shared, permit);
        // Not awaited: it ends by itself, at the latest when the server stops.
        drop(tokio::spawn(receive(place, stream, peer)));
    }
}

/// A connection's place among all, given up when it is dropped.
struct Place {
    shared: Arc<Shared>,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(shared: &Arc<Shared>, permit: OwnedSemaphorePermit) -> Self {
        let counters = &shared.counters;
        counters.connections.fetch_add(1, Ordering::Relaxed);
        Place {
            shared: shared.clone(),
            number: shared.next.fetch_add(1, Ordering::Relaxed),
            _permit: permit,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().handles.remove(&self.number);
        let counters = &self.shared.counters;
        counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection whose handshake is done, ready for its thread.
struct Ready {
    session: Session,
    socket: OwnedFd,
    tls: Option<ServerConnection>,
}

/// Takes a connection through its handshake, and hands it to a thread.
async fn receive(place: Place, stream: Accepted, peer: Peer) {
    let shared = place.shared.clone();
    let terms = Terms {
        catalog: shared.catalog.clone(),
        limits: shared.limits,
        peer,
        tls_required: shared.tls.is_some(),
    };
    let tls = shared.tls.as_ref();
    let shaken = async {
        Ok::<_, Failed>(match stream {
            Accepted::Unix(stream) => {
                sockopt::set_socket_send_buffer_size(stream.as_fd(), SEND_BUFFER)
                    .map_err(io::Error::from)?;
                match shake_hands(stream, &terms, tls).await? {
                    Some((session, stream, tls)) => Some(Ready {
                        session,
                        socket: blocking(stream.into_std()?)?,
                        tls,
                    }),
                    None => None,
                }
            }
            Accepted::Tcp(stream) => {
                prepare_tcp(&stream)?;
                match shake_hands(stream, &terms, tls).await? {
                    Some((session, stream, tls)) => Some(Ready {
                        session,
                        socket: blocking(stream.into_std()?)?,
                        tls,
                    }),
                    None => None,
                }
            }
        })
    };
    let limit = shared.limits.handshake_time;
    let shaken = tokio::select! {
        () = shared.stopping.cancelled() => return,
        shaken = timeout(limit, Box::pin(shaken)) => shaken,
    };
    let failed = match shaken {
        Ok(Ok(Some(ready))) => return begin(place, ready, peer),
        Ok(Ok(None)) => return,
        Ok(Err(Failed::Io(error)))
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
            ) =>
        {
            // Who only looks whether somebody listens, or was refused, does this.
            tracing::debug!(%peer, "gone before the handshake's end");
            return;
        }
        Ok(Err(failed)) => failed.to_string(),
        Err(_) => format!("not done after {} seconds", limit.as_secs_f32()),
    };
    let counters = &shared.counters;
    counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    tracing::warn!(%peer, error = failed, "handshake failed");
}

async fn shake_hands<S: Stream>(
    mut stream: S,
    terms: &Terms,
    tls: Option<&Tls>,
) -> Result<Option<(Session, S, Option<ServerConnection>)>, Failed> {
    let client = handshake::greet(&mut stream).await?;
    let chosen = handshake::options(&mut stream, terms, false, client).await?;
    match (chosen, tls) {
        (Chosen::Export(session), _) => Ok(Some((session, stream, None))),
        (Chosen::Tls, Some(Tls(acceptor))) => {
            let accepted = acceptor.accept(stream).await;
            let mut stream = accepted.map_err(|e| Failed::Violation(format!("TLS: {e}")))?;
            match handshake::options(&mut stream, terms, true, client).await? {
                Chosen::Export(session) => {
                    let (stream, tls) = stream.into_inner();
                    Ok(Some((session, stream, Some(tls))))
                }
                Chosen::Tls | Chosen::Aborted => Ok(None),
            }
        }
        (Chosen::Tls | Chosen::Aborted, _) => Ok(None),
    }
}

fn prepare_tcp(stream: &tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(socket, UNCONFIRMED.as_millis() as u32)?;
    Ok(())
}

fn blocking(stream: impl Into<OwnedFd>) -> io::Result<OwnedFd> {
    let socket = stream.into();
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket)
}

/// Starts the thread of a connection.
fn begin(place: Place, ready: Ready, peer: Peer) {
    let shared = place.shared.clone();
    let export = ready.session.export.name().clone();
    let transport = Transport::new(Arc::new(ready.socket), ready.tls);
    let connection = Connection::new(
        transport,
        ready.session,
        shared.budget.clone(),
        shared.limits,
    );
    let connection = match connection {
        Ok(connection) => connection,
        Err(error) => {
            tracing::error!(%export, %peer, %error, "a connection could not be served");
            return;
        }
    };
    {
        let mut connections = shared.lock();
        if connections.stopping {
            return;
        }
        let handle = connection.handle();
        connections.handles.insert(place.number, handle);
    }
    let runtime = tokio::runtime::Handle::current();
    let name = export.clone();
    let thread = std::thread::Builder::new()
        .name(format!("nbd {export}"))
        .stack_size(STACK)
        .spawn(move || {
            let _runtime = runtime.enter();
            let end = connection.run();
            // The volume is let go before the place is.
            drop(place);
            match end {
                End::Disconnected => tracing::debug!(export = %name, %peer, "disconnected"),
                End::Stopped => tracing::debug!(export = %name, %peer, "stopped"),
                End::Vanished => {
                    tracing::info!(export = %name, %peer, "the client went away without a word");
                }
                End::Violation(what) => {
                    tracing::warn!(export = %name, %peer, error = what, "the client broke the protocol");
                }
                End::Lost(error) => {
                    tracing::warn!(export = %name, %peer, %error, "the connection broke");
                }
            }
        });
    if let Err(error) = thread {
        tracing::error!(%export, %peer, %error, "no thread for a connection");
    }
}

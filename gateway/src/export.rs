//! The volumes that are served: opened, shared among connections, closed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use tokio::sync::Notify;
use volmux_core::{
    Access, BlockDevice, Error, ErrorKind, ExtentQuery, ExtentStream, OpenOptions, OriginKind,
    Pool, Result, Sharing, Support, Volume, VolumeId, VolumeName,
};

use crate::nbd::transmission::Handle;
use crate::options::{ExportOptions, Exports, Limits};
use crate::stats::ExportCounters;

/// So long a client of a volume that serves only one is waited for to be gone.
const LEAVING: Duration = Duration::from_secs(1);
/// The same complaint about an export is logged so often at most.
const COMPLAINT_EVERY: Duration = Duration::from_secs(10);

/// Who is at the other end, as far as that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// A process on the other end of a Unix socket.
    Process(i32),
    /// A host on the other end of a TCP connection.
    Host(IpAddr),
    /// A process that can't be told, of another process namespace say: each connection is a client.
    Stranger(u64),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Process(pid) => write!(f, "process {pid}"),
            Peer::Host(address) => write!(f, "host {address}"),
            Peer::Stranger(number) => write!(f, "unknown process {number}"),
        }
    }
}

/// The volumes that are served.
#[derive(Debug)]
pub(crate) struct Catalog {
    pool: Arc<dyn Pool>,
    limits: Limits,
    /// For volumes that are opened when somebody comes.
    every_volume: Option<(Access, Sharing)>,
    slots: Mutex<BTreeMap<VolumeName, Arc<Slot>>>,
}

/// One export.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: VolumeName,
    pub(crate) access: Access,
    pub(crate) sharing: Sharing,
    /// Open from the server's start to its end.
    pinned: bool,
    pub(crate) counters: ExportCounters,
    /// One opens or closes at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    complaints: Mutex<HashMap<(&'static str, ErrorKind), Complaint>>,
    /// Called when a client has left.
    left: Notify,
    /// The connections that use it.
    connections: Mutex<Vec<(Peer, Weak<Handle>)>>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    /// Connections of each client.
    clients: BTreeMap<Peer, usize>,
    /// A client left without a word since the volume was last without clients.
    vanished: bool,
    /// Counts arrivals, so that a late closing sees that somebody came back.
    arrivals: u64,
}

/// A volume that is open, for all its clients.
#[derive(Clone, Debug)]
struct Open {
    device: Arc<dyn BlockDevice>,
    volume: Arc<Volume>,
    /// Another writer took it over.
    fenced: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Complaint {
    last: Instant,
    kept_back: u64,
}

/// What is known of an export without being its client.
#[derive(Debug)]
pub(crate) struct Preview {
    pub(crate) volume: Volume,
    pub(crate) size: u64,
    pub(crate) writable: bool,
}

impl Catalog {
    pub(crate) fn new(pool: Arc<dyn Pool>, exports: &Exports, limits: Limits) -> Result<Self> {
        let mut slots = BTreeMap::new();
        let every_volume = match exports {
            Exports::EveryVolume { access, sharing } => Some((*access, *sharing)),
            Exports::Volumes(volumes) => {
                for options in volumes {
                    let slot = Arc::new(Slot::new(options.clone(), true));
                    if slots.insert(options.volume.clone(), slot).is_some() {
                        return Err(Error::new(ErrorKind::InvalidInput, "serve")
                            .with("volume", &options.volume)
                            .reason("the volume is named twice"));
                    }
                }
                if slots.is_empty() {
                    return Err(Error::new(ErrorKind::InvalidInput, "serve")
                        .with("pool", &pool)
                        .reason("no volume is named"));
                }
                None
            }
        };
        Ok(Catalog {
            pool,
            limits,
            every_volume,
            slots: Mutex::new(slots),
        })
    }

    /// Opens the volumes that stay open.
    pub(crate) async fn open_pinned(&self) -> Result<()> {
        for slot in self.slots() {
            self.open(&slot).await?;
        }
        Ok(())
    }

    /// Whether discarding gives space back.
    pub(crate) fn discards(&self) -> bool {
        self.pool.capabilities().discard != Support::None
    }

    pub(crate) fn pool(&self) -> &Arc<dyn Pool> {
        &self.pool
    }

    /// Every export that there is or was.
    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        self.lock().values().cloned().collect()
    }

    /// The volume that a client means by `name`. The empty name means the only one.
    pub(crate) fn resolve(&self, name: &[u8]) -> Result<VolumeName> {
        let unknown = |reason: &str| {
            Error::new(ErrorKind::NotFound, "export")
                .with("export", String::from_utf8_lossy(name))
                .reason(reason)
        };
        let name = std::str::from_utf8(name).map_err(|_| unknown("the name is not UTF-8"))?;
        if self.every_volume.is_none() {
            let slots = self.lock();
            if name.is_empty() && slots.len() == 1 {
                return Ok(slots.keys().next().expect("there is one").clone());
            }
            if let Some((name, _)) = slots.iter().find(|(known, _)| known.as_str() == name) {
                return Ok(name.clone());
            }
            return Err(unknown("no export has that name"));
        }
        VolumeName::new(name).map_err(|_| unknown("that can't be a volume's name"))
    }

    /// The names of all exports.
    pub(crate) fn names(&self) -> BoxStream<'static, Result<VolumeName>> {
        if self.every_volume.is_some() {
            let volumes = self.pool.list_volumes();
            return volumes.map(|v| v.map(|v| v.name)).boxed();
        }
        let names: Vec<_> = self.lock().keys().cloned().map(Ok).collect();
        futures::stream::iter(names).boxed()
    }

    /// What a client would see, without opening anything.
    pub(crate) async fn preview(&self, name: &VolumeName) -> Result<Preview> {
        let slot = self.find(name).await?;
        let open = slot.lock().open.clone();
        if let Some(open) = open {
            return Ok(Preview {
                size: open.device.refresh().await?,
                writable: open.device.access() == Access::ReadWrite,
                volume: open.volume.as_ref().clone(),
            });
        }
        let volume = self.pool.volume(name).await?;
        Ok(Preview {
            size: volume.virtual_size.bytes(),
            writable: slot.access_to(&volume) == Access::ReadWrite,
            volume,
        })
    }

    /// Makes `peer` a client of `name`, whose volume is opened if it is not.
    ///
    /// # Errors
    /// `Busy` if it is in use, here or elsewhere; those of opening it.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        name: &VolumeName,
        peer: Peer,
    ) -> Result<(Attached, u64)> {
        let slot = self.find(name).await?;
        // From here on, dropping this closes what was opened for nobody.
        let mut client = Client::new(self, &slot, peer);
        let _turn = slot.turn.lock().await;
        let open = self.open(&slot).await?;
        if open.fenced.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Fenced, "export")
                .with("volume", name)
                .reason("another writer took the volume over")
                .help("find out who; then start the server again"));
        }
        let writable = open.device.access() == Access::ReadWrite;
        if writable {
            let own = slot.connections_of(peer);
            join_all(own.iter().map(|connection| connection.checkpoint())).await;
        }
        let size = open.device.refresh().await?;
        let exclusive = writable && slot.sharing == Sharing::Exclusive;
        let until = tokio::time::Instant::now() + LEAVING;
        loop {
            let left = slot.left.notified();
            match client.enter(exclusive) {
                // The one before may have said goodbye, or died, this very moment.
                Err(error) if tokio::time::timeout_at(until, left).await.is_err() => {
                    return Err(error);
                }
                Err(_) => {}
                Ok(()) => break,
            }
        }
        let attached = Attached {
            writable,
            open,
            client,
        };
        Ok((attached, size))
    }

    /// The export of that name, made known if it is a volume.
    async fn find(&self, name: &VolumeName) -> Result<Arc<Slot>> {
        if let Some(slot) = self.lock().get(name) {
            return Ok(slot.clone());
        }
        let Some((access, sharing)) = self.every_volume else {
            return Err(Error::new(ErrorKind::NotFound, "export")
                .with("export", name)
                .reason("no export has that name"));
        };
        self.pool.volume(name).await?;
        let options = ExportOptions {
            volume: name.clone(),
            access,
            sharing,
        };
        let mut slots = self.lock();
        let slot = slots
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Slot::new(options, false)));
        Ok(slot.clone())
    }

    /// The open volume of `slot`, opened if need be. To be called in the slot's turn.
    async fn open(&self, slot: &Slot) -> Result<Open> {
        if let Some(open) = slot.lock().open.clone() {
            return Ok(open);
        }
        let volume = self.pool.volume(&slot.name).await?;
        let options = OpenOptions {
            access: slot.access_to(&volume),
            sharing: slot.sharing,
            take_over: false,
        };
        let device = self.pool.open_volume(&slot.name, options).await?;
        if self.pool.volume(&slot.name).await?.id != volume.id {
            return Err(Error::new(ErrorKind::Busy, "export")
                .with("volume", &slot.name)
                .reason("another volume took its name while it was opened"));
        }
        let open = Open {
            device,
            volume: Arc::new(volume),
            fenced: Arc::default(),
        };
        slot.lock().open = Some(open.clone());
        Ok(open)
    }

    /// Closes `slot`'s volume if it has no clients and nobody came since `arrivals`.
    async fn release(&self, slot: &Slot, arrivals: u64) {
        let _turn = slot.turn.lock().await;
        let open = {
            let mut state = slot.lock();
            if !state.clients.is_empty() || state.arrivals != arrivals {
                return;
            }
            state.vanished = false;
            state.open.take()
        };
        if let Some(open) = open {
            let flushed = tokio::time::timeout(self.limits.request_time, flush(&open)).await;
            report_flush(slot, flushed.unwrap_or_else(|_| Err(slow_flush())));
        }
    }

    /// Flushes and closes all. To be called when no client is left.
    ///
    /// # Errors
    /// The first flush that failed; the others are done all the same.
    pub(crate) async fn close(&self, within: Duration) -> Result<()> {
        let mut first = Ok(());
        let until = tokio::time::Instant::now() + within;
        for slot in self.slots() {
            let closed = tokio::time::timeout_at(until, async {
                // It may be that its last client just left and it is being closed.
                let _turn = slot.turn.lock().await;
                let open = slot.lock().open.take();
                match open {
                    Some(open) => flush(&open).await,
                    None => Ok(()),
                }
            });
            let flushed = closed
                .await
                .unwrap_or_else(|_| Err(slow_flush()))
                .map_err(|error| error.with("volume", &slot.name));
            if first.is_ok() {
                first = flushed;
            } else {
                report_flush(&slot, flushed);
            }
        }
        first
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeName, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn flush(open: &Open) -> Result<()> {
    // Who was fenced has nothing left to make durable.
    if open.device.access() == Access::ReadOnly || open.fenced.load(Ordering::Acquire) {
        return Ok(());
    }
    open.device.flush().await
}

fn slow_flush() -> Error {
    Error::new(ErrorKind::TimedOut, "flush").reason("the pool did not answer in time")
}

fn report_flush(slot: &Slot, flushed: Result<()>) {
    if let Err(error) = flushed {
        tracing::error!(export = %slot.name, error = %chain(&error), "closing without a flush");
    }
}

impl Slot {
    fn new(options: ExportOptions, pinned: bool) -> Self {
        Slot {
            name: options.volume,
            access: options.access,
            sharing: options.sharing,
            pinned,
            counters: ExportCounters::default(),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            complaints: Mutex::default(),
            left: Notify::new(),
            connections: Mutex::default(),
        }
    }

    /// How `volume` is opened: a snapshot, served among others, only for reading.
    fn access_to(&self, volume: &Volume) -> Access {
        let snapshot =
            volume.origin.as_ref().map(|origin| origin.kind) == Some(OriginKind::Snapshot);
        if snapshot && !self.pinned {
            Access::ReadOnly
        } else {
            self.access
        }
    }

    /// The size, if it is open.
    pub(crate) fn size(&self) -> Option<u64> {
        self.lock().open.as_ref().map(|open| open.device.size())
    }

    /// The connections that `peer` has now.
    fn connections_of(&self, peer: Peer) -> Vec<Arc<Handle>> {
        let connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let own = connections.iter().filter(|(other, _)| *other == peer);
        own.filter_map(|(_, connection)| connection.upgrade())
            .collect()
    }

    /// Its clients now.
    pub(crate) fn clients(&self) -> Vec<String> {
        self.lock().clients.keys().map(Peer::to_string).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the clients of an export, given up when it is dropped.
#[derive(Debug)]
struct Client {
    catalog: Arc<Catalog>,
    slot: Arc<Slot>,
    peer: Peer,
    runtime: tokio::runtime::Handle,
    entered: bool,
    goodbye: AtomicBool,
}

impl Client {
    fn new(catalog: &Arc<Catalog>, slot: &Arc<Slot>, peer: Peer) -> Self {
        Client {
            catalog: catalog.clone(),
            slot: slot.clone(),
            peer,
            runtime: tokio::runtime::Handle::current(),
            entered: false,
            goodbye: AtomicBool::new(false),
        }
    }

    /// Takes the place, beside other clients only if it is not `exclusive`.
    fn enter(&mut self, exclusive: bool) -> Result<()> {
        let mut state = self.slot.lock();
        let other = state.clients.keys().find(|other| **other != self.peer);
        if let Some(other) = other.filter(|_| exclusive) {
            return Err(Error::new(ErrorKind::Busy, "export")
                .with("volume", &self.slot.name)
                .with("client", other)
                .reason("another client uses it")
                .help("wait for it to end, or serve the volume read-only or shared"));
        }
        *state.clients.entry(self.peer).or_default() += 1;
        state.arrivals += 1;
        drop(state);
        self.entered = true;
        self.slot.counters.connected();
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        if self.entered {
            self.slot.counters.disconnected();
            if let Some(connections) = state.clients.get_mut(&self.peer) {
                *connections -= 1;
                if *connections == 0 {
                    state.clients.remove(&self.peer);
                }
            }
            state.vanished |= !*self.goodbye.get_mut();
            self.slot.left.notify_waiters();
        }
        if self.slot.pinned || !state.clients.is_empty() {
            return;
        }
        let delay = if state.vanished {
            self.catalog.limits.release_time
        } else {
            Duration::ZERO
        };
        let arrivals = state.arrivals;
        drop(state);
        let (catalog, slot) = (self.catalog.clone(), self.slot.clone());
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            catalog.release(&slot, arrivals).await;
        });
    }
}

/// A connection's hold on the volume that it uses.
#[derive(Debug)]
pub(crate) struct Attached {
    writable: bool,
    // Dropped before the client's place is given up, so that what closes the volume is the last.
    open: Open,
    client: Client,
}

impl Attached {
    pub(crate) fn name(&self) -> &VolumeName {
        &self.client.slot.name
    }

    pub(crate) fn device(&self) -> &dyn BlockDevice {
        &*self.open.device
    }

    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    pub(crate) fn counters(&self) -> &ExportCounters {
        &self.client.slot.counters
    }

    /// The volume as it was when it was opened.
    pub(crate) fn volume(&self) -> &Volume {
        &self.open.volume
    }

    /// Makes a connection known to those who come later.
    pub(crate) fn connected(&self, connection: &Arc<Handle>) {
        let mut connections = self
            .client
            .slot
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.retain(|(_, connection)| connection.strong_count() > 0);
        connections.push((self.client.peer, Arc::downgrade(connection)));
    }

    /// The client said that it goes.
    pub(crate) fn said_goodbye(&self) {
        self.client.goodbye.store(true, Ordering::Relaxed);
    }

    pub(crate) async fn extents(&self, query: ExtentQuery) -> Result<ExtentStream> {
        self.client.catalog.pool.extents(self.name(), query).await
    }

    /// Fails if the volume's name, or that of its snapshot, means another volume by now.
    pub(crate) async fn check_names(&self, snapshot: &VolumeName, id: VolumeId) -> Result<()> {
        for (name, id) in [(self.name(), self.volume().id), (snapshot, id)] {
            let now = self.client.catalog.pool.volume(name).await?;
            if now.id != id {
                return Err(Error::new(ErrorKind::NotFound, "extents")
                    .with("volume", name)
                    .reason("it was renamed or deleted, and another has its name now"));
            }
        }
        Ok(())
    }

    /// Logs what went wrong, not too often.
    pub(crate) fn complain(&self, op: &'static str, error: &Error) {
        if error.kind() == ErrorKind::Fenced {
            self.open.fenced.store(true, Ordering::Release);
        }
        // The answer to a question: whether it can be done fast.
        if error.kind() == ErrorKind::Unsupported {
            return;
        }
        let mut complaints = self
            .client
            .slot
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut kept_back = 0;
        if let Some(complaint) = complaints.get_mut(&(op, error.kind())) {
            if now.duration_since(complaint.last) < COMPLAINT_EVERY {
                complaint.kept_back += 1;
                return;
            }
            kept_back = complaint.kept_back;
        }
        let complaint = Complaint {
            last: now,
            kept_back: 0,
        };
        complaints.insert((op, error.kind()), complaint);
        drop(complaints);
        tracing::error!(
            export = %self.name(),
            peer = %self.client.peer,
            op,
            kept_back,
            error = %chain(error),
            "a request failed"
        );
    }
}

/// An error with all its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

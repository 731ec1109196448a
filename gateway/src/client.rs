//! The clients of exports, and what they hold.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use volmux_core::{
    Access, BlockDevice, Error, ErrorKind, ExtentQuery, ExtentStream, Result, Volume, VolumeId,
    VolumeName,
};

use crate::export::{Catalog, Open, Slot, chain};
use crate::nbd::handle::Handle;
use crate::stats::ExportCounters;

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

#[derive(Debug)]
pub(crate) struct Complaint {
    last: Instant,
    kept_back: u64,
}

/// A place among the clients of an export, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    catalog: Arc<Catalog>,
    slot: Arc<Slot>,
    peer: Peer,
    runtime: tokio::runtime::Handle,
    entered: bool,
    goodbye: AtomicBool,
}

impl Client {
    pub(crate) fn new(catalog: &Arc<Catalog>, slot: &Arc<Slot>, peer: Peer) -> Self {
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
    pub(crate) fn enter(&mut self, exclusive: bool) -> Result<()> {
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
            self.slot.changed.notify_waiters();
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
    pub(crate) fn new(client: Client, open: Open) -> Self {
        Attached {
            writable: open.device.access() == Access::ReadWrite,
            open,
            client,
        }
    }

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
        drop(connections);
        self.client.slot.changed.notify_waiters();
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

//! The volumes that are served: opened, shared among connections, closed.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use tokio::sync::Notify;
use volmux_core::{
    Access, BlockDevice, Error, ErrorKind, OpenOptions, OriginKind, Pool, Result, Sharing, Support,
    Volume, VolumeName,
};

use crate::client::{Attached, Client, Complaint, Peer};
use crate::nbd::handle::Handle;
use crate::options::{ExportOptions, Exports, Limits};
use crate::stats::ExportCounters;

/// So long a client of a volume that serves only one is waited for to be gone.
const LEAVING: Duration = Duration::from_secs(1);

/// The volumes that are served.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) pool: Arc<dyn Pool>,
    pub(crate) limits: Limits,
    /// For volumes that are opened when somebody comes.
    pub(crate) every_volume: Option<(Access, Sharing)>,
    pub(crate) slots: Mutex<BTreeMap<VolumeName, Arc<Slot>>>,
}

/// One export.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: VolumeName,
    pub(crate) access: Access,
    pub(crate) sharing: Sharing,
    /// Open from the server's start to its end.
    pub(crate) pinned: bool,
    pub(crate) counters: ExportCounters,
    /// One opens or closes at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
    pub(crate) state: Mutex<State>,
    pub(crate) complaints: Mutex<HashMap<(&'static str, ErrorKind), Complaint>>,
    /// Called when a connection has begun, or ended.
    pub(crate) changed: Notify,
    /// The connections that use it.
    pub(crate) connections: Mutex<Vec<(Peer, Weak<Handle>)>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) open: Option<Open>,
    /// Connections of each client.
    pub(crate) clients: BTreeMap<Peer, usize>,
    /// A client left without a word since the volume was last without clients.
    pub(crate) vanished: bool,
    /// Counts arrivals, so that a late closing sees that somebody came back.
    pub(crate) arrivals: u64,
}

/// A volume that is open, for all its clients.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) volume: Arc<Volume>,
    /// Another writer took it over.
    pub(crate) fenced: Arc<AtomicBool>,
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
            self.check_name(&slot, &open).await?;
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
        self.check_name(&slot, &open).await?;
        if open.fenced.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Fenced, "export")
                .with("volume", name)
                .reason("another writer took the volume over")
                .help("find out who; then start the server again"));
        }
        let writable = open.device.access() == Access::ReadWrite;
        if writable {
            let own = slot.all_connections_of(peer).await;
            join_all(own.iter().map(|connection| connection.checkpoint())).await;
        }
        let size = open.device.refresh().await?;
        let exclusive = writable && slot.sharing == Sharing::Exclusive;
        let until = tokio::time::Instant::now() + LEAVING;
        loop {
            let changed = slot.changed.notified();
            match client.enter(exclusive) {
                // The one before may have said goodbye, or died, this very moment.
                Err(error) if tokio::time::timeout_at(until, changed).await.is_err() => {
                    return Err(error);
                }
                Err(_) => {}
                Ok(()) => break,
            }
        }
        Ok((Attached::new(client, open), size))
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

    /// Fails if the export's name means another volume by now than the one that is open: who asks
    /// for that one must not get this one's content.
    async fn check_name(&self, slot: &Slot, open: &Open) -> Result<()> {
        match self.pool.volume(&slot.name).await {
            Ok(now) if now.id == open.volume.id => Ok(()),
            Ok(_) => Err(Error::new(ErrorKind::NotFound, "export")
                .with("volume", &slot.name)
                .reason(
                    "the volume that is served was renamed, and another volume has its name now",
                )
                .help("end the clients of the one that is served, or the server")),
            // What is served from the start to the end keeps its name for its clients.
            Err(error) if slot.pinned && error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The open volume of `slot`, opened if need be. To be called in the slot's turn.
    async fn open(&self, slot: &Slot) -> Result<Open> {
        if let Some(open) = slot.lock().open.clone() {
            return Ok(open);
        }
        let volume = self.pool.volume(&slot.name).await?;
        let options = OpenOptions {
            access: slot.access_to(&volume),
            sharing: self.sharing_in_pool(slot),
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

    /// What the pool is asked for: one writer, all of whose clients share its open device, is as
    /// much as some can have.
    fn sharing_in_pool(&self, slot: &Slot) -> Sharing {
        match self.pool.capabilities().shared_writers {
            Support::None => Sharing::Exclusive,
            Support::Emulated | Support::Native => slot.sharing,
        }
    }

    /// Closes `slot`'s volume if it has no clients and nobody came since `arrivals`.
    pub(crate) async fn release(&self, slot: &Slot, arrivals: u64) {
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
            changed: Notify::new(),
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

    /// The connections that `peer` has, those included that are just being begun.
    async fn all_connections_of(&self, peer: Peer) -> Vec<Arc<Handle>> {
        loop {
            let changed = self.changed.notified();
            let entered = self.lock().clients.get(&peer).copied().unwrap_or(0);
            let begun = self.connections_of(peer);
            if begun.len() >= entered {
                return begun;
            }
            changed.await;
        }
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

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

//! Opening a volume of an array: it is attached to an initiator name that nobody else has, and
//! detached when it is closed.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;
use volmux_core::{
    AttachOptions, AttachTarget, Attachment, BlockDevice, ByteSize, Error, ErrorKind, Holder,
    OpenOptions, Pool, Provisioning, Result, VolumeId, VolumeName,
};
use volmux_iscsi_initiator::{ErrorKind as LoginError, Options};

use crate::array::{Array, ArrayLease, ByPool, find, opener_name};
use crate::credentials::{Chap, Sessions};
use crate::device::IscsiDevice;
use crate::lease::Lease;
use crate::scsi::{LogicalUnit, UnitOptions, session_error};
use crate::session::Attached;
use crate::transport::{Connector, ScsiTransport};

/// How often a login is tried whose connection breaks.
const LOGINS: u32 = 5;
/// Before it is tried again; doubled each time.
const LOGIN_PAUSE: Duration = Duration::from_millis(50);

type Entered = Result<Arc<dyn ScsiTransport>, volmux_iscsi_initiator::Error>;

/// Opens volumes.
#[derive(Debug)]
pub struct Opener {
    connector: Arc<dyn Connector>,
    sessions: Sessions,
    open: OpenSizes,
}

/// A logical unit that was logged in to and probed.
#[derive(Debug)]
pub struct Reached {
    /// The session.
    pub transport: Arc<dyn ScsiTransport>,
    /// The unit.
    pub unit: LogicalUnit,
}

impl Opener {
    /// With a transport, and how its sessions are to be.
    pub fn new(connector: Arc<dyn Connector>, sessions: Sessions) -> Self {
        Opener {
            connector,
            sessions,
            open: OpenSizes::default(),
        }
    }

    /// What both sides prove who they are with.
    pub fn chap(&self) -> &Chap {
        &self.sessions.chap
    }

    /// How its sessions are.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The sizes of what is open.
    pub fn sizes(&self) -> &OpenSizes {
        &self.open
    }

    /// The transport.
    pub fn connector(&self) -> &Arc<dyn Connector> {
        &self.connector
    }

    /// Lets the open volumes of this pool know of another size.
    pub fn resized(&self, id: VolumeId, size: ByteSize) {
        self.open.resized(id, size.bytes());
    }

    /// Opens a volume of `pool`, whose attachments are logical units.
    ///
    /// # Errors
    /// As [`open_in`](Self::open_in).
    pub async fn open(
        &self,
        pool: Arc<dyn Pool>,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        self.open_in(Arc::new(ByPool(pool)), name, options).await
    }

    /// Opens a volume of `array`. `options.take_over` is the array's business, and done before.
    ///
    /// # Errors
    /// Those of `Pool::open_volume`.
    pub async fn open_in(
        &self,
        array: Arc<dyn Array>,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        const OP: &str = "open_volume";
        let attach = AttachOptions {
            holder: opener_name(OP, &self.sessions.array)?,
            access: options.access,
            sharing: options.sharing,
        };
        let mut undo = Undo {
            array: array.clone(),
            name: name.clone(),
            holder: Some(attach.holder.clone()),
            runtime: Handle::try_current().ok(),
        };
        let attached = array.attach_for(OP, name, attach.clone()).await;
        if attached.is_err() {
            // An error means that nothing changed.
            undo.holder = None;
        }
        let attached = attached?;
        let volume = find(array.pool().as_ref(), OP, attached.id, name).await?;
        let Reached { transport, unit } = self.reach(OP, &attached).await?;
        let nexus = unit.opened_in();
        let lease: Box<dyn Lease> = Box::new(ArrayLease {
            array,
            id: attached.id,
            name: name.clone(),
            options: attach,
        });
        // Who shrinks it finds it attached; who grows it now is seen by what is shared.
        let size = self.open.join(
            attached.id,
            unit.capacity().bytes().min(volume.virtual_size.bytes()),
        );
        let timeout = self.sessions.timeout;
        let attached = Attached::new(
            lease,
            transport,
            unit,
            nexus,
            (options.access, options.sharing),
            timeout,
        );
        let thick = volume.provisioning == Provisioning::Thick;
        undo.holder = None;
        Ok(Arc::new(IscsiDevice::new(
            attached,
            options.access,
            thick,
            size,
        )))
    }

    /// Logs in to where a volume is attached, and makes sure that it is this volume.
    async fn reach(&self, op: &'static str, attached: &Attachment) -> Result<Reached> {
        let AttachTarget::Iscsi {
            portal,
            target,
            lun,
            serial,
            ..
        } = &attached.target
        else {
            return Err(Error::new(ErrorKind::Internal, op)
                .with("volume", &attached.volume)
                .reason("the array attaches by other means than iSCSI"));
        };
        let place = (portal.as_str(), target.as_str(), *lun);
        let holder = attached.holder.as_str();
        // It is the volume's id.
        let unique = !serial.is_empty();
        let reached = self
            .log_in(op, &attached.volume, place, holder, unique)
            .await?;
        let found = reached.unit.serial().unwrap_or_default();
        if !serial.is_empty() && found != serial {
            return Err(Error::new(ErrorKind::Corrupt, op)
                .with("volume", &attached.volume)
                .with("portal", portal)
                .with("target", target)
                .with("lun", lun)
                .reason(format!(
                    "the logical unit is another one: its serial number is {found:?}, not {serial:?}"
                ))
                .help("nothing was written to it; run an audit of the pool"));
        }
        Ok(reached)
    }

    /// Logs in and probes a logical unit.
    ///
    /// # Errors
    /// Those of the session and of the unit.
    pub async fn log_in(
        &self,
        op: &'static str,
        volume: &VolumeName,
        (portal, target, lun): (&str, &str, u64),
        initiator: &str,
        serial_is_unique: bool,
    ) -> Result<Reached> {
        let options = self.sessions.options(portal, target, initiator);
        let transport = self.enter(options).await;
        let transport = transport.map_err(|error| session_error(op, &error))?;
        let options = UnitOptions {
            serial_is_unique,
            ..self.unit_options(portal, target)
        };
        let unit = LogicalUnit::open_with(transport.clone(), lun, options);
        let unit = unit.await.map_err(|error| error.into_core(op, volume))?;
        Ok(Reached { transport, unit })
    }

    /// Logs in, again if the connection breaks meanwhile: LIO drops the logins that are under way at
    /// a portal whenever it closes any of the targets there.
    async fn enter(&self, options: Options) -> Entered {
        let mut pause = LOGIN_PAUSE;
        for _ in 1..LOGINS {
            match self.connector.login(options.clone()).await {
                Err(error) if error.kind() == LoginError::Lost => {
                    tracing::debug!(%error, "the login is tried again");
                }
                done => return done,
            }
            sleep(pause).await;
            pause *= 2;
        }
        self.connector.login(options).await
    }

    /// How a logical unit is used that somebody else made.
    pub fn unit_options(&self, portal: &str, target: &str) -> UnitOptions {
        UnitOptions {
            portal: Some(portal.to_owned()),
            target: Some(target.to_owned()),
            deadline: self.sessions.timeout,
            ..UnitOptions::default()
        }
    }
}

/// Detaches a volume that was not opened after all.
struct Undo {
    array: Arc<dyn Array>,
    name: VolumeName,
    holder: Option<Holder>,
    runtime: Option<Handle>,
}

impl Drop for Undo {
    fn drop(&mut self) {
        let runtime = Handle::try_current().ok().or(self.runtime.take());
        let (Some(holder), Some(runtime)) = (self.holder.take(), runtime) else {
            return;
        };
        let (array, name) = (self.array.clone(), self.name.clone());
        runtime.spawn(async move {
            if let Err(error) = array.pool().detach_volume(&name, &holder).await {
                tracing::warn!(volume = %name, %error, "it stays attached until an audit");
            }
        });
    }
}

/// The sizes of the volumes that this pool object has open, for who resizes one.
#[derive(Default)]
pub struct OpenSizes(Mutex<HashMap<VolumeId, Weak<AtomicU64>>>);

impl OpenSizes {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Weak<AtomicU64>>> {
        // The map is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the handles of one volume share.
    pub fn join(&self, id: VolumeId, size: u64) -> Arc<AtomicU64> {
        let mut sizes = self.lock();
        if let Some(shared) = sizes.get(&id).and_then(Weak::upgrade) {
            shared.fetch_max(size, Ordering::AcqRel);
            return shared;
        }
        sizes.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(AtomicU64::new(size));
        sizes.insert(id, Arc::downgrade(&shared));
        shared
    }

    fn resized(&self, id: VolumeId, size: u64) {
        let shared = self.lock().get(&id).and_then(Weak::upgrade);
        if let Some(shared) = shared {
            shared.fetch_max(size, Ordering::AcqRel);
        }
    }
}

impl fmt::Debug for OpenSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenSizes")
            .field(&self.lock().len())
            .finish()
    }
}

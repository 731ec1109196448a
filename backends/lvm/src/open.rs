//! Opening a volume, step by step, so that nothing is left behind wherever it stops; and closing it.

use std::error::Error as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use volmux_core::{
    Access, BlockDevice, Error, ErrorKind, OpenOptions, Result, Sharing, VolumeId, VolumeName,
};

use crate::active::number;
use crate::change::Alter;
use crate::device::{LvmDevice, Of, Shared};
use crate::disk::{Disk, Kind};
use crate::lifecycle::{check_not_snapshot, in_use};
use crate::locks::{Use, VolumeLocks};
use crate::names;
use crate::pending;
use crate::pool::Inner;
use crate::users;
use crate::view::{Entry, View};

/// How often a volume that changes meanwhile is looked at again.
const TRIES: usize = 10;
/// How long a device may be claimed by somebody who is just letting it go.
const CLAIM_TIME: Duration = Duration::from_millis(500);
/// How long a device stays active after its last user: who opens it again at once has it ready.
const LINGER: Duration = Duration::from_millis(50);
/// How long a device may be open after that, and its volume taken.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Opens the volume `name`.
pub async fn open(
    inner: &Arc<Inner>,
    op: &'static str,
    name: &VolumeName,
    options: OpenOptions,
) -> Result<Arc<dyn BlockDevice>> {
    if options.take_over {
        return Err(Error::new(ErrorKind::Unsupported, op)
            .with("volume", name)
            .reason("LVM can't take a volume away from who writes to it")
            .help("end the other writer, then open the volume without take_over"));
    }
    if options.access == Access::ReadWrite && inner.client.config.read_only {
        return Err(Error::new(ErrorKind::PermissionDenied, op)
            .reason("the pool was opened with read_only=true"));
    }
    for _ in 0..TRIES {
        let view = inner.client.look(op).await?;
        let entry = view.get(op, name)?;
        if let Some(device) = try_open(inner, op, entry, options).await? {
            return Ok(Arc::new(device));
        }
    }
    Err(Error::new(ErrorKind::Busy, op)
        .reason("the volume changes all the time, or its device is taken away again and again"))
}

/// Opens a logical volume for work on what nobody else opens: a hidden one, one that is being made,
/// or one that the caller has locked.
pub async fn open_entry(
    inner: &Arc<Inner>,
    op: &'static str,
    entry: &Entry,
    writable: bool,
) -> Result<Arc<dyn BlockDevice>> {
    let of = if names::is_hidden(&entry.lv.name) {
        Of::Hidden(entry.lv.name.clone())
    } else {
        Of::Volume(entry.record.id)
    };
    let held = Held::new(None, Closer::new(inner, of, true));
    let access = if writable {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let view = inner.client.look(op).await?;
    let how = How {
        access,
        claim: Claim::No,
        kind: kind(inner, op, &view, entry)?,
    };
    let of = held.closer.of.clone();
    let path = inner.client.activate(op, &entry.lv.name).await?;
    let disk = open_disk(op, path, how, held).await?;
    let size = device_size(op, &disk)?.min(entry.size().bytes());
    Ok(Arc::new(LvmDevice {
        inner: inner.clone(),
        of,
        name: entry.name.clone(),
        access,
        provisioning: entry.provisioning(),
        shared: Arc::new(Shared::new(size)),
        disk,
    }))
}

/// `Ok(None)` if the volume is not what it was when it was looked at.
async fn try_open(
    inner: &Arc<Inner>,
    op: &'static str,
    seen: &Entry,
    options: OpenOptions,
) -> Result<Option<LvmDevice>> {
    let client = &inner.client;
    let OpenOptions {
        access, sharing, ..
    } = options;
    let writes = access == Access::ReadWrite;
    check_allowed(op, seen, options)?;
    let id = seen.record.id;
    let closer = Closer::new(inner, Of::Volume(id), false);
    let locks = VolumeLocks::of(client, op, id)?;
    let Some(locked) = locks.share(access, sharing).await? else {
        return Err(in_use(op, client, seen, &locks).await);
    };
    let held = Held::new(Some(locked), closer);
    // From here on it can't be reverted, shrunk or deleted, and whoever attaches it sees the lock.
    let view = client.look(op).await?;
    let same = |view: &View| view.by_id(id).filter(|e| e.name == seen.name).cloned();
    let Some(entry) = same(&view) else {
        return Ok(None);
    };
    check_allowed(op, &entry, options)?;
    let lv = entry.lv.name.clone();
    let mut path = client.activate(op, &lv).await;
    if path.as_ref().is_err_and(pending::may_be_behind) && !client.config.read_only {
        client.doubt();
        drop(client.change(op).await?);
        path = client.activate(op, &lv).await;
    }
    let path = match path {
        // What was begun with it has been finished by somebody else: it has its own name now.
        Err(_) if same(&*client.look(op).await?).is_some_and(|now| now.lv.name != lv) => {
            return Ok(None);
        }
        path => path?,
    };
    if writes && is_read_only(inner, op, &lv)? {
        make_writable(inner, op, id).await?;
        check_kernel_lets_write(inner, op, &lv).await?;
    }
    let how = How {
        access,
        claim: Claim::of(access, sharing),
        kind: kind(inner, op, &view, &entry)?,
    };
    let disk = match open_disk(op, path, how, held).await {
        Err(error) if is_gone(&error) => return Ok(None),
        disk => disk?,
    };
    // The name may have become another volume's meanwhile.
    let found = disk.file().metadata().map_err(|e| Error::from_io(op, e))?;
    let device = client.device(op, &lv)?;
    let view = client.look(op).await?;
    let Some(now) = same(&view).filter(|now| now.lv.name == lv) else {
        return Ok(None);
    };
    if device.map(|info| number(&info)) != Some(found.rdev()) {
        return Ok(None);
    }
    let size = device_size(op, &disk)?.min(now.size().bytes());
    Ok(Some(LvmDevice {
        inner: inner.clone(),
        of: Of::Volume(id),
        name: now.name,
        access,
        provisioning: entry.provisioning(),
        shared: inner.open_volumes.join(id, size),
        disk,
    }))
}

/// Refuses what the volume is not there for, and what does not go together with its attachments.
fn check_allowed(op: &'static str, entry: &Entry, options: OpenOptions) -> Result<()> {
    if options.access == Access::ReadOnly {
        return Ok(());
    }
    check_not_snapshot(op, entry, "opened for writing")?;
    let against = entry.record.attachments.iter().find(|attached| {
        attached.access == Access::ReadWrite
            && (attached.sharing, options.sharing) != (Sharing::Shared, Sharing::Shared)
    });
    match against {
        None => Ok(()),
        Some(attached) => Err(Error::new(ErrorKind::Busy, op)
            .reason("the volume is attached for writing")
            .with("attached_to", &attached.holder)
            .help("detach it from there first, or open it read-only")),
    }
}

async fn make_writable(inner: &Inner, op: &'static str, id: VolumeId) -> Result<()> {
    let mut change = inner.client.change(op).await?;
    let Some(entry) = change.view().by_id(id) else {
        return Ok(());
    };
    let lv = entry.lv.name.clone();
    let alter = Alter {
        writable: Some(true),
        ..Alter::default()
    };
    change.alter(&lv, &alter).await
}

/// Whether the kernel refuses writes to a device.
fn is_read_only(inner: &Inner, op: &'static str, lv: &str) -> Result<bool> {
    let info = inner.client.device(op, lv)?;
    Ok(info.is_some_and(|info| info.read_only))
}

/// The device of a volume that was made writable may still be read-only, if lvm2 was interrupted.
pub async fn check_kernel_lets_write(inner: &Inner, op: &'static str, lv: &str) -> Result<()> {
    let client = &inner.client;
    if !is_read_only(inner, op, lv)? {
        return Ok(());
    }
    let path = format!("{}/{lv}", client.config.group);
    client
        .commands
        .lvm(op, &["lvchange", "--refresh", &path])
        .await?;
    if !is_read_only(inner, op, lv)? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, op)
        .with("logical_volume", path)
        .reason("its device stays read-only although it is writable")
        .help("see activation/read_only_volume_list in lvm.conf"))
}

/// What the data path has to know of a volume's device.
pub fn kind(inner: &Inner, op: &'static str, view: &View, entry: &Entry) -> Result<Kind> {
    let config = &inner.client.config;
    if entry.lv.segtype != "thin" {
        return Ok(Kind::Thick);
    }
    match (&config.pool, inner.chunk_size(view)) {
        (Some(pool), Some(chunk)) => Ok(Kind::Thin {
            chunk,
            group: config.group.clone(),
            pool: pool.clone(),
        }),
        _ => Err(Error::new(ErrorKind::Internal, op)
            .reason("lvm2 does not say how large the thin pool's chunks are")),
    }
}

fn device_size(op: &'static str, disk: &Disk) -> Result<u64> {
    disk.device_size()
        .map_err(|error| Error::from_io(op, error))
}

/// Whether a device is to be kept from those who would mount it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No.
    No,
    /// It must not be claimed by anybody, and others may write to it as well.
    Look,
    /// As long as it is open.
    Keep,
}

impl Claim {
    fn of(access: Access, sharing: Sharing) -> Claim {
        match (access, sharing) {
            (Access::ReadOnly, _) => Claim::No,
            (Access::ReadWrite, Sharing::Shared) => Claim::Look,
            (Access::ReadWrite, Sharing::Exclusive) => Claim::Keep,
        }
    }
}

struct How {
    access: Access,
    claim: Claim,
    kind: Kind,
}

/// Opens the device, on a thread that may block, which gives everything up if nobody waits any more.
async fn open_disk(op: &'static str, path: PathBuf, how: How, mut held: Held) -> Result<Disk> {
    let opened = tokio::task::spawn_blocking(move || {
        if how.claim != Claim::No {
            let claimed = claim(op, &path)?;
            held.claimed = Some(claimed).filter(|_| how.claim == Claim::Keep);
        }
        let writable = how.access == Access::ReadWrite;
        let disk = Disk::open(&path, writable, how.kind)?;
        disk.hold(held);
        Ok(disk)
    });
    opened
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?
}

/// Claims a block device, which the kernel allows only if it is not mounted, not part of another
/// device, and not claimed by somebody else (open(2), O_EXCL). It may take a while, so not for the
/// thread of a runtime.
pub fn claim(op: &'static str, path: &Path) -> Result<File> {
    let end = Instant::now() + CLAIM_TIME;
    loop {
        let mut options = File::options();
        let error = match options.read(true).custom_flags(libc::O_EXCL).open(path) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(Error::from_io(op, error).with("path", path.display()));
        }
        let device = users::device_at(path);
        let above = device.map(users::above).unwrap_or_default();
        if above.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let users = if above.is_empty() {
            users::of(device, &[])
        } else {
            above
        };
        return Err(Error::new(ErrorKind::Busy, op)
            .with("path", path.display())
            .with("used_by", users.join(", "))
            .reason("the volume's device is in use on this host")
            .help("unmount it, or take it out of the device that is made of it")
            .with_source(error));
    }
}

/// Whether a device was taken away right before it was opened.
fn is_gone(error: &Error) -> bool {
    let cause = error.source().and_then(|s| s.downcast_ref::<io::Error>());
    let code = cause.and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

/// What an open device holds besides its file; given up after it, in this order.
#[derive(Debug)]
struct Held {
    claimed: Option<File>,
    _locks: Option<Use>,
    closer: Closer,
}

impl Held {
    fn new(locks: Option<Use>, closer: Closer) -> Held {
        Held {
            claimed: None,
            _locks: locks,
            closer,
        }
    }
}

/// Sees to it, when it is dropped, that a device does not stay active for nobody.
#[derive(Debug)]
pub struct Closer {
    inner: Arc<Inner>,
    of: Of,
    /// Somebody may have the volume for a moment who does not see to that.
    patient: bool,
    /// That of the caller: the last request may end on a thread that has none.
    runtime: Option<Handle>,
}

impl Closer {
    /// Of the device that `of` has, or will have.
    pub fn new(inner: &Arc<Inner>, of: Of, patient: bool) -> Closer {
        Closer {
            inner: inner.clone(),
            of,
            patient,
            runtime: Handle::try_current().ok(),
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        // Without a runtime it stays active, which the next one to close it, or an audit, ends.
        let runtime = Handle::try_current().ok().or(self.runtime.take());
        let Some(runtime) = runtime else {
            return;
        };
        let (inner, of, patient) = (self.inner.clone(), self.of.clone(), self.patient);
        runtime.spawn(async move {
            tokio::time::sleep(LINGER).await;
            if let Err(error) = close(&inner, &of, patient).await {
                tracing::warn!(?of, %error, "a device that nobody uses stays active");
            }
        });
    }
}

/// Deactivates a logical volume that nobody uses.
///
/// # Errors
/// What lvm2 says.
pub async fn close(inner: &Inner, of: &Of, patient: bool) -> Result<()> {
    const OP: &str = "close_volume";
    let client = &inner.client;
    let end = Instant::now() + CLOSE_TIME;
    // Not in one's turn: others would have to wait for the same.
    loop {
        let view = client.look(OP).await?;
        let device = match idle(&view, of) {
            Some(lv) => client.device(OP, &lv)?,
            None => None,
        };
        match device {
            None => return Ok(()),
            Some(info) if info.open_count == 0 => break,
            // By somebody who does not ask.
            Some(_) if Instant::now() > end => return Ok(()),
            // Opened again: whoever has it now closes it later.
            Some(_) if !patient && is_shared(inner, of)? => return Ok(()),
            Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    loop {
        let turn = client.turn(OP).await?;
        let view = client.look(OP).await?;
        let Some(lv) = idle(&view, of) else {
            return Ok(());
        };
        let alone = match of {
            Of::Hidden(_) => Some(None),
            Of::Volume(id) => VolumeLocks::of(client, OP, *id)?.alone_now()?.map(Some),
        };
        if let Some(_alone) = alone {
            if !client.deactivate(OP, &lv).await? {
                tracing::info!(lv, "a device that was closed is open elsewhere");
            }
            return Ok(());
        }
        drop(turn);
        if !patient || Instant::now() > end {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_shared(inner: &Inner, of: &Of) -> Result<bool> {
    match of {
        Of::Volume(id) => Ok(VolumeLocks::of(&inner.client, "close_volume", *id)?.opens() > 0),
        Of::Hidden(_) => Ok(false),
    }
}

/// The logical volume whose device need not be there, for all that the metadata tells.
fn idle(view: &View, of: &Of) -> Option<String> {
    match of {
        Of::Hidden(lv) => view.report.find(lv).map(|lv| lv.name.clone()),
        Of::Volume(id) => {
            let half_made = view.half_made.values().find(|e| e.record.id == *id);
            let entry = view.by_id(*id).or(half_made)?;
            let attached = !entry.record.attachments.is_empty();
            (!attached).then(|| entry.lv.name.clone())
        }
    }
}

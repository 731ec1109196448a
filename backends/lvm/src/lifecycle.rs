//! Create, look up, resize, rename, delete, adopt, and the end of what was begun.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volmux_core::{
    ByteRange, ByteSize, CreateOptions, Error, ErrorKind, Provisioning, ResizeOptions, Result,
    SpaceRequest, Volume, VolumeId, VolumeName, ZeroOptions,
};

use crate::active;
use crate::change::Change;
use crate::group::GroupClient;
use crate::locks::{Use, VolumeLocks};
use crate::names::{self, Hidden};
use crate::pool::Inner;
use crate::raw::RawDisk;
use crate::report::Lv;
use crate::tags::{Record, Work};
use crate::thick;
use crate::users;
use crate::view::{Entry, View};

/// How long a device may still be open after its last user has closed it.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// lvm2 counts the extents of a logical volume in 32 bits.
const MOST_EXTENTS: u64 = u32::MAX as u64;

/// How long one waits for others who make a volume of the same name. A copy may take hours.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Refuses sizes that no volume can have, whatever its pool.
fn check_size(op: &'static str, size: ByteSize) -> Result<()> {
    let reason = match size.round_up(512) {
        _ if size == ByteSize::ZERO => "a volume can't have no bytes",
        Some(size) if i64::try_from(size.bytes()).is_ok() => return Ok(()),
        _ => "no device can be that large",
    };
    Err(Error::new(ErrorKind::InvalidInput, op)
        .with("size", size.bytes())
        .reason(reason))
}

/// A size as it will be made.
fn checked_size(op: &'static str, size: ByteSize, extent_size: u64) -> Result<ByteSize> {
    check_size(op, size)?;
    match size.round_up(extent_size) {
        Some(size) if size.bytes() / extent_size <= MOST_EXTENTS => Ok(size),
        _ => Err(Error::new(ErrorKind::InvalidInput, op)
            .with("size", size.bytes())
            .reason(format!(
                "a logical volume has at most {MOST_EXTENTS} extents, which are of {extent_size} \
                 bytes in this group"
            ))),
    }
}

/// What has a name, in words.
fn what_it_is(entry: &Entry) -> String {
    let made = match &entry.record.origin {
        Some(origin) => format!("{} of {}", origin.kind, origin.parent_name),
        None if entry.record.adopted.is_some() => "adopted volume".into(),
        None => format!("{} volume", entry.provisioning()),
    };
    format!("a {made} of {} bytes", entry.size().bytes())
}

/// The volume `name` if there is one and it is the `same` as the caller wants.
pub fn existing(
    op: &'static str,
    view: &View,
    name: &VolumeName,
    same: impl Fn(&Entry) -> bool,
) -> Result<Option<Volume>> {
    view.check_whole(op, name)?;
    match view.find(name) {
        None => Ok(None),
        Some(entry) if same(entry) => Ok(Some(entry.volume())),
        Some(entry) => Err(taken(op, name, &what_it_is(entry))),
    }
}

fn taken(op: &'static str, name: &VolumeName, by: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, op)
        .with("volume", name)
        .reason(format!("the name is taken by {by}"))
        .help("choose another name, or delete that first")
}

/// `InvalidInput` for what can't be done to a snapshot.
pub fn check_not_snapshot(op: &'static str, entry: &Entry, done: &str) -> Result<()> {
    if entry.record.is_snapshot() {
        return Err(Error::new(ErrorKind::InvalidInput, op)
            .reason(format!("a snapshot is read-only and can't be {done}"))
            .help("clone it and use the clone"));
    }
    Ok(())
}

/// `Busy` if the volume is attached to anybody.
pub fn check_detached(op: &'static str, entry: &Entry) -> Result<()> {
    let holders = entry.record.attachments.iter();
    let holders: Vec<&str> = holders.map(|a| a.holder.as_str()).collect();
    if holders.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, op)
        .reason("the volume is attached")
        .with("attached_to", holders.join(", "))
        .help("detach it from there first"))
}

/// `Busy` if the volume is attached to somebody who writes to it.
pub fn check_no_writer(op: &'static str, entry: &Entry) -> Result<()> {
    let writes = |a: &&crate::tags::Attached| a.access == volmux_core::Access::ReadWrite;
    match entry.record.attachments.iter().find(writes) {
        None => Ok(()),
        Some(attached) => Err(Error::new(ErrorKind::Busy, op)
            .reason("the volume is attached for writing")
            .with("attached_to", &attached.holder)
            .help("detach it from there first")),
    }
}

/// The volume for oneself; `Busy` if it is attached or open.
pub async fn alone(op: &'static str, change: &Change, entry: &Entry) -> Result<Use> {
    check_detached(op, entry)?;
    let locks = VolumeLocks::of(change.client(), op, entry.record.id)?;
    match locks.alone().await? {
        // Somebody may have the device open, or mounted, without having asked.
        Some(alone) if is_closed(op, change.client(), &entry.lv.name).await? => Ok(alone),
        _ => Err(in_use(op, change.client(), entry, &locks).await),
    }
}

/// Whether nobody has a device open, or closes it soon: udev looks at those that were written.
async fn is_closed(op: &'static str, client: &GroupClient, lv: &str) -> Result<bool> {
    let end = Instant::now() + CLOSE_TIME;
    while client
        .device(op, lv)?
        .is_some_and(|info| info.open_count > 0)
    {
        if Instant::now() > end {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(true)
}

/// `Busy`, naming who uses a volume.
pub async fn in_use(
    op: &'static str,
    client: &GroupClient,
    entry: &Entry,
    locks: &VolumeLocks,
) -> Error {
    let error = Error::new(ErrorKind::Busy, op)
        .with("volume", &entry.name)
        .reason("the volume is in use")
        .help("close or detach it there first");
    match users(op, client, entry, locks).await {
        users if users.is_empty() => error,
        users => error.with("used_by", users.join(", ")),
    }
}

/// Who uses a volume, in words.
pub async fn users(
    op: &'static str,
    client: &GroupClient,
    entry: &Entry,
    locks: &VolumeLocks,
) -> Vec<String> {
    let device = client.device(op, &entry.lv.name).ok().flatten();
    let device = device.map(|info| active::number(&info));
    let files = locks.files().map(Path::to_path_buf);
    let looked = tokio::task::spawn_blocking(move || {
        let files = [files[0].as_path(), files[1].as_path()];
        users::of(device, &files)
    });
    looked.await.unwrap_or_default()
}

/// One's turn to change the group, once nobody makes a volume of this name any more. Whoever makes
/// one lets others in meanwhile.
///
/// # Errors
/// As [`GroupClient::change`]. If it takes too long, [`make_room`] says so.
pub async fn turn_on(inner: &Inner, op: &'static str, name: &VolumeName) -> Result<Change> {
    let end = Instant::now() + PATIENCE;
    loop {
        let change = inner.client.change(op).await?;
        let alive = match change.view().half_made.get(name) {
            Some(entry) => {
                let locks = VolumeLocks::of(&inner.client, op, entry.record.id)?;
                locks.alone_now()?.is_none()
            }
            None => false,
        };
        if !alive || Instant::now() > end {
            return Ok(change);
        }
        drop(change);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Makes a name free for a new logical volume: removes what is half made and has no maker any more.
///
/// # Errors
/// `Busy` if it is being made; `AlreadyExists` if the name is that of something else.
pub async fn make_room(op: &'static str, change: &mut Change, name: &VolumeName) -> Result<()> {
    let half_made = change.view().half_made.get(name).cloned();
    if let Some(entry) = half_made {
        let id = entry.record.id;
        let locks = VolumeLocks::of(change.client(), op, id)?;
        let Some(alone) = locks.alone_now()? else {
            let error = in_use(op, change.client(), &entry, &locks).await;
            return Err(error.with("state", "a volume of this name is being made"));
        };
        change.remove(&entry.lv.name).await?;
        remove_hidden(change, &[Hidden::Copy.name(id)]).await?;
        locks.forget(alone);
    }
    if change.view().report.find(name.as_str()).is_some() {
        let group = &change.client().config.group;
        let by = format!("a logical volume of group {group} that is no volume of this pool");
        return Err(taken(op, name, &by));
    }
    Ok(())
}

/// Whether the logical volume of this name is still the one that is being made as `id`.
///
/// # Errors
/// `Busy` if somebody else has removed it, or put another one into its place.
pub fn check_making(
    op: &'static str,
    change: &Change,
    name: &VolumeName,
    id: VolumeId,
) -> Result<()> {
    match change.view().half_made.get(name) {
        Some(entry) if entry.record.id == id => Ok(()),
        _ => Err(Error::new(ErrorKind::Busy, op)
            .with("volume", name)
            .reason("somebody else removed or replaced its logical volume while it was being made")
            .help("try again")),
    }
}

/// Removes those of the hidden logical volumes that are there.
pub async fn remove_hidden(change: &mut Change, names: &[String]) -> Result<()> {
    for name in names {
        if change.view().report.find(name).is_some() {
            change.remove(name).await?;
        }
    }
    Ok(())
}

pub async fn create(inner: Arc<Inner>, name: VolumeName, options: CreateOptions) -> Result<Volume> {
    const OP: &str = "create_volume";
    names::check(OP, &inner.client.config.group, &name)?;
    // The size first: one that no volume can have is wrong whatever the pool can do.
    check_size(OP, options.size)?;
    inner.check_provisioning(OP, options.provisioning)?;
    let mut change = turn_on(&inner, OP, &name).await?;
    let size = checked_size(OP, options.size, change.view().group().extent_size)?;
    let same = |entry: &Entry| {
        entry.record.origin.is_none()
            && entry.record.adopted.is_none()
            && entry.size() == size
            && entry.provisioning() == options.provisioning
    };
    if let Some(volume) = existing(OP, change.view(), &name, same)? {
        return Ok(volume);
    }
    make_room(OP, &mut change, &name).await?;
    let thick = options.provisioning == Provisioning::Thick;
    let request = SpaceRequest {
        provisioned: size,
        reserved: if thick { size } else { ByteSize::ZERO },
    };
    inner.admit(OP, &mut change, request).await?;
    let record = Record::new(None);
    if thick {
        return thick::create(&inner, change, &name, size, record).await;
    }
    change
        .create_thin(name.as_str(), size.bytes(), &record.tags())
        .await?;
    Ok(change.view().get(OP, &name)?.volume())
}

pub async fn resize(inner: Arc<Inner>, name: VolumeName, options: ResizeOptions) -> Result<Volume> {
    const OP: &str = "resize_volume";
    check_size(OP, options.size)?;
    let mut change = inner.client.change(OP).await?;
    let size = checked_size(OP, options.size, change.view().group().extent_size)?;
    let entry = finished(&inner, OP, &mut change, &name).await?;
    check_not_snapshot(OP, &entry, "resized")?;
    thick::check_resizable(OP, &entry)?;
    let old = entry.size();
    if size > old {
        let growth = ByteSize::new(size.bytes() - old.bytes());
        let thick = entry.provisioning() == Provisioning::Thick;
        let request = SpaceRequest {
            provisioned: growth,
            reserved: if thick { growth } else { ByteSize::ZERO },
        };
        inner.admit(OP, &mut change, request).await?;
        if thick {
            change = thick::grow(&inner, change, &entry, growth).await?;
        } else {
            change.extend(&entry.lv.name, size.bytes()).await?;
        }
    } else if size < old {
        if !options.allow_shrink {
            return Err(Error::new(ErrorKind::InvalidInput, OP)
                .with("size", size.bytes())
                .with("present_size", old.bytes())
                .reason("the new size is smaller: what lies past it would be lost")
                .help("allow shrinking explicitly if that is meant"));
        }
        let _alone = alone(OP, &change, &entry).await?;
        // The size first: a logical volume that is too long is shrunk later, and what it still
        // holds past the end never comes back.
        let shrinking = Work::Shrinking(size).tag();
        change.retag(&entry.lv.name, &[shrinking], &[]).await?;
        finished(&inner, OP, &mut change, &name).await?;
    }
    let entry = change.view().get(OP, &name)?;
    inner
        .open_volumes
        .resized(entry.record.id, entry.size().bytes());
    Ok(entry.volume())
}

/// The volume, with all finished that was begun.
pub async fn finished(
    inner: &Arc<Inner>,
    op: &'static str,
    change: &mut Change,
    name: &VolumeName,
) -> Result<Entry> {
    let entry = change.view().get(op, name)?.clone();
    match &entry.record.work {
        None | Some(Work::Making) => return Ok(entry),
        Some(Work::Naming(_)) => finish_naming(change, &entry).await?,
        Some(Work::Shrinking(size)) => finish_shrinking(inner, op, change, &entry, *size).await?,
    }
    change.view().get(op, name).cloned()
}

async fn finish_naming(change: &mut Change, entry: &Entry) -> Result<()> {
    let name = entry.name.as_str();
    if entry.lv.name != name {
        change.rename(&entry.lv.name, name).await?;
    }
    let removed = remove_hidden(change, &[Hidden::Old.name(entry.record.id)]).await;
    match removed {
        // The volume must not wait for whoever looks at its old content; an audit removes that.
        Err(error) if error.kind() == ErrorKind::Busy => {
            tracing::warn!(%error, volume = name, "what a volume was before a revert stays");
        }
        removed => removed?,
    }
    let done: Vec<String> = entry.record.work.iter().map(Work::tag).collect();
    change.retag(name, &[], &done).await
}

/// A thin volume keeps what lies past its end, and would show it when it grows again.
async fn finish_shrinking(
    inner: &Arc<Inner>,
    op: &'static str,
    change: &mut Change,
    entry: &Entry,
    size: ByteSize,
) -> Result<()> {
    if size < entry.lv.size {
        if entry.provisioning() == Provisioning::Thin {
            let pool = inner.client.config.pool.as_deref();
            let chunk = inner.chunk_size(change.view());
            let disk = RawDisk::open(&inner.client, op, &entry.lv.name, pool.zip(chunk)).await?;
            let past = ByteRange::from_to(size.bytes(), entry.lv.size.bytes());
            let options = ZeroOptions {
                may_discard: true,
                fast_only: false,
            };
            let zeroed = match disk.write_zeroes(past, options).await {
                Ok(()) => disk.flush().await,
                Err(error) => Err(error),
            };
            disk.close(op).await?;
            zeroed?;
        }
        change.reduce(&entry.lv.name, size.bytes()).await?;
    }
    let done = Work::Shrinking(size).tag();
    change.retag(&entry.lv.name, &[], &[done]).await
}

pub async fn rename(inner: Arc<Inner>, name: VolumeName, to: VolumeName) -> Result<Volume> {
    const OP: &str = "rename_volume";
    names::check(OP, &inner.client.config.group, &to)?;
    let mut change = turn_on(&inner, OP, &to).await?;
    if name == to {
        return Ok(change.view().get(OP, &name)?.volume());
    }
    change.view().get(OP, &name)?;
    existing(OP, change.view(), &to, |_| false)?;
    make_room(OP, &mut change, &to).await?;
    let entry = finished(&inner, OP, &mut change, &name).await?;
    change.rename(&entry.lv.name, to.as_str()).await?;
    Ok(change.view().get(OP, &to)?.volume())
}

pub async fn delete(inner: Arc<Inner>, name: VolumeName) -> Result<()> {
    const OP: &str = "delete_volume";
    let mut change = turn_on(&inner, OP, &name).await?;
    change.view().check_whole(OP, &name)?;
    if change.view().half_made.contains_key(&name) {
        return make_room(OP, &mut change, &name).await;
    }
    let Some(entry) = change.view().find(&name).cloned() else {
        return Ok(());
    };
    let id = entry.record.id;
    let alone = alone(OP, &change, &entry).await?;
    // First what a revert left: once the volume is gone, that would be it.
    let mut hidden = [Hidden::Old, Hidden::Revert, Hidden::Copy]
        .map(|hidden| hidden.name(id))
        .to_vec();
    hidden.retain(|name| *name != entry.lv.name);
    remove_hidden(&mut change, &hidden).await?;
    change.remove(&entry.lv.name).await?;
    VolumeLocks::of(change.client(), OP, id)?.forget(alone);
    Ok(())
}

pub async fn adopt(inner: Arc<Inner>, what: String, name: VolumeName) -> Result<Volume> {
    const OP: &str = "adopt_volume";
    names::check(OP, &inner.client.config.group, &name)?;
    let mut change = turn_on(&inner, OP, &name).await?;
    let candidate = adoptable(OP, change.view(), &what);
    let same = |entry: &Entry| entry.record.adopted.as_deref() == Some(&*what);
    if matches!(&candidate, Err(error) if error.kind() == ErrorKind::NotFound)
        && let Some(volume) = existing(OP, change.view(), &name, same)?
    {
        finished(&inner, OP, &mut change, &name).await?;
        return Ok(volume);
    }
    let lv = candidate?;
    if !change.is_writable(&lv.name).await? {
        return Err(Error::new(ErrorKind::InvalidInput, OP)
            .with("logical_volume", &what)
            .reason("it is read-only")
            .help("make it writable: lvchange -prw"));
    }
    existing(OP, change.view(), &name, |_| false)?;
    if what != name.as_str() {
        make_room(OP, &mut change, &name).await?;
    }
    let provisioned = lv.size;
    let request = SpaceRequest {
        provisioned,
        reserved: ByteSize::ZERO,
    };
    inner.admit(OP, &mut change, request).await?;
    // Whoever has it open would go on writing to what is a volume from then on.
    if !inner.client.deactivate(OP, &lv.name).await? {
        return Err(Error::new(ErrorKind::Busy, OP)
            .with("logical_volume", &what)
            .reason("its device is in use")
            .help("unmount it, and end whatever uses it"));
    }
    change.skip_activation(&lv.name, true).await?;
    let mut record = Record::new(None);
    record.adopted = Some(what.clone());
    record.work = Some(Work::Naming(name.clone()));
    change.retag(&lv.name, &record.tags(), &[]).await?;
    Ok(finished(&inner, OP, &mut change, &name).await?.volume())
}

/// The logical volume that is to be adopted, if it can be.
fn adoptable(op: &'static str, view: &View, what: &str) -> Result<Arc<Lv>> {
    let error = |kind, reason: &str, help: &str| {
        Err(Error::new(kind, op)
            .with("logical_volume", what)
            .reason(reason)
            .help(help))
    };
    if let Some(lv) = view.foreign.iter().find(|lv| lv.name == what) {
        if view.has_foreign_origin(lv) {
            return error(
                ErrorKind::InvalidInput,
                "part of its content lies in its origin, another logical volume",
                "copy it into a new volume",
            );
        }
        return Ok(lv.clone());
    }
    if view.report.find(what).is_some() {
        return error(
            ErrorKind::InvalidInput,
            "that logical volume is a volume already, or of another kind than this pool's",
            "name one of this pool that volmux did not make",
        );
    }
    error(
        ErrorKind::NotFound,
        "the group has no such logical volume",
        "give its name without the group's, as lvs shows it",
    )
}

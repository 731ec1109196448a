//! Making, growing and deleting volumes.

use volmux_core::{
    ByteSize, Control, CreateOptions, Error, ErrorKind, Provisioning, ResizeOptions, Result,
    Volume, VolumeName,
};

use super::array::Array;
use super::calls::ListedVolume;
use super::client::{CallError, code};
use super::names::Store;

/// No kernel has larger devices.
const LARGEST: u64 = i64::MAX as u64;

pub(super) async fn create(
    array: &Array,
    name: &VolumeName,
    options: CreateOptions,
) -> Result<Volume> {
    const OP: &str = "create_volume";
    array.check_name(OP, name)?;
    let size = array.size(OP, options.size)?;
    check_provisioning(array, OP, options.provisioning)?;
    if let Some(there) = array.find(OP, name.as_str()).await? {
        same(OP, &there, size)?;
        return array.volume(OP, name).await;
    }
    array.check_heard(OP, name.as_str())?;
    array.admit(OP, name, size).await?;
    make(array, OP, name, size).await
}

/// Has the array make an empty volume.
pub(super) async fn make(
    array: &Array,
    op: &'static str,
    name: &VolumeName,
    size: u64,
) -> Result<Volume> {
    let pool = &array.config.pool;
    if let Err(error) = array.client.vol_create(pool, name.as_str(), size).await {
        return made_all_the_same(array, op, name, size, error).await;
    }
    match array.find(op, name.as_str()).await? {
        Some(_) => array.volume(op, name).await,
        None => Err(lost(array, op, name)),
    }
}

/// targetd's `create` (`lvm.py`) makes a plain logical volume where the thin pool fails. It has
/// what was there before, and is not in the pool.
fn lost(array: &Array, op: &'static str, name: &VolumeName) -> Error {
    let group = array.config.pool.split('/').next().unwrap_or_default();
    Error::new(ErrorKind::Corrupt, op)
        .with("volume", name)
        .reason("targetd made a volume, and it is not in the pool: the thin pool failed")
        .help(format!(
            "run lvremove {group}/{name} on the array, and look what is wrong with the thin pool"
        ))
}

fn check_provisioning(array: &Array, op: &'static str, wanted: Provisioning) -> Result<()> {
    let reason = match (array.store, wanted) {
        (Store::LvmThin, Provisioning::Thin) | (Store::Zfs, Provisioning::Thick) => return Ok(()),
        (Store::LvmThin, _) => "volumes of a thin pool are thin",
        (Store::Zfs, _) => "targetd reserves the space of volumes in ZFS: they are thick",
        (Store::LvmLinear, _) => NOT_ZEROED,
    };
    Err(Error::new(ErrorKind::Unsupported, op).reason(reason))
}

const NOT_ZEROED: &str =
    "in a plain volume group the array would hand out what other volumes held: use a thin pool";

/// The volume was made if it is there now with the right size, whoever did that; otherwise fails
/// with what went wrong.
async fn made_all_the_same(
    array: &Array,
    op: &'static str,
    name: &VolumeName,
    size: u64,
    error: CallError,
) -> Result<Volume> {
    let taken = error.code() == Some(code::NAME_CONFLICT);
    if !taken && !error.may_be_done() {
        return Err(error.into_error(op));
    }
    match array.find(op, name.as_str()).await {
        Ok(Some(there)) => {
            same(op, &there, size)?;
            array.volume(op, name).await
        }
        _ => Err(error.into_error(op)),
    }
}

/// `AlreadyExists` if a volume is not of the size that would have been made.
fn same(op: &'static str, there: &ListedVolume, size: u64) -> Result<()> {
    if there.size == size {
        return Ok(());
    }
    Err(Error::new(ErrorKind::AlreadyExists, op)
        .with("size", there.size)
        .with("wanted", size)
        .reason("the name is taken by a volume of another size")
        .help("choose another name; or set granularity to what the array rounds sizes up to"))
}

pub(super) async fn resize(
    array: &Array,
    name: &VolumeName,
    options: ResizeOptions,
) -> Result<Volume> {
    const OP: &str = "resize_volume";
    let size = array.size(OP, options.size)?;
    let there = array.get(OP, name).await?;
    if there.size == size || there.size == options.size.bytes() {
        return array.volume(OP, name).await;
    }
    if size < there.size {
        return Err(match options.allow_shrink {
            true => Error::new(ErrorKind::Unsupported, OP).reason("targetd makes nothing smaller"),
            false => Error::new(ErrorKind::InvalidInput, OP)
                .with("size", there.size)
                .with("wanted", size)
                .reason("the new size is smaller than the volume"),
        });
    }
    if array.store == Store::LvmLinear {
        return Err(Error::new(ErrorKind::Unsupported, OP).reason(NOT_ZEROED));
    }
    array.admit(OP, name, size - there.size).await?;
    let grown = array
        .client
        .vol_resize(&array.config.pool, name.as_str(), size);
    if let Err(error) = grown.await {
        // Who came before us had it grow as far, and targetd refuses what is not larger.
        let now = match error.may_be_done() || error.code() == Some(code::INVALID_ARGUMENT) {
            true => array.find(OP, name.as_str()).await.ok().flatten(),
            false => None,
        };
        if now.is_none_or(|now| now.uuid != there.uuid || now.size < size) {
            return Err(error.into_error(OP));
        }
    }
    array.volume(OP, name).await
}

pub(super) async fn delete(array: &Array, name: &str) -> Result<()> {
    const OP: &str = "delete_volume";
    let Some(there) = array.find(OP, name).await? else {
        return Ok(());
    };
    let exports = array.exports(OP).await?;
    let mut holders = exports
        .iter()
        .filter(|export| export.vol_uuid == there.uuid)
        .map(|export| export.initiator_wwn.as_str());
    if let Some(holder) = holders.next() {
        return Err(Error::new(ErrorKind::Busy, OP)
            .with("holder", holder)
            .reason("the volume is attached")
            .help("detach it first"));
    }
    let Err(error) = array.client.vol_destroy(&array.config.pool, name).await else {
        return Ok(());
    };
    if error.code() == Some(code::NOT_FOUND_VOLUME) {
        return Ok(());
    }
    if !error.may_be_done() {
        return Err(error.into_error(OP));
    }
    let only = array.not_heard(name);
    match array.find(OP, name).await {
        Ok(now) if now.as_ref().is_none_or(|now| now.uuid != there.uuid) => {
            if only {
                array.heard(name);
            }
            Ok(())
        }
        _ => Err(error.into_error(OP)),
    }
}

pub(super) async fn clone(
    array: &Array,
    source: &VolumeName,
    name: &VolumeName,
    control: &Control,
) -> Result<Volume> {
    const OP: &str = "clone_volume";
    array.check_name(OP, name)?;
    array.check_clones(OP)?;
    let Some(there) = prepare(array, OP, source, name).await? else {
        return array.volume(OP, name).await;
    };
    control.check(OP)?;
    array.admit(OP, name, there.size).await?;
    link(array, OP, source, name, there.size).await
}

/// The source, if `name` is still to be made of it; nothing if it is there already.
pub(super) async fn prepare(
    array: &Array,
    op: &'static str,
    source: &VolumeName,
    name: &VolumeName,
) -> Result<Option<ListedVolume>> {
    if source == name {
        return Err(Error::new(ErrorKind::InvalidInput, op)
            .with("volume", name)
            .reason("source and target have the same name"));
    }
    let volumes = array.list(op).await?;
    let find = |name: &VolumeName| volumes.iter().find(|v| v.name == name.as_str());
    let Some(from) = find(source) else {
        return Err(Error::new(ErrorKind::NotFound, op)
            .with("source", source)
            .reason("the pool has no volume of the source's name"));
    };
    if let Some(there) = find(name) {
        same(op, there, from.size)?;
        return Ok(None);
    }
    array.check_heard(op, name.as_str())?;
    Ok(Some(from.clone()))
}

/// Has the array make `name` of `source`.
pub(super) async fn link(
    array: &Array,
    op: &'static str,
    source: &VolumeName,
    name: &VolumeName,
    size: u64,
) -> Result<Volume> {
    let (from, to) = (source.as_str(), name.as_str());
    match array.client.vol_copy(&array.config.pool, from, to).await {
        Ok(()) => array.volume(op, name).await,
        Err(error) => made_all_the_same(array, op, name, size, error).await,
    }
}

impl Array {
    /// What the array will make of a size.
    fn size(&self, op: &'static str, size: ByteSize) -> Result<u64> {
        let rounded = size.round_up(self.config.granularity().bytes());
        match rounded.map(ByteSize::bytes) {
            Some(rounded) if (1..=LARGEST).contains(&rounded) => Ok(rounded),
            _ => Err(Error::new(ErrorKind::InvalidInput, op)
                .with("size", size.bytes())
                .reason("a volume has at least one byte, and less than 8 EiB")),
        }
    }

    /// Whether `vol_copy` makes clones that can be used.
    pub fn clones(&self) -> bool {
        self.config.clones && self.store == Store::LvmThin
    }

    /// # Errors
    /// `Unsupported`.
    pub fn check_clones(&self, op: &'static str) -> Result<()> {
        if self.clones() {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Unsupported, op);
        Err(match self.store {
            Store::LvmThin => error
                .reason("LVM on the array does not activate clones, unless it is told to")
                .help(
                    "set activation/auto_set_activation_skip = 0 in the array's lvm.conf, and \
                     clones = true in the pool's configuration",
                ),
            Store::LvmLinear => error.reason("targetd makes clones in thin pools only"),
            Store::Zfs => error.reason("a volume in ZFS can't be deleted while it has clones"),
        })
    }
}

//! Attachments: exports of targetd.

use std::ops::RangeInclusive;

use volmux_core::{
    Access, AttachOptions, AttachTarget, Attachment, Error, ErrorKind, Holder, Result, Sharing,
    VolumeName,
};

use super::array::Array;
use super::calls::{ListedExport, ListedVolume};
use super::client::code;
use super::names;

/// The numbers that a logical unit can have (`block.py`, `MAX_LUN`; rtslib refuses others).
const LARGEST_LUN: u64 = 255;
/// So often another number is tried, when somebody else takes them.
const ATTEMPTS: usize = 4;
pub(super) const NOT_SHARED: &str =
    "targetd does not keep who asked to share: nobody could tell those who did not";

pub(super) async fn attach(
    array: &Array,
    name: &VolumeName,
    options: AttachOptions,
) -> Result<Attachment> {
    const OP: &str = "attach_volume";
    check_initiator(OP, &options.holder)?;
    if options.access == Access::ReadWrite && options.sharing == Sharing::Shared {
        return Err(Error::new(ErrorKind::Unsupported, OP).reason(NOT_SHARED));
    }
    let volume = array.get(OP, name).await?;
    array.check_heard(OP, name.as_str())?;
    let _turn = array.attaching.lock().await;
    let exports = array.exports(OP).await?;
    let lun = match own(&exports, &volume, &options.holder) {
        Some(lun) => {
            check_again(array, &exports, &volume, &options, lun)?;
            array.authenticate(OP, &options.holder).await?;
            lun
        }
        None => {
            check_others(array, &exports, &volume, &options)?;
            export(array, &volume, &options, &exports).await?
        }
    };
    Ok(Attachment {
        volume: name.clone(),
        id: names::volume_id(&volume.uuid),
        holder: options.holder,
        access: options.access,
        target: AttachTarget::Iscsi {
            portal: array.config.portal.clone(),
            target: array.config.target.clone(),
            lun,
            // What targetd sets it to (`block.py`, `_tpg_lun_of`).
            serial: volume.uuid,
            chap: array.chap.as_ref().map(|chap| chap.reference.clone()),
            mutual_chap: array.mutual.as_ref().map(|chap| chap.reference.clone()),
        },
    })
}

/// Makes the export, and looks whether it is the only one.
async fn export(
    array: &Array,
    volume: &ListedVolume,
    options: &AttachOptions,
    before: &[ListedExport],
) -> Result<u64> {
    const OP: &str = "attach_volume";
    let holder = &options.holder;
    // Before, so that the unit is at no time there for who has no secret.
    array.authenticate(OP, holder).await?;
    make(array, volume, options, before).await?;
    let checked = async {
        // Again, for who was detached from its last volume meanwhile has lost its secret.
        array.authenticate(OP, holder).await?;
        let exports = array.exports(OP).await?;
        let lun = own(&exports, volume, holder).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, OP)
                .with("holder", holder)
                .reason("the export was made, and is gone already: somebody else took it away")
        })?;
        // Of two that came together each sees the other, or one does.
        check_others(array, &exports, volume, options)?;
        Ok(lun)
    };
    match checked.await {
        Ok(lun) => Ok(lun),
        Err(error) => Err(match take_away(array, OP, volume, Some(holder)).await {
            Ok(()) => error,
            Err(left) => error.with("left_behind", format!("the export to {holder} ({left})")),
        }),
    }
}

/// Makes the export under a number that is free.
async fn make(
    array: &Array,
    volume: &ListedVolume,
    options: &AttachOptions,
    before: &[ListedExport],
) -> Result<()> {
    const OP: &str = "attach_volume";
    let holder = &options.holder;
    let mut exports = before.to_vec();
    let mut attempts = ATTEMPTS;
    loop {
        let lun = free_lun(array, &exports, options)?;
        let made =
            array
                .client
                .export_create(&array.config.pool, &volume.name, holder.as_str(), lun);
        let Err(error) = made.await else {
            return Ok(());
        };
        if error.may_be_done() {
            // It may have been made, or be made yet: then the next attempt finds it.
            let left = take_away(array, OP, volume, Some(holder)).await;
            let error = error.into_error(OP);
            return Err(match left {
                Ok(()) => error,
                Err(left) => error.with("left_behind", format!("maybe an export ({left})")),
            });
        }
        exports = array.exports(OP).await?;
        let taken = exports
            .iter()
            .any(|e| e.initiator_wwn == holder.as_str() && e.lun == lun);
        attempts -= 1;
        if !taken || attempts == 0 {
            return Err(match array.find(OP, &volume.name).await {
                Ok(None) => error.into_error(OP).with_kind(ErrorKind::NotFound),
                _ => error.into_error(OP),
            });
        }
    }
}

/// A number that no export to the initiator has, in any pool.
fn free_lun(array: &Array, exports: &[ListedExport], options: &AttachOptions) -> Result<u64> {
    let taken = |lun: u64| {
        exports
            .iter()
            .any(|e| e.initiator_wwn == options.holder.as_str() && e.lun == lun)
    };
    array
        .luns(options.access)
        .find(|lun| !taken(*lun))
        .ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, "attach_volume")
                .with("holder", &options.holder)
                .reason(
                    "the initiator has a volume under every number that a logical unit can have",
                )
                .help("detach some, or give the host another initiator name")
        })
}

/// The smallest number under which an initiator has a volume.
fn own(exports: &[ListedExport], volume: &ListedVolume, holder: &Holder) -> Option<u64> {
    let own = exports
        .iter()
        .filter(|e| e.vol_uuid == volume.uuid && e.initiator_wwn == holder.as_str());
    own.map(|e| e.lun).min()
}

/// Who, besides the holder, may write.
fn other_writer<'a>(
    array: &Array,
    exports: &'a [ListedExport],
    volume: &ListedVolume,
    holder: &Holder,
) -> Option<&'a ListedExport> {
    exports.iter().find(|e| {
        e.vol_uuid == volume.uuid
            && e.initiator_wwn != holder.as_str()
            && array.access_of(e.lun) == Access::ReadWrite
    })
}

/// `Busy` if who has no export yet can't get one.
fn check_others(
    array: &Array,
    exports: &[ListedExport],
    volume: &ListedVolume,
    options: &AttachOptions,
) -> Result<()> {
    if array.kind_of(options.access) == Access::ReadOnly {
        return Ok(());
    }
    match other_writer(array, exports, volume, &options.holder) {
        Some(other) => Err(busy(other)),
        None => Ok(()),
    }
}

/// `Busy` if who has an export can't use it as it wants to.
fn check_again(
    array: &Array,
    exports: &[ListedExport],
    volume: &ListedVolume,
    options: &AttachOptions,
    lun: u64,
) -> Result<()> {
    check_others(array, exports, volume, options)?;
    if options.access == Access::ReadWrite && array.access_of(lun) == Access::ReadOnly {
        return Err(Error::new(ErrorKind::Busy, "attach_volume")
            .with("holder", &options.holder)
            .reason("the holder has it for reading, under a number that is for reading")
            .help("detach it first"));
    }
    Ok(())
}

fn busy(other: &ListedExport) -> Error {
    Error::new(ErrorKind::Busy, "attach_volume")
        .with("holder", &other.initiator_wwn)
        .with("lun", other.lun)
        .reason("another initiator has the volume, and may write to it")
        .help("detach it there first")
}

pub(super) async fn detach(array: &Array, name: &str, holder: &Holder) -> Result<()> {
    const OP: &str = "detach_volume";
    check_initiator(OP, holder)?;
    match array.find(OP, name).await? {
        Some(volume) => take_away(array, OP, &volume, Some(holder)).await,
        // targetd deletes nothing that is exported.
        None => Ok(()),
    }
}

/// Takes away the exports of a volume, to one initiator or to all.
pub(super) async fn take_away(
    array: &Array,
    op: &'static str,
    volume: &ListedVolume,
    holder: Option<&Holder>,
) -> Result<()> {
    // Each call takes one away; there are more than one only if other tools made them.
    for _ in 0..=LARGEST_LUN {
        let exports = array.exports(op).await?;
        let export = exports.iter().find(|e| {
            e.vol_uuid == volume.uuid && holder.is_none_or(|h| e.initiator_wwn == h.as_str())
        });
        let Some(export) = export else {
            return Ok(());
        };
        let (pool, initiator) = (&array.config.pool, &export.initiator_wwn);
        let gone = array
            .client
            .export_destroy(pool, &volume.name, initiator)
            .await;
        let Err(error) = gone else {
            continue;
        };
        if error.code() == Some(code::NOT_FOUND_VOLUME_EXPORT) {
            continue;
        }
        if !error.may_be_done() {
            return Err(error.into_error(op).with("holder", initiator));
        }
        let only = array.not_heard(&volume.name);
        let there = |all: Vec<ListedExport>| {
            all.iter()
                .any(|e| e.vol_uuid == volume.uuid && e.initiator_wwn == *initiator)
        };
        match array.exports(op).await.map(there) {
            Ok(false) if only => array.heard(&volume.name),
            Ok(false) => {}
            _ => return Err(error.into_error(op).with("holder", initiator)),
        }
    }
    Err(Error::new(ErrorKind::Busy, op).reason("somebody else exports the volume again and again"))
}

/// Who a volume is attached to.
pub(super) fn attachments(array: &Array, uuid: &str, all: &[ListedExport]) -> Vec<AttachOptions> {
    let mut attachments: Vec<AttachOptions> = Vec::new();
    for export in all.iter().filter(|export| export.vol_uuid == uuid) {
        let Ok(holder) = Holder::new(&export.initiator_wwn) else {
            continue;
        };
        let access = array.access_of(export.lun);
        match attachments.iter_mut().find(|known| known.holder == holder) {
            Some(known) if access == Access::ReadWrite => known.access = access,
            Some(_) => {}
            None => attachments.push(AttachOptions {
                holder,
                access,
                sharing: Sharing::Exclusive,
            }),
        }
    }
    attachments
}

fn check_initiator(op: &'static str, holder: &Holder) -> Result<()> {
    if names::is_iscsi_name(holder.as_str()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, op)
        .with("holder", holder)
        .reason("a volume is attached to an iSCSI initiator, by its name in lower case")
        .help("give the host's name: iqn.yyyy-mm.domain:name, eui.… or naa.…"))
}

impl Array {
    /// What an export under this number may be used for.
    fn access_of(&self, lun: u64) -> Access {
        match self.config.readers_from {
            Some(first) if lun >= first.into() => Access::ReadOnly,
            _ => Access::ReadWrite,
        }
    }

    /// What an export for this access counts as.
    fn kind_of(&self, access: Access) -> Access {
        match self.config.readers_from {
            Some(_) => access,
            None => Access::ReadWrite,
        }
    }

    /// The numbers of exports for this access.
    fn luns(&self, access: Access) -> RangeInclusive<u64> {
        match (self.config.readers_from.map(u64::from), access) {
            (None, _) => 0..=LARGEST_LUN,
            (Some(first), Access::ReadOnly) => first..=LARGEST_LUN,
            (Some(first), Access::ReadWrite) => 0..=first - 1,
        }
    }

    /// Has an initiator, and the target before it, prove who they are.
    async fn authenticate(&self, op: &'static str, holder: &Holder) -> Result<()> {
        let Some(chap) = &self.chap else {
            return Ok(());
        };
        let mutual = self.mutual.as_ref().map(|mutual| &mutual.credentials);
        let set = self
            .client
            .initiator_set_auth(holder.as_str(), &chap.credentials, mutual);
        set.await.map_err(|error| error.into_error(op))
    }
}

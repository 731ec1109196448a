//! Attach and detach: the volume's device, active beyond this process, and a tag that says for whom.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volmux_core::{
    Access, AttachOptions, AttachTarget, Attachment, Error, ErrorKind, Holder, Result, Sharing,
    VolumeName,
};

use crate::change::{Alter, Change};
use crate::device::Of;
use crate::disk::Disk;
use crate::lifecycle::{check_not_snapshot, finished, in_use, users};
use crate::locks::{Use, VolumeLocks};
use crate::open::{self, Closer};
use crate::pool::Inner;
use crate::tags::Attached;
use crate::view::Entry;

/// How long a device may still be open once nobody uses it any more: udev looks at each device that
/// was written.
const CLOSE_TIME: Duration = Duration::from_secs(1);

pub async fn attach(
    inner: Arc<Inner>,
    name: VolumeName,
    options: AttachOptions,
) -> Result<Attachment> {
    const OP: &str = "attach_volume";
    let client = &inner.client;
    let mut change = client.change(OP).await?;
    let entry = change.view().get(OP, &name)?;
    if options.access == Access::ReadWrite {
        check_not_snapshot(OP, entry, "attached for writing")?;
    }
    let wanted = Attached {
        holder: options.holder,
        access: options.access,
        sharing: options.sharing,
    };
    check_against(OP, entry, &wanted)?;
    let entry = finished(&inner, OP, &mut change, &name).await?;
    // Should this fail, the device does not stay.
    let _closer = Closer::new(&inner, Of::Volume(entry.record.id), false);
    let path = if entry.record.attachments.contains(&wanted) {
        let path = activate(&inner, OP, &entry).await?;
        let alter = Alter {
            skip_activation: Some(false),
            ..Alter::default()
        };
        change.alter(&entry.lv.name, &alter).await?;
        path
    } else {
        attach_now(&inner, &mut change, &entry, &wanted).await?
    };
    Ok(Attachment {
        volume: name,
        id: entry.record.id,
        holder: wanted.holder,
        access: wanted.access,
        target: AttachTarget::BlockDevice { path },
    })
}

async fn attach_now(
    inner: &Arc<Inner>,
    change: &mut Change,
    entry: &Entry,
    wanted: &Attached,
) -> Result<PathBuf> {
    const OP: &str = "attach_volume";
    let client = &inner.client;
    let locks = VolumeLocks::of(client, OP, entry.record.id)?;
    let attachments = &entry.record.attachments;
    let written = attachments.iter().any(|a| a.access == Access::ReadWrite);
    // Held until the tag is there: whoever opens the volume looks at the tags after the lock is his.
    let (_writing, writable) = if wanted.access == Access::ReadWrite {
        let Some(writing) = locks.share_now(wanted.access, wanted.sharing)? else {
            return Err(in_use(OP, client, entry, &locks).await);
        };
        (Some(writing), Some(true))
    } else if written || entry.record.is_snapshot() {
        (None, None)
    } else {
        read_only(inner, OP, entry, attachments)?
    };
    let path = activate(inner, OP, entry).await?;
    if wanted.access == Access::ReadWrite && !written {
        check_unclaimed(OP, client.device_path(&entry.lv.name)).await?;
        if attachments.is_empty() {
            let own = match wanted.sharing {
                Sharing::Exclusive => 2,
                Sharing::Shared => 1,
            };
            wait_until_closed(inner, OP, entry, own).await?;
        }
    }
    let alter = Alter {
        add: vec![wanted.tag()],
        writable,
        skip_activation: Some(false),
        ..Alter::default()
    };
    change.alter(&entry.lv.name, &alter).await?;
    if wanted.access == Access::ReadWrite
        && let Err(error) = open::check_kernel_lets_write(inner, OP, &entry.lv.name).await
    {
        let undo = Alter {
            remove: alter.add,
            skip_activation: attachments.is_empty().then_some(true),
            ..Alter::default()
        };
        change.alter(&entry.lv.name, &undo).await?;
        return Err(error);
    }
    Ok(path)
}

/// Whether the device of a volume that only readers have attached is to refuse writes, which the
/// kernel then does for us; and what keeps writers from opening it until that is done.
fn read_only(
    inner: &Inner,
    op: &'static str,
    entry: &Entry,
    attachments: &[Attached],
) -> Result<(Option<Use>, Option<bool>)> {
    // Not under the feet of somebody who uses it without having been asked.
    if attachments.is_empty() && foreign_opens(inner, op, entry, 0)? > 0 {
        return Ok((None, None));
    }
    // As a writer would, which keeps all others out.
    let locks = VolumeLocks::of(&inner.client, op, entry.record.id)?;
    let kept = locks.share_now(Access::ReadWrite, Sharing::Exclusive)?;
    let writable = kept.as_ref().map(|_| false);
    Ok((kept, writable))
}

/// Makes the device, and returns the path by which people know it.
async fn activate(inner: &Inner, op: &'static str, entry: &Entry) -> Result<PathBuf> {
    let (client, lv) = (&inner.client, &entry.lv.name);
    client.activate(op, lv).await?;
    let path = client.public_path(lv);
    client.wait_for_node(op, lv, &path).await?;
    if client.device(op, lv)?.is_none() {
        return Err(Error::new(ErrorKind::Unavailable, op)
            .with("logical_volume", lv)
            .reason("its device was taken away as soon as it was there"));
    }
    Ok(path)
}

/// `Busy` for another attachment that does not go together with this one.
fn check_against(op: &'static str, entry: &Entry, wanted: &Attached) -> Result<()> {
    let mut attachments = entry.record.attachments.iter();
    match attachments.find(|other| stands_against(other, wanted)) {
        None => Ok(()),
        Some(other) => Err(Error::new(ErrorKind::Busy, op)
            .reason("the volume is attached in a way that does not go together with this")
            .with("attached_to", &other.holder)
            .help("detach it from there first")),
    }
}

/// Whether `other` keeps `wanted` from being attached.
fn stands_against(other: &Attached, wanted: &Attached) -> bool {
    if other.holder == wanted.holder {
        return other != wanted;
    }
    let both_write = (other.access, wanted.access) == (Access::ReadWrite, Access::ReadWrite);
    both_write && (other.sharing, wanted.sharing) != (Sharing::Shared, Sharing::Shared)
}

/// `Busy` for a device that is mounted or part of another one.
async fn check_unclaimed(op: &'static str, path: PathBuf) -> Result<()> {
    let claimed = tokio::task::spawn_blocking(move || open::claim(op, &path).map(drop)).await;
    claimed.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))?
}

/// How often the device is open, other than by handles of this volume. `own` counts what the
/// caller's locks look like.
fn foreign_opens(inner: &Inner, op: &'static str, entry: &Entry, own: u32) -> Result<u32> {
    let client = &inner.client;
    let Some(info) = client.device(op, &entry.lv.name)? else {
        return Ok(0);
    };
    if info.open_count == 0 {
        return Ok(0);
    }
    let handles = VolumeLocks::of(client, op, entry.record.id)?.opens();
    let handles = handles.saturating_sub(own);
    Ok(info.open_count.saturating_sub(handles))
}

/// `Busy` if somebody who has not asked us uses the device, and does not stop to.
async fn wait_until_closed(inner: &Inner, op: &'static str, entry: &Entry, own: u32) -> Result<()> {
    let end = Instant::now() + CLOSE_TIME;
    while foreign_opens(inner, op, entry, own)? > 0 {
        if Instant::now() > end {
            return Err(still_open(inner, op, entry).await);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn still_open(inner: &Inner, op: &'static str, entry: &Entry) -> Error {
    let error = Error::new(ErrorKind::Busy, op)
        .with("device", inner.client.public_path(&entry.lv.name).display())
        .reason("the volume's device is in use on this host")
        .help("unmount it, or end whatever has it open");
    let Ok(locks) = VolumeLocks::of(&inner.client, op, entry.record.id) else {
        return error;
    };
    match users(op, &inner.client, entry, &locks).await {
        users if users.is_empty() => error,
        users => error.with("used_by", users.join(", ")),
    }
}

pub async fn detach(inner: Arc<Inner>, name: VolumeName, holder: Holder) -> Result<()> {
    const OP: &str = "detach_volume";
    let mut change = inner.client.change(OP).await?;
    change.view().check_whole(OP, &name)?;
    let Some(entry) = change.view().find(&name).cloned() else {
        return Ok(());
    };
    let (gone, left): (Vec<Attached>, Vec<Attached>) = entry
        .record
        .attachments
        .iter()
        .cloned()
        .partition(|attached| attached.holder == holder);
    if !gone.is_empty() {
        detach_now(&inner, &mut change, &entry, &gone, &left).await?;
    }
    drop(change);
    if left.is_empty() {
        // What is still active has a reader, who takes it away; or an earlier call was cut short.
        open::close(&inner, &Of::Volume(entry.record.id), false).await?;
    }
    Ok(())
}

/// The device goes before the tag: cut short in between, the volume counts as attached, and is
/// detached or attached again by the next call.
async fn detach_now(
    inner: &Arc<Inner>,
    change: &mut Change,
    entry: &Entry,
    gone: &[Attached],
    left: &[Attached],
) -> Result<()> {
    const OP: &str = "detach_volume";
    let (client, lv) = (&inner.client, &entry.lv.name);
    let last = left.is_empty();
    if last {
        wait_until_closed(inner, OP, entry, 0).await?;
    }
    if gone.iter().any(|a| a.access == Access::ReadWrite) {
        flush(inner, OP, change, entry).await?;
    }
    let alone = VolumeLocks::of(client, OP, entry.record.id)?
        .alone()
        .await?;
    // Where a volume is read through a handle, the device goes with that.
    if last && alone.is_some() && !client.deactivate(OP, lv).await? {
        return Err(still_open(inner, OP, entry).await);
    }
    let written = left.iter().any(|a| a.access == Access::ReadWrite);
    let writable = if entry.record.is_snapshot() {
        None
    } else if last {
        Some(true)
    } else if !written && alone.is_some() && foreign_opens(inner, OP, entry, 0)? == 0 {
        // Only readers are left.
        Some(false)
    } else {
        None
    };
    let alter = Alter {
        remove: gone.iter().map(Attached::tag).collect(),
        writable,
        skip_activation: last.then_some(true),
        ..Alter::default()
    };
    change.alter(lv, &alter).await
}

/// Makes what the host wrote durable, if the device is there.
async fn flush(inner: &Inner, op: &'static str, change: &Change, entry: &Entry) -> Result<()> {
    let (client, lv) = (&inner.client, &entry.lv.name);
    if client.device(op, lv)?.is_none() {
        return Ok(());
    }
    let path = client.device_path(lv);
    let kind = open::kind(inner, op, change.view(), entry)?;
    let disk = tokio::task::spawn_blocking(move || Disk::open(&path, true, kind)).await;
    let disk = disk.map_err(|error| Error::new(ErrorKind::Internal, op).with_source(error))??;
    disk.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(holder: &str, access: Access, sharing: Sharing) -> Attached {
        Attached {
            holder: Holder::new(holder).expect("a good holder"),
            access,
            sharing,
        }
    }

    #[test]
    fn what_goes_together() {
        use Access::{ReadOnly, ReadWrite};
        use Sharing::{Exclusive, Shared};
        let first = attached("a", ReadWrite, Exclusive);
        assert!(!stands_against(&first, &first));
        assert!(stands_against(&first, &attached("a", ReadOnly, Exclusive)));
        assert!(stands_against(&first, &attached("a", ReadWrite, Shared)));
        assert!(stands_against(&first, &attached("b", ReadWrite, Exclusive)));
        assert!(stands_against(&first, &attached("b", ReadWrite, Shared)));
        assert!(!stands_against(&first, &attached("b", ReadOnly, Exclusive)));
        let shared = attached("a", ReadWrite, Shared);
        assert!(!stands_against(&shared, &attached("b", ReadWrite, Shared)));
        assert!(stands_against(
            &shared,
            &attached("b", ReadWrite, Exclusive)
        ));
    }
}

//! What a pool says of one volume.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

use volmux::{AttachOptions, Volume};

use crate::enums::{vmx_access, vmx_origin, vmx_provisioning, vmx_sharing};
use crate::guard::free;
use crate::plain::VMX_NONE;
use crate::text::{shown, text};

/// What a pool said of one volume at one moment. It holds nothing of the pool: it stays readable
/// when the pool is freed, and freeing it does nothing to the volume. Any number of threads may
/// read it at once.
///
/// All accessors take NULL, and give NULL, 0, false or `VMX_NONE` for it.
#[derive(Debug)]
pub struct vmx_volume {
    volume: Volume,
    name: CString,
    id: CString,
    parent: Option<(CString, CString)>,
    holders: Vec<CString>,
}

impl vmx_volume {
    pub(crate) fn new(volume: Volume) -> Self {
        let origin = volume.origin.as_ref();
        let holder = |attachment: &AttachOptions| text(attachment.holder.as_str());
        vmx_volume {
            name: text(volume.name.as_str()),
            id: text(volume.id.to_string()),
            parent: origin.map(|o| (text(o.parent_name.as_str()), text(o.parent_id.to_string()))),
            holders: volume.attachments.iter().map(holder).collect(),
            volume,
        }
    }

    /// Gives `volume` away, if the caller wants it.
    pub(crate) fn give(out: Option<&mut MaybeUninit<*mut vmx_volume>>, volume: Volume) {
        if let Some(out) = out {
            out.write(Box::into_raw(Box::new(vmx_volume::new(volume))));
        }
    }
}

/// A point in time: seconds since 1970-01-01 00:00:00 UTC, and nanoseconds (0 to 999999999) after
/// that second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct vmx_time {
    /// Seconds since the epoch; negative before it.
    pub seconds: i64,
    /// Nanoseconds after that.
    pub nanoseconds: i64,
}

impl From<SystemTime> for vmx_time {
    fn from(time: SystemTime) -> Self {
        let whole = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => vmx_time {
                seconds: whole(after.as_secs()),
                nanoseconds: after.subsec_nanos().into(),
            },
            Err(error) => {
                let before = error.duration();
                let nanoseconds = i64::from(before.subsec_nanos());
                let begun = i64::from(nanoseconds > 0);
                vmx_time {
                    seconds: -whole(before.as_secs()) - begun,
                    nanoseconds: begun * 1_000_000_000 - nanoseconds,
                }
            }
        }
    }
}

/// Its name.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_name(volume: Option<&vmx_volume>) -> *const c_char {
    shown(volume.map(|volume| &volume.name))
}

/// Its identity, a UUID as text: stays the same through rename, resize and revert, and is never
/// reused.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_id(volume: Option<&vmx_volume>) -> *const c_char {
    shown(volume.map(|volume| &volume.id))
}

/// What a guest sees, in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_virtual_size(volume: Option<&vmx_volume>) -> u64 {
    volume.map_or(0, |volume| volume.volume.virtual_size.bytes())
}

/// What it occupies, shared blocks included, in bytes; `VMX_NONE` where the pool cannot tell
/// cheaply.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_allocated(volume: Option<&vmx_volume>) -> u64 {
    let size = volume.and_then(|volume| volume.volume.allocated);
    size.map_or(VMX_NONE, |size| size.bytes())
}

/// What deleting it would free, in bytes; `VMX_NONE` where that is not known. Listings leave it out
/// where it costs more than a look at the volume's metadata.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_exclusive(volume: Option<&vmx_volume>) -> u64 {
    let size = volume.and_then(|volume| volume.volume.exclusive);
    size.map_or(VMX_NONE, |size| size.bytes())
}

/// In how many pieces the data lies, where the cost of snapshots and clones grows with that number;
/// otherwise `VMX_NONE`. Told by `vmx_get_volume`, not by listings.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_fragments(volume: Option<&vmx_volume>) -> u64 {
    let number = volume.and_then(|volume| volume.volume.fragments);
    number.unwrap_or(VMX_NONE)
}

/// How many data files a read may have to look through, where snapshots and clones are chains of
/// them; otherwise `VMX_NONE`. Told by `vmx_get_volume`, not by listings.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_depth(volume: Option<&vmx_volume>) -> u64 {
    volume.and_then(|v| v.volume.depth).unwrap_or(VMX_NONE)
}

/// Thin or thick.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_provisioning(volume: Option<&vmx_volume>) -> vmx_provisioning {
    let thin = vmx_provisioning::VMX_THIN;
    volume.map_or(thin, |volume| volume.volume.provisioning.into())
}

/// Whether it is a snapshot, and so read-only.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_is_snapshot(volume: Option<&vmx_volume>) -> bool {
    volume.is_some_and(|volume| volume.volume.is_snapshot())
}

/// How it came from another volume. That is history, not a dependency: the parent may be gone.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_origin(volume: Option<&vmx_volume>) -> vmx_origin {
    let none = vmx_origin::VMX_ORIGIN_NONE;
    volume.map_or(none, |volume| vmx_origin::from(&volume.volume))
}

/// The parent's name when it came from it; NULL without a parent.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_parent_name(volume: Option<&vmx_volume>) -> *const c_char {
    shown(parent(volume).map(|parent| &parent.0))
}

/// The parent's identity; NULL without a parent.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_parent_id(volume: Option<&vmx_volume>) -> *const c_char {
    shown(parent(volume).map(|parent| &parent.1))
}

fn parent(volume: Option<&vmx_volume>) -> Option<&(CString, CString)> {
    volume.and_then(|volume| volume.parent.as_ref())
}

/// When it was made; for a snapshot the moment that it shows.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_created(volume: Option<&vmx_volume>) -> vmx_time {
    volume.map_or_else(vmx_time::default, |volume| volume.volume.created.into())
}

/// To how many holders it is attached.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_attachment_count(volume: Option<&vmx_volume>) -> usize {
    volume.map_or(0, |volume| volume.holders.len())
}

/// A holder that it is attached to, counted from 0; NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_attachment_holder(
    volume: Option<&vmx_volume>,
    index: usize,
) -> *const c_char {
    shown(volume.and_then(|volume| volume.holders.get(index)))
}

/// What that holder may do with it.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_attachment_access(
    volume: Option<&vmx_volume>,
    index: usize,
) -> vmx_access {
    let none = vmx_access::VMX_READ_ONLY;
    attachment(volume, index).map_or(none, |attachment| attachment.access.into())
}

/// Whether that holder lets other writers in.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_attachment_sharing(
    volume: Option<&vmx_volume>,
    index: usize,
) -> vmx_sharing {
    let none = vmx_sharing::VMX_EXCLUSIVE;
    attachment(volume, index).map_or(none, |attachment| attachment.sharing.into())
}

fn attachment(volume: Option<&vmx_volume>, index: usize) -> Option<&AttachOptions> {
    volume.and_then(|volume| volume.volume.attachments.get(index))
}

/// Frees what is known of a volume. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volume_free(volume: Option<Box<vmx_volume>>) {
    free(volume);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_count_from_the_epoch_both_ways() {
        let half = Duration::from_millis(500);
        for (time, seconds, nanoseconds) in [
            (UNIX_EPOCH, 0, 0),
            (UNIX_EPOCH + half * 3, 1, 500_000_000),
            (UNIX_EPOCH - half, -1, 500_000_000),
            (UNIX_EPOCH - half * 2, -1, 0),
        ] {
            let expected = vmx_time {
                seconds,
                nanoseconds,
            };
            assert_eq!(vmx_time::from(time), expected);
        }
    }
}

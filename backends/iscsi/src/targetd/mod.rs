//! Pools of an array that targetd (github.com/open-iscsi/targetd) controls: store and target in
//! one, told what to do by JSON-RPC over HTTPS.
//!
//! A volume is a logical volume of LVM, or a volume of ZFS, on the array; attaching it to an
//! initiator is an export of targetd, one logical unit of the array's only target. What follows
//! from targetd, as its version 0.10.4 does it on Debian 12 (each was seen there unless its source is
//! named):
//!
//! - **Pools.** In an LVM thin pool volumes are thin; it has to zero its chunks, as thin pools do
//!   unless made with `-Zn`, which targetd does not tell. A ZFS dataset has thick ones. In a plain
//!   volume group nothing is made or grown, for LVM does not zero it: volumes that are there can be
//!   used.
//! - **Clones** are `vol_copy` in an LVM thin pool: a thin snapshot, in constant time. LVM does not
//!   activate such snapshots by itself, and then they can't be exported: hence option
//!   [`clones`](TargetdConfig::clones). On ZFS (`zfs.py`) a volume with clones can't be deleted, so
//!   there are none.
//! - **Copies** are made over iSCSI, from a clone of the moment into a volume that no one sees.
//!   Once all is there, what is asked for is a clone of that volume, which is then deleted: so the
//!   copy has its blocks alone, and comes to be at once. This needs option `clones` too.
//! - **No** read-only snapshots, reverting, renaming, shrinking, changed extents, discarding (LIO
//!   offers no UNMAP unless told to) or taking over: targetd has none of it.
//! - **Repeating.** Of a volume targetd knows name, size and a UUID, not how it came to be. So who
//!   creates, clones or copies under a name that is taken gets that volume if its size is right,
//!   and `AlreadyExists` if not. [`Volume::origin`](volmux_core::Volume) is never told, `created`
//!   is the beginning of 1970.
//! - **Writers.** targetd knows no export that is for reading only. An attachment for writing is
//!   refused while another initiator has an export, also one made by other tools; so is one for
//!   reading, but see [`readers_from`](TargetdConfig::readers_from). After an export was made it is
//!   looked again, and of two that came together none or one stays. Several writers at once are
//!   `Unsupported`.
//! - **Detaching** takes the export away at once; LIO has what was sent written first. Whether the
//!   host still uses the volume targetd does not tell.
//! - **CHAP.** An export switches the target's `authentication` off. An initiator that offers CHAP
//!   must prove who it is, and so must the target; one that offers no CHAP and calls itself by an
//!   initiator's name that has exports is let in. It protects from mistakes and from false targets,
//!   not from who can choose its initiator name: keep the network of the array closed.
//! - **The serial number** of a logical unit (VPD page 80h) is the volume's UUID as the array has
//!   it.
//! - **A call that was not answered** may be done later, in any order. A name of which a volume or
//!   an export was to be taken away like that can't be used for ten minutes by the same process.

mod array;
mod audit;
mod calls;
mod client;
mod config;
mod copy;
mod exports;
mod http;
mod lifecycle;
mod names;
mod pool;
mod trust;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use volmux_core::{BlockDevice, OpenOptions, Pool, Result, VolumeName};

use crate::open::Opener;

pub use config::TargetdConfig;
pub use pool::TargetdPool;

/// Opens volumes of an array by way of its attachments. [`Opener`] does.
#[async_trait]
pub trait OpenArray: Debug + Send + Sync + 'static {
    /// Opens a volume of `array`, whose attachments are of the kind `AttachTarget::Iscsi`. It is
    /// attached to an initiator name that nobody else has, and detached when it is closed.
    ///
    /// # Errors
    /// Those of [`Pool::open_volume`].
    async fn open(
        &self,
        array: Arc<dyn Pool>,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>>;
}

#[async_trait]
impl OpenArray for Opener {
    async fn open(
        &self,
        array: Arc<dyn Pool>,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        Opener::open(self, array, name, options).await
    }
}

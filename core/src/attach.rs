//! What a host gets when a volume is attached.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result, VolumeId, VolumeName};

/// For reading only, or for writing too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading only.
    #[default]
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Whether other writers are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// One writer.
    #[default]
    Exclusive,
    /// Several writers, who all ask for it and arrange their writes among themselves (a cluster
    /// file system, a live migration).
    Shared,
}

/// Who a volume is attached to: a host's or a virtual machine's name, chosen by the caller.
///
/// 1 to 255 printable ASCII characters without spaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Holder(String);

impl Holder {
    /// Checks `holder`.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn new(holder: impl Into<String>) -> Result<Self> {
        let holder = holder.into();
        let printable = holder.bytes().all(|b| b.is_ascii_graphic());
        if holder.is_empty() || holder.len() > 255 || !printable {
            return Err(Error::new(ErrorKind::InvalidInput, "holder")
                .with("holder", holder)
                .reason("a holder is 1 to 255 printable ASCII characters without spaces"));
        }
        Ok(Holder(holder))
    }

    /// The holder as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Holder {
    type Err = Error;

    fn from_str(holder: &str) -> Result<Self> {
        Holder::new(holder)
    }
}

impl TryFrom<String> for Holder {
    type Error = Error;

    fn try_from(holder: String) -> Result<Self> {
        Holder::new(holder)
    }
}

impl From<Holder> for String {
    fn from(holder: Holder) -> String {
        holder.0
    }
}

/// How to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachOptions {
    /// Who the volume is for.
    pub holder: Holder,
    /// For reading only, or for writing too.
    pub access: Access,
    /// Whether other writers are let in.
    pub sharing: Sharing,
}

/// Where a host finds an attached volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachTarget {
    /// A file with the raw image.
    File {
        /// Absolute path.
        path: PathBuf,
    },
    /// A block device.
    BlockDevice {
        /// Absolute path.
        path: PathBuf,
    },
    /// A file with a qcow2 image; the files below it lie beside it, and its header names them. Open
    /// it with format qcow2 given explicitly, never probed.
    Qcow2 {
        /// Absolute path.
        path: PathBuf,
    },
}

/// An attached volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The volume.
    pub volume: VolumeName,
    /// Its identity: a stable serial number for the guest's disk.
    pub id: VolumeId,
    /// Who it is attached to.
    pub holder: Holder,
    /// For reading only, or for writing too.
    pub access: Access,
    /// Where the host finds it.
    pub target: AttachTarget,
}

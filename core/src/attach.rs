//! What a host gets when a volume is attached.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
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
    /// A logical unit of an iSCSI target, which the holder's initiator logs in to.
    Iscsi {
        /// Address of the portal: `host:port`.
        portal: String,
        /// Name of the target (IQN).
        target: String,
        /// Number of the logical unit.
        lun: u64,
        /// Its unit serial number (VPD page 80h). A host that finds another one has a wrong disk
        /// before it, and must not write to it.
        serial: String,
        /// How the initiator proves who it is.
        chap: Option<ChapReference>,
        /// How the target does.
        mutual_chap: Option<ChapReference>,
    },
    /// An export of an NBD server, such as volmux's own gateway: how volumes of pools that attach
    /// nothing are reached. Its content is raw.
    Nbd {
        /// Where the server listens.
        address: NbdAddress,
        /// The export's name.
        export: String,
        /// Whether the server demands TLS.
        tls: bool,
    },
}

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// A Unix socket of this host.
    Unix {
        /// Absolute path.
        path: PathBuf,
    },
    /// TCP.
    Tcp {
        /// A name or an address; an IPv6 address without brackets.
        host: String,
        /// The port; the usual one is 10809.
        port: u16,
    },
}

impl NbdAddress {
    /// The URI of `export`, as NBD clients take it, by the
    /// [specification](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md); an empty
    /// name is the default export. `tls` asks the client for TLS.
    pub fn uri(&self, export: &str, tls: bool) -> String {
        let scheme = if tls { "nbds" } else { "nbd" };
        // A plus means itself in a path, and may be taken for a space in a query.
        let export = percent_encode(export.as_bytes(), EXPORT);
        match self {
            NbdAddress::Unix { path } => {
                let socket = percent_encode(path.as_os_str().as_encoded_bytes(), SOCKET);
                format!("{scheme}+unix:///{export}?socket={socket}")
            }
            NbdAddress::Tcp { host, port } if host.contains(':') => {
                format!("{scheme}://[{host}]:{port}/{export}")
            }
            NbdAddress::Tcp { host, port } => format!("{scheme}://{host}:{port}/{export}"),
        }
    }
}

/// All but what RFC 3986 calls unreserved.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

const EXPORT: &AsciiSet = &UNRESERVED.remove(b'+');

const SOCKET: &AsciiSet = &UNRESERVED.remove(b'/');

/// A CHAP name, and where its secret is. The secret itself is in no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapReference {
    /// The name that goes with the secret.
    pub user: String,
    /// Absolute path of the file that holds the secret.
    pub secret: PathBuf,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nbd_uris_are_escaped() {
        let socket = NbdAddress::Unix {
            path: "/run/a b?.sock".into(),
        };
        assert_eq!(
            socket.uri("a/b+c", false),
            "nbd+unix:///a%2Fb+c?socket=/run/a%20b%3F.sock"
        );
        let tcp = |host: &str| NbdAddress::Tcp {
            host: host.into(),
            port: 10809,
        };
        assert_eq!(tcp("h").uri("web", true), "nbds://h:10809/web");
        assert_eq!(tcp("::1").uri("web", false), "nbd://[::1]:10809/web");
    }
}

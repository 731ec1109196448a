//! What each hypervisor must be given to use an attached volume.
//!
//! [`Attachment::render`] turns what [`Pool::attach_volume`](crate::Pool::attach_volume) returns
//! into QEMU's arguments or QMP commands, libvirt's XML, xl's disk string, the answer of a SMAPIv3
//! datapath plugin, or a PowerShell module for Hyper-V. Nothing is read or run for it, and no
//! secret is in it: only where the secret lies. docs/hypervisors.md tells what is rendered of what,
//! and where each fact is from.
//!
//! What a hypervisor can't be told is never left out: it is `Unsupported`, with another way.

mod hyperv;
mod libvirt;
mod qemu;
mod quote;
#[cfg(test)]
mod tests;
mod xen;
mod xml;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Access, AttachTarget, Attachment, Error, ErrorKind, Result};

/// The operation that errors of this module name.
const OP: &str = "render_attachment";

/// Who a volume is rendered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hypervisor {
    /// Arguments of QEMU's command line (QEMU 7.2 and newer).
    Qemu,
    /// Commands of QEMU's machine protocol, one JSON document a line (QEMU 7.2 and newer).
    Qmp,
    /// A `<disk>` of libvirt's domain XML (libvirt 9.0 and newer, QEMU driver).
    Libvirt,
    /// A disk string of Xen's xl (Xen 4.17 and newer).
    Xl,
    /// What `Datapath.attach` of a SMAPIv3 plugin answers (XenServer, XCP-ng).
    Smapiv3,
    /// A PowerShell module for a Hyper-V host.
    Hyperv,
}

impl Hypervisor {
    /// Every one, in the order of the documentation.
    pub const ALL: [Hypervisor; 6] = [
        Hypervisor::Qemu,
        Hypervisor::Qmp,
        Hypervisor::Libvirt,
        Hypervisor::Xl,
        Hypervisor::Smapiv3,
        Hypervisor::Hyperv,
    ];

    /// The stable name, as it is parsed.
    pub const fn name(self) -> &'static str {
        match self {
            Hypervisor::Qemu => "qemu",
            Hypervisor::Qmp => "qmp",
            Hypervisor::Libvirt => "libvirt",
            Hypervisor::Xl => "xl",
            Hypervisor::Smapiv3 => "smapiv3",
            Hypervisor::Hyperv => "hyperv",
        }
    }

    /// Whether an attachment for `access` with `options` can be rendered at all, as far as that can
    /// be told before it is made.
    ///
    /// # Errors
    /// `InvalidInput` for an option that is wrong; `Unsupported` for what this hypervisor can't do
    /// with any attachment.
    pub fn check(self, access: Access, options: &RenderOptions) -> Result<()> {
        options.check()?;
        if self != Hypervisor::Hyperv {
            return match &options.vhdx {
                None => Ok(()),
                Some(vhdx) => Err(invalid("vhdx", vhdx, "only Hyper-V is given a VHDX image")),
            };
        }
        hyperv::check(access, options)
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Hypervisor {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Hypervisor::ALL.into_iter().find(|h| h.name() == name);
        found.ok_or_else(|| {
            let known: Vec<_> = Hypervisor::ALL.iter().map(|h| h.name()).collect();
            invalid("hypervisor", name, "there is no such hypervisor")
                .help(format!("one of {}", known.join(", ")))
        })
    }
}

/// The controller on which the guest finds the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DiskBus {
    /// virtio-blk. Guests see the first 20 characters of the serial number.
    #[default]
    Virtio,
    /// A disk on a SCSI controller, which the virtual machine must have (virtio-scsi). Guests see
    /// the whole serial number.
    Scsi,
}

/// What to render besides the attachment. [`Default`] is right for a disk that has one writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderOptions {
    /// QEMU's name for the block node and the device: 1 to 29 characters of
    /// `[A-Za-z][A-Za-z0-9-._]*`. By default it is made of the volume's name and id, so that it is
    /// always the same and no two volumes have the same.
    pub node: Option<String>,
    /// The disk's name in libvirt's XML and xl's string: hd, sd, vd or xvd, and letters or digits.
    /// By default `vda` (virtio), `sda` (SCSI), `xvda` (Xen).
    pub device: Option<String>,
    /// The kind of controller, for QEMU and libvirt.
    pub bus: DiskBus,
    /// QEMU's id of the bus that the device is put on, such as a PCIe root port. By default QEMU
    /// chooses; in a running q35 machine that is one where nothing can be plugged in.
    pub bus_id: Option<String>,
    /// The volume is attached with [`Sharing::Shared`](crate::Sharing::Shared): QEMU and libvirt
    /// must let other writers in. The others need not be told.
    pub shared: bool,
    /// Go through the host's page cache, for QEMU and libvirt. By default it is left out
    /// (`O_DIRECT`): the guest has a cache of its own, and what it reads after a live migration
    /// must not be an old page of that host. Only for file systems without `O_DIRECT`, such as
    /// tmpfs.
    pub page_cache: bool,
    /// The usage by which libvirt knows the CHAP secret. By default the CHAP user's name.
    pub secret_usage: Option<String>,
    /// The directory of `ca-cert.pem`, `client-cert.pem` and `client-key.pem`, for QEMU over NBD
    /// with TLS. By default `/etc/pki/qemu`. libvirt has that in its own qemu.conf.
    pub tls_credentials: Option<PathBuf>,
    /// A block device on which the host already has the volume's content, because the caller
    /// connected it: `iscsiadm` (look for the attachment's serial number), `nbd-client`, `losetup`.
    /// It is what is rendered then, not the target. Absolute path.
    pub host_device: Option<PathBuf>,
    /// For Hyper-V: a VHDX image to which the caller wrote the volume's content, as a Windows host names
    /// it (`D:\disks\web.vhdx`, `\\store-1\disks\web.vhdx`). It is what is rendered then, not the
    /// target; what the machine writes to it is not in the volume until it is imported.
    pub vhdx: Option<String>,
}

impl RenderOptions {
    fn check(&self) -> Result<()> {
        if let Some(node) = &self.node {
            qemu::check_node(node)?;
        }
        if let Some(device) = &self.device {
            check_device(device)?;
        }
        if let Some(usage) = &self.secret_usage {
            libvirt::check_usage(usage)?;
        }
        if let Some(vhdx) = &self.vhdx {
            hyperv::check_vhdx(vhdx)?;
        }
        for path in [&self.tls_credentials, &self.host_device] {
            path.as_deref().map(path_text).transpose()?;
        }
        Ok(())
    }
}

/// What a hypervisor is given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Descriptor {
    /// Who it is for.
    pub hypervisor: Hypervisor,
    /// All of it. QEMU's arguments are quoted for a POSIX shell, in one line. xl's string is
    /// neither quoted nor in need of it between `'` or `"` in a domain's configuration. There is no
    /// line end at the end.
    pub text: String,
    /// The parts of `text`: QEMU's arguments, to be handed over as they are, and never through a
    /// shell; the QMP commands, in their order. Of the others, the text alone.
    pub arguments: Vec<String>,
    /// The block node that holds the disk's content, where QEMU has one.
    pub node: Option<String>,
    /// The serial number that the guest's disk gets: the volume's id. `None` where that can't be
    /// said (Xen, Hyper-V).
    pub serial: Option<String>,
}

impl Attachment {
    /// What `hypervisor` must be given to use this volume.
    ///
    /// Formats are always given and never probed; what is attached for reading only is rendered
    /// read-only; space that the guest discards is given back. Paths are those of the host that the
    /// volume is attached to.
    ///
    /// # Errors
    /// `InvalidInput` for options that are wrong. `Unsupported`, with another way to do it, if the
    /// hypervisor can't use this target, or can't be told a part of it: mutual CHAP for QEMU, a
    /// path with characters that its syntax has no way to write.
    pub fn render(&self, hypervisor: Hypervisor, options: &RenderOptions) -> Result<Descriptor> {
        hypervisor.check(self.access, options)?;
        let request = Request {
            attached: self,
            hypervisor,
            options,
        };
        request.render().map_err(|error| request.named(error))
    }
}

/// What is asked for.
struct Request<'a> {
    attached: &'a Attachment,
    hypervisor: Hypervisor,
    options: &'a RenderOptions,
}

impl Request<'_> {
    fn render(&self) -> Result<Descriptor> {
        self.check_target()?;
        match self.hypervisor {
            Hypervisor::Qemu => qemu::arguments(self),
            Hypervisor::Qmp => qemu::commands(self),
            Hypervisor::Libvirt => libvirt::disk(self),
            Hypervisor::Xl => xen::disk_string(self),
            Hypervisor::Smapiv3 => xen::implementations(self),
            Hypervisor::Hyperv => hyperv::module(self),
        }
    }

    /// `error`, with the volume and the hypervisor where it does not name them.
    fn named(&self, error: Error) -> Error {
        match error.get("for") {
            Some(_) => error,
            None => error
                .with("volume", &self.attached.volume)
                .with("for", self.hypervisor),
        }
    }

    fn read_only(&self) -> bool {
        self.attached.access == Access::ReadOnly
    }

    fn serial(&self) -> String {
        self.attached.id.to_string()
    }

    /// What is rendered: the device that the caller connected, or else the target.
    fn target(&self) -> AttachTarget {
        match &self.options.host_device {
            Some(path) => AttachTarget::BlockDevice { path: path.clone() },
            None => self.attached.target.clone(),
        }
    }

    /// Refuses what no hypervisor may do.
    fn check_target(&self) -> Result<()> {
        if !matches!(self.attached.target, AttachTarget::Qcow2 { .. }) {
            return Ok(());
        }
        if self.options.host_device.is_some() {
            // On a loop device the image's own tables would be taken for the disk.
            return Err(self.error(ErrorKind::InvalidInput).reason(
                "a block device of the host can't stand for a qcow2 image: it would hold the \
                 image, not the volume's content",
            ));
        }
        if self.options.shared {
            return Err(self.unsupported(
                "a qcow2 image has one writer",
                format!(
                    "detach it and serve the volume to all writers: {}",
                    self.export("--shared ")
                ),
            ));
        }
        Ok(())
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind, OP)
            .with("volume", &self.attached.volume)
            .with("for", self.hypervisor)
    }

    fn unsupported(&self, reason: impl fmt::Display, help: impl fmt::Display) -> Error {
        self.error(ErrorKind::Unsupported).reason(reason).help(help)
    }

    /// The command that serves the volume over NBD.
    fn export(&self, options: &str) -> String {
        let name = &self.attached.volume;
        let read_only = if self.read_only() { "--read-only " } else { "" };
        format!("volmux export {name} {read_only}{options}--socket /run/volmux/{name}.sock")
    }

    fn descriptor(&self, text: String) -> Descriptor {
        Descriptor {
            hypervisor: self.hypervisor,
            arguments: vec![text.clone()],
            text,
            node: None,
            serial: None,
        }
    }
}

fn invalid(key: &'static str, value: impl fmt::Display, reason: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, OP)
        .with(key, value)
        .reason(reason)
}

/// An absolute path as text that every syntax here can hold.
fn path_text(path: &Path) -> Result<&str> {
    if !path.is_absolute() {
        return Err(invalid("path", path.display(), "the path is not absolute"));
    }
    let text = path.to_str().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, OP)
            .with("path", path.display())
            .reason("the path is not UTF-8, and hypervisors take nothing else")
            .help("keep the pool at another path")
    })
}

fn check_device(device: &str) -> Result<()> {
    let rest = ["xvd", "hd", "sd", "vd"]
        .into_iter()
        .find_map(|prefix| device.strip_prefix(prefix));
    let plain = |rest: &str| {
        !rest.is_empty() && rest.len() < 16 && rest.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if rest.is_some_and(plain) {
        return Ok(());
    }
    Err(
        invalid("device", device, "that is no name of a disk of a guest")
            .help("for example vda, sdb or xvdc"),
    )
}

/// Host and port of `host:port`; an IPv6 address without its brackets.
fn split_portal(portal: &str) -> Result<(&str, u16)> {
    let wrong = || {
        invalid(
            "portal",
            portal,
            "the portal is not host:port, [address]:port",
        )
    };
    let (host, port) = portal.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match bare {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => address,
        Some(_) => return Err(wrong()),
        None => host,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    if host.is_empty() || !host.chars().all(plain) || (bare.is_none() && host.contains(':')) {
        return Err(wrong());
    }
    Ok((host, port.parse().map_err(|_| wrong())?))
}

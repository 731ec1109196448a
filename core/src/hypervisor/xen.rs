//! Xen: the disk string of xl, and the answer of a SMAPIv3 datapath plugin.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Descriptor, Request, invalid, path_text, quote, split_portal};
use crate::{AttachTarget, ChapReference, Error, ErrorKind, NbdAddress, Result};

/// The string of xl-disk-configuration(5).
///
/// `target=` is last: it takes all that follows, and is the only way to write what would be taken
/// for another parameter. The format and the backend are always said.
pub(super) fn disk_string(request: &Request<'_>) -> Result<Descriptor> {
    let (format, backend, target) = match &request.target() {
        AttachTarget::File { path } => ("raw", "qdisk", plain(path_text(path)?, false)?),
        AttachTarget::Qcow2 { path } => ("qcow2", "qdisk", plain(path_text(path)?, false)?),
        AttachTarget::BlockDevice { path } => ("raw", "phy", plain(path_text(path)?, true)?),
        AttachTarget::Iscsi {
            portal,
            target,
            lun,
            chap,
            mutual_chap,
            ..
        } => {
            let chap = chap.as_ref().or(mutual_chap.as_ref());
            let target = block_iscsi(request, portal, target, *lun, chap)?;
            ("raw", "phy,script=block-iscsi", target)
        }
        AttachTarget::Nbd {
            address, export, ..
        } => {
            return Err(request.unsupported(
                "QEMU, as Xen's qdisk backend, opens files and block devices only",
                format!(
                    "{}, and render that (--host-device)",
                    nbd_client(address, export)
                ),
            ));
        }
    };
    let access = if request.read_only() { "ro" } else { "rw" };
    let discard = if request.read_only() { "" } else { ",discard" };
    let vdev = request.options.device.as_deref().unwrap_or("xvda");
    if vdev.starts_with("vd") {
        return Err(invalid("device", vdev, "Xen has no such disks").help("for example xvda"));
    }
    Ok(request.descriptor(format!(
        "format={format},vdev={vdev},access={access},backendtype={backend}{discard},target={target}"
    )))
}

/// A path between quotes of a domain's configuration, where `\` and the quotes mean something, and
/// on the command line that libxl makes for QEMU, where it does not double commas.
fn plain(path: &str, device: bool) -> Result<String> {
    let odd = |c: char| c.is_control() || "\\'\",".contains(c) || (device && c.is_whitespace());
    let Some(c) = path.chars().find(|c| odd(*c)) else {
        return Ok(path.to_owned());
    };
    let reason = format!("xl has no safe way to write the character {c:?} of the path");
    let error = invalid("path", path, &reason).with_kind(ErrorKind::Unsupported);
    Err(error.help("keep the pool at another path"))
}

/// The target for the script that comes with Xen.
fn block_iscsi(
    request: &Request<'_>,
    portal: &str,
    target: &str,
    lun: u64,
    chap: Option<&ChapReference>,
) -> Result<String> {
    let refuse = |reason: &str| Err(request.unsupported(reason, log_in(portal, target)));
    let (host, _) = split_portal(portal)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:_".contains(c);
    if lun != 0 {
        return refuse("Xen's script block-iscsi waits for logical unit 0 only");
    }
    if chap.is_some() {
        return refuse("Xen's script block-iscsi knows nothing of CHAP");
    }
    if host.parse::<IpAddr>().is_err() {
        return refuse("Xen's script block-iscsi takes a portal by its address only");
    }
    if !target.chars().all(plain) {
        return refuse("Xen's script block-iscsi takes no such name of a target");
    }
    Ok(format!("iqn={target},portal={portal}"))
}

fn log_in(portal: &str, target: &str) -> String {
    format!(
        "log in on the host (iscsiadm -m discovery -t st -p {portal}; iscsiadm -m node -T {target} \
         -p {portal} --login), find the disk by the attachment's serial number, and render that \
         (--host-device)"
    )
}

fn nbd_client(address: &NbdAddress, export: &str) -> String {
    let server = match address {
        NbdAddress::Unix { path } => format!("-unix {}", quote::shell(&path.to_string_lossy())),
        NbdAddress::Tcp { host, port } => format!("{} {port}", quote::shell(host)),
    };
    format!(
        "connect a device of the host (nbd-client {server} /dev/nbd0 -name {} -persist)",
        quote::shell(export)
    )
}

/// What `Datapath.attach` answers.
///
/// The first implementation is for the guest (xenopsd needs it), with the kernel's own backend
/// `vbd`; the others are for programs of the control domain. There is no word for read-only in it:
/// that is `read_write` of the volume, in the plugin's `Volume.stat`.
pub(super) fn implementations(request: &Request<'_>) -> Result<Descriptor> {
    let device = match (&request.options.host_device, &request.attached.target) {
        (Some(path), _) | (None, AttachTarget::BlockDevice { path }) => path_text(path)?,
        (None, target) => return Err(no_device(request, target)),
    };
    let mut implementations = vec![
        json!(["XenDisk", { "backend_type": "vbd", "params": device, "extra": {} }]),
        json!(["BlockDevice", { "path": device }]),
    ];
    implementations.extend(other_way(request)?);
    let text = json!({ "implementations": implementations }).to_string();
    Ok(request.descriptor(text))
}

/// How the control domain may get at the volume besides.
fn other_way(request: &Request<'_>) -> Result<Option<Value>> {
    Ok(match &request.attached.target {
        AttachTarget::File { path } => Some(json!(["File", { "path": path_text(path)? }])),
        AttachTarget::Nbd {
            address: NbdAddress::Unix { path },
            export,
            tls: false,
        } => nbd_uri(path_text(path)?, export).map(|uri| json!(["Nbd", { "uri": uri }])),
        _ => None,
    })
}

/// As xapi takes it apart: at each colon, and at `exportname=`.
fn nbd_uri(socket: &str, export: &str) -> Option<String> {
    let whole = !socket.contains(':') && !export.is_empty();
    let good = whole && !export.contains(':') && !export.contains("exportname=");
    good.then(|| format!("nbd:unix:{socket}:exportname={export}"))
}

fn no_device(request: &Request<'_>, target: &AttachTarget) -> Error {
    let way = match target {
        AttachTarget::File { path } => format!(
            "put the file on a loop device (losetup --find --show --direct-io=on {})",
            quote::shell(&path.to_string_lossy())
        ),
        AttachTarget::Iscsi { portal, target, .. } => {
            return request.unsupported(NO_DEVICE, log_in(portal, target));
        }
        AttachTarget::Nbd {
            address, export, ..
        } => nbd_client(address, export),
        _ => {
            return request.unsupported(
                "XenServer's guests get block devices, and a qcow2 image is none",
                format!(
                    "detach it, serve the volume ({}), connect a device (nbd-client)",
                    request.export("")
                ),
            );
        }
    };
    request.unsupported(NO_DEVICE, format!("{way}, and render that (--host-device)"))
}

const NO_DEVICE: &str = "XenServer's guests get block devices, and this target is none yet";

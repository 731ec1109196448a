//! libvirt: the `<disk>` of a domain.

use super::xml::Element;
use super::{Descriptor, DiskBus, Request, invalid, path_text, qemu, split_portal};
use crate::{AttachTarget, ChapReference, NbdAddress, Result};

/// The disk. It names no controller and no address: libvirt chooses them.
pub(super) fn disk(request: &Request<'_>) -> Result<Descriptor> {
    let (kind, format, source) = source(request)?;
    let mut disk = Element::new("disk")
        .with("type", kind)
        .with("device", "disk");
    if !request.read_only() {
        // An overlay that libvirt puts over the volume would be no part of the pool's chain.
        disk = disk.with("snapshot", "manual");
    }
    let cache = match request.options.page_cache {
        false => "none",
        true => "writeback",
    };
    let driver = Element::new("driver")
        .with("name", "qemu")
        .with("type", format)
        .with("cache", cache)
        .with("discard", "unmap");
    let (device, bus) = match request.options.bus {
        DiskBus::Virtio => ("vda", "virtio"),
        DiskBus::Scsi => ("sda", "scsi"),
    };
    let device = request.options.device.as_deref().unwrap_or(device);
    let target = Element::new("target").with("dev", device).with("bus", bus);
    let flag = |set: bool, name| set.then(|| Element::new(name));
    let serial = request.serial();
    let disk = disk
        .child(driver)
        .child(source)
        .child(target)
        .children(flag(request.read_only(), "readonly"))
        .children(flag(request.options.shared, "shareable"))
        .child(Element::new("serial").text(&serial));
    Ok(Descriptor {
        serial: Some(serial),
        ..request.descriptor(disk.render()?)
    })
}

/// The disk's type, its format, and where it is.
fn source(request: &Request<'_>) -> Result<(&'static str, &'static str, Element)> {
    let source = Element::new("source");
    Ok(match &request.target() {
        AttachTarget::File { path } => ("file", "raw", source.with("file", path_text(path)?)),
        AttachTarget::Qcow2 { path } => ("file", "qcow2", source.with("file", path_text(path)?)),
        AttachTarget::BlockDevice { path } => {
            ("block", "raw", source.with("dev", path_text(path)?))
        }
        AttachTarget::Iscsi {
            portal,
            target,
            lun,
            chap,
            mutual_chap,
            ..
        } => {
            if mutual_chap.is_some() {
                return Err(qemu::no_mutual_chap(
                    request,
                    "QEMU, which libvirt leaves iSCSI to,",
                ));
            }
            if target.contains('/') {
                return Err(request.unsupported(
                    "libvirt takes what follows a / in the target's name for the unit's number",
                    "give the target a name without it",
                ));
            }
            let auth = chap.as_ref().map(|chap| auth(request, chap)).transpose()?;
            let iqn = Element::new("iqn").with("name", request.attached.holder.as_str());
            let source = source
                .with("protocol", "iscsi")
                .with("name", format!("{target}/{lun}"))
                .child(portal_host(portal)?)
                .children(auth)
                .child(Element::new("initiator").child(iqn));
            ("network", "raw", source)
        }
        AttachTarget::Nbd {
            address,
            export,
            tls,
        } => {
            let mut source = source.with("protocol", "nbd").with("name", export);
            if *tls {
                qemu::check_tls(request, address)?;
                source = source.with("tls", "yes");
            }
            ("network", "raw", source.child(nbd_host(address)?))
        }
    })
}

fn portal_host(portal: &str) -> Result<Element> {
    let (host, port) = split_portal(portal)?;
    Ok(Element::new("host")
        .with("name", host)
        .with("port", port.to_string()))
}

fn nbd_host(address: &NbdAddress) -> Result<Element> {
    let host = Element::new("host");
    Ok(match address {
        NbdAddress::Unix { path } => host
            .with("transport", "unix")
            .with("socket", path_text(path)?),
        NbdAddress::Tcp { host: name, port } => {
            host.with("name", name).with("port", port.to_string())
        }
    })
}

/// The secret that `virsh secret-define` has made with this usage.
fn auth(request: &Request<'_>, chap: &ChapReference) -> Result<Element> {
    let usage = request.options.secret_usage.as_ref().unwrap_or(&chap.user);
    check_usage(usage)?;
    let secret = Element::new("secret")
        .with("type", "iscsi")
        .with("usage", usage);
    Ok(Element::new("auth")
        .with("username", &chap.user)
        .child(secret))
}

pub(super) fn check_usage(usage: &str) -> Result<()> {
    if !usage.is_empty() && !usage.contains(['/', '\n']) {
        return Ok(());
    }
    Err(invalid(
        "secret_usage",
        usage,
        "libvirt takes no such usage of a secret",
    )
    .help("name one without / and line ends, and define the secret with it"))
}

//! QEMU: arguments of the command line, and commands of its machine protocol.
//!
//! All is JSON, which `-blockdev` (2.10), `-object` (6.0) and `-device` (6.2) take as QMP does:
//! in `key=value` a comma of a path would have to be doubled, and numbers would be guessed.

use serde_json::{Value, json};

use super::{Descriptor, DiskBus, Request, invalid, path_text, quote};
use crate::{AttachTarget, ChapReference, Error, NbdAddress, Result, VolumeId, VolumeName};

/// QEMU takes 31 characters; two are for the node below.
const NODE_LENGTH: usize = 29;

/// For how long a guest waits for an NBD server that is started again, in seconds.
const RECONNECT_SECONDS: u32 = 60;

/// What a disk is made of.
struct Disk {
    node: String,
    objects: Vec<Value>,
    blockdev: Value,
    device: Value,
}

/// Arguments of the command line.
pub(super) fn arguments(request: &Request<'_>) -> Result<Descriptor> {
    let disk = Disk::new(request)?;
    let mut arguments = Vec::new();
    for object in &disk.objects {
        arguments.extend(["-object".to_owned(), object.to_string()]);
    }
    arguments.extend(["-blockdev".to_owned(), disk.blockdev.to_string()]);
    arguments.extend(["-device".to_owned(), disk.device.to_string()]);
    let quoted: Vec<_> = arguments.iter().map(|a| quote::shell(a)).collect();
    Ok(disk.descriptor(request, quoted.join(" "), arguments))
}

/// Commands for a QEMU that runs.
pub(super) fn commands(request: &Request<'_>) -> Result<Descriptor> {
    let disk = Disk::new(request)?;
    let command = |name: &str, arguments: &Value| {
        json!({ "execute": name, "arguments": arguments }).to_string()
    };
    let objects = disk.objects.iter().map(|o| command("object-add", o));
    let mut commands: Vec<_> = objects.collect();
    commands.push(command("blockdev-add", &disk.blockdev));
    commands.push(command("device_add", &disk.device));
    Ok(disk.descriptor(request, commands.join("\n"), commands))
}

impl Disk {
    fn new(request: &Request<'_>) -> Result<Disk> {
        let attached = request.attached;
        let node = match &request.options.node {
            Some(node) => node.clone(),
            None => default_node(&attached.volume, attached.id),
        };
        let format = match request.attached.target {
            AttachTarget::Qcow2 { .. } => "qcow2",
            _ => "raw",
        };
        let mut objects = Vec::new();
        let protocol = protocol(request, &node, &mut objects)?;
        let file = layer(request, protocol, &format!("{node}-f"));
        Ok(Disk {
            objects,
            blockdev: layer(request, json!({ "driver": format, "file": file }), &node),
            device: device(request, &node),
            node,
        })
    }

    fn descriptor(self, request: &Request<'_>, text: String, arguments: Vec<String>) -> Descriptor {
        Descriptor {
            arguments,
            node: Some(self.node),
            serial: Some(request.serial()),
            ..request.descriptor(text)
        }
    }
}

/// Adds what both layers are told, so that nothing hangs on what one inherits from the other.
fn layer(request: &Request<'_>, mut layer: Value, node: &str) -> Value {
    layer["node-name"] = node.into();
    layer["read-only"] = request.read_only().into();
    layer["discard"] = "unmap".into();
    // Flushes of the guest reach the storage whatever "direct" is.
    layer["cache"] = json!({ "direct": !request.options.page_cache, "no-flush": false });
    layer
}

/// How the data is reached.
fn protocol(request: &Request<'_>, node: &str, objects: &mut Vec<Value>) -> Result<Value> {
    let file = |driver: &str, path| -> Result<Value> {
        // QEMU's own locks, which other QEMUs and directory pools look at.
        Ok(json!({ "driver": driver, "filename": path_text(path)?, "locking": "on" }))
    };
    Ok(match &request.target() {
        AttachTarget::File { path } | AttachTarget::Qcow2 { path } => file("file", path)?,
        AttachTarget::BlockDevice { path } => file("host_device", path)?,
        AttachTarget::Iscsi {
            portal,
            target,
            lun,
            chap,
            mutual_chap,
            ..
        } => {
            if mutual_chap.is_some() {
                return Err(no_mutual_chap(request, "QEMU's own iSCSI initiator"));
            }
            super::split_portal(portal)?;
            let mut iscsi = json!({
                "driver": "iscsi",
                "transport": "tcp",
                "portal": portal,
                "target": target,
                "lun": lun,
                // The target lets nobody else in.
                "initiator-name": request.attached.holder.as_str(),
            });
            if let Some(chap) = chap {
                let id = format!("{node}-secret");
                iscsi["user"] = chap.user.as_str().into();
                iscsi["password-secret"] = id.as_str().into();
                objects.push(secret(&id, chap)?);
            }
            iscsi
        }
        AttachTarget::Nbd {
            address,
            export,
            tls,
        } => {
            let mut nbd = json!({
                "driver": "nbd",
                "server": server(address)?,
                "export": export,
                "reconnect-delay": RECONNECT_SECONDS,
            });
            if *tls {
                check_tls(request, address)?;
                let id = format!("{node}-tls");
                nbd["tls-creds"] = id.as_str().into();
                objects.push(tls_credentials(request, &id)?);
            }
            nbd
        }
    })
}

fn secret(id: &str, chap: &ChapReference) -> Result<Value> {
    Ok(json!({ "qom-type": "secret", "id": id, "file": path_text(&chap.secret)? }))
}

fn tls_credentials(request: &Request<'_>, id: &str) -> Result<Value> {
    let directory = match &request.options.tls_credentials {
        Some(directory) => path_text(directory)?,
        None => "/etc/pki/qemu",
    };
    Ok(json!({
        "qom-type": "tls-creds-x509",
        "id": id,
        "endpoint": "client",
        "dir": directory,
        "verify-peer": true,
    }))
}

fn server(address: &NbdAddress) -> Result<Value> {
    Ok(match address {
        NbdAddress::Unix { path } => json!({ "type": "unix", "path": path_text(path)? }),
        NbdAddress::Tcp { host, port } => {
            json!({ "type": "inet", "host": host, "port": port.to_string() })
        }
    })
}

/// The guest's side, which is where QEMU has the serial number.
fn device(request: &Request<'_>, node: &str) -> Value {
    let mut device = json!({ "id": node, "drive": node, "serial": request.serial() });
    match request.options.bus {
        DiskBus::Virtio => device["driver"] = "virtio-blk-pci".into(),
        DiskBus::Scsi => {
            device["driver"] = "scsi-hd".into();
            // QEMU takes a serial number of more than 20 characters only where this is given too.
            device["device_id"] = request.serial().into();
        }
    }
    if let Some(bus) = &request.options.bus_id {
        device["bus"] = bus.as_str().into();
    }
    if request.options.shared {
        device["share-rw"] = true.into();
    }
    device
}

/// Letters, digits and dots of the name, and half of the id.
fn default_node(volume: &VolumeName, id: VolumeId) -> String {
    let allowed = |c: char| if c == '+' { '_' } else { c };
    let name: String = volume.as_str().chars().map(allowed).take(15).collect();
    let first = if name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        ""
    } else {
        "v"
    };
    let id: String = id.to_string().replace('-', "");
    format!("{first}{name}-{}", &id[..12])
}

pub(super) fn check_node(node: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let good = node.len() <= NODE_LENGTH
        && node.starts_with(|c: char| c.is_ascii_alphabetic())
        && node.bytes().all(allowed);
    if good {
        return Ok(());
    }
    Err(invalid("node", node, "that is no name of a QEMU node")
        .help("1 to 29 letters, digits, - . _ of which the first is a letter"))
}

/// What QEMU's and libvirt's NBD clients need a name for.
pub(super) fn check_tls(request: &Request<'_>, address: &NbdAddress) -> Result<()> {
    match address {
        NbdAddress::Tcp { .. } => Ok(()),
        NbdAddress::Unix { .. } => Err(request.unsupported(
            "on a Unix socket there is no host name that the server's certificate could be for",
            "serve the socket without TLS: nobody reads along there; or listen on TCP",
        )),
    }
}

pub(super) fn no_mutual_chap(request: &Request<'_>, who: &str) -> Error {
    request.unsupported(
        format!("{who} can't check the target's CHAP secret (mutual CHAP)"),
        "log in with the host's initiator (iscsiadm), find the disk by the attachment's serial \
         number, and render that as the host's device (--host-device); or configure the pool \
         without mutual CHAP",
    )
}

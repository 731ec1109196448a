//! What a hypervisor is given of an attachment: from Python's values to those of volmux, and back.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use volmux::hypervisor::{Descriptor, DiskBus, Hypervisor, RenderOptions};
use volmux::{AttachTarget, Attachment, ChapReference, NbdAddress, VolumeId};

use crate::args::{AccessArg, HolderName, Name, Number};
use crate::error::{Failure, wrong};
use crate::values::ToPython;

const OP: &str = "render_attachment";

/// For `Attachment.render` alone.
#[pyfunction]
#[pyo3(name = "_render")]
pub fn render(
    attachment: &Bound<'_, PyAny>,
    hypervisor: &str,
    options: &Bound<'_, PyDict>,
) -> PyResult<Py<PyAny>> {
    let attached = of_python(attachment)?;
    let hypervisor: Hypervisor = hypervisor.parse().map_err(Failure::from)?;
    let rendered = attached.render(hypervisor, &render_options(options.as_any())?);
    rendered.map_err(Failure::from)?.to_python(attachment.py())
}

impl ToPython for Descriptor {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let values = py.import("volmux._values")?;
        let hypervisor = values
            .getattr("Hypervisor")?
            .call1((self.hypervisor.name(),))?;
        let arguments = pyo3::types::PyTuple::new(py, self.arguments)?;
        let fields = (hypervisor, self.text, arguments, self.node, self.serial);
        Ok(values.getattr("Descriptor")?.call1(fields)?.unbind())
    }
}

fn render_options(given: &Bound<'_, PyAny>) -> Result<RenderOptions, Failure> {
    let text = |key| -> PyResult<Option<String>> { given.get_item(key)?.extract() };
    let path = |key| -> PyResult<Option<PathBuf>> { given.get_item(key)?.extract() };
    let flag = |key| -> PyResult<bool> { given.get_item(key)?.extract() };
    let bus: String = given.get_item("bus")?.extract()?;
    Ok(RenderOptions {
        node: text("node")?,
        device: text("device")?,
        bus: match bus.as_str() {
            "virtio" => DiskBus::Virtio,
            "scsi" => DiskBus::Scsi,
            _ => {
                let error = wrong(OP, "there is no such bus").with("bus", bus);
                return Err(error.help("virtio or scsi").into());
            }
        },
        bus_id: text("bus_id")?,
        shared: flag("shared")?,
        page_cache: flag("page_cache")?,
        secret_usage: text("secret_usage")?,
        tls_credentials: path("tls_credentials")?,
        host_device: path("host_device")?,
        vhdx: text("vhdx")?,
    })
}

fn of_python(given: &Bound<'_, PyAny>) -> Result<Attachment, Failure> {
    let id: String = given.getattr("id")?.str()?.extract()?;
    let id: VolumeId = id.parse()?;
    Ok(Attachment {
        volume: given.getattr("volume")?.extract::<Name>()?.0,
        id,
        holder: given.getattr("holder")?.extract::<HolderName>()?.0,
        access: given.getattr("access")?.extract::<AccessArg>()?.0,
        target: target(&given.getattr("target")?)?,
    })
}

fn target(given: &Bound<'_, PyAny>) -> Result<AttachTarget, Failure> {
    let text = |key: &str| -> PyResult<String> { given.getattr(key)?.extract() };
    let path = || -> PyResult<PathBuf> { given.getattr("path")?.extract() };
    let kind = given.get_type().name()?;
    Ok(match kind.to_str()? {
        "FileTarget" => AttachTarget::File { path: path()? },
        "BlockDeviceTarget" => AttachTarget::BlockDevice { path: path()? },
        "Qcow2Target" => AttachTarget::Qcow2 { path: path()? },
        "NbdTarget" => AttachTarget::Nbd {
            address: nbd_address(&text("address")?)?,
            export: text("export")?,
            tls: given.getattr("tls")?.extract()?,
        },
        "IscsiTarget" => AttachTarget::Iscsi {
            portal: text("portal")?,
            target: text("target")?,
            lun: given.getattr("lun")?.extract::<Number>()?.0,
            serial: text("serial")?,
            chap: chap(&given.getattr("chap")?)?,
            mutual_chap: chap(&given.getattr("mutual_chap")?)?,
        },
        other => {
            let error = wrong(OP, "nothing can be rendered of this target");
            return Err(error.with("target", other).into());
        }
    })
}

fn chap(given: &Bound<'_, PyAny>) -> PyResult<Option<ChapReference>> {
    if given.is_none() {
        return Ok(None);
    }
    Ok(Some(ChapReference {
        user: given.getattr("user")?.extract()?,
        secret: given.getattr("secret")?.extract()?,
    }))
}

/// As `Server.addresses` has it.
fn nbd_address(text: &str) -> Result<NbdAddress, Failure> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(NbdAddress::Unix { path: path.into() });
    }
    let tcp = text.strip_prefix("tcp:").and_then(|rest| {
        let (host, port) = rest.rsplit_once(':')?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host).to_owned();
        Some(NbdAddress::Tcp {
            host,
            port: port.parse().ok()?,
        })
    });
    tcp.ok_or_else(|| {
        wrong(OP, "this is no address of an NBD server")
            .with("address", text)
            .help("unix:/PATH or tcp:HOST:PORT")
            .into()
    })
}

/// As `NbdTarget.address` has it.
pub fn nbd_text(address: &NbdAddress) -> String {
    match address {
        NbdAddress::Unix { path } => format!("unix:{}", path.display()),
        NbdAddress::Tcp { host, port } if host.contains(':') => format!("tcp:[{host}]:{port}"),
        NbdAddress::Tcp { host, port } => format!("tcp:{host}:{port}"),
    }
}

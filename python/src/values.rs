//! From values of volmux to objects of Python, whose classes are in `volmux/_values.py`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyTuple};
use volmux::{
    Access, AttachOptions, AttachTarget, Attachment, AuditReport, ByteRange, ByteSize,
    Capabilities, ChapReference, Collected, Origin, Progress, Sharing, ThinPolicy, Usage, Volume,
    VolumeId,
};

use crate::buffer;
use crate::render::nbd_text;

/// What can be handed to Python.
pub trait ToPython {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>>;
}

/// `_values.NAME(arguments…)`.
macro_rules! make {
    ($py:ident, $name:literal, $arguments:expr) => {{
        static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let class = CLASS.import($py, "volmux._values", $name)?;
        class.call1($arguments).map(Bound::unbind)
    }};
}

impl ToPython for () {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(py.None())
    }
}

impl ToPython for u64 {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.into_pyobject(py)?.into_any().unbind())
    }
}

impl ToPython for Bytes {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(buffer::bytes(py, &self)?.into_any().unbind())
    }
}

impl<T: ToPython> ToPython for Option<T> {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.map_or_else(|| Ok(py.None()), |value| value.to_python(py))
    }
}

impl<T: ToPython> ToPython for Vec<T> {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let items: Vec<_> = self
            .into_iter()
            .map(|value| value.to_python(py))
            .collect::<PyResult<_>>()?;
        Ok(PyList::new(py, items)?.into_any().unbind())
    }
}

fn bytes(size: ByteSize) -> u64 {
    size.bytes()
}

fn id(py: Python<'_>, id: VolumeId) -> PyResult<Py<PyAny>> {
    static UUID: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = UUID.import(py, "uuid", "UUID")?;
    Ok(class.call1((id.to_string(),))?.unbind())
}

fn path(py: Python<'_>, path: &Path) -> PyResult<Py<PyAny>> {
    static PATH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = PATH.import(py, "pathlib", "Path")?;
    Ok(class.call1((path.as_os_str(),))?.unbind())
}

/// Microseconds since 1970, which may be negative.
fn micros(time: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => whole(after),
        Err(before) => -whole(before.duration()),
    }
}

pub fn access(py: Python<'_>, access: Access) -> PyResult<Py<PyAny>> {
    let text = match access {
        Access::ReadOnly => "read-only",
        Access::ReadWrite => "read-write",
    };
    make!(py, "Access", (text,))
}

fn sharing(py: Python<'_>, sharing: Sharing) -> PyResult<Py<PyAny>> {
    let text = match sharing {
        Sharing::Exclusive => "exclusive",
        Sharing::Shared => "shared",
    };
    make!(py, "Sharing", (text,))
}

/// A member of the enum, by what volmux prints.
macro_rules! printed {
    ($py:ident, $name:literal, $value:expr) => {
        make!($py, $name, (ToString::to_string(&$value),))
    };
}

pub fn progress(py: Python<'_>, progress: Progress) -> PyResult<Py<PyAny>> {
    make!(py, "Progress", (progress.done, progress.total))
}

pub fn grade(py: Python<'_>, grade: volmux::Grade) -> PyResult<Py<PyAny>> {
    printed!(py, "Grade", grade)
}

impl ToPython for ByteRange {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        make!(py, "ByteRange", (self.offset, self.length))
    }
}

impl ToPython for Origin {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let kind = printed!(py, "OriginKind", self.kind)?;
        let parent = (id(py, self.parent_id)?, self.parent_name.as_str());
        make!(py, "Origin", (kind, parent.0, parent.1))
    }
}

impl ToPython for AttachOptions {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let how = (access(py, self.access)?, sharing(py, self.sharing)?);
        make!(py, "AttachOptions", (self.holder.as_str(), how.0, how.1))
    }
}

impl ToPython for Volume {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let attachments = self.attachments.to_python(py)?;
        let fields = [
            self.name.as_str().into_pyobject(py)?.into_any().unbind(),
            id(py, self.id)?,
            self.virtual_size.bytes().to_python(py)?,
            self.allocated.map(bytes).to_python(py)?,
            self.exclusive.map(bytes).to_python(py)?,
            self.fragments.to_python(py)?,
            self.depth.to_python(py)?,
            printed!(py, "Provisioning", self.provisioning)?,
            self.origin.to_python(py)?,
            make!(py, "utc", (micros(self.created),))?,
            attachments
                .bind(py)
                .cast::<PyList>()?
                .to_tuple()
                .into_any()
                .unbind(),
        ];
        make!(py, "Volume", PyTuple::new(py, fields)?)
    }
}

impl ToPython for Capabilities {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let fields: Vec<u8> = self.iter().map(|(_, support)| support as u8).collect();
        make!(py, "capabilities", PyTuple::new(py, fields)?)
    }
}

impl ToPython for ThinPolicy {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let marks = (
            self.overcommit_limit,
            self.warn_percent,
            self.refuse_percent,
        );
        make!(py, "ThinPolicy", marks)
    }
}

impl ToPython for Usage {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let metadata = match self.metadata {
            Some(metadata) => make!(py, "MetadataUsage", (metadata.total, metadata.used))?,
            None => py.None(),
        };
        let fields = (
            bytes(self.total),
            bytes(self.used),
            bytes(self.free),
            bytes(self.provisioned),
            metadata,
            self.time_to_full,
        );
        make!(py, "Usage", fields)
    }
}

impl ToPython for AuditReport {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let findings: Vec<Py<PyAny>> = self
            .findings
            .into_iter()
            .map(|finding| {
                let kind = printed!(py, "FindingKind", finding.kind)?;
                let size = finding.bytes.map(bytes);
                let about = (kind, finding.object, finding.detail, size, finding.repaired);
                make!(py, "Finding", about)
            })
            .collect::<PyResult<_>>()?;
        make!(
            py,
            "AuditReport",
            (PyTuple::new(py, findings)?, self.volumes)
        )
    }
}

impl ToPython for Collected {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        make!(py, "Collected", (bytes(self.freed), self.objects))
    }
}

impl ToPython for ChapReference {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let secret = path(py, &self.secret)?;
        make!(py, "ChapReference", (self.user, secret))
    }
}

impl ToPython for AttachTarget {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            AttachTarget::File { path: at } => make!(py, "FileTarget", (path(py, &at)?,)),
            AttachTarget::BlockDevice { path: at } => {
                make!(py, "BlockDeviceTarget", (path(py, &at)?,))
            }
            AttachTarget::Qcow2 { path: at } => make!(py, "Qcow2Target", (path(py, &at)?,)),
            AttachTarget::Iscsi {
                portal,
                target,
                lun,
                serial,
                chap,
                mutual_chap,
            } => {
                let chap = (chap.to_python(py)?, mutual_chap.to_python(py)?);
                let fields = (portal, target, lun, serial, chap.0, chap.1);
                make!(py, "IscsiTarget", fields)
            }
            AttachTarget::Nbd {
                address,
                export,
                tls,
            } => make!(py, "NbdTarget", (nbd_text(&address), export, tls)),
            // A newer core has others: shown rather than hidden.
            other => make!(py, "OtherTarget", (format!("{other:?}"),)),
        }
    }
}

impl ToPython for Attachment {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let fields = (
            self.volume.as_str(),
            id(py, self.id)?,
            self.holder.as_str(),
            access(py, self.access)?,
            self.target.to_python(py)?,
        );
        make!(py, "Attachment", fields)
    }
}

//! Volumes over NBD.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};
use volmux::blocking::Threads;
use volmux::{Access, Error, ErrorKind, Sharing};
use volmux_gateway::{
    Address, ClientCertificates, ExportOptions, Exports, Limits, Listen, ServeOptions, Tls, serve,
};

use crate::args::{AccessArg, HolderName, Name, Number, SharingArg};
use crate::call::{self, Call, both_ways};
use crate::error::{Failure, wrong};
use crate::handle::Handle;
use crate::values::ToPython;

/// What `Pool.serve` was asked for.
pub struct Wanted<'a, 'py> {
    pub exports: Option<&'a Bound<'py, PyAny>>,
    pub access: Access,
    pub sharing: Sharing,
    pub listen: &'a Bound<'py, PyAny>,
    pub statistics: Option<&'a Bound<'py, PyAny>>,
    pub limits: Option<&'a Bound<'py, PyAny>>,
}

impl Wanted<'_, '_> {
    pub fn options(&self) -> Result<ServeOptions, Failure> {
        let (access, sharing) = (self.access, self.sharing);
        let exports = match self.exports {
            None => Exports::EveryVolume { access, sharing },
            Some(given) => Exports::Volumes(
                each(given)?
                    .iter()
                    .map(|item| export(item, access, sharing))
                    .collect::<Result<_, _>>()?,
            ),
        };
        let places = each(self.listen)?;
        Ok(ServeOptions {
            exports,
            listen: places.iter().map(place).collect::<Result<_, _>>()?,
            tls: None,
            statistics: self.statistics.map(place).transpose()?,
            limits: self.limits.map_or_else(|| Ok(Limits::default()), limits)?,
        })
    }
}

/// One, or the items of several.
fn each<'py>(given: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let one = given.is_instance_of::<PyString>()
        || given.hasattr("__fspath__")?
        || given.hasattr("volume")?;
    if one {
        return Ok(vec![given.clone()]);
    }
    given.try_iter()?.collect()
}

fn export(
    item: &Bound<'_, PyAny>,
    access: Access,
    sharing: Sharing,
) -> Result<ExportOptions, Failure> {
    if item.is_instance_of::<PyString>() {
        let volume = item.extract::<Name>()?.0;
        return Ok(ExportOptions {
            volume,
            access,
            sharing,
        });
    }
    Ok(ExportOptions {
        volume: item.getattr("volume")?.extract::<Name>()?.0,
        access: item.getattr("access")?.extract::<AccessArg>()?.0,
        sharing: item.getattr("sharing")?.extract::<SharingArg>()?.0,
    })
}

fn place(given: &Bound<'_, PyAny>) -> Result<Listen, Failure> {
    if given.is_instance_of::<PyString>() {
        let address: Address = given.extract::<String>()?.parse()?;
        return Ok(address.into());
    }
    let path: PathBuf = given.extract()?;
    let path = std::path::absolute(path).map_err(|error| Error::from_io("serve", error))?;
    Ok(Listen::Unix(path))
}

fn limits(given: &Bound<'_, PyAny>) -> Result<Limits, Failure> {
    let number = |name| -> PyResult<u64> { Ok(given.getattr(name)?.extract::<Number>()?.0) };
    let short = |name| -> PyResult<u32> { Ok(u32::try_from(number(name)?).unwrap_or(u32::MAX)) };
    let count = |name| -> PyResult<usize> { Ok(Number(number(name)?).length()) };
    let time =
        |name| -> Result<Duration, Failure> { Ok(seconds(given.getattr(name)?.extract()?)?) };
    Ok(Limits {
        connections: count("connections")?,
        handshake_time: time("handshake_time")?,
        request_time: time("request_time")?,
        release_time: time("release_time")?,
        option_length: short("option_length")?,
        request_length: short("request_length")?,
        in_flight_requests: count("in_flight_requests")?,
        in_flight_per_connection: number("in_flight_per_connection")?,
        in_flight_total: number("in_flight_total")?,
    })
}

fn seconds(given: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(given).map_err(|error| {
        wrong("serve", "a time is in seconds, and not negative")
            .with("seconds", given)
            .with_source(error)
    })
}

/// A running NBD server; `Pool.serve` makes it.
///
/// `stop` ends it in order. As a context manager (`with`, `async with`) it is stopped at the end. One
/// that is merely forgotten ends at once, with nothing flushed.
#[pyclass(frozen, module = "volmux")]
pub(crate) struct Server {
    handle: Handle<volmux_gateway::Server>,
    addresses: Vec<Address>,
    statistics: Option<String>,
    tls: bool,
}

impl ToPython for Server {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(Bound::new(py, self)?.into_any().unbind())
    }
}

impl Server {
    /// `tls` is the directory with the certificates, and whether clients need one.
    pub async fn start(
        pool: Arc<dyn volmux::Pool>,
        mut options: ServeOptions,
        tls: Option<(String, bool)>,
        threads: Threads,
    ) -> volmux::Result<Self> {
        if let Some((directory, asked)) = tls {
            let clients = match asked {
                true => ClientCertificates::Required,
                false => ClientCertificates::NotAsked,
            };
            options.tls = Some(Tls::from_directory(Path::new(&directory), clients)?);
        }
        let tls = options.tls.is_some();
        let server = serve(pool, options).await?;
        Ok(Server {
            addresses: server.addresses().to_vec(),
            statistics: server.statistics_address().map(ToString::to_string),
            tls,
            handle: Handle::new(server, &threads),
        })
    }
}

both_ways! {
impl Server {
    /// How a host reaches a served volume at the address of this number, as of a volume that is
    /// attached: for `Attachment.render`. It attaches nothing; `holder` is whom it is meant for.
    ///
    /// Raises `NotFound` for a volume that is not served.
    #[args(volume, holder, *, address = 0)]
    fn attachment | attachment_async(&self, py: Python, volume: Name, holder: HolderName, address: usize) {
        let threads = self.handle.threads();
        let look = |server: &volmux_gateway::Server| server.attachment(address, &volume.0, holder.0);
        let work = self.handle.with_locked(py, "export_attachment", look)?;
        Ok(Call::new("export_attachment", threads, work))
    }

    /// Ends in order: nobody is let in any more, requests under way are answered, and every volume is
    /// flushed and closed. What was answered is then durable. Stopping again does nothing.
    ///
    /// Raises `TimedOut` if clients or the pool took longer than `within` seconds and were cut off, and
    /// what the last flush raises.
    #[args(within = 30.0)]
    fn stop | stop_async(&self, py: Python, within: f64) {
        let within = seconds(within)?;
        let threads = self.handle.threads();
        let server = self.handle.close();
        Ok(Call::new("stop", threads, async move {
            match server {
                Some(server) => server.stop(within).await,
                None => Ok(()),
            }
        }))
    }
}

    /// Where it listens: `unix:/PATH`, `tcp:IP:PORT`; a port 0 is replaced by the real one.
    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }

    /// Where it answers `/metrics` and `/status`, if it does.
    #[getter]
    fn statistics_address(&self) -> Option<String> {
        self.statistics.clone()
    }

    /// The NBD URI of a volume, or of the default export, at the address of this number.
    #[pyo3(signature = (volume=None, *, address=0))]
    fn uri(&self, volume: Option<Name>, address: usize) -> PyResult<String> {
        let place = self.addresses.get(address).ok_or_else(|| {
            let reason = format!("it listens at {} addresses", self.addresses.len());
            Failure::from(Error::new(ErrorKind::InvalidInput, "uri").reason(reason))
        })?;
        Ok(place.uri(volume.map(|name| name.0).as_ref(), self.tls))
    }

    /// What it does now, as the document of `/status`: connections, exports, what was counted.
    fn status(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let look = |server: &volmux_gateway::Server| serde_json::to_string(&server.status());
        let text = self.handle.with_locked(py, "status", look)?;
        let text = text.map_err(|error| {
            Failure::from(Error::new(ErrorKind::Internal, "status").with_source(error))
        })?;
        let loads = LOADS.import(py, "json", "loads")?;
        Ok(loads.call1((text,))?.unbind())
    }

    /// Whether it was stopped.
    #[getter]
    fn stopped(&self) -> bool {
        self.handle.is_closed()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.stop(py, 30.0).map(drop)
    }

    fn __aenter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        call::ready(py, slf.into_any())
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        self.stop_async(py, 30.0)
    }

    fn __repr__(&self) -> String {
        match self.stopped() {
            true => "<volmux.Server stopped>".to_owned(),
            false => format!("<volmux.Server {}>", self.addresses().join(" ")),
        }
    }
}

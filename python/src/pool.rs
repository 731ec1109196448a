//! Pools.

use std::sync::Arc;

use pyo3::prelude::*;
use volmux::{
    AttachOptions, AuditOptions, ByteRange, CloneOptions, CopyOptions, CreateOptions, ExtentKind,
    ExtentQuery, FlattenOptions, OpenOptions, PoolExt, ResizeOptions, RevertOptions,
    SnapshotOptions,
};

use crate::args::{
    AccessArg, HolderName, Name, Number, PathText, ProvisioningArg, SharingArg, Size,
};
use crate::call::{Call, both_ways};
use crate::control::{Control, Watch};
use crate::device::Device;
use crate::error::Failure;
use crate::handle::Handle;
use crate::iterators::{ExtentIterator, VolumeIterator};
use crate::server::{self, Server};
use crate::values::ToPython;

/// One place that holds volumes; `open_pool` makes it.
///
/// Every call is there twice: `pool.volume(name)` returns when it is done, with the interpreter
/// released, and `await pool.volume_async(name)` is for asyncio. Any number of threads and tasks may
/// call at once. As a context manager (`with`, `async with`) a pool is closed at the end.
///
/// On every pool, whatever it is kept in:
///
/// - create, snapshot, clone and copy with the same arguments return the existing volume, with others
///   they raise `AlreadyExists`; deleting what does not exist succeeds; attach and detach can be
///   repeated;
/// - deleting a volume never fails because of its snapshots or clones, and never harms them;
/// - after a crash a pool shows the state before or after each call, and `audit` finds and removes what
///   is left over;
/// - an exception means that nothing changed, and what `capabilities` says is not there raises
///   `Unsupported`.
///
/// A process that was forked can't use the pools of its parent, and opens its own.
#[pyclass(frozen, module = "volmux")]
pub(crate) struct Pool {
    handle: Handle<Arc<dyn volmux::Pool>>,
}

impl Pool {
    pub fn new(pool: Arc<dyn volmux::Pool>, threads: &volmux::blocking::Threads) -> Self {
        Pool {
            handle: Handle::new(pool, threads),
        }
    }

    /// The open pool, and what its work runs on.
    pub fn opened(
        &self,
        op: &'static str,
    ) -> Result<(Arc<dyn volmux::Pool>, volmux::blocking::Threads), Failure> {
        Ok((self.handle.get(op)?, self.handle.threads().clone()))
    }

    /// Work on the open pool.
    fn call<T, F>(
        &self,
        op: &'static str,
        work: impl FnOnce(Arc<dyn volmux::Pool>) -> F,
    ) -> Result<Call, Failure>
    where
        T: ToPython + Send + 'static,
        F: Future<Output = volmux::Result<T>> + Send + 'static,
    {
        let work = work(self.handle.get(op)?);
        Ok(Call::new(op, self.handle.threads(), work))
    }

    /// Long work on the open pool.
    fn long<T, F>(
        &self,
        op: &'static str,
        watch: Watch,
        work: impl FnOnce(Arc<dyn volmux::Pool>, volmux::Control) -> F,
    ) -> Result<Call, Failure>
    where
        T: ToPython + Send + 'static,
        F: Future<Output = volmux::Result<T>> + Send + 'static,
    {
        let control = watch.control.clone();
        Ok(self.call(op, |pool| work(pool, control))?.watched(watch))
    }
}

impl ToPython for Pool {
    fn to_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(Bound::new(py, self)?.into_any().unbind())
    }
}

both_ways! {
impl Pool {
    /// How full the pool is.
    #[args()]
    fn usage | usage_async(&self, py: Python) {
        self.call("usage", |pool| async move { pool.usage().await })
    }

    /// Makes a volume of `size` bytes (or `"10GiB"`) that reads as zeros.
    ///
    /// Raises `InvalidInput` for size 0 or one too large, `AlreadyExists`, `NoSpace`, and
    /// `Unsupported` for a provisioning that the pool can't do.
    #[args(name, size, *, provisioning = None)]
    fn create_volume | create_volume_async(
        &self, py: Python, name: Name, size: Size, provisioning: Option<ProvisioningArg>,
    ) {
        let provisioning = provisioning.unwrap_or_default().0;
        let options = CreateOptions { size: size.0, provisioning };
        self.call("create_volume", |pool| async move {
            pool.create_volume(&name.0, options).await
        })
    }

    /// Looks one volume up, with everything that is known of it. Raises `NotFound`, `Corrupt`.
    #[args(name)]
    fn volume | volume_async(&self, py: Python, name: Name) {
        self.call("volume", |pool| async move { pool.volume(&name.0).await })
    }

    /// As `volume`, but `None` if there is none.
    #[args(name)]
    fn find_volume | find_volume_async(&self, py: Python, name: Name) {
        self.call("volume", |pool| async move { pool.find_volume(&name.0).await })
    }

    /// Every volume, in a list sorted by name. Raises at the first one that can't be read.
    #[args()]
    fn volumes | volumes_async(&self, py: Python) {
        self.call("list_volumes", |pool| async move { pool.volumes().await })
    }

    /// Changes the virtual size; growing works while the volume is in use. The new part reads as zeros.
    ///
    /// Raises `InvalidInput` for a smaller size without `allow_shrink` and for a snapshot, `Busy` when
    /// shrinking a volume in use, `NotFound`, `NoSpace`, `Unsupported`.
    #[args(name, size, *, allow_shrink = false)]
    fn resize_volume | resize_volume_async(
        &self, py: Python, name: Name, size: Size, allow_shrink: bool,
    ) {
        let options = ResizeOptions { size: size.0, allow_shrink };
        self.call("resize_volume", |pool| async move {
            pool.resize_volume(&name.0, options).await
        })
    }

    /// Gives a volume another name, also while it is in use. A repeated call raises `NotFound`.
    ///
    /// Raises `NotFound`, and `AlreadyExists` if `to` is taken.
    #[args(name, to)]
    fn rename_volume | rename_volume_async(&self, py: Python, name: Name, to: Name) {
        self.call("rename_volume", |pool| async move {
            pool.rename_volume(&name.0, &to.0).await
        })
    }

    /// Deletes a volume; its snapshots and clones stay. What does not exist is deleted already.
    ///
    /// Raises `Busy` while it is open or attached.
    #[args(name)]
    fn delete_volume | delete_volume_async(&self, py: Python, name: Name) {
        self.call("delete_volume", |pool| async move { pool.delete_volume(&name.0).await })
    }

    /// Makes `name`, a read-only image of `source` at this moment: with every write that was flushed
    /// before, and of the others any subset that a power cut could have left.
    ///
    /// Raises `NotFound`, `AlreadyExists`, `NoSpace`, `Unsupported`, and `Busy` where the pool can't
    /// snapshot a volume that another process writes.
    #[args(source, name, *, control = None)]
    fn snapshot_volume | snapshot_volume_async(
        &self, py: Python, source: Name, name: Name, control: Option<Bound<'_, Control>>,
    ) {
        let watch = Watch::new(py, control.as_ref());
        self.long("snapshot_volume", watch, |pool, control| async move {
            pool.snapshot_volume(&source.0, &name.0, SnapshotOptions { control }).await
        })
    }

    /// Makes `name`, a writable volume that starts with the content of `source` (a volume or a
    /// snapshot) at this moment and shares its blocks. Raises what `snapshot_volume` raises.
    #[args(source, name, *, control = None)]
    fn clone_volume | clone_volume_async(
        &self, py: Python, source: Name, name: Name, control: Option<Bound<'_, Control>>,
    ) {
        let watch = Watch::new(py, control.as_ref());
        self.long("clone_volume", watch, |pool, control| async move {
            pool.clone_volume(&source.0, &name.0, CloneOptions { control }).await
        })
    }

    /// Makes `name`, a full and independent duplicate of `source` that shares no block with it. Moves
    /// only the data, not the holes.
    ///
    /// Raises what `snapshot_volume` raises, and `TimedOut` when cancelled.
    #[args(source, name, *, control = None)]
    fn copy_volume | copy_volume_async(
        &self, py: Python, source: Name, name: Name, control: Option<Bound<'_, Control>>,
    ) {
        let watch = Watch::new(py, control.as_ref());
        self.long("copy_volume", watch, |pool, control| async move {
            pool.copy_volume(&source.0, &name.0, CopyOptions { control }).await
        })
    }

    /// Copies a volume into another pool, of whatever kind, moving only its data. What was made there
    /// is removed again if the copy fails.
    ///
    /// Raises what `copy_volume` raises, and `AlreadyExists` whenever `name` is taken in `target`.
    #[args(source, target, name, *, control = None)]
    fn copy_volume_to | copy_volume_to_async(
        &self, py: Python, source: Name, target: Bound<'_, Pool>, name: Name,
        control: Option<Bound<'_, Control>>,
    ) {
        let target = target.get().handle.get("copy_volume")?;
        let watch = Watch::new(py, control.as_ref());
        self.long("copy_volume", watch, |pool, control| async move {
            let options = CopyOptions { control };
            pool.copy_volume_to(&source.0, target.as_ref(), &name.0, options).await
        })
    }

    /// Puts a volume's content and size back to those of `snapshot`, one of its own. It keeps its name
    /// and id; snapshots and clones stay.
    ///
    /// Raises `NotFound`, `InvalidInput` if `snapshot` is not one of `name`, `Busy` while `name` is open
    /// or attached, `NoSpace`, `Unsupported`.
    #[args(name, snapshot, *, control = None)]
    fn revert_volume | revert_volume_async(
        &self, py: Python, name: Name, snapshot: Name, control: Option<Bound<'_, Control>>,
    ) {
        let watch = Watch::new(py, control.as_ref());
        self.long("revert_volume", watch, |pool, control| async move {
            pool.revert_volume(&name.0, &snapshot.0, RevertOptions { control }).await
        })
    }

    /// Makes a volume independent of the data files of others, where reads may have to look through a
    /// chain of them (`Volume.depth`). Elsewhere there is nothing to do.
    ///
    /// Raises `NotFound`, `InvalidInput` for a snapshot, `Busy` while it is open or attached, `NoSpace`.
    #[args(name, *, control = None)]
    fn flatten_volume | flatten_volume_async(
        &self, py: Python, name: Name, control: Option<Bound<'_, Control>>,
    ) {
        let watch = Watch::new(py, control.as_ref());
        self.long("flatten_volume", watch, |pool, control| async move {
            pool.flatten_volume(&name.0, FlattenOptions { control }).await
        })
    }

    /// Takes over something in the pool's place that is not yet a volume. `what` is in the pool's own
    /// terms: a path below the root of a directory pool, an LV of a volume group.
    ///
    /// Raises `NotFound`, `AlreadyExists`, `InvalidInput` if it can't be a raw volume, `Unsupported`.
    #[args(what, name)]
    fn adopt_volume | adopt_volume_async(&self, py: Python, what: PathText, name: Name) {
        self.call("adopt_volume", |pool| async move {
            pool.adopt_volume(&what.0, &name.0).await
        })
    }

    /// Opens a volume's data: for reading, or for writing alone, or for writing with others who all
    /// ask for `Sharing.SHARED`. `take_over` takes it away from a writer that holds it, whose next
    /// request raises `Fenced` (capability `fencing`).
    ///
    /// Raises `NotFound`, `Busy` if another writer holds it, `InvalidInput` for writing to a snapshot,
    /// `Unsupported`, `Corrupt`.
    #[args(name, *, access = None, sharing = None, take_over = false)]
    fn open_volume | open_volume_async(
        &self, py: Python, name: Name, access: Option<AccessArg>, sharing: Option<SharingArg>,
        take_over: bool,
    ) {
        let options = OpenOptions {
            access: access.unwrap_or_default().0,
            sharing: sharing.unwrap_or_default().0,
            take_over,
        };
        let threads = self.handle.threads().clone();
        self.call("open_volume", |pool| async move {
            Ok(Device::new(pool.open_volume(&name.0, options).await?, &threads))
        })
    }

    /// The extents of a volume that hold data, or with `since`, those whose content differs from that of
    /// the volume `since`, usually an earlier snapshot; within `length` bytes from `offset`.
    ///
    /// Raises `NotFound`, `InvalidInput` for a range past the end, `Unsupported`.
    #[args(name, *, since = None, offset = Number(0), length = None)]
    fn extents | extents_async(
        &self, py: Python, name: Name, since: Option<Name>, offset: Number, length: Option<Number>,
    ) {
        let kind = since.map_or(ExtentKind::Allocated, |since| ExtentKind::ChangedSince(since.0));
        let threads = self.handle.threads().clone();
        self.call("extents", |pool| async move {
            let range = match (offset.0, length) {
                (0, None) => None,
                (offset, Some(length)) => Some(ByteRange::new(offset, length.0)),
                (offset, None) => {
                    let size = pool.volume(&name.0).await?.virtual_size.bytes();
                    // Past the end it is refused as any range is.
                    Some(ByteRange::from_to(offset, size.max(offset)))
                }
            };
            let extents = pool.extents(&name.0, ExtentQuery { kind, range }).await?;
            Ok(ExtentIterator::new(extents, &threads))
        })
    }

    /// Makes a volume reachable for a host, and says how. Lasts until `detach_volume`, beyond this
    /// process. The same holder may repeat it.
    ///
    /// Raises `NotFound`, `Busy` if another writer holds it, `InvalidInput` for writing to a snapshot,
    /// `Unsupported`.
    #[args(name, holder, *, access = None, sharing = None)]
    fn attach_volume | attach_volume_async(
        &self, py: Python, name: Name, holder: HolderName, access: Option<AccessArg>,
        sharing: Option<SharingArg>,
    ) {
        let options = AttachOptions {
            holder: holder.0,
            access: access.unwrap_or_default().0,
            sharing: sharing.unwrap_or_default().0,
        };
        self.call("attach_volume", |pool| async move {
            pool.attach_volume(&name.0, options).await
        })
    }

    /// Ends what `attach_volume` began, with everything flushed. Succeeds when the holder has nothing
    /// attached, or the volume is gone. Raises `Busy` while the host still uses it, `Unsupported`.
    #[args(name, holder)]
    fn detach_volume | detach_volume_async(&self, py: Python, name: Name, holder: HolderName) {
        self.call("detach_volume", |pool| async move {
            pool.detach_volume(&name.0, &holder.0).await
        })
    }

    /// Finds what interrupted work left behind and, with `repair`, removes it. Safe beside running work.
    #[args(*, repair = false)]
    fn audit | audit_async(&self, py: Python, repair: bool) {
        self.call("audit", |pool| async move { pool.audit(AuditOptions { repair }).await })
    }

    /// Reads everything that is stored and verifies it, and tells of what is damaged. Changes nothing.
    ///
    /// Raises `Unsupported` where the store keeps nothing to verify data by, `TimedOut` when cancelled.
    #[args(*, control = None)]
    fn scrub | scrub_async(&self, py: Python, control: Option<Bound<'_, Control>>) {
        let watch = Watch::new(py, control.as_ref());
        self.long("scrub", watch, |pool, control| async move { pool.scrub(control).await })
    }

    /// Gives back now what nothing uses any more, and what would otherwise be given back in the
    /// background, or never. Raises `Busy` while another one runs, `PermissionDenied`.
    #[args()]
    fn collect_garbage | collect_garbage_async(&self, py: Python) {
        self.call("collect_garbage", |pool| async move { pool.collect_garbage().await })
    }

    /// Serves volumes over NBD, to QEMU, the Linux kernel and every other client of the protocol.
    ///
    /// `exports` are names or `ExportOptions`; `None` serves every volume, those made later too.
    /// `access` and `sharing` hold for what does not say it itself. `listen` is where: a path (a Unix
    /// socket), `"unix:/PATH"`, `"tcp:IP:PORT"` (port 0 takes a free one), or several of those.
    /// `tls_directory` holds `server-cert.pem` and `server-key.pem`, and `ca-cert.pem` if
    /// `client_certificates` are asked for. At `statistics`, `/metrics` and `/status` are answered over
    /// HTTP.
    ///
    /// Raises what opening the volumes and listening raise; then nothing is served.
    #[args(
        exports = None, *, listen, access = None, sharing = None, tls_directory = None,
        client_certificates = false, statistics = None, limits = None
    )]
    fn serve | serve_async(
        &self, py: Python, exports: Option<Bound<'_, PyAny>>, listen: Bound<'_, PyAny>,
        access: Option<AccessArg>, sharing: Option<SharingArg>, tls_directory: Option<PathText>,
        client_certificates: bool, statistics: Option<Bound<'_, PyAny>>,
        limits: Option<Bound<'_, PyAny>>,
    ) {
        let wanted = server::Wanted {
            exports: exports.as_ref(),
            access: access.unwrap_or_default().0,
            sharing: sharing.unwrap_or_default().0,
            listen: &listen,
            statistics: statistics.as_ref(),
            limits: limits.as_ref(),
        };
        let options = wanted.options()?;
        let tls = tls_directory.map(|directory| (directory.0, client_certificates));
        let threads = self.handle.threads().clone();
        self.call("serve", |pool| Server::start(pool, options, tls, threads))
    }

    /// Closes the pool, as far as this object goes; open volumes and servers stay open. Closing again
    /// does nothing.
    #[args()]
    fn close | close_async(&self, py: Python) {
        let threads = self.handle.threads();
        let inner = self.handle.close();
        Ok(Call::new("close", threads, async move {
            drop(inner);
            Ok(())
        }))
    }
}

    /// Every volume, in no particular order, each looked up when its turn comes. For `for` and for
    /// `async for`. A volume that can't be read raises when its turn comes, and `next` goes on after it.
    fn list_volumes(&self, py: Python<'_>) -> PyResult<VolumeIterator> {
        let list = |pool: &Arc<dyn volmux::Pool>| pool.list_volumes();
        let stream = self.handle.with(py, "list_volumes", list)?;
        Ok(VolumeIterator::new(stream, self.handle.threads()))
    }

    /// What this pool can do.
    fn capabilities(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let look = |pool: &Arc<dyn volmux::Pool>| pool.capabilities();
        self.handle.with(py, "capabilities", look)?.to_python(py)
    }

    /// The marks and limits that this pool applies.
    fn policy(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let look = |pool: &Arc<dyn volmux::Pool>| pool.policy();
        self.handle.with(py, "policy", look)?.to_python(py)
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.handle.is_closed()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.close(py).map(drop)
    }

    fn __aenter__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        crate::call::ready(py, slf.into_any())
    }

    #[pyo3(signature = (*_exception))]
    fn __aexit__(
        &self,
        py: Python<'_>,
        _exception: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<Py<PyAny>> {
        self.close_async(py)
    }

    fn __str__(&self, py: Python<'_>) -> String {
        let shown = self.handle.with(py, "str", ToString::to_string);
        shown.unwrap_or_else(|_| "closed".to_owned())
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<volmux.Pool {}>", self.__str__(py))
    }
}

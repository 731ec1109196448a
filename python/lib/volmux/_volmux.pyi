"""What of volmux is written in Rust."""

import os
from asyncio import Future
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, final

from _typeshed import ReadableBuffer, WriteableBuffer

from ._values import (
    Access,
    Attachment,
    AuditReport,
    ByteRange,
    Capabilities,
    Collected,
    Descriptor,
    ExportOptions,
    Grade,
    Limits,
    Progress,
    Provisioning,
    Sharing,
    ThinPolicy,
    Usage,
    Volume,
)

_Size: TypeAlias = int | str
_StrPath: TypeAlias = str | os.PathLike[str]

__all__ = [
    "__version__",
    "Control",
    "Device",
    "ExtentIterator",
    "Pool",
    "Server",
    "VolumeIterator",
    "open_pool",
    "open_pool_async",
    "schemes",
    "snapshot_group",
    "snapshot_group_async",
    "parse_size",
    "format_size",
    "_render",
    "_end",
    "_after_fork",
]

__version__: str

@final
class Control:
    """Watches and stops long work: pass it as `control=`.

    `progress` is called with a `Progress` as work goes on, in the thread that works, which is never
    the caller's: use `loop.call_soon_threadsafe` for what belongs to an event loop. It must be quick,
    and must not call the pool. If it raises, the work is cancelled, what it had made is removed, and
    the call raises that exception.

    One control may be passed to several calls; cancelling it cancels them all, and those that come.
    """

    def __new__(cls, progress: Callable[[Progress], object] | None = None) -> Control: ...
    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
    def cancel(self) -> None:
        """Asks the work to stop, from any thread. It raises `TimedOut`, once what it had made is removed."""

@final
class Pool:
    """One place that holds volumes; `open_pool` makes it.

    Every call is there twice: `pool.volume(name)` returns when it is done, with the interpreter
    released, and `await pool.volume_async(name)` is for asyncio. Any number of threads and tasks may
    call at once. As a context manager (`with`, `async with`) a pool is closed at the end.

    On every pool, whatever it is kept in:

    - create, snapshot, clone and copy with the same arguments return the existing volume, with others
      they raise `AlreadyExists`; deleting what does not exist succeeds; attach and detach can be
      repeated;
    - deleting a volume never fails because of its snapshots or clones, and never harms them;
    - after a crash a pool shows the state before or after each call, and `audit` finds and removes what
      is left over;
    - an exception means that nothing changed, and what `capabilities` says is not there raises
      `Unsupported`.

    A process that was forked can't use the pools of its parent, and opens its own.
    """

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
    def usage(self) -> Usage:
        """How full the pool is."""
    def usage_async(self) -> Future[Usage]:
        """As `usage`, to be awaited."""
    def create_volume(self, name: str, size: _Size, *, provisioning: Provisioning | str | None = None) -> Volume:
        """Makes a volume of `size` bytes (or `"10GiB"`) that reads as zeros.

        Raises `InvalidInput` for size 0 or one too large, `AlreadyExists`, `NoSpace`, and
        `Unsupported` for a provisioning that the pool can't do.
        """
    def create_volume_async(
        self,
        name: str,
        size: _Size,
        *,
        provisioning: Provisioning | str | None = None,
    ) -> Future[Volume]:
        """As `create_volume`, to be awaited."""
    def volume(self, name: str) -> Volume:
        """Looks one volume up, with everything that is known of it. Raises `NotFound`, `Corrupt`."""
    def volume_async(self, name: str) -> Future[Volume]:
        """As `volume`, to be awaited."""
    def find_volume(self, name: str) -> Volume | None:
        """As `volume`, but `None` if there is none."""
    def find_volume_async(self, name: str) -> Future[Volume | None]:
        """As `find_volume`, to be awaited."""
    def volumes(self) -> list[Volume]:
        """Every volume, in a list sorted by name. Raises at the first one that can't be read."""
    def volumes_async(self) -> Future[list[Volume]]:
        """As `volumes`, to be awaited."""
    def resize_volume(self, name: str, size: _Size, *, allow_shrink: bool = False) -> Volume:
        """Changes the virtual size; growing works while the volume is in use. The new part reads as zeros.

        Raises `InvalidInput` for a smaller size without `allow_shrink` and for a snapshot, `Busy` when
        shrinking a volume in use, `NotFound`, `NoSpace`, `Unsupported`.
        """
    def resize_volume_async(self, name: str, size: _Size, *, allow_shrink: bool = False) -> Future[Volume]:
        """As `resize_volume`, to be awaited."""
    def rename_volume(self, name: str, to: str) -> Volume:
        """Gives a volume another name, also while it is in use. A repeated call raises `NotFound`.

        Raises `NotFound`, and `AlreadyExists` if `to` is taken.
        """
    def rename_volume_async(self, name: str, to: str) -> Future[Volume]:
        """As `rename_volume`, to be awaited."""
    def delete_volume(self, name: str) -> None:
        """Deletes a volume; its snapshots and clones stay. What does not exist is deleted already.

        Raises `Busy` while it is open or attached.
        """
    def delete_volume_async(self, name: str) -> Future[None]:
        """As `delete_volume`, to be awaited."""
    def snapshot_volume(self, source: str, name: str, *, control: Control | None = None) -> Volume:
        """Makes `name`, a read-only image of `source` at this moment: with every write that was flushed
        before, and of the others any subset that a power cut could have left.

        Raises `NotFound`, `AlreadyExists`, `NoSpace`, `Unsupported`, and `Busy` where the pool can't
        snapshot a volume that another process writes.
        """
    def snapshot_volume_async(self, source: str, name: str, *, control: Control | None = None) -> Future[Volume]:
        """As `snapshot_volume`, to be awaited."""
    def clone_volume(self, source: str, name: str, *, control: Control | None = None) -> Volume:
        """Makes `name`, a writable volume that starts with the content of `source` (a volume or a
        snapshot) at this moment and shares its blocks. Raises what `snapshot_volume` raises.
        """
    def clone_volume_async(self, source: str, name: str, *, control: Control | None = None) -> Future[Volume]:
        """As `clone_volume`, to be awaited."""
    def copy_volume(self, source: str, name: str, *, control: Control | None = None) -> Volume:
        """Makes `name`, a full and independent duplicate of `source` that shares no block with it. Moves
        only the data, not the holes.

        Raises what `snapshot_volume` raises, and `TimedOut` when cancelled.
        """
    def copy_volume_async(self, source: str, name: str, *, control: Control | None = None) -> Future[Volume]:
        """As `copy_volume`, to be awaited."""
    def copy_volume_to(self, source: str, target: Pool, name: str, *, control: Control | None = None) -> Volume:
        """Copies a volume into another pool, of whatever kind, moving only its data. What was made there
        is removed again if the copy fails.

        Raises what `copy_volume` raises, and `AlreadyExists` whenever `name` is taken in `target`.
        """
    def copy_volume_to_async(
        self,
        source: str,
        target: Pool,
        name: str,
        *,
        control: Control | None = None,
    ) -> Future[Volume]:
        """As `copy_volume_to`, to be awaited."""
    def revert_volume(self, name: str, snapshot: str, *, control: Control | None = None) -> Volume:
        """Puts a volume's content and size back to those of `snapshot`, one of its own. It keeps its name
        and id; snapshots and clones stay.

        Raises `NotFound`, `InvalidInput` if `snapshot` is not one of `name`, `Busy` while `name` is open
        or attached, `NoSpace`, `Unsupported`.
        """
    def revert_volume_async(self, name: str, snapshot: str, *, control: Control | None = None) -> Future[Volume]:
        """As `revert_volume`, to be awaited."""
    def flatten_volume(self, name: str, *, control: Control | None = None) -> Volume:
        """Makes a volume independent of the data files of others, where reads may have to look through a
        chain of them (`Volume.depth`). Elsewhere there is nothing to do.

        Raises `NotFound`, `InvalidInput` for a snapshot, `Busy` while it is open or attached, `NoSpace`.
        """
    def flatten_volume_async(self, name: str, *, control: Control | None = None) -> Future[Volume]:
        """As `flatten_volume`, to be awaited."""
    def adopt_volume(self, what: _StrPath, name: str) -> Volume:
        """Takes over something in the pool's place that is not yet a volume. `what` is in the pool's own
        terms: a path below the root of a directory pool, an LV of a volume group.

        Raises `NotFound`, `AlreadyExists`, `InvalidInput` if it can't be a raw volume, `Unsupported`.
        """
    def adopt_volume_async(self, what: _StrPath, name: str) -> Future[Volume]:
        """As `adopt_volume`, to be awaited."""
    def open_volume(
        self,
        name: str,
        *,
        access: Access | str | None = None,
        sharing: Sharing | str | None = None,
        take_over: bool = False,
    ) -> Device:
        """Opens a volume's data: for reading, or for writing alone, or for writing with others who all
        ask for `Sharing.SHARED`. `take_over` takes it away from a writer that holds it, whose next
        request raises `Fenced` (capability `fencing`).

        Raises `NotFound`, `Busy` if another writer holds it, `InvalidInput` for writing to a snapshot,
        `Unsupported`, `Corrupt`.
        """
    def open_volume_async(
        self,
        name: str,
        *,
        access: Access | str | None = None,
        sharing: Sharing | str | None = None,
        take_over: bool = False,
    ) -> Future[Device]:
        """As `open_volume`, to be awaited."""
    def extents(
        self,
        name: str,
        *,
        since: str | None = None,
        offset: int = ...,
        length: int | None = None,
    ) -> ExtentIterator:
        """The extents of a volume that hold data, or with `since`, those whose content differs from that of
        the volume `since`, usually an earlier snapshot; within `length` bytes from `offset`.

        Raises `NotFound`, `InvalidInput` for a range past the end, `Unsupported`.
        """
    def extents_async(
        self,
        name: str,
        *,
        since: str | None = None,
        offset: int = ...,
        length: int | None = None,
    ) -> Future[ExtentIterator]:
        """As `extents`, to be awaited."""
    def attach_volume(
        self,
        name: str,
        holder: str,
        *,
        access: Access | str | None = None,
        sharing: Sharing | str | None = None,
    ) -> Attachment:
        """Makes a volume reachable for a host, and says how. Lasts until `detach_volume`, beyond this
        process. The same holder may repeat it.

        Raises `NotFound`, `Busy` if another writer holds it, `InvalidInput` for writing to a snapshot,
        `Unsupported`.
        """
    def attach_volume_async(
        self,
        name: str,
        holder: str,
        *,
        access: Access | str | None = None,
        sharing: Sharing | str | None = None,
    ) -> Future[Attachment]:
        """As `attach_volume`, to be awaited."""
    def detach_volume(self, name: str, holder: str) -> None:
        """Ends what `attach_volume` began, with everything flushed. Succeeds when the holder has nothing
        attached, or the volume is gone. Raises `Busy` while the host still uses it, `Unsupported`.
        """
    def detach_volume_async(self, name: str, holder: str) -> Future[None]:
        """As `detach_volume`, to be awaited."""
    def audit(self, *, repair: bool = False) -> AuditReport:
        """Finds what interrupted work left behind and, with `repair`, removes it. Safe beside running work."""
    def audit_async(self, *, repair: bool = False) -> Future[AuditReport]:
        """As `audit`, to be awaited."""
    def scrub(self, *, control: Control | None = None) -> AuditReport:
        """Reads everything that is stored and verifies it, and tells of what is damaged. Changes nothing.

        Raises `Unsupported` where the store keeps nothing to verify data by, `TimedOut` when cancelled.
        """
    def scrub_async(self, *, control: Control | None = None) -> Future[AuditReport]:
        """As `scrub`, to be awaited."""
    def collect_garbage(self) -> Collected:
        """Gives back now what nothing uses any more, and what would otherwise be given back in the
        background, or never. Raises `Busy` while another one runs, `PermissionDenied`.
        """
    def collect_garbage_async(self) -> Future[Collected]:
        """As `collect_garbage`, to be awaited."""
    def serve(
        self,
        exports: str | ExportOptions | Iterable[str | ExportOptions] | None = None,
        *,
        listen: _StrPath | Iterable[_StrPath],
        access: Access | str | None = None,
        sharing: Sharing | str | None = None,
        tls_directory: _StrPath | None = None,
        client_certificates: bool = False,
        statistics: _StrPath | None = None,
        limits: Limits | None = None,
    ) -> Server:
        """Serves volumes over NBD, to QEMU, the Linux kernel and every other client of the protocol.

        `exports` are names or `ExportOptions`; `None` serves every volume, those made later too.
        `access` and `sharing` hold for what does not say it itself. `listen` is where: a path (a Unix
        socket), `"unix:/PATH"`, `"tcp:IP:PORT"` (port 0 takes a free one), or several of those.
        `tls_directory` holds `server-cert.pem` and `server-key.pem`, and `ca-cert.pem` if
        `client_certificates` are asked for. At `statistics`, `/metrics` and `/status` are answered over
        HTTP.

        Raises what opening the volumes and listening raise; then nothing is served.
        """
    def serve_async(
        self,
        exports: str | ExportOptions | Iterable[str | ExportOptions] | None = None,
        *,
        listen: _StrPath | Iterable[_StrPath],
        access: Access | str | None = None,
        sharing: Sharing | str | None = None,
        tls_directory: _StrPath | None = None,
        client_certificates: bool = False,
        statistics: _StrPath | None = None,
        limits: Limits | None = None,
    ) -> Future[Server]:
        """As `serve`, to be awaited."""
    def close(self) -> None:
        """Closes the pool, as far as this object goes; open volumes and servers stay open. Closing again
        does nothing.
        """
    def close_async(self) -> Future[None]:
        """As `close`, to be awaited."""
    def list_volumes(self) -> VolumeIterator:
        """Every volume, in no particular order, each looked up when its turn comes. For `for` and for
        `async for`. A volume that can't be read raises when its turn comes, and `next` goes on after it.
        """
    def capabilities(self) -> Capabilities:
        """What this pool can do."""
    def policy(self) -> ThinPolicy:
        """The marks and limits that this pool applies."""
    def __enter__(self) -> Pool: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __aenter__(self) -> Future[Pool]: ...
    def __aexit__(self, *_exception: object) -> Future[None]: ...

@final
class Device:
    """An open volume; `Pool.open_volume` makes it.

    Any number of threads and tasks may call at once, and many requests may be in flight. A request is
    done when its call returns, and durable once a later `flush` has returned. A request that was
    cancelled may or may not have taken effect, but none that is started later is overtaken by it.

    `close` flushes what was written. As a context manager (`with`, `async with`) a device is closed at
    the end. One that is merely forgotten is closed without a flush.

    Each call raises `InvalidInput` for a range past the end and for a write to what was opened
    read-only, `Fenced` once another writer took over, `NoSpace`, `Unavailable`, `Corrupt`.
    """

    @property
    def name(self) -> str:
        """The volume's name when it was opened."""
    @property
    def size(self) -> int:
        """The size in bytes, as far as it is known here: see `refresh`."""
    @property
    def access(self) -> Access:
        """For reading only, or for writing too."""
    @property
    def closed(self) -> bool:
        """Whether it was closed."""
    def read_at(self, offset: int, length: int) -> bytes:
        """Reads `length` bytes from `offset`. What was never written, or was discarded, is zeros."""
    def read_at_async(self, offset: int, length: int) -> Future[bytes]:
        """As `read_at`, to be awaited."""
    def read_view(self, offset: int, length: int) -> memoryview:
        """As `read_at`, but without a copy: a read-only `memoryview` of what was read."""
    def read_view_async(self, offset: int, length: int) -> Future[memoryview]:
        """As `read_view`, to be awaited."""
    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        """Fills `buffer` with what is read from `offset`, and returns its length in bytes. `buffer` is any
        writable object with contiguous memory: `bytearray`, `memoryview`, `array`, `mmap`. Until the
        call is done it can't be resized.
        """
    def read_into_async(self, offset: int, buffer: WriteableBuffer) -> Future[int]:
        """As `read_into`, to be awaited."""
    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        """Writes all of `data`, any object with contiguous memory, at `offset`. `bytes` are written without
        a copy; other objects are copied when the call is made, so that they may change at once.
        """
    def write_at_async(self, offset: int, data: ReadableBuffer) -> Future[None]:
        """As `write_at`, to be awaited."""
    def flush(self) -> None:
        """Makes every write that was done before this call durable."""
    def flush_async(self) -> Future[None]:
        """As `flush`, to be awaited."""
    def discard(self, offset: int, length: int) -> None:
        """Gives back the space of `length` bytes from `offset`, which read as zeros afterwards."""
    def discard_async(self, offset: int, length: int) -> Future[None]:
        """As `discard`, to be awaited."""
    def write_zeroes(self, offset: int, length: int, *, may_discard: bool = False, fast_only: bool = False) -> None:
        """Makes `length` bytes from `offset` read as zeros. With `may_discard` space may be given back;
        with `fast_only` it raises `Unsupported` where the store would have to write zeros out.
        """
    def write_zeroes_async(
        self,
        offset: int,
        length: int,
        *,
        may_discard: bool = False,
        fast_only: bool = False,
    ) -> Future[None]:
        """As `write_zeroes`, to be awaited."""
    def extents(self, offset: int = ..., length: int | None = None) -> ExtentIterator:
        """The extents that hold data, within `length` bytes from `offset`."""
    def extents_async(self, offset: int = ..., length: int | None = None) -> Future[ExtentIterator]:
        """As `extents`, to be awaited."""
    def refresh(self) -> int:
        """Looks the size up in the store, so that a resize by another process is seen, and returns it.
        Raises `NotFound` if the volume is gone.
        """
    def refresh_async(self) -> Future[int]:
        """As `refresh`, to be awaited."""
    def close(self) -> None:
        """Flushes, if it was opened for writing, and closes the volume, even if the flush raises. Closing
        again does nothing.
        """
    def close_async(self) -> Future[None]:
        """As `close`, to be awaited."""
    def __enter__(self) -> Device: ...
    def __exit__(self, *exception: object) -> None: ...
    def __aenter__(self) -> Future[Device]: ...
    def __aexit__(self, *exception: object) -> Future[None]: ...

@final
class Server:
    """A running NBD server; `Pool.serve` makes it.

    `stop` ends it in order. As a context manager (`with`, `async with`) it is stopped at the end. One
    that is merely forgotten ends at once, with nothing flushed.
    """

    @property
    def addresses(self) -> list[str]:
        """Where it listens: `unix:/PATH`, `tcp:IP:PORT`; a port 0 is replaced by the real one."""
    @property
    def statistics_address(self) -> str | None:
        """Where it answers `/metrics` and `/status`, if it does."""
    @property
    def stopped(self) -> bool:
        """Whether it was stopped."""
    def attachment(self, volume: str, holder: str, *, address: int = 0) -> Attachment:
        """How a host reaches a served volume at the address of this number, as of a volume that is
        attached: for `Attachment.render`. It attaches nothing; `holder` is whom it is meant for.

        Raises `NotFound` for a volume that is not served.
        """
    def attachment_async(self, volume: str, holder: str, *, address: int = 0) -> Future[Attachment]:
        """As `attachment`, to be awaited."""
    def stop(self, within: float = 30.0) -> None:
        """Ends in order: nobody is let in any more, requests under way are answered, and every volume is
        flushed and closed. What was answered is then durable. Stopping again does nothing.

        Raises `TimedOut` if clients or the pool took longer than `within` seconds and were cut off, and
        what the last flush raises.
        """
    def stop_async(self, within: float = 30.0) -> Future[None]:
        """As `stop`, to be awaited."""
    def uri(self, volume: str | None = None, *, address: int = 0) -> str:
        """The NBD URI of a volume, or of the default export, at the address of this number."""
    def status(self) -> dict[str, Any]:
        """What it does now, as the document of `/status`: connections, exports, what was counted."""
    def __enter__(self) -> Server: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __aenter__(self) -> Future[Server]: ...
    def __aexit__(self, *_exception: object) -> Future[None]: ...

@final
class VolumeIterator:
    """The volumes of a pool, for `for` and for `async for`; see `Pool.list_volumes`."""

    def __iter__(self) -> VolumeIterator: ...
    def __next__(self) -> Volume: ...
    def __aiter__(self) -> VolumeIterator: ...
    def __anext__(self) -> Future[Volume]: ...

@final
class ExtentIterator:
    """Extents (`ByteRange`) in ascending order, never empty, never overlapping, for `for` and for
    `async for`; see `Pool.extents`. They begin and end on multiples of `granularity`, but where they
    are cut by what was asked for, or by the volume's end.
    """

    @property
    def grade(self) -> Grade:
        """How much they can be relied on. No extent is ever left out."""
    @property
    def granularity(self) -> int:
        """The unit, in bytes, in which the pool tells blocks apart."""
    def __iter__(self) -> ExtentIterator: ...
    def __next__(self) -> ByteRange: ...
    def __aiter__(self) -> ExtentIterator: ...
    def __anext__(self) -> Future[ByteRange]: ...

def open_pool(source: _StrPath | Mapping[str, Any], **options: Any) -> Pool:
    """Opens a pool: at a URL (`"dir:///srv/volumes"`, `"lvm://group/pool"`), in a directory (a `pathlib.Path`),
    or from a configuration: a mapping, or JSON, with the URL under `url` and options beside it. Options
    may be given as arguments too: `open_pool("memory:", total="10GiB")`.

    Raises `InvalidConfig` for a wrong URL, an unknown scheme (with a list of those known) or option, and
    what opening raises.
    """
def open_pool_async(source: _StrPath | Mapping[str, Any], **options: Any) -> Future[Pool]:
    """As `open_pool`, to be awaited."""
def snapshot_group(
    members: Iterable[tuple[Pool, str, str]],
    *,
    freeze: Callable[[], object],
    thaw: Callable[[], object],
    deadline: float = 10.0,
    control: Control | None = None,
) -> list[Volume]:
    """Calls `freeze`, takes a snapshot of each member, all at once, and calls `thaw`: so the snapshots are of
    one moment. A member is a tuple of a pool, a volume's name and the name of the snapshot to be made. The
    snapshots are returned in the same order.

    `freeze` makes what writes the volumes stand still (a guest's file systems by its agent, a data base), and
    `thaw` lets it go on. Each is called without arguments, in a thread of its own, and fails by raising. Writing
    stands still for `deadline` seconds at most from when `freeze` is called; then `thaw` is called, whatever
    the pools do. It is called after every `freeze`, also one that raised or still runs, again if it raises, and
    once more after a `freeze` that returns late. What can be found wrong before is found before `freeze` is
    called. The snapshots' names must be this call's alone.

    If anything fails, no snapshot is left that was made here; `Error.get("left_behind")` names those that could
    not be removed. Raises `InvalidInput` for no member or a snapshot that is named twice, `AlreadyExists` if one
    is there, `TimedOut` at the deadline and if `control` is cancelled, `Unavailable` with the exception as
    `__cause__` if `freeze` or `thaw` raised, and what `Pool.snapshot_volume` raises.
    """
def snapshot_group_async(
    members: Iterable[tuple[Pool, str, str]],
    *,
    freeze: Callable[[], object],
    thaw: Callable[[], object],
    deadline: float = 10.0,
    control: Control | None = None,
) -> Future[list[Volume]]:
    """As `snapshot_group`, to be awaited. `freeze` and `thaw` may be coroutine functions, which run in the event loop."""
def schemes() -> list[str]:
    """The URL schemes of the pools that this build knows."""
def parse_size(size: _Size) -> int:
    """The bytes of a size such as `"10GiB"`, `"1.5TiB"`, `"500MB"`. Raises `InvalidInput`."""
def format_size(size: int) -> str:
    """A number of bytes in the largest unit, rounded to two digits: `"1.50 KiB"`."""
def _render(attachment: Attachment, hypervisor: str, options: dict[str, Any]) -> Descriptor:
    """For `Attachment.render` alone."""
def _end() -> None:
    """For `volmux` alone: the interpreter is about to end."""
def _after_fork() -> None:
    """For `volmux` alone: this process was forked."""

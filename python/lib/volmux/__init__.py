"""One storage layer for every hypervisor: volumes, snapshots, clones, thin provisioning.

Open a pool, and work with its volumes::

    import volmux

    with volmux.open_pool("dir:///srv/volumes") as pool:
        pool.create_volume("web", "10GiB")
        with pool.open_volume("web", access="read-write") as disk:
            disk.write_at(0, b"hello")
        pool.snapshot_volume("web", "web-monday")
        for offset, length in pool.extents("web", since="web-monday"):
            print(offset, length)

Every call is there twice: `pool.volume(name)` waits, with the interpreter released, and
`await pool.volume_async(name)` is for asyncio::

    async with await volmux.open_pool_async("dir:///srv/volumes") as pool:
        await pool.create_volume_async("web", "10GiB")
        async for volume in pool.list_volumes():
            print(volume.name)

Words: a *pool* is one place that holds volumes; a *volume* is a named block image with a virtual size; a
*snapshot* is a read-only volume that has a parent; a *clone* is a writable volume that shares its parent's blocks,
a *copy* shares none. Sizes are bytes, or texts such as ``"10GiB"``.

Errors: see `Error`. Each kind has a class that also derives from the exception of Python's that fits it.

Interruptions: Ctrl-C ends a call that waits, and cancelling a task ends what it awaits; both really stop the work.
`Control` watches and stops long work from elsewhere. What was stopped is as it was before, or as it would be
after, and calling again converges.

Log: events go to the logger ``volmux`` and those below it.

Processes: a child that was forked can't use what its parent has open, and opens its own.
"""

from __future__ import annotations

import atexit as _atexit
import os as _os

from . import _log, _volmux
from ._errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    Error,
    ErrorKind,
    Fenced,
    Internal,
    InvalidConfig,
    InvalidInput,
    NoSpace,
    NotFound,
    PermissionDenied,
    TimedOut,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from ._values import (
    Access,
    Attachment,
    AttachOptions,
    AttachTarget,
    AuditReport,
    BlockDeviceTarget,
    ByteRange,
    Capabilities,
    ChapReference,
    Collected,
    Descriptor,
    DiskBus,
    ExportOptions,
    FileTarget,
    Finding,
    FindingKind,
    Grade,
    Hypervisor,
    IscsiTarget,
    Limits,
    MetadataUsage,
    NbdTarget,
    Origin,
    OriginKind,
    OtherTarget,
    Pressure,
    Progress,
    Provisioning,
    Qcow2Target,
    Sharing,
    Support,
    ThinPolicy,
    Usage,
    Volume,
)
from ._volmux import (
    Control,
    Device,
    ExtentIterator,
    Pool,
    Server,
    VolumeIterator,
    __version__,
    format_size,
    open_pool,
    open_pool_async,
    parse_size,
    schemes,
    snapshot_group,
    snapshot_group_async,
)

__all__ = [
    "Access",
    "AlreadyExists",
    "AttachOptions",
    "AttachTarget",
    "Attachment",
    "AuditReport",
    "BlockDeviceTarget",
    "Busy",
    "ByteRange",
    "Capabilities",
    "ChapReference",
    "Collected",
    "Control",
    "Corrupt",
    "Descriptor",
    "Device",
    "DiskBus",
    "Error",
    "ErrorKind",
    "ExportOptions",
    "ExtentIterator",
    "Fenced",
    "FileTarget",
    "Finding",
    "FindingKind",
    "Grade",
    "Hypervisor",
    "Internal",
    "InvalidConfig",
    "InvalidInput",
    "IscsiTarget",
    "Limits",
    "MetadataUsage",
    "NbdTarget",
    "NoSpace",
    "NotFound",
    "Origin",
    "OriginKind",
    "OtherTarget",
    "PermissionDenied",
    "Pool",
    "Pressure",
    "Progress",
    "Provisioning",
    "Qcow2Target",
    "Server",
    "Sharing",
    "Support",
    "ThinPolicy",
    "TimedOut",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Usage",
    "Volume",
    "VolumeIterator",
    "__version__",
    "format_size",
    "open_pool",
    "open_pool_async",
    "parse_size",
    "schemes",
    "snapshot_group",
    "snapshot_group_async",
]

_atexit.register(_volmux._end)
if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_volmux._after_fork)

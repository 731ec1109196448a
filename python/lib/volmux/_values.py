"""What calls take and return: frozen values, which compare, hash and pickle."""

from __future__ import annotations

import datetime
import enum
import os
import pathlib
import uuid
from dataclasses import dataclass, fields
from typing import NamedTuple, Union


class _Text(str, enum.Enum):
    """An enum whose members are texts too."""

    def __str__(self) -> str:
        return str(self.value)


class Access(_Text):
    """For reading only, or for writing too."""

    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


class Sharing(_Text):
    """Whether other writers are let in: none, or several who arrange their writes among themselves."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class Provisioning(_Text):
    """How space is taken: when it is first written, or all at creation."""

    THIN = "thin"
    THICK = "thick"


class OriginKind(_Text):
    """How a volume came from another one."""

    SNAPSHOT = "snapshot"
    CLONE = "clone"
    COPY = "copy"


class Grade(_Text):
    """How much extents can be relied on. No extent is ever left out.

    ``EXACT``: exactly the blocks that are asked for. ``SUPERSET``: all of them, and possibly others.
    ``ALLOCATED_ONLY``: the pool can't tell what changed, and names all allocated extents of both volumes.
    """

    EXACT = "exact"
    SUPERSET = "superset"
    ALLOCATED_ONLY = "allocated-only"


class FindingKind(_Text):
    """What sort of thing an audit found.

    ``LEFTOVER``: left by interrupted work; repair removes it. ``UNFINISHED``: half-done work; repair finishes
    it. ``DAMAGED``: a volume that can't be used; for a person to look at. ``FOREIGN``: not made by volmux.
    """

    LEFTOVER = "leftover"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"
    FOREIGN = "foreign"


class Hypervisor(_Text):
    """Who an attachment is rendered for.

    ``QEMU``: arguments of its command line. ``QMP``: commands of its machine protocol, one a line. ``LIBVIRT``: a
    ``<disk>`` of a domain. ``XL``: a disk string of Xen's xl. ``SMAPIV3``: what ``Datapath.attach`` of a plugin of
    XenServer or XCP-ng answers. ``HYPERV``: a PowerShell script.
    """

    QEMU = "qemu"
    QMP = "qmp"
    LIBVIRT = "libvirt"
    XL = "xl"
    SMAPIV3 = "smapiv3"
    HYPERV = "hyperv"


class DiskBus(_Text):
    """The controller on which the guest finds the disk: virtio-blk, or one for SCSI that it must have."""

    VIRTIO = "virtio"
    SCSI = "scsi"


class Support(enum.IntEnum):
    """How a pool does something: not at all, with the same result by moving data, or by the store itself.

    Only ``NONE`` is false.
    """

    NONE = 0
    EMULATED = 1
    NATIVE = 2

    def __str__(self) -> str:
        return self.name.lower()


class Pressure(enum.IntEnum):
    """How near to its limits a pool is: below every mark, past the warn mark, past the refuse mark."""

    NORMAL = 0
    WARN = 1
    REFUSE = 2

    def __str__(self) -> str:
        return self.name.lower()


class ByteRange(NamedTuple):
    """``length`` bytes from ``offset``."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte past the range."""
        return self.offset + self.length


@dataclass(frozen=True)
class Origin:
    """Where a volume came from. It is history, not a dependency: the parent may be gone."""

    kind: OriginKind
    #: The parent's id.
    parent_id: uuid.UUID
    #: The parent's name at that time.
    parent_name: str


@dataclass(frozen=True)
class AttachOptions:
    """Who a volume is attached to, and how."""

    holder: str
    access: Access
    sharing: Sharing


@dataclass(frozen=True)
class Volume:
    """What a pool says of one volume. Sizes are in bytes."""

    name: str
    #: The identity, which outlives renames and is never reused.
    id: uuid.UUID
    #: What a guest sees.
    virtual_size: int
    #: What it occupies now, shared blocks included; ``None`` where the pool can't tell cheaply.
    allocated: int | None
    #: What deleting it would free now; ``None`` where that is not known. Listings may leave it out.
    exclusive: int | None
    #: In how many pieces the data lies, where the cost of snapshots grows with that. Not in listings.
    fragments: int | None
    #: How many data files a read may have to look through, where they are chained. Not in listings.
    depth: int | None
    provisioning: Provisioning
    #: ``None`` for a volume that was created or adopted.
    origin: Origin | None
    #: When it was made (a snapshot: the moment that it shows), in UTC.
    created: datetime.datetime
    #: Who it is attached to, and how.
    attachments: tuple[AttachOptions, ...]

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot, and so read-only."""
        return self.origin is not None and self.origin.kind is OriginKind.SNAPSHOT


@dataclass(frozen=True)
class Capabilities:
    """What a pool can do; what is ``Support.NONE`` raises `Unsupported`."""

    #: Read-only snapshots.
    snapshot: Support
    #: Linked, writable clones.
    clone: Support
    #: Putting a volume back to one of its snapshots.
    revert: Support
    #: Space taken on write.
    thin: Support
    #: Space reserved at creation.
    thick: Support
    #: Making a volume smaller.
    shrink: Support
    #: Giving back the space of discarded ranges.
    discard: Support
    #: Extents that changed since a snapshot (their grade says how exactly).
    changed_extents: Support
    #: Handing a volume to a host by itself, without a server.
    attach: Support
    #: Taking over something that already exists.
    adopt: Support
    #: Several writers of one volume at once, when asked for.
    shared_writers: Support
    #: Taking a volume away from a live writer.
    fencing: Support

    def as_dict(self) -> dict[str, Support]:
        """Name and support of each capability, in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def capabilities(*numbers: int) -> Capabilities:
    """From numbers, in the order of the fields."""
    return Capabilities(*map(Support, numbers))


@dataclass(frozen=True)
class MetadataUsage:
    """Occupancy of a store's metadata, in the store's own unit (inodes, bytes)."""

    total: int
    used: int


@dataclass(frozen=True)
class Usage:
    """How full a pool is, in bytes."""

    #: What the pool can hold.
    total: int
    #: What is occupied, by volumes and by anything else that shares the space.
    used: int
    #: What can still be written.
    free: int
    #: The sum of the virtual sizes of all volumes, snapshots included.
    provisioned: int
    #: Where the store's metadata can run out by itself.
    metadata: MetadataUsage | None
    #: When it will be full at the pace of late; ``None`` where that is not watched, or nothing grows.
    time_to_full: datetime.timedelta | None

    @property
    def used_percent(self) -> float:
        """Occupied share of what can be occupied."""
        return _percent(self.used, self.used + self.free)

    @property
    def metadata_percent(self) -> float:
        """Occupied share of the metadata; 0 where the store has no separate metadata."""
        return _percent(self.metadata.used, self.metadata.total) if self.metadata else 0.0

    @property
    def overcommit(self) -> float:
        """Virtual sizes promised over what the pool holds."""
        return _percent(self.provisioned, self.total) / 100.0


def _percent(part: int, whole: int) -> float:
    return part * 100.0 / whole if whole else 0.0


@dataclass(frozen=True)
class ThinPolicy:
    """When a pool warns of filling up and when it refuses what would make it fuller."""

    #: Largest sum of virtual sizes, as a multiple of the pool's total; ``None`` for no limit.
    overcommit_limit: float | None
    #: From this occupancy on, in percent, of data or metadata, operations warn.
    warn_percent: float
    #: What would pass this occupancy is refused; 100 switches that off.
    refuse_percent: float

    def pressure(self, usage: Usage) -> Pressure:
        """How near to its limits a pool with this usage is."""
        occupancy = max(usage.used_percent, usage.metadata_percent)
        if self.refuse_percent < 100.0 and occupancy >= self.refuse_percent:
            return Pressure.REFUSE
        return Pressure.WARN if occupancy >= self.warn_percent else Pressure.NORMAL


@dataclass(frozen=True)
class Progress:
    """How far long work is, in bytes of data to move (holes don't count)."""

    done: int
    total: int


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found."""

    kind: FindingKind
    #: The volume, file or object.
    object: str
    #: What is the matter, in a sentence.
    detail: str
    #: What it occupies, where known.
    bytes: int | None
    #: Whether this audit put it right.
    repaired: bool


@dataclass(frozen=True)
class AuditReport:
    """What an audit found."""

    findings: tuple[Finding, ...]
    #: Number of volumes that were looked at.
    volumes: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left that is wrong; what is merely foreign does not count."""
        return all(finding.repaired or finding.kind is FindingKind.FOREIGN for finding in self.findings)


@dataclass(frozen=True)
class Collected:
    """What a collection of garbage gave back."""

    #: Bytes that can be used again, as the store counts them.
    freed: int
    #: Files or objects that were removed.
    objects: int


@dataclass(frozen=True)
class FileTarget:
    """An attached volume is a file with the raw image."""

    path: pathlib.Path


@dataclass(frozen=True)
class BlockDeviceTarget:
    """An attached volume is a block device."""

    path: pathlib.Path


@dataclass(frozen=True)
class Qcow2Target:
    """An attached volume is a qcow2 image, to be opened with that format, never probed. The files below it lie
    beside it."""

    path: pathlib.Path


@dataclass(frozen=True)
class ChapReference:
    """A CHAP name, and where its secret is. The secret itself is in no answer."""

    user: str
    #: The file that holds the secret.
    secret: pathlib.Path


@dataclass(frozen=True)
class IscsiTarget:
    """An attached volume is a logical unit of an iSCSI target, which the holder's initiator logs in to."""

    #: Address of the portal: ``host:port``.
    portal: str
    #: Name of the target (IQN).
    target: str
    lun: int
    #: Unit serial number. A host that finds another one has a wrong disk before it.
    serial: str
    #: How the initiator proves who it is.
    chap: ChapReference | None
    #: How the target does.
    mutual_chap: ChapReference | None


@dataclass(frozen=True)
class NbdTarget:
    """An attached volume is an export of an NBD server. Its content is raw."""

    #: ``unix:/PATH`` or ``tcp:HOST:PORT``, as `Server.addresses` has it.
    address: str
    #: The export's name.
    export: str
    #: Whether the server demands TLS.
    tls: bool = False


@dataclass(frozen=True)
class OtherTarget:
    """An attached volume is something that this version of the module can't describe."""

    description: str


AttachTarget = Union[FileTarget, BlockDeviceTarget, Qcow2Target, IscsiTarget, NbdTarget, OtherTarget]


@dataclass(frozen=True)
class Attachment:
    """An attached volume: where a host finds it."""

    volume: str
    #: Its identity: a stable serial number for the guest's disk.
    id: uuid.UUID
    holder: str
    access: Access
    target: AttachTarget

    def render(
        self,
        hypervisor: Hypervisor | str,
        *,
        node: str | None = None,
        device: str | None = None,
        bus: DiskBus | str = DiskBus.VIRTIO,
        bus_id: str | None = None,
        shared: bool = False,
        page_cache: bool = False,
        secret_usage: str | None = None,
        tls_credentials: str | os.PathLike[str] | None = None,
        host_device: str | os.PathLike[str] | None = None,
        vhdx: str | None = None,
    ) -> Descriptor:
        """What ``hypervisor`` must be given to use this volume. Nothing is read or run for it, and no secret is in
        it.

        ``node`` is QEMU's name for block node and device; ``device`` the disk's name for libvirt and xl (``vda``);
        ``bus`` the kind of controller and ``bus_id`` QEMU's id of the one to use; ``shared`` lets other writers in;
        ``page_cache`` goes through the host's; ``secret_usage`` is how libvirt knows the CHAP secret;
        ``tls_credentials`` the directory of QEMU's certificates. ``host_device`` is a block device that the caller
        has connected to the volume, and is rendered in place of the target; ``vhdx`` an image for Hyper-V to which
        the caller wrote it, as a Windows host names it, and is so too.

        Raises `InvalidInput` for options that are wrong, and `Unsupported`, with another way to do it, if the
        hypervisor can't use this target or can't be told a part of it.
        """
        from ._volmux import _render

        options = {
            "node": node,
            "device": device,
            "bus": bus,
            "bus_id": bus_id,
            "shared": shared,
            "page_cache": page_cache,
            "secret_usage": secret_usage,
            "tls_credentials": tls_credentials,
            "host_device": host_device,
            "vhdx": vhdx,
        }
        return _render(self, hypervisor, options)


@dataclass(frozen=True)
class Descriptor:
    """What a hypervisor is given."""

    hypervisor: Hypervisor
    #: All of it, without a line end at the end. QEMU's arguments are quoted for a POSIX shell.
    text: str
    #: QEMU's arguments, to be handed over as they are, or the QMP commands; of the others, the text alone.
    arguments: tuple[str, ...]
    #: The block node that holds the disk's content, where QEMU has one.
    node: str | None
    #: The serial number that the guest's disk gets; ``None`` where that can't be said.
    serial: str | None


@dataclass(frozen=True)
class ExportOptions:
    """One volume that is served. A snapshot can only be read.

    With ``Sharing.EXCLUSIVE`` a volume that is written has one client at a time; with ``SHARED``, anybody.
    """

    volume: str
    access: Access = Access.READ_ONLY
    sharing: Sharing = Sharing.EXCLUSIVE


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Times are in seconds, lengths in bytes."""

    #: Connections at a time; more are closed as they come.
    connections: int = 256
    #: How long a client may take from connecting to choosing its export.
    handshake_time: float = 10.0
    #: How long the pool may take for a request before the client is told that it failed.
    request_time: float = 60.0
    #: How long a volume without clients stays open, if one of them may come back.
    release_time: float = 60.0
    #: The longest option of a handshake.
    option_length: int = 8192
    #: The longest read or write.
    request_length: int = 32 << 20
    #: Requests of one connection that are worked on at a time.
    in_flight_requests: int = 256
    #: Bytes of the requests that one connection has under way.
    in_flight_per_connection: int = 64 << 20
    #: Bytes of the requests that all connections have under way.
    in_flight_total: int = 512 << 20


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def utc(microseconds: int) -> datetime.datetime:
    """A moment, from the microseconds since 1970."""
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


for _class in list(globals().values()):
    if isinstance(_class, type) and _class.__module__ == __name__ and not _class.__name__.startswith("_"):
        _class.__module__ = "volmux"

"""The interface Volume: virtual disks. The key of one is the name that its volume has in the pool."""

from __future__ import annotations

import contextlib
import uuid as uuids
from collections.abc import Callable, Iterator
from typing import Any

import volmux

from . import attached, changes, host, metadata
from .failure import Failure, in_use, invalid, no_volume, unimplemented

#: What sizes are rounded up to: the blocks of a disk's device.
UNIT = 4096
Entry = dict[str, Any]


def describe(sr: str, document: metadata.Document, volume: volmux.Volume) -> dict[str, Any]:
    """A volume, as the interface has it. One that was made otherwise is called by its key."""
    entry = _entry(document, volume)
    occupied = volume.allocated if volume.allocated is not None else volume.exclusive
    return {
        "key": volume.name,
        "uuid": entry["uuid"],
        "name": entry["name"],
        "description": entry["description"],
        "read_write": not volume.is_snapshot,
        "sharable": entry["sharable"],
        "virtual_size": volume.virtual_size,
        "physical_utilisation": occupied or 0,
        "uri": [f"volmux://{sr}/{volume.name}"] if entry["data"] else [],
        "keys": entry["keys"],
        "volume_type": "Data" if entry["data"] else "CBT_Metadata",
        "cbt_enabled": entry["cbt"],
    }


def _entry(document: metadata.Document, volume: volmux.Volume) -> Entry:
    entry: Entry | None = document["volumes"].get(volume.name)
    # Somebody may have deleted the volume, and made another one of the same name.
    if entry is not None and entry["id"] in (None, str(volume.id)):
        return entry
    return {**metadata.new_entry(str(volume.id), volume.name, ""), "id": str(volume.id)}


@contextlib.contextmanager
def opened(sr: str) -> Iterator[tuple[volmux.Pool, metadata.Document]]:
    """The pool of an attached SR, and what is kept of its volumes. Without metadata there are still volumes."""
    with attached.pool(sr) as pool:
        try:
            document = metadata.read(pool)
        except metadata.Damaged:
            document = metadata.new_document(sr, sr, "")
        _same(document, sr)
        yield pool, document


def shown(document: metadata.Document, key: str) -> bool:
    """Whether a volume of the pool is one of the SR: not one that is only being made."""
    entry = document["volumes"].get(key)
    return not key.startswith(metadata.VOLUME) and not (entry and entry["maker"])


def _same(document: metadata.Document, sr: str) -> None:
    if document["sr"]["uuid"] != sr:
        raise Failure("SR_does_not_exist", f"{sr}: its pool is now the SR {document['sr']['uuid']}")


def find(pool: volmux.Pool, document: metadata.Document, key: str) -> volmux.Volume:
    """One volume. Those that are only being made are none yet."""
    if not shown(document, key):
        raise no_volume(key)
    try:
        return pool.volume(key)
    except (volmux.NotFound, volmux.InvalidInput):
        raise no_volume(key) from None


def find_data(pool: volmux.Pool, document: metadata.Document, key: str) -> volmux.Volume:
    """One volume whose data was not given up."""
    volume = find(pool, document, key)
    if not _entry(document, volume)["data"]:
        raise Failure("DataDestroyed", f"{key}: only what changed since is still to be had")
    return volume


@contextlib.contextmanager
def _changed(sr: str, key: str) -> Iterator[Entry]:
    """What is kept of one volume, to be changed."""
    with attached.pool(sr) as pool, metadata.change(pool) as document:
        _same(document, sr)
        volume = find(pool, document, key)
        entry = _entry(document, volume)
        yield entry
        document["volumes"][key] = entry


def _make(
    sr: str, pool: volmux.Pool, entry: Entry, work: Callable[[str], volmux.Volume]
) -> dict[str, Any]:
    """Makes a volume in three steps. A call that dies after the first leaves a note of what is to be removed."""
    key = entry["uuid"]
    with metadata.change(pool) as document:
        _same(document, sr)
        document["volumes"][key] = {**entry, "maker": host.myself()}
    try:
        volume = work(key)
    except BaseException:
        with contextlib.suppress(volmux.Error, Failure):
            pool.delete_volume(key)
            with metadata.change(pool) as document:
                del document["volumes"][key]
        raise
    with metadata.change(pool) as document:
        if key not in document["volumes"]:
            raise Failure("Fenced", f"{key} was removed meanwhile, as if this call had died")
        document["volumes"][key] = {**entry, "id": str(volume.id)}
        return describe(sr, document, volume)


def _fresh(name: str, description: str, **more: Any) -> Entry:
    return {**metadata.new_entry(str(uuids.uuid4()), name, description), "made": True, **more}


def create(dbg: str, sr: str, name: str, description: str, size: int, sharable: bool) -> dict[str, Any]:
    if size <= 0:
        raise invalid(f"a volume of {size} bytes")
    with attached.pool(sr) as pool:
        if sharable and not pool.capabilities().shared_writers:
            raise unimplemented(f"{pool}: a volume that several hosts write at once")
        entry = _fresh(name, description, sharable=sharable)
        return _make(sr, pool, entry, lambda key: pool.create_volume(key, rounded(size)))


def rounded(size: int) -> int:
    return -(-size // UNIT) * UNIT


def snapshot(dbg: str, sr: str, key: str) -> dict[str, Any]:
    with opened(sr) as (pool, document):
        kept = _entry(document, find_data(pool, document, key))
        # As a disk's changes are followed, so are those of its snapshots.
        entry = _fresh(kept["name"], kept["description"], cbt=kept["cbt"])
        return _make(sr, pool, entry, lambda new: pool.snapshot_volume(key, new))


def clone(dbg: str, sr: str, key: str) -> dict[str, Any]:
    with opened(sr) as (pool, document):
        kept = _entry(document, find_data(pool, document, key))
        entry = _fresh(kept["name"], kept["description"])
        return _make(sr, pool, entry, lambda new: pool.clone_volume(key, new))


def copy(dbg: str, sr: str, key: str, dest_sr: str) -> dict[str, Any]:
    with opened(sr) as (pool, document):
        kept = _entry(document, find_data(pool, document, key))
        entry = _fresh(kept["name"], kept["description"])
        if dest_sr == sr:
            return _make(sr, pool, entry, lambda new: pool.copy_volume(key, new))
        with attached.pool(dest_sr) as target:
            return _make(dest_sr, target, entry, lambda new: pool.copy_volume_to(key, target, new))


def destroy(dbg: str, sr: str, key: str) -> None:
    """A volume that is gone is destroyed: xapi destroys a disk twice that was cloned for a boot."""
    from .datapath import settle

    settle(sr, key)
    with attached.pool(sr) as pool, metadata.change(pool) as document:
        _same(document, sr)
        if not shown(document, key):
            raise no_volume(key)
        pool.delete_volume(key)
        document["volumes"].pop(key, None)


def revert(dbg: str, sr: str, snapshot: str, key: str) -> None:
    from .datapath import settle

    with opened(sr) as (pool, document):
        find_data(pool, document, snapshot)
        find_data(pool, document, key)
        settle(sr, key)
        pool.revert_volume(key, snapshot)


def set_name(dbg: str, sr: str, key: str, new_name: str) -> None:
    with _changed(sr, key) as entry:
        entry["name"] = new_name


def set_description(dbg: str, sr: str, key: str, new_description: str) -> None:
    with _changed(sr, key) as entry:
        entry["description"] = new_description


def set_(dbg: str, sr: str, key: str, k: str, v: str) -> None:
    with _changed(sr, key) as entry:
        entry["keys"][k] = v


def unset(dbg: str, sr: str, key: str, k: str) -> None:
    with _changed(sr, key) as entry:
        entry["keys"].pop(k, None)


def resize(dbg: str, sr: str, key: str, new_size: int) -> None:
    with opened(sr) as (pool, document):
        present = find_data(pool, document, key).virtual_size
        if new_size < present:
            raise invalid(f"{key}: {new_size} bytes are less than the present {present}, and disks only grow")
        pool.resize_volume(key, max(rounded(new_size), present))


def stat(dbg: str, sr: str, key: str) -> dict[str, Any]:
    with opened(sr) as (pool, document):
        return describe(sr, document, find(pool, document, key))


def compare(dbg: str, sr: str, key: str, key2: str) -> dict[str, Any]:
    """The blocks of ``key`` that differ from ``key2``; without that, those that hold data."""
    with opened(sr) as (pool, document):
        volume = find(pool, document, key)
        try:
            find(pool, document, key2)
            extents = list(pool.extents(key, since=key2))
        except Failure:
            extents = list(pool.extents(key))
        except volmux.Unsupported:
            extents = [volmux.ByteRange(0, volume.virtual_size)]
        blocks = changes.blocks(extents)
        return {"blocksize": changes.BLOCK, "ranges": [[first, end - first] for first, end in blocks]}


def list_changed_blocks(
    dbg: str, sr: str, key: str, key2: str, offset: int, length: int
) -> dict[str, Any]:
    with opened(sr) as (pool, document):
        find(pool, document, key)
        size = find(pool, document, key2).virtual_size
        if offset < 0 or offset > size:
            raise invalid(f"offset {offset}: {key2} has {size} bytes")
        # xapi's -1 means all.
        begin, end = changes.whole_blocks(offset, size if length < 0 else min(offset + length, size))
        extents = pool.extents(key2, since=key, offset=begin, length=min(end, size) - begin)
        return {"granularity": changes.BLOCK, "bitmap": changes.bitmap(extents, begin, end)}


def similar_content(dbg: str, sr: str, key: str) -> list[str]:
    """The volumes of the same family, the nearest first."""
    with opened(sr) as (pool, document):
        find(pool, document, key)
        volumes = [volume for volume in pool.list_volumes() if shown(document, volume.name)]
        return changes.family(volumes, key)


def enable_cbt(dbg: str, sr: str, key: str) -> None:
    with attached.pool(sr) as pool:
        if not pool.capabilities().changed_extents:
            raise unimplemented(f"{pool} can't tell what changed")
    with _changed(sr, key) as entry:
        entry["cbt"] = True


def disable_cbt(dbg: str, sr: str, key: str) -> None:
    with _changed(sr, key) as entry:
        entry["cbt"] = False


def data_destroy(dbg: str, sr: str, key: str) -> None:
    """The data can't be had any more. The pool keeps what it shares with others: by that it tells what changed."""
    with attached.pool(sr) as pool, metadata.change(pool) as document:
        _same(document, sr)
        volume = find(pool, document, key)
        entry = _entry(document, volume)
        if not volume.is_snapshot or not entry["cbt"]:
            raise invalid(f"{key}: only a snapshot whose changes are followed can do without its data")
        if volume.attachments:
            raise in_use(f"{key} is attached to {', '.join(one.holder for one in volume.attachments)}")
        entry["data"] = False
        document["volumes"][key] = entry


def compose(dbg: str, sr: str, key: str, key2: str) -> None:
    raise unimplemented(
        "Volume.compose: the layers of a pool are its own business, and no volume depends on another; "
        "copy the blocks that Volume.compare names"
    )

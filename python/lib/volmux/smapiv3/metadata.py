"""What the interface wants kept that pools have no place for: names, descriptions, keys. It is in a volume of the pool.

The volume has two slots. Each holds a document with its generation and a checksum; the newer good one counts. A new
one is written over the older, and flushed. So a crash leaves the old document or the new one. Who writes has the volume
open for writing, which the pool lets nobody else do, on whatever host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import struct
import time
from collections.abc import Iterator
from typing import Any

import volmux

from . import host
from .failure import Failure, no_sr

VOLUME = "volmux-smapiv3"
SIZE = 64 << 20
MAGIC = b"vmxSMv3\n"
BLOCK = 4096
FORMAT = 1

_HEADER = struct.Struct(">8sQQ32s")
_FIRST, _MOST = 0.01, 0.5

Document = dict[str, Any]


def new_document(uuid: str, name: str, description: str) -> Document:
    return {
        "format": FORMAT,
        "sr": {"uuid": uuid, "name": name, "description": description},
        "volumes": {},
    }


def new_entry(uuid: str, name: str, description: str) -> dict[str, Any]:
    """What is kept of a volume. ``id`` is that of the pool: another volume of the same name is not this one."""
    return {
        "id": None,
        "uuid": uuid,
        "name": name,
        "description": description,
        "keys": {},
        "sharable": False,
        "cbt": False,
        "data": True,
        # Whether the SR's end is its end: not of a volume that was there, or came otherwise.
        "made": False,
        # Who is making it, until it is there.
        "maker": None,
    }


class Damaged(Failure):
    """There is metadata, but no slot of it is good."""

    def __init__(self, pool: volmux.Pool) -> None:
        super().__init__(
            "Corrupt",
            f"{pool}: no copy of the metadata in the volume {VOLUME} is good; the volumes are not concerned: "
            "`python3 -m volmux.smapiv3 recover` makes metadata anew, with keys for names",
        )


def read(pool: volmux.Pool) -> Document:
    """The document. Raises `SR_does_not_exist` if there is none."""
    for _ in range(5):
        try:
            with pool.open_volume(VOLUME) as device:
                _, document = _newest(device, pool)
        except volmux.NotFound:
            raise no_sr(str(pool)) from None
        except Damaged:
            # Two documents may have been written while one was read.
            time.sleep(_FIRST)
            continue
        if document is None:
            raise no_sr(str(pool))
        return document
    raise Damaged(pool)


@contextlib.contextmanager
def change(pool: volmux.Pool) -> Iterator[Document]:
    """The document, to be changed: it is written at the end, unless there was an error. Nobody else changes it
    meanwhile."""
    with _exclusive(pool) as device:
        generation, document = _newest(device, pool)
        if document is None:
            raise no_sr(str(pool))
        before = _encode(document)
        _sweep(pool, document)
        yield document
        after = _encode(document)
        if after != before:
            _write(device, generation + 1, after)


def create(pool: volmux.Pool, document: Document) -> Document:
    """Writes the first document, and returns it, or the one that is there."""
    # The same call again finds the volume of a creation that was interrupted.
    pool.create_volume(VOLUME, SIZE)
    with _exclusive(pool) as device:
        generation, present = _newest(device, pool)
        if present is not None:
            return present
        _write(device, generation + 1, _encode(document))
    return document


def _sweep(pool: volmux.Pool, document: Document) -> None:
    """Removes what calls of this host began to make and did not live to finish. Nobody was told of it."""
    for key, entry in list(document["volumes"].items()):
        if entry["maker"] and host.is_dead(entry["maker"]):
            with contextlib.suppress(volmux.Error):
                pool.delete_volume(key)
                del document["volumes"][key]


@contextlib.contextmanager
def _exclusive(pool: volmux.Pool) -> Iterator[volmux.Device]:
    device = _open(pool)
    try:
        yield device
    except BaseException:
        with contextlib.suppress(volmux.Error):
            device.close()
        raise
    device.close()


def _open(pool: volmux.Pool) -> volmux.Device:
    deadline = time.monotonic() + float(host.settings()["wait"])
    pause = _FIRST
    while True:
        try:
            return pool.open_volume(VOLUME, access="read-write")
        except volmux.NotFound:
            raise no_sr(str(pool)) from None
        except volmux.Busy:
            if time.monotonic() > deadline:
                raise
        # Not in step with the others who wait.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, _MOST)


def _newest(device: volmux.Device, pool: volmux.Pool) -> tuple[int, Document | None]:
    """The newest good document, and the highest generation there was. None in a volume that was never written."""
    slots = [device.read_at(offset, BLOCK) for offset in _offsets(device)]
    headers = [_HEADER.unpack_from(slot) for slot in slots]
    if not any(map(any, slots)):
        return 0, None
    generations = [header[1] if header[0] == MAGIC else 0 for header in headers]
    for number in sorted((0, 1), key=lambda number: -generations[number]):
        document = _read_slot(device, number, headers[number])
        if document is not None:
            return generations[number], document
    # The first document of all is written to the second slot. If that was interrupted, there is none yet.
    if not any(slots[0]):
        return 0, None
    raise Damaged(pool)


def _offsets(device: volmux.Device) -> tuple[int, int]:
    return 0, device.size // 2 // BLOCK * BLOCK


def _read_slot(device: volmux.Device, number: int, header: tuple[bytes, int, int, bytes]) -> Document | None:
    magic, generation, length, checksum = header
    offsets = _offsets(device)
    if magic != MAGIC or length > offsets[1] - BLOCK:
        return None
    text = device.read_at(offsets[number] + BLOCK, length)
    if _checksum(generation, text) != checksum:
        return None
    document: Document = json.loads(text)
    if document["format"] != FORMAT:
        raise Failure("Unsupported", f"the metadata is of format {document['format']}: use a newer volmux")
    return document


def _write(device: volmux.Device, generation: int, text: bytes) -> None:
    # The slot of the generation before the present one; the present one is never touched.
    offset = _offsets(device)[generation % 2]
    if len(text) > _offsets(device)[1] - BLOCK:
        raise Failure("NoSpace", f"the metadata of the SR is full: {len(text)} bytes")
    header = _HEADER.pack(MAGIC, generation, len(text), _checksum(generation, text))
    device.write_at(offset, header.ljust(BLOCK, b"\0") + text + bytes(-len(text) % BLOCK))
    device.flush()


def _encode(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _checksum(generation: int, text: bytes) -> bytes:
    return hashlib.sha256(struct.pack(">QQ", generation, len(text)) + text).digest()

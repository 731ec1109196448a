"""The interface Data: copies to other places. Each is a process; what it is about is noted below /run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any, NoReturn

from . import attached, host, nbd
from .datapath import parse
from .failure import Failure, in_use, invalid, unimplemented

Operation = list[str]
CHUNK = 1 << 20


def copy(dbg: str, uri: str, domain: str, remote: str, blocklist: dict[str, Any]) -> Operation:
    from .volume import find_data, opened

    sr, key = parse(uri)
    nbd.parse(remote)
    with opened(sr) as (pool, document):
        size = find_data(pool, document, key).virtual_size
    for first, length in blocklist["ranges"]:
        end = (first + length) * blocklist["blocksize"]
        if blocklist["blocksize"] <= 0 or first < 0 or length < 0 or end > size + blocklist["blocksize"] - 1:
            raise invalid(f"the blocks {first} to {first + length} are not in {key}, which has {size} bytes")
    name = str(uuid.uuid4())
    order = {"sr": sr, "key": key, "remote": remote, "blocklist": blocklist, "size": size}
    # The remote may hold a password: the file is for root alone, and gone as soon as the worker has read it.
    host.write_json(_path(name, "order"), order)
    vector = [*host.launcher(), sys.executable, "-m", "volmux.smapiv3", "copy", name]
    quiet = subprocess.DEVNULL
    worker = subprocess.Popen(
        vector, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True, cwd="/"
    )
    _note(name, {"process": {**host.myself(), "pid": worker.pid, "start": host.process_start(worker.pid)}})
    # It goes on without this process.
    worker.returncode = 0
    return ["CopyV1", name]


def mirror(dbg: str, uri: str, domain: str, remote: str) -> NoReturn:
    raise unimplemented("Data.mirror: writes of a guest do not pass through this plugin")


def stat(dbg: str, operation: Operation) -> dict[str, Any]:
    name = _known(operation)
    done = host.read_json(_path(name, "done"))
    if done is not None:
        return {"failed": done["error"] is not None, "complete": True, "progress": 1.0}
    if not _is_running(name):
        return {"failed": True, "complete": True, "progress": 1.0}
    progress = host.read_json(_path(name, "progress"))
    return {"failed": False, "complete": False, "progress": progress["progress"] if progress else 0.0}


def cancel(dbg: str, operation: Operation) -> None:
    name = _known(operation)
    if _is_running(name):
        note = host.read_json(_path(name, "note")) or {}
        os.kill(note["process"]["pid"], signal.SIGTERM)


def destroy(dbg: str, operation: Operation) -> None:
    name = _known(operation)
    if _is_running(name):
        raise in_use(f"the copy {name} is in progress: cancel it first")
    # The note is what makes it known: it goes last.
    for what in ("order", "progress", "done", "note"):
        host.remove(_path(name, what))


def ls(dbg: str) -> list[Operation]:
    names = os.listdir(os.path.dirname(_path("x", "note")))
    return sorted(["CopyV1", name.removesuffix(".note")] for name in names if name.endswith(".note"))


def _path(name: str, what: str) -> str:
    return host.run_path("data", f"{name}.{what}")


def _note(name: str, note: dict[str, Any]) -> None:
    host.write_json(_path(name, "note"), note)


def _known(operation: Operation) -> str:
    kind, name = operation
    if kind != "CopyV1" or not re.fullmatch("[0-9a-f-]{36}", name) or not os.path.exists(_path(name, "note")):
        raise Failure("NotFound", f"there is no operation {name}")
    return name


def _is_running(name: str) -> bool:
    note = host.read_json(_path(name, "note"))
    return note is not None and not os.path.exists(_path(name, "done")) and not host.is_dead(note["process"])


def work(name: str) -> int:
    """The copy itself, in a process of its own."""
    order = host.read_json(_path(name, "order"))
    if order is None:
        return 1
    host.remove(_path(name, "order"))
    error = None
    try:
        _copy(name, order)
    except Exception as failed:
        error = str(failed)
    host.write_json(_path(name, "done"), {"error": error})
    return 0 if error is None else 1


def _copy(name: str, order: dict[str, Any]) -> None:
    chunks = list(_chunks(order["blocklist"], order["size"]))
    total, done = sum(length for _, length in chunks), 0
    remote = nbd.Remote(*nbd.parse(order["remote"]))
    if remote.size < order["size"]:
        raise Failure("Remote", f"the remote has {remote.size} bytes, fewer than the disk's {order['size']}")
    with attached.pool(order["sr"]) as pool, pool.open_volume(order["key"]) as device:
        for offset, length in chunks:
            remote.write(offset, device.read_at(offset, length))
            done += length
            host.write_json(_path(name, "progress"), {"progress": done / total})
    remote.close()


def _chunks(blocklist: dict[str, Any], size: int) -> Iterator[tuple[int, int]]:
    """The bytes of the blocks, in pieces; the last block may be cut short by the disk's end."""
    unit = blocklist["blocksize"]
    for first, count in blocklist["ranges"]:
        at, end = first * unit, min((first + count) * unit, size)
        while at < end:
            length = min(CHUNK, end - at)
            yield at, length
            at += length

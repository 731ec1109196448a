"""Copies of blocks to another place."""

from __future__ import annotations

import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smapi_host import MIB, Host, host, pool, sr, url  # noqa: F401

import volmux

SIZE = 4 * MIB
BLOCK = 64 << 10


@pytest.fixture
def target(tmp_path: Path) -> Iterator[tuple[volmux.Pool, list[str]]]:
    """A pool elsewhere, whose volume is served in two ways."""
    (tmp_path / "elsewhere").mkdir()
    with volmux.open_pool(tmp_path / "elsewhere") as elsewhere:
        elsewhere.create_volume("to", SIZE)
        listen = [f"unix:{tmp_path}/to", "tcp:127.0.0.1:0"]
        with elsewhere.serve("to", listen=listen, access="read-write", sharing="shared") as server:
            port = server.addresses[1].rpartition(":")[2]
            yield (
                elsewhere,
                [
                    f"nbd+unix:///to?socket={tmp_path}/to",
                    f"nbd:unix:{tmp_path}/to:exportname=to",
                    f"nbd://user:secret@127.0.0.1:{port}/to",
                ],
            )


def finished(host: Host, operation: list[str]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        status: dict[str, Any] = host.call("Data.stat", operation=operation)
        assert set(status) == {"failed", "complete", "progress"} and 0 <= status["progress"] <= 1
        if status["complete"]:
            return status
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_copy(host: Host, sr: str, pool: volmux.Pool, target: tuple[volmux.Pool, list[str]]) -> None:
    chance = random.Random(3)
    elsewhere, uris = target
    disk = host.create(sr, size=SIZE)
    content = chance.randbytes(SIZE)
    with pool.open_volume(disk["key"], access="read-write") as device:
        device.write_at(0, content)
    wanted = bytearray(SIZE)
    blocks = [[0, 1], [3, 20], [63, 1]], [[30, 2]], [[40, 0], [50, 1]]
    for uri, ranges in zip(uris, blocks, strict=True):
        about = {"uri": disk["uri"][0], "domain": "0", "remote": uri}
        operation = host.call("Data.copy", **about, blocklist={"blocksize": BLOCK, "ranges": ranges})
        assert operation[0] == "CopyV1" and host.call("Data.ls") == [operation]
        assert finished(host, operation) == {"failed": False, "complete": True, "progress": 1.0}
        host.call("Data.cancel", operation=operation)
        host.call("Data.destroy", operation=operation)
        assert host.call("Data.ls") == [] and not list(host.place.glob("run/data/*"))
        for first, count in ranges:
            part = slice(first * BLOCK, (first + count) * BLOCK)
            wanted[part] = content[part]
    with elsewhere.open_volume("to") as device:
        assert device.read_at(0, SIZE) == wanted


def test_what_can_not_be_copied(host: Host, sr: str, target: tuple[volmux.Pool, list[str]]) -> None:
    disk = host.create(sr, size=2 * SIZE)
    about = {"uri": disk["uri"][0], "domain": "0"}
    one = {"blocksize": BLOCK, "ranges": [[0, 1]]}
    for remote in ("", "http://x/y", "nbd:x", "nbd+unix:///x", "nbds://user:hunter2@x/y"):
        params = host.fails("Data.copy", **about, remote=remote, blocklist=one)
        assert params[0] == "InvalidInput" and "hunter2" not in str(params)
    remote = target[1][0]
    for wrong in ([[-1, 1]], [[0, 10_000]], [[0, -1]], [[128, 1]]):
        blocks = {"blocksize": BLOCK, "ranges": wrong}
        assert host.fails("Data.copy", **about, remote=remote, blocklist=blocks)[0] == "InvalidInput"
    # What comes out later: the remote is too small, or not there.
    for uri in (remote, f"nbd://127.0.0.1:1/{uuid.uuid4()}", remote.replace("/to?", "/other?")):
        operation = host.call("Data.copy", **about, remote=uri, blocklist=one)
        assert finished(host, operation)["failed"]
        host.call("Data.destroy", operation=operation)


def test_cancel(host: Host, sr: str, tmp_path: Path) -> None:
    """A remote that never answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/silent")
        listening.listen()
        silent: list[socket.socket] = []
        threading.Thread(target=lambda: silent.append(listening.accept()[0])).start()
        about = {"uri": host.create(sr)["uri"][0], "domain": "0", "remote": f"nbd:unix:{tmp_path}/silent:exportname=x"}
        operation = host.call("Data.copy", **about, blocklist={"blocksize": BLOCK, "ranges": [[0, 1]]})
        while not silent:
            time.sleep(0.05)
        assert not host.call("Data.stat", operation=operation)["complete"]
        assert host.fails("Data.destroy", operation=operation)[0] == "Busy"
        host.call("Data.cancel", operation=operation)
        assert finished(host, operation)["failed"]
        host.call("Data.destroy", operation=operation)
        assert host.fails("Data.stat", operation=operation)[0] == "NotFound"
        silent[0].close()


@pytest.mark.parametrize("operation", [["CopyV1", "../sr/x"], ["MirrorV1", str(uuid.uuid4())]])
def test_unknown_operations(host: Host, operation: list[str]) -> None:
    for call in ("stat", "cancel", "destroy"):
        assert host.fails(f"Data.{call}", operation=operation)[0] == "NotFound"

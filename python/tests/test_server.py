"""Volumes over NBD."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MIB

import volmux
from volmux import Access, ExportOptions, Limits


def hello(address: str) -> bytes:
    """What a server says to whoever comes."""
    if address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        client = socket.create_connection((host, int(port)))
    with client, client.makefile("rb") as stream:
        return stream.read(16)


def test_a_volume_is_served(pool: volmux.Pool, tmp_path: Path) -> None:
    pool.create_volume("web", MIB)
    place = tmp_path / "socket"
    listen: list[str | Path] = [place, "tcp:127.0.0.1:0"]
    with pool.serve("web", listen=listen, access=Access.READ_WRITE) as server:
        assert server.addresses[0] == f"unix:{place}"
        assert not server.addresses[1].endswith(":0")
        assert server.statistics_address is None
        assert server.uri("web") == f"nbd+unix:///web?socket={place}"
        assert server.uri(address=1) == server.addresses[1].replace("tcp:", "nbd://") + "/"
        with pytest.raises(volmux.InvalidInput):
            server.uri(address=2)
        attached = server.attachment("web", "host-1")
        assert attached.target == volmux.NbdTarget(f"unix:{place}", "web")
        assert (attached.holder, attached.access) == ("host-1", Access.READ_WRITE)
        assert attached.id == pool.volume("web").id
        assert str(place) in attached.render("qemu").text
        assert isinstance(server.attachment("web", "host-1", address=1).target, volmux.NbdTarget)
        with pytest.raises(volmux.NotFound):
            server.attachment("other", "host-1")
        with pytest.raises(volmux.InvalidInput):
            server.attachment("web", "host-1", address=2)
        for address in server.addresses:
            assert hello(address) == b"NBDMAGICIHAVEOPT"
        status = server.status()
        assert status["connections_total"] == 2
        assert [(e["name"], e["access"], e["size"]) for e in status["exports"]] == [("web", "read-write", MIB)]
        with pytest.raises(volmux.Busy):
            pool.open_volume("web", access="read-write")
    assert server.stopped and not place.exists()
    server.stop()
    with pytest.raises(volmux.InvalidInput):
        server.status()
    with pytest.raises(volmux.InvalidInput):
        server.attachment("web", "host-1")


def test_what_a_client_writes_is_there(pool: volmux.Pool, tmp_path: Path) -> None:
    program = shutil.which("nbdcopy")
    assert program is not None, "nbdcopy is missing: make setup"
    pool.create_volume("web", MIB)
    (tmp_path / "image").write_bytes(b"x" * MIB)
    with pool.serve("web", listen=tmp_path / "socket", access="read-write") as server:
        subprocess.run([program, tmp_path / "image", server.uri("web")], check=True, timeout=60)
    with pool.open_volume("web") as device:
        assert device.read_at(0, MIB) == b"x" * MIB


def test_every_volume_and_statistics(memory: volmux.Pool) -> None:
    memory.create_volume("web", MIB)
    with memory.serve(listen="tcp:127.0.0.1:0", statistics="tcp:127.0.0.1:0") as server:
        place = str(server.statistics_address).replace("tcp:", "http://")
        with urllib.request.urlopen(f"{place}/status", timeout=10) as answer:
            assert json.load(answer)["schema"] == server.status()["schema"]


def test_options_and_limits(memory: volmux.Pool) -> None:
    memory.create_volume("web", MIB)
    memory.create_volume("db", MIB)
    exports: list[str | ExportOptions] = ["web", ExportOptions("db", Access.READ_WRITE)]
    with memory.serve(exports, listen="tcp:127.0.0.1:0", limits=Limits(connections=5)) as server:
        told = {export["name"]: export["access"] for export in server.status()["exports"]}
        assert told == {"web": "read-only", "db": "read-write"}
        assert server.status()["limits"]["connections"] == 5
    with memory.serve("web", listen="tcp:127.0.0.1:0") as server:
        told = server.status()["limits"]
        ours = {name.replace("_time", "_seconds"): value for name, value in vars(Limits()).items()}
        assert told == ours, "the defaults are those of the server"


def test_wrong_options(memory: volmux.Pool, tmp_path: Path) -> None:
    memory.create_volume("web", MIB)
    free = "tcp:127.0.0.1:0"
    calls: tuple[Callable[[], object], ...] = (
        lambda: memory.serve("web", listen=[]),
        lambda: memory.serve([], listen=free),
        lambda: memory.serve("web", listen="127.0.0.1:0"),
        lambda: memory.serve("web", listen=free, limits=Limits(connections=0)),
        lambda: memory.serve("web", listen=free, limits=Limits(request_time=-1.0)),
        lambda: memory.serve("web", listen=free, limits=Limits(request_length=1 << 40)),
        lambda: memory.serve("../web", listen=free),
    )
    for call in calls:
        with pytest.raises(volmux.InvalidInput):
            call()
    with pytest.raises(volmux.NotFound):
        memory.serve("db", listen=free)
    with pytest.raises(TypeError):
        memory.serve("web")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        memory.serve(5, listen=free)  # type: ignore[arg-type]
    memory.delete_volume("web")


def test_async(memory: volmux.Pool, tmp_path: Path) -> None:
    async def serve() -> None:
        await memory.create_volume_async("web", MIB)
        async with await memory.serve_async("web", listen=tmp_path / "socket") as server:
            attached = await server.attachment_async("web", "host-1")
            assert attached.target == volmux.NbdTarget(f"unix:{tmp_path / 'socket'}", "web")
            assert await asyncio.to_thread(hello, server.addresses[0]) == b"NBDMAGICIHAVEOPT"
        assert server.stopped
        await server.stop_async(within=1)

    asyncio.run(serve())

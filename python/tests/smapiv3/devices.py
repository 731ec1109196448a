"""Hosts with devices: loop devices, which are real, and devices of NBD, which are not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smapi_host import Host

NBD = Path(__file__).with_name("fake_nbd_client.py")


def nbd_host(place: Path, name: str) -> Host:
    sysfs, dev = place / f"{name}-sys", place / f"{name}-dev"
    for number in range(3):
        (sysfs / "block" / f"nbd{number}").mkdir(parents=True)
    dev.mkdir()
    client = [sys.executable, str(NBD), str(sysfs)]
    return Host(place, name, commands={"nbd-client": client}, sys=str(sysfs), dev=str(dev), server=20)


def loops(place: Path) -> dict[str, str]:
    """The loop devices on files below a directory."""
    listed = json.loads(subprocess.check_output(["losetup", "--json", "-l"]) or b'{"loopdevices": []}')
    found = {one["name"]: str(one["back-file"]) for one in listed["loopdevices"]}
    return {name: file for name, file in found.items() if file.startswith(str(place)) and file != str(place / "image")}


def servers(host: Host) -> list[int]:
    """The processes that serve volumes of a host."""
    found = []
    for note in host.place.glob("run/nbd/*/*"):
        if note.name in ("pid", "ready"):
            pid = int(json.loads(note.read_text())["pid"])
            if Path(f"/proc/{pid}").exists():
                found.append(pid)
    return found


def cleared(place: Path, hosts: list[Host]) -> None:
    """Leaves nothing behind, whatever failed."""
    for host in hosts:
        for pid in servers(host):
            os.kill(pid, signal.SIGKILL)
    for name in loops(place):
        subprocess.run(["losetup", "-d", name], check=False)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts that share a place for pools."""
    made = [nbd_host(tmp_path, "host-a"), nbd_host(tmp_path, "host-b")]
    try:
        yield made
    finally:
        cleared(tmp_path, made)


def devices(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {kind: about for kind, about in answer["implementations"]}


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[str]:
    """A pool whose files can share blocks, as on servers of NFS 4.2."""
    image, place = tmp_path / "image", tmp_path / "xfs"
    with image.open("wb") as file:
        file.truncate(320 << 20)
    place.mkdir()
    subprocess.check_call(["mkfs.xfs", "-q", "-m", "reflink=1", image])
    subprocess.check_call(["mount", "-o", "loop", image, place])
    try:
        (place / "pool").mkdir()
        yield f"dir://{place / 'pool'}"
    finally:
        # Lazily: a failed test may have left something open.
        subprocess.check_call(["umount", "-l", place])

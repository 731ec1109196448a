"""A disk's life, from nothing, with a guest that writes all the while."""

from __future__ import annotations

import base64
import os
import threading
from pathlib import Path

from devices import devices, hosts, loops, xfs  # noqa: F401
from smapi_host import MIB, Host

import volmux


class Guest:
    """Writes to its disk, and flushes, until it is told to stop."""

    def __init__(self, disk: Path) -> None:
        self.fd = os.open(disk, os.O_RDWR)
        self.flushed = 0
        self.ending = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        number = 0
        while not self.ending:
            number += 1
            os.pwrite(self.fd, number.to_bytes(8, "big") * 512, number % 64 * 4096)
            os.fsync(self.fd)
            self.flushed = number

    def stop(self) -> None:
        self.ending = True
        self.thread.join()
        os.close(self.fd)


def newest(pool: volmux.Pool, key: str) -> int:
    """The last write that a volume holds; each block is one write, whole, and none before it is missing."""
    with pool.open_volume(key) as device:
        blocks = [device.read_at(block * 4096, 4096) for block in range(64)]
    numbers = [int.from_bytes(block[:8], "big") for block in blocks]
    for block, number in zip(blocks, numbers, strict=True):
        assert block == number.to_bytes(8, "big") * 512
    last = max(numbers)
    for number in range(max(1, last - 63), last):
        assert numbers[number % 64] >= number
    return last


def test_a_guest(hosts: list[Host], xfs: str, tmp_path: Path) -> None:  # noqa: F811
    one, two = hosts
    sr = one.create_sr(xfs)
    two.attach_sr(xfs, sr)
    disk = one.create(sr, "root", 8 * MIB)
    key, uri = disk["key"], disk["uri"][0]
    one.call("Volume.enable_cbt", sr=sr, key=key)
    path = Path(devices(one.call("Datapath.attach", uri=uri, domain="7"))["XenDisk"]["params"])
    one.call("Datapath.activate", uri=uri, domain="7")
    guest = Guest(path)
    snapshots = []
    try:
        with volmux.open_pool(xfs) as pool:
            for _ in range(3):
                flushed = guest.flushed
                snapshots.append(one.call("Volume.snapshot", sr=sr, key=key)["key"])
                assert newest(pool, snapshots[-1]) >= flushed
            assert two.fails("Datapath.activate", uri=uri, domain="7") == ["Activated_on_another_host", "host-a"]
    finally:
        guest.stop()
    # It goes to the other host.
    two.call("Datapath.attach", uri=uri, domain="9")
    one.call("Datapath.deactivate", uri=uri, domain="7")
    two.call("Datapath.activate", uri=uri, domain="9")
    one.call("Datapath.detach", uri=uri, domain="7")
    path = Path(devices(two.call("Datapath.attach", uri=uri, domain="9"))["XenDisk"]["params"])
    with open(path, "rb") as device:
        device.seek(guest.flushed % 64 * 4096)
        assert int.from_bytes(device.read(8), "big") == guest.flushed
    two.call("Datapath.detach", uri=uri, domain="9")
    # A backup of what changed, and back to where it was.
    told = two.call("Volume.list_changed_blocks", sr=sr, key=snapshots[0], key2=snapshots[2], offset=0, length=-1)
    assert any(base64.b64decode(told["bitmap"])[:1]) and not any(base64.b64decode(told["bitmap"])[1:])
    two.call("Volume.revert", sr=sr, snapshot=snapshots[0], key=key)
    with volmux.open_pool(xfs) as pool:
        assert newest(pool, key) == newest(pool, snapshots[0]) < guest.flushed
    for one_of in (key, *snapshots):
        one.call("Volume.destroy", sr=sr, key=one_of)
    assert one.call("SR.ls", sr=sr) == []

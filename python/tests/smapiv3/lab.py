"""The plugin with devices of the kernel, NBD's and those of an LVM pool, which a test machine may not have. In the lab,
where the module volmux can be imported (PYTHONPATH), by hand; it takes some minutes:

    tests/lab/run --disk 2G -- python3 python/tests/smapiv3/lab.py
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

from smapi_host import MIB, Host


def run(*vector: str) -> None:
    print("+", *vector, flush=True)
    subprocess.check_call(vector)


def write(disk: str, offset: int, data: bytes) -> None:
    fd = os.open(disk, os.O_RDWR)
    try:
        os.pwrite(fd, data.ljust(4096, b"\0"), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def read(disk: str, offset: int) -> bytes:
    with open(disk, "rb") as device:
        device.seek(offset)
        return device.read(5)


def life(host: Host, url: str, kernel: str) -> None:
    sr = host.create_sr(url)
    disk = host.create(sr, "root", 64 * MIB)
    key, uri = disk["key"], disk["uri"][0]
    path: str = host.call("Datapath.attach", uri=uri, domain="1")["implementations"][0][1]["params"]
    host.call("Datapath.activate", uri=uri, domain="1")
    print(url, "->", os.path.realpath(path), flush=True)
    assert os.path.realpath(path).startswith(kernel)
    write(path, 0, b"first")
    first = host.call("Volume.snapshot", sr=sr, key=key)["key"]
    write(path, MIB, b"later")
    for call in ("activate", "deactivate"):
        host.call(f"Datapath.{call}", uri=uri, domain="1")
    assert not os.path.exists(path)
    changed = {"sr": sr, "key": first, "key2": key, "offset": 0, "length": -1}
    bitmap = base64.b64decode(host.call("Volume.list_changed_blocks", **changed)["bitmap"])
    assert bitmap == b"\0\0\x80".ljust(128, b"\0")
    host.call("Volume.revert", sr=sr, snapshot=first, key=key)
    host.call("Datapath.activate_readonly", uri=uri, domain="1")
    assert (read(path, 0), read(path, MIB)) == (b"first", bytes(5))
    try:
        write(path, 0, b"other")
        raise AssertionError("it can be written to")
    except OSError as error:
        print("read-only:", error)
    host.call("Datapath.detach", uri=uri, domain="1")
    for one in (key, first):
        host.call("Volume.destroy", sr=sr, key=one)
    host.call("SR.destroy", sr=sr)


def main() -> int:
    place = Path("/tmp/lab")
    (place / "store").mkdir(parents=True)
    host = Host(place, "host-a")
    run("pvcreate", "-q", "/dev/vda")
    run("vgcreate", "-q", "vg", "/dev/vda")
    run("lvcreate", "-q", "--type", "thin-pool", "-L", "1G", "-n", "thin", "vg")
    life(host, "lvm://vg/thin", "/dev/dm-")
    life(host, f"file+object://{place}/store", "/dev/nbd")
    print("all is as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())

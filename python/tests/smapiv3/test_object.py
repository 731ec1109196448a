"""A pool that attaches nothing: an object store."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from devices import devices, hosts, servers  # noqa: F401
from smapi_host import MIB, Host

import volmux


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return f"file+object://{tmp_path / 'store'}"


def qemu_io(socket: str, key: str, command: str) -> None:
    options = f"driver=nbd,server.type=unix,server.path={socket},export={key}"
    done = subprocess.run(["qemu-io", "--image-opts", options, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "failed" not in done.stdout, done


def test_an_object_store(hosts: list[Host], store: str) -> None:  # noqa: F811
    one, two = hosts
    sr = one.create_sr(store)
    two.attach_sr(store, sr)
    assert one.fails("Volume.create", sr=sr, name="", description="", size=MIB, sharable=True)[0] == "Unimplemented"
    disk = one.create(sr, "root", 4 * MIB)
    key, uri = disk["key"], disk["uri"][0]
    found = devices(one.call("Datapath.attach", uri=uri, domain="1"))
    socket = found["Nbd"]["uri"].split(":")[2]
    one.call("Datapath.activate", uri=uri, domain="1")
    assert two.fails("Datapath.activate", uri=uri, domain="1")[0] == "Busy" and not servers(two)
    qemu_io(socket, key, "write -f -P 1 0 64k")
    first = two.call("Volume.snapshot", sr=sr, key=key)
    qemu_io(socket, key, "write -f -P 2 128k 64k")
    second = one.call("Volume.snapshot", sr=sr, key=key)
    changed = {"sr": sr, "key": first["key"], "key2": second["key"], "offset": 0, "length": -1}
    # The third of 64 blocks.
    assert one.call("Volume.list_changed_blocks", **changed)["bitmap"] == "IAAAAAAAAAA="
    one.call("Datapath.detach", uri=uri, domain="1")
    # Snapshots are read by both hosts.
    for host in hosts:
        host.call("Datapath.activate", uri=first["uri"][0], domain="0")
        assert len(servers(host)) == 2
        host.call("Datapath.detach", uri=first["uri"][0], domain="0")
        assert not servers(host)
    two.call("Volume.revert", sr=sr, snapshot=first["key"], key=key)
    with volmux.open_pool(store) as pool, pool.open_volume(key) as device:
        assert device.read_at(0, 4) == b"\1" * 4 and device.read_at(128 << 10, 4) == bytes(4)

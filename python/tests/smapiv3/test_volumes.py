"""Virtual disks."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from smapi_host import MIB, Host, host, other, pool, sr, url, write  # noqa: F401

import volmux


def read(pool: volmux.Pool, key: str, length: int = 5) -> bytes:
    with pool.open_volume(key) as device:
        return device.read_at(0, length)


def test_create(host: Host, sr: str, pool: volmux.Pool) -> None:
    made = host.call("Volume.create", sr=sr, name="root ☃", description="of web", size=MIB + 1, sharable=True)
    assert made["virtual_size"] == MIB + 4096
    assert (made["name"], made["description"], made["sharable"]) == ("root ☃", "of web", True)
    assert made["key"] == made["uuid"] == str(uuid.UUID(made["uuid"]))
    assert made["read_write"] and not made["cbt_enabled"] and made["keys"] == {}
    assert made["uri"] == [f"volmux://{sr}/{made['key']}"]
    assert pool.volume(made["key"]).virtual_size == MIB + 4096
    assert host.call("Volume.stat", sr=sr, key=made["key"]) == made
    assert host.call("SR.ls", sr=sr) == [made]


@pytest.mark.parametrize("size", [0, -1, -(1 << 63), (1 << 63) - 1])
def test_sizes_that_make_no_volume(host: Host, sr: str, pool: volmux.Pool, size: int) -> None:
    arguments = {"sr": sr, "name": "", "description": "", "sharable": False}
    assert host.fails("Volume.create", size=size, **arguments)[0] in ("InvalidInput", "NoSpace")
    assert host.call("SR.ls", sr=sr) == []
    assert [volume.name for volume in pool.volumes()] == ["volmux-smapiv3"]


def test_unknown_volumes(host: Host, sr: str) -> None:
    key = str(uuid.uuid4())
    calls: dict[str, dict[str, Any]] = {
        "snapshot": {},
        "clone": {},
        "copy": {"dest_sr": sr},
        "set_name": {"new_name": "x"},
        "set": {"k": "x", "v": "y"},
        "resize": {"new_size": MIB},
        "stat": {},
        "enable_cbt": {},
    }
    for call, more in calls.items():
        assert host.fails(f"Volume.{call}", sr=sr, key=key, **more) == ["Volume_does_not_exist", key], call
    # The plugin's own volume is none of the SR.
    for key in ("volmux-smapiv3", "", "../x", "no good name", "x" * 300):
        assert host.fails("Volume.stat", sr=sr, key=key) == ["Volume_does_not_exist", key]
    for call in ("snapshot", "destroy", "data_destroy"):
        assert host.fails(f"Volume.{call}", sr=sr, key="volmux-smapiv3")[0] == "Volume_does_not_exist"


def test_destroy_can_be_repeated(host: Host, sr: str, pool: volmux.Pool) -> None:
    key = host.create(sr)["key"]
    for _ in range(2):
        host.call("Volume.destroy", sr=sr, key=key)
    assert host.call("SR.ls", sr=sr) == []
    key = host.create(sr)["key"]
    with pool.open_volume(key, access="read-write"):
        assert host.fails("Volume.destroy", sr=sr, key=key)[0] == "Busy"
    assert [one["key"] for one in host.call("SR.ls", sr=sr)] == [key]


def test_names_and_keys(host: Host, other: Host, url: str, sr: str) -> None:
    key = host.create(sr, "first")["key"]
    host.call("Volume.set_name", sr=sr, key=key, new_name="second")
    host.call("Volume.set_description", sr=sr, key=key, new_description="its text")
    for _ in range(2):
        host.call("Volume.set", sr=sr, key=key, k="vdi-type", v="user")
        host.call("Volume.set", sr=sr, key=key, k="a b", v="")
        host.call("Volume.unset", sr=sr, key=key, k="never set")
    other.attach_sr(url, sr)
    told = other.call("Volume.stat", sr=sr, key=key)
    assert (told["name"], told["description"]) == ("second", "its text")
    assert told["keys"] == {"vdi-type": "user", "a b": ""}
    other.call("Volume.unset", sr=sr, key=key, k="a b")
    assert host.call("Volume.stat", sr=sr, key=key)["keys"] == {"vdi-type": "user"}


def test_snapshots_clones_and_reverts(host: Host, sr: str, pool: volmux.Pool) -> None:
    key = host.create(sr, "web")["key"]
    host.call("Volume.set", sr=sr, key=key, k="a", v="b")
    write(pool, key, 0, b"first")
    snapshot = host.call("Volume.snapshot", sr=sr, key=key)
    assert (snapshot["name"], snapshot["keys"], snapshot["read_write"]) == ("web", {}, False)
    clone = host.call("Volume.clone", sr=sr, key=snapshot["key"])
    assert (clone["name"], clone["keys"], clone["read_write"]) == ("web", {}, True)
    write(pool, key, 0, b"other")
    write(pool, clone["key"], 0, b"third")
    assert read(pool, snapshot["key"]) == b"first"
    host.call("Volume.revert", sr=sr, snapshot=snapshot["key"], key=key)
    assert read(pool, key) == b"first" and read(pool, clone["key"]) == b"third"
    assert host.fails("Volume.revert", sr=sr, snapshot=clone["key"], key=key)[0] == "InvalidInput"
    assert host.fails("Volume.revert", sr=sr, snapshot=str(uuid.uuid4()), key=key)[0] == "Volume_does_not_exist"
    assert host.call("Volume.similar_content", sr=sr, key=clone["key"]) == [snapshot["key"], key]
    host.call("Volume.destroy", sr=sr, key=key)
    host.call("Volume.destroy", sr=sr, key=snapshot["key"])
    assert read(pool, clone["key"]) == b"third"
    assert host.call("Volume.similar_content", sr=sr, key=clone["key"]) == []


def test_copies(host: Host, sr: str, pool: volmux.Pool, tmp_path_factory: pytest.TempPathFactory) -> None:
    key = host.create(sr, "web")["key"]
    write(pool, key, 0, b"first")
    here = host.call("Volume.copy", sr=sr, key=key, dest_sr=sr)
    assert read(pool, here["key"]) == b"first" and here["name"] == "web"
    place = tmp_path_factory.mktemp("second")
    second = host.create_sr(f"dir://{place}")
    there = host.call("Volume.copy", sr=sr, key=key, dest_sr=second)
    assert there["uri"] == [f"volmux://{second}/{there['key']}"]
    assert host.call("SR.ls", sr=second) == [there]
    with volmux.open_pool(place) as opened:
        assert read(opened, there["key"]) == b"first"
    assert host.fails("Volume.copy", sr=sr, key=key, dest_sr=str(uuid.uuid4()))[0] == "Sr_not_attached"


def test_resize(host: Host, sr: str, pool: volmux.Pool) -> None:
    key = host.create(sr)["key"]
    for size, becomes in ((MIB, MIB), (2 * MIB + 5, 2 * MIB + 4096), (2 * MIB + 4096, 2 * MIB + 4096)):
        host.call("Volume.resize", sr=sr, key=key, new_size=size)
        assert host.call("Volume.stat", sr=sr, key=key)["virtual_size"] == becomes
    assert host.fails("Volume.resize", sr=sr, key=key, new_size=MIB)[0] == "InvalidInput"
    snapshot = host.call("Volume.snapshot", sr=sr, key=key)["key"]
    assert host.fails("Volume.resize", sr=sr, key=snapshot, new_size=4 * MIB)[0] == "InvalidInput"
    assert pool.volume(key).virtual_size == 2 * MIB + 4096


def test_volumes_that_were_made_otherwise(host: Host, sr: str, pool: volmux.Pool) -> None:
    volume = pool.create_volume("web.1", MIB)
    told = host.call("Volume.stat", sr=sr, key="web.1")
    assert (told["key"], told["name"], told["uuid"]) == ("web.1", "web.1", str(volume.id))
    host.call("Volume.set_name", sr=sr, key="web.1", new_name="known")
    assert host.call("SR.ls", sr=sr) == [{**told, "name": "known"}]
    # Another volume of this name is another volume.
    pool.delete_volume("web.1")
    second = pool.create_volume("web.1", MIB)
    told = host.call("Volume.stat", sr=sr, key="web.1")
    assert (told["name"], told["uuid"]) == ("web.1", str(second.id))


def test_data_destroy(host: Host, sr: str, pool: volmux.Pool) -> None:
    key = host.create(sr)["key"]
    plain = host.call("Volume.snapshot", sr=sr, key=key)["key"]
    assert host.fails("Volume.data_destroy", sr=sr, key=plain)[0] == "InvalidInput"
    host.call("Volume.enable_cbt", sr=sr, key=key)
    assert host.fails("Volume.data_destroy", sr=sr, key=key)[0] == "InvalidInput"
    snapshot = host.call("Volume.snapshot", sr=sr, key=key)
    assert snapshot["cbt_enabled"]
    write(pool, key, 0, b"later")
    for _ in range(2):
        host.call("Volume.data_destroy", sr=sr, key=snapshot["key"])
    told = host.call("Volume.stat", sr=sr, key=snapshot["key"])
    assert (told["volume_type"], told["uri"]) == ("CBT_Metadata", [])
    # What changed is still known; the data is not to be had.
    changed = {"sr": sr, "key": snapshot["key"], "key2": key, "offset": 0, "length": -1}
    assert host.call("Volume.list_changed_blocks", **changed)["bitmap"] == "gAA="
    for call, more in {"clone": {}, "snapshot": {}, "copy": {"dest_sr": sr}}.items():
        assert host.fails(f"Volume.{call}", sr=sr, key=snapshot["key"], **more)[0] == "DataDestroyed"
    assert host.fails("Volume.revert", sr=sr, snapshot=snapshot["key"], key=key)[0] == "DataDestroyed"
    assert host.fails("Datapath.attach", uri=snapshot["uri"][0], domain="1")[0] == "DataDestroyed"
    host.call("Volume.disable_cbt", sr=sr, key=key)
    assert not host.call("Volume.stat", sr=sr, key=key)["cbt_enabled"]


def test_compose_is_unimplemented(host: Host, sr: str) -> None:
    params = host.fails("Volume.compose", sr=sr, key="a", key2="b")
    assert params[0] == "Unimplemented" and "Volume.compare" in params[1]

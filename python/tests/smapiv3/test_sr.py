"""Storage repositories."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from smapi_host import MIB, Host, host, other, pool, sr, url  # noqa: F401

import volmux


def test_probe(host: Host, url: str) -> None:
    (empty,) = host.call("SR.probe", configuration={})
    assert not empty["complete"] and "sr" not in empty
    (free,) = host.call("SR.probe", configuration={"url": url})
    assert free["complete"] and "sr" not in free and "sr_uuid" not in free["configuration"]
    sr = host.create_sr(url)
    (found,) = host.call("SR.probe", configuration={"url": url})
    assert found["configuration"] == {"url": url, "sr_uuid": sr}
    assert (found["sr"]["uuid"], found["sr"]["name"]) == (sr, "fast")
    # What was found can be attached.
    assert host.call("SR.attach", configuration=found["configuration"]) == sr


def test_create_is_idempotent_and_takes_nothing_over(host: Host, url: str) -> None:
    sr = host.create_sr(url)
    arguments = {"configuration": {"url": url}, "name": "other", "description": ""}
    host.call("SR.create", uuid=sr, **arguments)
    assert host.call("SR.stat", sr=sr)["name"] == "fast"
    params = host.fails("SR.create", uuid=str(uuid.uuid4()), **arguments)
    assert params[0] == "AlreadyExists" and sr in params[1]
    assert host.fails("SR.create", uuid="no-uuid", **arguments)[0] == "InvalidInput"


def test_configurations(host: Host, url: str, tmp_path: Path) -> None:
    def fails(**configuration: str) -> list[str]:
        return host.fails("SR.attach", configuration=configuration)

    assert fails()[0] == "InvalidInput"
    assert fails(url="memory:")[0] == "InvalidInput"
    assert fails(url="nonsense://x")[0] == "InvalidConfig"
    assert fails(url=url, nonsense="1")[0] == "InvalidConfig"
    assert fails(url=url, datapath="magic")[0] == "InvalidInput"
    assert fails(url=url, config="/x")[0] == "InvalidInput"
    assert fails(url=url)[0] == "SR_does_not_exist"
    for secret in ("password", "secret_access_key", "key", "token", "chap_secret"):
        params = fails(url=url, **{secret: "hunter2"})
        assert "secret" in params[1] and "hunter2" not in str(params)
    file = tmp_path / "pool.json"
    file.write_text(f'{{"url": "{url}", "overcommit_limit": 4}}')
    sr = str(uuid.uuid4())
    complete = host.call("SR.create", uuid=sr, configuration={"config": str(file)}, name="", description="")
    assert complete == {"config": str(file), "sr_uuid": sr}
    assert host.call("SR.attach", configuration=complete) == sr
    options = {"url": url, "sr_uuid": sr, "overcommit_limit": "4", "SRmaster": "true"}
    assert host.call("SR.attach", configuration=options) == sr


def test_only_the_right_sr_is_attached(host: Host, url: str) -> None:
    sr = host.create_sr(url)
    wrong = {"url": url, "sr_uuid": str(uuid.uuid4())}
    params = host.fails("SR.attach", configuration=wrong)
    assert params[0] == "SR_does_not_exist" and sr in params[1]


def test_another_sr_in_the_same_place(host: Host, url: str, tmp_path: Path) -> None:
    """The file system may have gone, and another one been mounted there."""
    sr = host.create_sr(url)
    (tmp_path / "pool").rename(tmp_path / "old")
    (tmp_path / "pool").mkdir()
    host.create_sr(url)
    calls: dict[str, dict[str, Any]] = {
        "SR.stat": {},
        "SR.ls": {},
        "SR.set_name": {"new_name": "x"},
        "SR.destroy": {},
        "Volume.create": {"name": "", "description": "", "size": MIB, "sharable": False},
        "Volume.stat": {"key": "x"},
        "Volume.destroy": {"key": "x"},
    }
    for call, more in calls.items():
        assert host.fails(call, sr=sr, **more)[0] == "SR_does_not_exist", call


def test_names(host: Host, other: Host, url: str) -> None:
    sr = host.create_sr(url)
    host.call("SR.set_name", sr=sr, new_name="Fäste \U0001f4be")
    host.call("SR.set_description", sr=sr, new_description="line\nline")
    other.attach_sr(url, sr)
    told = other.call("SR.stat", sr=sr)
    assert (told["name"], told["description"]) == ("Fäste \U0001f4be", "line\nline")
    assert told["health"][0] == "Healthy" and 0 < told["free_space"] <= told["total_space"]


def test_detached(host: Host, url: str) -> None:
    sr = host.create_sr(url)
    assert host.call("Plugin.ls") == [sr]
    for _ in range(2):
        host.call("SR.detach", sr=sr)
    assert host.call("Plugin.ls") == []
    for unknown in (sr, str(uuid.uuid4()), "../../etc/passwd", ""):
        assert host.fails("SR.ls", sr=unknown) == ["Sr_not_attached", unknown]
        assert host.fails("SR.destroy", sr=unknown) == ["Sr_not_attached", unknown]
        assert host.fails("Volume.stat", sr=unknown, key="x") == ["Sr_not_attached", unknown]
        host.call("SR.detach", sr=unknown)


def test_destroy_leaves_what_it_did_not_make(host: Host, url: str, sr: str, pool: volmux.Pool) -> None:
    pool.create_volume("mine", MIB)
    mine = host.create(sr)
    host.call("Volume.snapshot", sr=sr, key=mine["key"])
    host.call("Volume.set_name", sr=sr, key="mine", new_name="is known, and still not made here")
    # Deleted and made again by somebody else: it only has the same name.
    replaced = host.create(sr)["key"]
    pool.delete_volume(replaced)
    pool.create_volume(replaced, MIB)
    pool.attach_volume(mine["key"], "somebody", access="read-only")
    assert host.fails("SR.destroy", sr=sr)[0] == "Busy"
    assert len(host.call("SR.ls", sr=sr)) == 4
    pool.detach_volume(mine["key"], "somebody")
    host.call("SR.destroy", sr=sr)
    assert [volume.name for volume in pool.volumes()] == sorted(["mine", replaced])
    assert host.fails("SR.attach", configuration={"url": url})[0] == "SR_does_not_exist"


def test_a_place_that_is_not_there(host: Host, url: str, sr: str, tmp_path: Path) -> None:
    (tmp_path / "pool").rename(tmp_path / "gone")
    assert host.fails("SR.ls", sr=sr)[0] in ("NotFound", "SR_does_not_exist", "InvalidConfig")
    assert not (tmp_path / "pool" / "volumes").exists()


def test_init_makes_a_pool_once(host: Host, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "stray").touch()
    configuration = {"url": f"dir://{tmp_path / 'new'}", "init": "true"}
    complete = host.call(
        "SR.create", uuid=str(uuid.uuid4()), configuration=configuration, name="", description=""
    )
    assert "init" not in complete
    host.call("SR.attach", configuration=complete)

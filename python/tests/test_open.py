"""Opening pools, and wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MIB

import volmux


def test_each_way_to_name_a_pool(tmp_path: Path) -> None:
    place = tmp_path / "a b%?#é"
    place.mkdir()
    with volmux.open_pool(place) as pool:
        pool.create_volume("web", MIB)
        url = str(pool)
    assert url.startswith("dir://")
    total = {"url": "memory:", "total": "1GiB"}
    for source in (total, json.dumps(total), "memory:?total=1GiB"):
        with volmux.open_pool(source) as pool:
            assert pool.usage().total == 1 << 30
    with volmux.open_pool(json.dumps({"url": "memory:"}), total=1 << 30) as pool:
        assert pool.usage().total == 1 << 30
    with volmux.open_pool({"url": place.as_uri().replace("file:", "dir:")}, warn_percent=70) as pool:
        assert pool.policy().warn_percent == 70.0
        assert [volume.name for volume in pool.list_volumes()] == ["web"]


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("floppy:", {}, "known schemes"),
        ("memory:", {"total": "x"}, "total"),
        ("memory:", {"colour": "red"}, "colour"),
        ("memory:?total=1GiB", {"total": "1GiB"}, "twice"),
        ("s3://user:secret@bucket", {}, "password"),
        ("{", {}, "JSON"),
        ('{"url": 5}', {}, "url"),
        ({}, {}, "no url"),
        ({"url": "memory:", "total": [1]}, {}, "total"),
        ("", {}, "URL"),
    ],
)
def test_wrong_configurations(source: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(volmux.InvalidConfig) as caught:
        volmux.open_pool(source, **options)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_wrong_types() -> None:
    for source in (5, None, b"memory:", ["memory:"]):
        with pytest.raises(TypeError):
            volmux.open_pool(source)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        volmux.open_pool({"url": "memory:", "total": "1GiB"}, total="1GiB")


def test_wrong_arguments(memory: volmux.Pool) -> None:
    memory.create_volume("web", MIB)
    untyped: Any = memory
    for call in (
        lambda: untyped.create_volume("a"),
        lambda: untyped.create_volume("a", 1.5),
        lambda: untyped.create_volume("a", None),
        lambda: untyped.create_volume("a", b"1MiB"),
        lambda: untyped.create_volume(5, MIB),
        lambda: untyped.volume(None),
        lambda: untyped.copy_volume_to("web", "memory:", "b"),
        lambda: untyped.snapshot_volume("web", "b", control=True),
        lambda: untyped.open_volume("web", "read-write"),
        lambda: untyped.extents("web", offset="0"),
        lambda: untyped.resize_volume("web", MIB, allow_shrink="yes"),
        lambda: volmux.Control(5),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
    for call in (
        lambda: memory.create_volume("a", 0),
        lambda: memory.create_volume("a", -1),
        lambda: memory.create_volume("a", 1 << 64),
        lambda: memory.create_volume("a", "many"),
        lambda: memory.create_volume("../a", MIB),
        lambda: memory.create_volume("", MIB),
        lambda: memory.create_volume("a", MIB, provisioning="fat"),
        lambda: memory.open_volume("web", access="rw"),
        lambda: memory.attach_volume("web", "two words"),
        lambda: memory.extents("web", offset=-1),
        lambda: memory.extents("web", offset=1, length=1 << 63),
    ):
        with pytest.raises(volmux.InvalidInput):
            call()
    assert [volume.name for volume in memory.volumes()] == ["web"]


def test_numbers_of_devices(memory: volmux.Pool) -> None:
    memory.create_volume("web", MIB)
    with memory.open_volume("web", access="read-write") as device:
        for offset, length in ((-1, 1), (0, -1), (MIB, 1), (0, MIB + 1), (1 << 63, 1 << 63), (0, 1 << 62), (1 << 64, 0)):
            with pytest.raises(volmux.InvalidInput):
                device.read_at(offset, length)
            with pytest.raises(volmux.InvalidInput):
                device.discard(offset, length)
        with pytest.raises(TypeError):
            device.read_at(0.0, 1)  # type: ignore[arg-type]
        assert device.read_at(MIB, 0) == b""


def test_what_is_closed_says_so(memory: volmux.Pool) -> None:
    memory.create_volume("web", MIB)
    device = memory.open_volume("web")
    assert not device.closed
    device.close()
    device.close()
    assert device.closed and repr(device) == "<volmux.Device closed>"
    pool = volmux.open_pool("memory:")
    with pool:
        pass
    pool.close()
    assert pool.closed and repr(pool) == "<volmux.Pool closed>"
    for call in (
        lambda: device.read_at(0, 1),
        lambda: device.size,
        lambda: device.name,
        lambda: pool.volumes(),
        lambda: pool.list_volumes(),
        lambda: pool.capabilities(),
        lambda: memory.copy_volume_to("web", pool, "web"),
    ):
        with pytest.raises(volmux.InvalidInput, match="closed"):
            call()


def test_an_open_device_outlives_its_pool() -> None:
    with volmux.open_pool("memory:") as pool:
        pool.create_volume("web", MIB)
        device = pool.open_volume("web", access="read-write")
    with device:
        device.write_at(0, b"still")
        assert device.read_at(0, 5) == b"still"


def test_sizes() -> None:
    assert volmux.parse_size("1.5KiB") == volmux.parse_size(1536) == 1536
    assert volmux.format_size(1536) == "1.50 KiB"
    for wrong in ("", "1.0001KiB", "16EiB"):
        with pytest.raises(volmux.InvalidInput):
            volmux.parse_size(wrong)
    assert {"memory", "dir", "lvm", "nfs", "iscsi", "s3"} <= set(volmux.schemes())

"""Values: they compare, hash, pickle and copy, and can't be changed."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import pickle
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import MIB

import volmux


def values() -> list[Any]:
    number = uuid.UUID(int=5)
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    origin = volmux.Origin(volmux.OriginKind.CLONE, number, "web")
    attach = volmux.AttachOptions("host", volmux.Access.READ_WRITE, volmux.Sharing.SHARED)
    thin = volmux.Provisioning.THIN
    chap = volmux.ChapReference("user", Path("/run/secret"))
    finding = volmux.Finding(volmux.FindingKind.LEFTOVER, "x", "left", None, False)
    targets: list[volmux.AttachTarget] = [
        volmux.FileTarget(Path("/a")),
        volmux.BlockDeviceTarget(Path("/dev/a")),
        volmux.Qcow2Target(Path("/a")),
        volmux.IscsiTarget("host:3260", "iqn", 1, "serial", chap, None),
        volmux.NbdTarget("tcp:[::1]:10809", "web", True),
        volmux.OtherTarget("x"),
    ]
    return [
        volmux.Volume("a", number, MIB, None, 5, None, None, thin, origin, moment, (attach,)),
        volmux.Usage(10, 5, 5, 20, volmux.MetadataUsage(10, 1), datetime.timedelta(days=1)),
        volmux.ThinPolicy(None, 80.0, 95.0),
        volmux.open_pool("memory:").capabilities(),
        volmux.ByteRange(5, 6),
        volmux.Progress(1, 2),
        volmux.AuditReport((finding,), 3),
        volmux.Collected(1, 2),
        volmux.ExportOptions("web"),
        volmux.Descriptor(volmux.Hypervisor.QEMU, "-x", ("-x",), None, None),
        *volmux.Hypervisor,
        *volmux.DiskBus,
        volmux.Limits(),
        *targets,
        *(volmux.Attachment("web", number, "host", volmux.Access.READ_ONLY, target) for target in targets),
        *volmux.Access,
        *volmux.Sharing,
        *volmux.Provisioning,
        *volmux.OriginKind,
        *volmux.Grade,
        *volmux.FindingKind,
        *volmux.Support,
        *volmux.Pressure,
        *volmux.ErrorKind,
    ]


@pytest.mark.parametrize("value", values(), ids=str)
def test_each_value(value: Any) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(value, protocol)) == value
    assert copy.deepcopy(value) == value
    assert hash(copy.copy(value)) == hash(value)
    assert type(value).__module__ == "volmux"
    if dataclasses.is_dataclass(value):
        assert repr(value).startswith(type(value).__name__ + "(")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)


def test_support_is_false_only_when_there_is_none() -> None:
    none, emulated, native = volmux.Support
    assert not none and emulated and native
    assert none < emulated < native
    assert str(native) == "native"


def test_enums_are_their_texts() -> None:
    text: str = volmux.Access.READ_WRITE
    assert text == "read-write"
    assert f"{volmux.Access.READ_WRITE}" == str(volmux.Access.READ_WRITE) == "read-write"
    assert volmux.Access("read-write") is volmux.Access.READ_WRITE


def test_ranges_are_pairs() -> None:
    offset, length = volmux.ByteRange(5, 6)
    assert (offset, length, volmux.ByteRange(5, 6).end) == (5, 6, 11)


def test_a_volume_of_a_pool_is_the_same_after_pickling(pool: volmux.Pool) -> None:
    pool.create_volume("web", MIB)
    snapshot = pool.snapshot_volume("web", "monday")
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert snapshot == pool.snapshot_volume("web", "monday")
    assert {snapshot: 1}[snapshot] == 1


def test_what_is_open_can_not_be_pickled(memory: volmux.Pool) -> None:
    for value in (memory, memory.list_volumes(), volmux.Control()):
        with pytest.raises(TypeError):
            pickle.dumps(value)

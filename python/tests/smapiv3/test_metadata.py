"""The metadata in a volume of the pool: what is torn, damaged or contended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from smapi_host import MIB, Host, url, write  # noqa: F401
from smapi_host import host as a_host  # noqa: F401

import volmux
from volmux.smapiv3 import host, metadata, recover, volume
from volmux.smapiv3.failure import Failure

FIRST = metadata.new_document("1", "one", "")
HALF = metadata.SIZE // 2


@pytest.fixture(params=["memory", "dir", "file+object"])
def pool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[volmux.Pool]:
    settings = tmp_path / "settings"
    settings.write_text('{"host": "host-a", "wait": 30}')
    monkeypatch.setenv("VOLMUX_SMAPIV3_SETTINGS", str(settings))
    monkeypatch.setattr(host, "_once", {})
    (tmp_path / "pool").mkdir()
    place = {"memory": "memory:"}.get(request.param, f"{request.param}://{tmp_path / 'pool'}")
    with volmux.open_pool(place) as opened:
        yield opened


def rename(pool: volmux.Pool, name: str) -> None:
    with metadata.change(pool) as document:
        document["sr"]["name"] = name


def name(pool: volmux.Pool) -> str:
    return str(metadata.read(pool)["sr"]["name"])


def poke(pool: volmux.Pool, offset: int, data: bytes) -> None:
    with pool.open_volume(metadata.VOLUME, access="read-write") as device:
        device.write_at(offset, data)


def peek(pool: volmux.Pool, offset: int, length: int) -> bytes:
    with pool.open_volume(metadata.VOLUME) as device:
        return device.read_at(offset, length)


def test_none(pool: volmux.Pool) -> None:
    with pytest.raises(Failure, match="SR_does_not_exist"):
        metadata.read(pool)
    with pytest.raises(Failure, match="SR_does_not_exist"):
        rename(pool, "x")
    # Creation was interrupted after its first step.
    pool.create_volume(metadata.VOLUME, metadata.SIZE)
    with pytest.raises(Failure, match="SR_does_not_exist"):
        metadata.read(pool)
    assert metadata.create(pool, FIRST) == FIRST == metadata.read(pool)
    assert metadata.create(pool, metadata.new_document("2", "", "")) == FIRST


def test_an_error_changes_nothing(pool: volmux.Pool) -> None:
    metadata.create(pool, FIRST)
    with pytest.raises(ZeroDivisionError), metadata.change(pool) as document:
        document["sr"]["name"] = "half"
        raise ZeroDivisionError
    assert name(pool) == "one"
    rename(pool, "two")


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_torn_writes(pool: volmux.Pool, writes: int) -> None:
    """Of a write that was interrupted, any part may be there: the document before it counts, or the new one."""
    metadata.create(pool, FIRST)
    for number in range(writes):
        rename(pool, f"n{number}")
    old = name(pool)
    slot = 0 if peek(pool, 0, 16) < peek(pool, HALF, 16) else HALF
    before = peek(pool, slot, 8192)
    rename(pool, "new" * 100)
    after = peek(pool, slot, 8192)
    assert before != after
    for cut in (0, 1, 8, 12, 16, 24, 56, 512, 4096, 4097, 4200, 8192):
        for torn in (after[:cut] + before[cut:], before[:cut] + after[cut:]):
            poke(pool, slot, torn)
            wanted = "new" * 100 if torn == after else old
            if torn not in (before, after) and name(pool) == "new" * 100:
                # All that differs may lie on one side of the cut.
                wanted = "new" * 100
            assert name(pool) == wanted
    poke(pool, slot, after[:4096] + b"\xff" * 4096)
    rename(pool, "goes on")
    assert name(pool) == "goes on"


def test_one_slot_is_damaged(pool: volmux.Pool) -> None:
    metadata.create(pool, FIRST)
    rename(pool, "two")
    rename(pool, "three")
    newest = 0 if peek(pool, 0, 16) > peek(pool, HALF, 16) else HALF
    poke(pool, newest + 4096, b"damage")
    assert name(pool) == "two"
    rename(pool, "four")
    assert name(pool) == "four"


def test_both_slots_are_damaged(pool: volmux.Pool) -> None:
    metadata.create(pool, FIRST)
    rename(pool, "two")
    pool.create_volume("disk", MIB)
    for slot in (0, HALF):
        poke(pool, slot + 4100, b"damage")
    with pytest.raises(metadata.Damaged, match="recover"):
        metadata.read(pool)
    with pytest.raises(metadata.Damaged):
        rename(pool, "x")
    # A creation must not take the place of what may still be read by somebody.
    with pytest.raises(metadata.Damaged):
        metadata.create(pool, FIRST)
    kept = recover.recover(pool, "1", "again")
    assert kept is not None and kept in [found.name for found in pool.volumes()]
    assert name(pool) == "again" and pool.volume("disk").virtual_size == MIB
    assert recover.recover(pool, "1", "not again") is None and name(pool) == "again"


def test_a_newer_format(pool: volmux.Pool) -> None:
    metadata.create(pool, {**FIRST, "format": 2})
    with pytest.raises(Failure, match="newer volmux"):
        metadata.read(pool)
    with pytest.raises(Failure, match="newer volmux"):
        rename(pool, "x")


def test_full(pool: volmux.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "SIZE", 64 << 10)
    metadata.create(pool, FIRST)
    with pytest.raises(Failure, match="NoSpace"):
        rename(pool, "x" * 40_000)
    assert name(pool) == "one"


def test_many_at_once(pool: volmux.Pool) -> None:
    metadata.create(pool, FIRST)

    def work(number: int) -> None:
        for step in range(3):
            with metadata.change(pool) as document:
                document["volumes"][f"{number}-{step}"] = metadata.new_entry("", "", "")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metadata.read(pool)
    assert len(metadata.read(pool)["volumes"]) == 12


def test_leftovers_of_dead_calls(pool: volmux.Pool) -> None:
    """Only those of this host, and only of processes that are gone."""
    metadata.create(pool, FIRST)
    me = host.myself()
    makers = {
        "mine-alive": me,
        "mine-dead": {**me, "pid": 1, "start": "0"},
        "mine-before-a-restart": {**me, "boot": "x"},
        "theirs": {**me, "host": "host-b", "boot": "x"},
    }
    for key in makers:
        pool.create_volume(key, MIB)
    with metadata.change(pool) as document:
        for key, maker in makers.items():
            document["volumes"][key] = {**metadata.new_entry(key, "", ""), "maker": maker}
    rename(pool, "any change")
    left = {"mine-alive", "theirs"}
    assert set(metadata.read(pool)["volumes"]) == left
    assert {found.name for found in pool.volumes()} == left | {metadata.VOLUME}
    assert not any(volume.shown(metadata.read(pool), key) for key in left)
    assert recover.unfinished(pool, None) == sorted(left)
    recover.unfinished(pool, "host-b")
    assert set(metadata.read(pool)["volumes"]) == {"mine-alive"}


def test_volumes_without_metadata(a_host: Host, url: str) -> None:  # noqa: F811
    """Damage of the metadata takes no volume: all are listed and can be used."""
    sr = a_host.create_sr(url)
    key = a_host.create(sr, "web")["key"]
    a_host.create(sr, "db")
    with volmux.open_pool(url) as opened:
        write(opened, key, 0, b"data")
        for slot in (0, HALF):
            poke(opened, slot, b"damage")
        assert sorted(one["name"] for one in a_host.call("SR.ls", sr=sr)) == sorted(
            one["key"] for one in a_host.call("SR.ls", sr=sr)
        )
        stat = a_host.call("SR.stat", sr=sr)
        assert stat["health"][0] == "Recovering" and stat["uuid"] == sr
        uri = a_host.call("Volume.stat", sr=sr, key=key)["uri"][0]
        a_host.call("Datapath.attach", uri=uri, domain="1")
        a_host.call("Datapath.activate", uri=uri, domain="1")
        a_host.call("Datapath.detach", uri=uri, domain="1")
        # What would be lost again is refused.
        for call, more in {"set_name": {"new_name": "x"}, "snapshot": {}, "destroy": {}}.items():
            assert a_host.fails(f"Volume.{call}", sr=sr, key=key, **more)[0] == "Corrupt"
        a_host.command("recover", url, "--uuid", sr, "--name", "again")
        assert a_host.call("SR.stat", sr=sr)["health"][0] == "Healthy"
        assert len(a_host.call("SR.ls", sr=sr)) == 2
        with opened.open_volume(key) as device:
            assert device.read_at(0, 4) == b"data"

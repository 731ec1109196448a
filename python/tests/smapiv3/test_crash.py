"""Calls that are killed at any moment, and hosts that call at once."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import killed_at
import pytest
from killed_at import POINTS
from smapi_host import MIB, Host, host, other, pool, sr, url, write  # noqa: F401

import volmux
from volmux.smapiv3 import metadata


def settled(host: Host, sr: str, pool: volmux.Pool) -> set[str]:
    """Holds the SR against the pool, after a call of the host that changes something: nothing is hidden, and nothing
    is left."""
    host.call("SR.set_name", sr=sr, new_name=str(random.random()))
    document = metadata.read(pool)
    shown = {one["key"] for one in host.call("SR.ls", sr=sr)}
    there = {volume.name for volume in pool.volumes()} - {metadata.VOLUME}
    assert shown == there
    assert not any(entry["maker"] for entry in document["volumes"].values())
    assert set(document["volumes"]) == there
    return shown


def arguments_of(call: str, sr: str, source: str) -> dict[str, Any]:
    more: dict[str, dict[str, Any]] = {
        "create": {"name": "new", "description": "", "size": MIB, "sharable": False},
        "copy": {"key": source, "dest_sr": sr},
    }
    return {"sr": sr, **more.get(call, {"key": source})}


@pytest.mark.parametrize("call", ["create", "snapshot", "clone", "copy"])
def test_killed_at_each_point(host: Host, sr: str, pool: volmux.Pool, call: str) -> None:
    source = host.create(sr, "source")["key"]
    write(pool, source, 0, b"x" * 4096)
    arguments = arguments_of(call, sr, source)
    known = {source}
    for point in POINTS:
        helper = str(Path(killed_at.__file__))
        process = host.launch([sys.executable, helper, point, f"Volume.{call}"], **arguments)
        answer, _ = process.communicate()
        assert (process.returncode, answer) == (-signal.SIGKILL, ""), point
        making = [key for key, entry in metadata.read(pool)["volumes"].items() if entry["maker"]]
        assert len(making) == (point in ("note", "work", "torn-entry")), point
        # Nobody sees what is not done.
        there = {volume.name for volume in pool.volumes()} - {metadata.VOLUME}
        assert {one["key"] for one in host.call("SR.ls", sr=sr)} == there - set(making)
        assert len(there - known) == (point in ("work", "torn-entry", "entry")), point
        for key in making:
            assert host.fails("Volume.stat", sr=sr, key=key)[0] == "Volume_does_not_exist"
        found = settled(host, sr, pool)
        assert found - known == (set() if point != "entry" else there - known)
        known = found
    assert host.call(f"Volume.{call}", **arguments)["key"] in settled(host, sr, pool)
    assert pool.audit(repair=True).is_clean
    with pool.open_volume(source) as device:
        assert device.read_at(0, 4096) == b"x" * 4096


def test_killed_at_any_moment(host: Host, sr: str, pool: volmux.Pool) -> None:
    source = host.create(sr, "source")["key"]
    known, chance, usual = {source}, random.Random(1), time.monotonic()
    known.add(host.call("Volume.snapshot", sr=sr, key=source)["key"])
    usual = time.monotonic() - usual
    for number in range(12):
        call = ("snapshot", "create")[number % 2]
        process = host.start(f"Volume.{call}", **arguments_of(call, sr, source))
        time.sleep(chance.uniform(0.5, 1.0) * usual)
        process.kill()
        answer, _ = process.communicate()
        if process.returncode == 0:
            known.add(json.loads(answer)["key"])
        found = settled(host, sr, pool)
        # What was acknowledged is there. Of the others, one at most: it was done, and could not say so.
        assert known <= found and len(found - known) <= 1
        known = found


def test_killed_while_it_destroys(host: Host, sr: str, pool: volmux.Pool) -> None:
    chance = random.Random(1)
    for _ in range(6):
        key = host.create(sr)["key"]
        process = host.start("Volume.destroy", sr=sr, key=key)
        time.sleep(chance.uniform(0.05, 0.4))
        process.kill()
        process.communicate()
        host.call("Volume.destroy", sr=sr, key=key)
        assert settled(host, sr, pool) == set()


def test_a_call_that_is_stopped_halfway_holds_nobody_up_for_ever(host: Host, other: Host, url: str, sr: str) -> None:
    """A stopped process keeps its lock; the others wait, and go on once it is gone."""
    other.attach_sr(url, sr)
    held = volmux.open_pool(url).open_volume(metadata.VOLUME, access="read-write")
    waiting = other.start("SR.set_name", sr=sr, new_name="late")
    time.sleep(0.5)
    assert waiting.poll() is None
    # Reading waits for nobody.
    assert host.call("SR.stat", sr=sr)["name"] == "fast"
    held.close()
    answer, _ = waiting.communicate()
    assert (waiting.returncode, answer.strip()) == (0, "null")
    assert host.call("SR.stat", sr=sr)["name"] == "late"


def test_two_hosts_make_volumes_at_once(host: Host, other: Host, url: str, sr: str, pool: volmux.Pool) -> None:
    other.attach_sr(url, sr)
    source = host.create(sr, "source")["key"]
    running = []
    for number in range(8):
        caller = (host, other)[number % 2]
        arguments = {"sr": sr, "name": f"disk {number}", "description": "", "size": MIB, "sharable": False}
        running.append(caller.start("Volume.create", **arguments))
        running.append(caller.start("Volume.set", sr=sr, key=source, k=f"k{number}", v="v"))
    answers = [(process.communicate(), process.returncode)[0][0] for process in running]
    assert all(process.returncode == 0 for process in running), answers
    made = [json.loads(answer) for answer in answers[::2]]
    listed = host.call("SR.ls", sr=sr)
    assert {one["key"] for one in made} | {source} == {one["key"] for one in listed}
    assert sorted(one["name"] for one in made) == [f"disk {number}" for number in range(8)]
    assert len(host.call("Volume.stat", sr=sr, key=source)["keys"]) == 8
    assert len(settled(other, sr, pool)) == 9


def test_a_dead_host_and_a_live_one(host: Host, other: Host, url: str, sr: str, pool: volmux.Pool) -> None:
    """What a host left behind is removed by itself, or by an administrator; other hosts let it be."""
    other.attach_sr(url, sr)
    helper = [sys.executable, str(Path(killed_at.__file__)), "work", "Volume.create"]
    other.launch(helper, **arguments_of("create", sr, "")).communicate()
    (left,) = [key for key, entry in metadata.read(pool)["volumes"].items() if entry["maker"]]
    host.call("SR.set_name", sr=sr, new_name="other hosts let it be")
    assert pool.volume(left) and host.call("SR.ls", sr=sr) == []
    assert host.command("unfinished", url).split() == [left]
    assert host.command("unfinished", url, "--remove-of", "host-b").split() == [left]
    assert host.command("unfinished", url) == ""
    assert settled(host, sr, pool) == set()

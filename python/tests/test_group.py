"""Snapshots of several volumes, between a freeze and a thaw."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from conftest import MIB, read, write

import volmux

Members = list[tuple[volmux.Pool, str, str]]


class Writer:
    """What writes, until it is told not to."""

    def __init__(self, pool: volmux.Pool) -> None:
        self.pool = pool
        self.calls: list[str] = []
        self.late = False
        self.raises: Exception | None = None
        self.thaws_that_raise = 0

    def freeze(self) -> None:
        self.calls.append("freeze")
        while self.late and "thaw" not in self.calls:
            time.sleep(0.001)
        # Calls that wait may be made here.
        for name in ["root", "data"]:
            write(self.pool, name, 0, b"frozen")
        if self.raises:
            raise self.raises
        self.calls.append("frozen")

    def thaw(self) -> None:
        self.calls.append("thaw")
        if self.thaws_that_raise > 0:
            self.thaws_that_raise -= 1
            raise RuntimeError("no answer")


@pytest.fixture
def writer(pool: volmux.Pool) -> Writer:
    for name in ["root", "data"]:
        pool.create_volume(name, MIB)
    return Writer(pool)


def names(pool: volmux.Pool) -> list[str]:
    return [volume.name for volume in pool.volumes()]


def members(pool: volmux.Pool) -> Members:
    return [(pool, "root", "root-1"), (pool, "data", "data-1")]


def test_a_group_is_of_one_moment(pool: volmux.Pool, writer: Writer) -> None:
    taken = volmux.snapshot_group(members(pool), freeze=writer.freeze, thaw=writer.thaw)
    assert [volume.name for volume in taken] == ["root-1", "data-1"]
    assert all(volume.origin is not None for volume in taken)
    assert writer.calls == ["freeze", "frozen", "thaw"]
    assert read(pool, "data-1", 0, 6) == b"frozen"


def test_what_is_wrong_before_freezes_nothing(pool: volmux.Pool, writer: Writer) -> None:
    def take(group: Members, error: type[volmux.Error]) -> None:
        with pytest.raises(error):
            volmux.snapshot_group(group, freeze=writer.freeze, thaw=writer.thaw)

    take([], volmux.InvalidInput)
    take([(pool, "root", "a"), (pool, "data", "a")], volmux.InvalidInput)
    take([(pool, "root", "../a")], volmux.InvalidInput)
    take([(pool, "root", "a"), (pool, "none", "b")], volmux.NotFound)
    take([(pool, "root", "data")], volmux.AlreadyExists)
    for deadline in [0.0, -1.0, float("nan"), float("inf")]:
        with pytest.raises(volmux.InvalidInput):
            volmux.snapshot_group(members(pool), freeze=writer.freeze, thaw=writer.thaw, deadline=deadline)
    closed = volmux.open_pool("memory:")
    closed.close()
    take([(closed, "root", "a")], volmux.InvalidInput)
    control = volmux.Control()
    control.cancel()
    with pytest.raises(volmux.TimedOut):
        volmux.snapshot_group(members(pool), freeze=writer.freeze, thaw=writer.thaw, control=control)
    with pytest.raises(TypeError):
        volmux.snapshot_group(members(pool), freeze=None, thaw=writer.thaw)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        volmux.snapshot_group(pool, freeze=writer.freeze, thaw=writer.thaw)  # type: ignore[arg-type]
    assert writer.calls == []
    assert sorted(names(pool)) == ["data", "root"]


def test_what_freeze_raises_is_the_cause(pool: volmux.Pool, writer: Writer) -> None:
    writer.raises = OSError("no agent")
    with pytest.raises(volmux.Unavailable, match="no agent") as raised:
        volmux.snapshot_group(members(pool), freeze=writer.freeze, thaw=writer.thaw)
    assert raised.value.__cause__ is writer.raises
    assert writer.calls == ["freeze", "thaw"]
    assert sorted(names(pool)) == ["data", "root"]


def test_a_thaw_is_tried_again(pool: volmux.Pool, writer: Writer) -> None:
    writer.thaws_that_raise = 1
    assert len(volmux.snapshot_group(members(pool), freeze=writer.freeze, thaw=writer.thaw)) == 2
    assert writer.calls == ["freeze", "frozen", "thaw", "thaw"]


def test_what_stays_frozen_is_told_of(pool: volmux.Pool, writer: Writer) -> None:
    writer.thaws_that_raise = 9
    with pytest.raises(volmux.Unavailable) as raised:
        volmux.snapshot_group(members(pool), freeze=writer.freeze, thaw=writer.thaw)
    assert raised.value.get("state") == "perhaps still frozen"
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert sorted(names(pool)) == ["data", "root"]


def test_a_late_freeze_is_thawed_twice(pool: volmux.Pool, writer: Writer) -> None:
    writer.late = True
    with pytest.raises(volmux.TimedOut):
        volmux.snapshot_group(members(pool), freeze=writer.freeze, thaw=writer.thaw, deadline=1)
    assert writer.calls == ["freeze", "thaw", "frozen", "thaw"]
    assert sorted(names(pool)) == ["data", "root"]


def cancelled_by(writer: Writer, control: volmux.Control) -> Callable[[], None]:
    def freeze() -> None:
        control.cancel()
        writer.late = True
        writer.freeze()

    return freeze


def test_who_cancels_has_it_thawed(pool: volmux.Pool, writer: Writer) -> None:
    control = volmux.Control()
    with pytest.raises(volmux.TimedOut):
        volmux.snapshot_group(
            members(pool), freeze=cancelled_by(writer, control), thaw=writer.thaw, deadline=60, control=control
        )
    assert writer.calls == ["freeze", "thaw", "frozen", "thaw"]
    assert sorted(names(pool)) == ["data", "root"]


def test_a_group_is_awaited(pool: volmux.Pool, writer: Writer) -> None:
    async def take() -> list[volmux.Volume]:
        here = threading.get_ident()

        async def freeze() -> None:
            assert threading.get_ident() == here
            await asyncio.sleep(0)
            writer.calls.append("freeze")

        return await volmux.snapshot_group_async(members(pool), freeze=freeze, thaw=writer.thaw)

    assert [volume.name for volume in asyncio.run(take())] == ["root-1", "data-1"]
    assert writer.calls == ["freeze", "thaw"]


def test_a_coroutine_that_raises_is_the_cause(pool: volmux.Pool, writer: Writer) -> None:
    async def freeze() -> None:
        raise OSError("no agent")

    async def take() -> None:
        await volmux.snapshot_group_async(members(pool), freeze=freeze, thaw=writer.thaw)

    with pytest.raises(volmux.Unavailable) as raised:
        asyncio.run(take())
    assert isinstance(raised.value.__cause__, OSError)
    assert writer.calls == ["thaw"]


def test_a_task_that_is_cancelled_leaves_nothing_frozen(pool: volmux.Pool, writer: Writer) -> None:
    async def take() -> None:
        begun = asyncio.Event()

        async def freeze() -> None:
            writer.calls.append("freeze")
            begun.set()
            while "thaw" not in writer.calls:
                await asyncio.sleep(0.001)
            writer.calls.append("frozen")

        task = asyncio.ensure_future(
            volmux.snapshot_group_async(members(pool), freeze=freeze, thaw=writer.thaw, deadline=60)
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(take())
    assert writer.calls == ["freeze", "thaw", "frozen", "thaw"]
    assert sorted(names(pool)) == ["data", "root"]

"""Asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from conftest import BLOCK, MIB

import volmux

MANY = 1000


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in an event loop in debug mode."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named), debug=True)

    return run


@in_loop
async def test_the_life_of_a_volume(pool: volmux.Pool) -> None:
    web = await pool.create_volume_async("web", "16MiB")
    assert (await pool.create_volume_async("web", "16MiB")).id == web.id
    async with await pool.open_volume_async("web", access="read-write") as device:
        await device.write_at_async(0, b"A" * BLOCK)
        await device.flush_async()
        assert await device.read_at_async(0, BLOCK) == b"A" * BLOCK
        assert bytes(await device.read_view_async(0, 2)) == b"AA"
        buffer = bytearray(BLOCK)
        assert await device.read_into_async(0, buffer) == BLOCK
        assert buffer == b"A" * BLOCK
        await device.discard_async(0, BLOCK)
        await device.write_zeroes_async(0, BLOCK)
        assert await device.refresh_async() == 16 * MIB
        await device.write_at_async(MIB, b"B" * BLOCK)
        assert [extent async for extent in await device.extents_async()]
    assert device.closed
    await pool.snapshot_volume_async("web", "monday")
    await pool.clone_volume_async("monday", "test")
    await pool.copy_volume_async("test", "spare")
    await pool.flatten_volume_async("test")
    await pool.revert_volume_async("web", "monday")
    await pool.resize_volume_async("web", "32MiB")
    await pool.rename_volume_async("web", "www")
    assert [extent async for extent in await pool.extents_async("www", since="monday")] == []
    assert (await pool.audit_async()).is_clean
    assert (await pool.usage_async()).used > 0
    await pool.collect_garbage_async()
    names = {volume.name async for volume in pool.list_volumes()}
    assert names == {volume.name for volume in await pool.volumes_async()} == {"www", "monday", "test", "spare"}
    for name in names:
        await pool.delete_volume_async(name)
    assert await pool.find_volume_async("www") is None
    with pytest.raises(volmux.NotFound):
        await pool.volume_async("www")


@in_loop
async def test_pools_are_async_contexts(tmp_path: Path) -> None:
    async with await volmux.open_pool_async(tmp_path) as pool:
        await pool.create_volume_async("web", MIB)
    assert pool.closed
    with pytest.raises(volmux.InvalidInput):
        pool.volume_async("web")
    with pytest.raises(volmux.InvalidConfig):
        await volmux.open_pool_async("floppy:")


@in_loop
async def test_a_thousand_at_once(pool: volmux.Pool) -> None:
    await pool.create_volume_async("web", MANY * 4096)
    async with await pool.open_volume_async("web", access="read-write") as device:

        async def one(number: int) -> bytes:
            content = number.to_bytes(4, "big") * 1024
            await device.write_at_async(number * 4096, content)
            return await device.read_at_async(number * 4096, 4096)

        read = await asyncio.gather(*map(one, range(MANY)))
    assert [int.from_bytes(content[:4], "big") for content in read] == list(range(MANY))


@in_loop
async def test_a_thousand_volumes_at_once(memory: volmux.Pool) -> None:
    made = await asyncio.gather(*(memory.create_volume_async(f"v{n}", MIB) for n in range(MANY)))
    assert len({volume.id for volume in made}) == MANY
    found = await asyncio.gather(
        *(memory.volume_async(f"v{n}") for n in range(MANY + 100)), return_exceptions=True
    )
    assert sum(isinstance(one, volmux.NotFound) for one in found) == 100
    assert len([volume async for volume in memory.list_volumes()]) == MANY


@in_loop
async def test_the_loop_goes_on_meanwhile(memory: volmux.Pool) -> None:
    memory.create_volume("web", 64 * MIB)
    with memory.open_volume("web", access="read-write") as device:
        device.write_at(0, b"x" * (64 * MIB))
    target = volmux.open_pool("memory:")
    control = volmux.Control(lambda progress: time.sleep(0.005))
    copying = memory.copy_volume_to_async("web", target, "copy", control=control)
    ticks = 0
    while not copying.done():
        await asyncio.sleep(0.002)
        ticks += 1
    assert (await copying).name == "copy"
    assert ticks > 5


def slow_copy(memory: volmux.Pool, target: volmux.Pool) -> tuple[Awaitable[Any], volmux.Control, list[int]]:
    """A copy that would take many seconds, and how often it reported."""
    memory.create_volume("web", 64 * MIB)
    with memory.open_volume("web", access="read-write") as device:
        device.write_at(0, b"x" * (64 * MIB))
    reports: list[int] = []

    def report(progress: volmux.Progress) -> None:
        reports.append(progress.done)
        time.sleep(0.1)

    control = volmux.Control(report)
    return memory.copy_volume_to_async("web", target, "copy", control=control), control, reports


@in_loop
async def test_cancelling_a_task_stops_the_work(memory: volmux.Pool) -> None:
    target = volmux.open_pool("memory:")
    copying, control, reports = slow_copy(memory, target)

    async def wait() -> None:
        await copying

    task = asyncio.create_task(wait())
    while not reports:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # It is over by the time that one knows of it: what it had made is gone, and nothing goes on.
    assert await target.find_volume_async("copy") is None
    done = len(reports)
    await asyncio.sleep(0.3)
    assert len(reports) == done < 60
    assert not control.cancelled, "the caller's control is the caller's"


@in_loop
async def test_a_time_limit(memory: volmux.Pool) -> None:
    target = volmux.open_pool("memory:")
    copying, _, _ = slow_copy(memory, target)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(copying, 0.3)
    assert await target.find_volume_async("copy") is None


@in_loop
async def test_a_control_stops_the_work(memory: volmux.Pool) -> None:
    target = volmux.open_pool("memory:")
    copying, control, reports = slow_copy(memory, target)
    while not reports:
        await asyncio.sleep(0.01)
    control.cancel()
    with pytest.raises(volmux.TimedOut):
        await copying
    assert await target.find_volume_async("copy") is None


@in_loop
async def test_what_a_callback_raises_is_raised(memory: volmux.Pool) -> None:
    memory.create_volume("web", 16 * MIB)
    with memory.open_volume("web", access="read-write") as device:
        device.write_at(0, b"x" * (16 * MIB))

    def refuse(progress: volmux.Progress) -> None:
        if progress.done:
            raise LookupError(progress.total)

    target = volmux.open_pool("memory:")
    with pytest.raises(LookupError, match=str(16 * MIB)):
        await memory.copy_volume_to_async("web", target, "copy", control=volmux.Control(refuse))
    assert target.volumes() == []


@in_loop
async def test_errors_in_a_block_come_before_those_of_closing(memory: volmux.Pool) -> None:
    memory.create_volume("web", MIB)
    with pytest.raises(LookupError):
        async with await memory.open_volume_async("web", access="read-write"):
            other = await memory.open_volume_async("web", access="read-write", take_over=True)
            raise LookupError
    with pytest.raises(volmux.Fenced):
        async with other:
            (await memory.open_volume_async("web", access="read-write", take_over=True)).close()


@in_loop
async def test_waiting_within_a_loop_works_too(memory: volmux.Pool) -> None:
    memory.create_volume("web", MIB)
    assert memory.volume("web").name == "web"


def test_without_a_loop(memory: volmux.Pool) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        memory.volume_async("web")


def test_a_loop_that_ends_first(memory: volmux.Pool) -> None:
    async def leave() -> None:
        memory.volumes_async()

    for _ in range(50):
        asyncio.run(leave())
    memory.create_volume("web", MIB)
    assert [volume.name for volume in memory.list_volumes()] == ["web"]

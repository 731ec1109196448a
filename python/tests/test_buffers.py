"""Memory of Python's, and memory of volmux's."""

from __future__ import annotations

import array
import asyncio
import gc
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import MIB

import volmux


@pytest.fixture
def device(pool: volmux.Pool) -> Iterator[volmux.Device]:
    pool.create_volume("web", 256 * MIB)
    with pool.open_volume("web", access="read-write") as opened:
        yield opened


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 8192,
        bytearray(b"x" * 8192),
        memoryview(b"x" * 8192),
        memoryview(b"yy" + b"x" * 8192 + b"yy")[2:-2],
        memoryview(b"x" * 8192).cast("B", (2, 4096)),
        array.array("B", b"x" * 8192),
        array.array("Q", b"x" * 8192),
        b"",
    ],
    ids=["bytes", "bytearray", "memoryview", "slice", "two-dimensional", "array", "wide-array", "nothing"],
)
def test_whatever_is_contiguous_is_written(device: volmux.Device, data: Any) -> None:
    device.write_at(4096, data)
    length = memoryview(data).nbytes
    assert device.read_at(4096, length) == b"x" * length
    assert device.read_at(4096 + length, 4096) == bytes(4096)


@pytest.mark.parametrize("length", [0, 1, 4096, MIB, 5 * MIB + 1])
def test_each_way_to_read(device: volmux.Device, length: int) -> None:
    content = bytes(range(256)) * (length // 256 + 1)
    content = content[:length]
    device.write_at(4096, content)
    assert device.read_at(4096, length) == content
    view = device.read_view(4096, length)
    assert view.readonly and view.nbytes == length and view == content
    buffer = bytearray(length)
    assert device.read_into(4096, buffer) == length
    assert buffer == content


def test_reading_into_all_sorts(device: volmux.Device) -> None:
    device.write_at(0, bytes(range(256)) * 32)
    whole = bytearray(8192)
    assert device.read_into(0, memoryview(whole)[4096:]) == 4096
    assert whole == bytes(4096) + bytes(range(256)) * 16
    numbers = array.array("Q", bytes(4096))
    assert device.read_into(0, numbers) == 4096
    assert numbers.tobytes() == bytes(range(256)) * 16
    with mmap.mmap(-1, 8192) as mapped:
        assert device.read_into(0, mapped) == 8192
        assert mapped[:] == bytes(range(256)) * 32
        device.write_at(8192, mapped)
    assert device.read_at(8192, 8192) == bytes(range(256)) * 32


def test_what_does_not_fit_is_refused(device: volmux.Device) -> None:
    device.write_at(0, b"x" * 4096)
    for wrong in (bytearray(4096), array.array("B", bytes(4096))):
        with pytest.raises(BufferError):
            device.read_into(0, memoryview(wrong)[::2])
        with pytest.raises(BufferError):
            device.write_at(0, memoryview(wrong)[::2])
        with pytest.raises(BufferError):
            device.read_into(0, memoryview(wrong).toreadonly())
        assert not any(wrong)
    with pytest.raises(BufferError):
        device.read_into(0, b"x" * 4096)
    for other in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError):
            device.write_at(0, other)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            device.read_into(0, other)  # type: ignore[arg-type]
    with pytest.raises(volmux.InvalidInput):
        device.read_into(256 * MIB - 1, bytearray(2))
    assert device.read_at(0, 4096) == b"x" * 4096


def test_a_view_outlives_everything(pool: volmux.Pool) -> None:
    pool.create_volume("web", MIB)
    with pool.open_volume("web", access="read-write") as device:
        device.write_at(0, b"x" * MIB)
        views = [device.read_view(0, MIB) for _ in range(100)]
        part = views[0][4096:8192]
    pool.close()
    del device, pool, views
    gc.collect()
    assert part == b"x" * 4096
    with pytest.raises(TypeError):
        part[0] = 1


def test_what_is_lent_can_not_be_resized(device: volmux.Device) -> None:
    device.write_at(0, b"x" * (64 * MIB))

    async def read() -> bytearray:
        buffer = bytearray(64 * MIB)
        reading = device.read_into_async(0, buffer)
        with pytest.raises(BufferError):
            buffer.append(0)
        assert await reading == 64 * MIB
        buffer.append(0)
        return buffer

    assert asyncio.run(read()) == b"x" * (64 * MIB) + b"\0"


def test_what_is_lent_comes_back_after_errors(device: volmux.Device) -> None:
    buffer = bytearray(4096)
    for _ in range(100):
        with pytest.raises(volmux.InvalidInput):
            device.read_into(256 * MIB, buffer)
        buffer.append(0)


def test_what_is_written_is_taken_at_once(device: volmux.Device) -> None:
    async def write() -> None:
        data = bytearray(b"A" * MIB)
        writing = device.write_at_async(0, data)
        data[:] = b"B" * MIB
        data.clear()
        await writing

    asyncio.run(write())
    assert device.read_at(0, MIB) == b"A" * MIB


def test_the_interpreter_is_free_meanwhile(device: volmux.Device) -> None:
    """Reads of two threads at once, into memory of their own."""
    import threading

    device.write_at(0, b"x" * (8 * MIB))
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            buffer = bytearray(MIB)
            for turn in range(50):
                device.read_into((seed + turn) % 8 * MIB, buffer)
                assert buffer == b"x" * MIB
                assert device.read_view(0, MIB) == buffer
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_memory_is_given_back(memory: volmux.Pool) -> None:
    import resource

    memory.create_volume("web", MIB)
    with memory.open_volume("web", access="read-write") as device:
        data = b"x" * MIB
        buffer = bytearray(MIB)

        def turn() -> None:
            device.write_at(0, data)
            device.read_at(0, MIB)
            device.read_view(0, MIB)
            device.read_into(0, buffer)

        for _ in range(20):
            turn()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(300):
            turn()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # A leak of each would be 1.2 GB.
    assert after - before < 100 << 10

"""Threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import MIB

import volmux


def test_threads(pool: volmux.Pool) -> None:
    def life(number: int) -> None:
        name, snapshot = f"web-{number}", f"monday-{number}"
        pool.create_volume(name, MIB)
        with pool.open_volume(name, access="read-write") as device:
            device.write_at(0, name.encode())
        pool.snapshot_volume(name, snapshot)
        pool.delete_volume(name)
        with pool.open_volume(snapshot) as device:
            assert device.read_at(0, len(name)) == name.encode()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(life, range(64)))
    assert len(pool.volumes()) == 64


def test_one_iterator_and_many_threads(memory: volmux.Pool) -> None:
    for number in range(500):
        memory.create_volume(f"v{number}", MIB)
    volumes, seen, lock = memory.list_volumes(), [], threading.Lock()

    def take() -> None:
        while True:
            try:
                volume = next(volumes, None)
            except volmux.InvalidInput:
                continue  # another thread is about to fetch
            if volume is None:
                return
            with lock:
                seen.append(volume.name)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == len(set(seen)) == 500


def in_fork(work: Callable[[], object]) -> str:
    """What ``work`` returns in a forked child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads, which is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            told = str(work())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return told


def test_a_child_can_not_use_what_its_parent_has_open(pool: volmux.Pool) -> None:
    pool.create_volume("web", MIB)
    with pool.open_volume("web", access="read-write") as device:
        device.write_at(0, b"parent")
        works: tuple[Callable[[], object], ...] = (
            lambda: pool.volume("web"),
            lambda: device.read_at(0, 6),
            lambda: device.write_at(0, b"child "),
            device.close,
            lambda: list(pool.list_volumes()),
            pool.close,
        )
        for work in works:
            told = in_fork(work)
            assert told.startswith("InvalidInput: ") and "forked" in told, told
        assert device.read_at(0, 6) == b"parent"
    assert pool.volume("web").name == "web"


def test_a_child_opens_its_own(pool: volmux.Pool, tmp_path: Path) -> None:
    pool.create_volume("web", MIB)
    volumes = pool.list_volumes()
    next(volumes)

    def work() -> str:
        nonlocal volumes, pool
        del volumes
        with volmux.open_pool(tmp_path, init=True) as own:
            own.create_volume("child", MIB)
            with own.open_volume("child", access="read-write") as device:
                device.write_at(0, b"child")
                return device.read_at(0, 5).decode()

    assert in_fork(work) == "child"
    assert pool.volume("web").name == "web"


def test_a_child_has_a_loop_of_its_own(memory: volmux.Pool) -> None:
    import asyncio

    async def life() -> str:
        async with await volmux.open_pool_async("memory:") as own:
            return (await own.create_volume_async("web", MIB)).name

    assert asyncio.run(life()) == "web"
    assert in_fork(lambda: asyncio.run(life())) == "web"


def names(place: str) -> list[str]:
    with volmux.open_pool(Path(place)) as pool:
        return [volume.name for volume in pool.volumes()]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    with volmux.open_pool(tmp_path) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        volume = pool.create_volume("web", MIB)
        with multiprocessing.get_context(method).Pool(2) as workers:
            assert workers.map(names, [str(tmp_path)] * 4) == [["web"]] * 4
            assert workers.apply(identity, (volume,)) == volume


def identity(value: Any) -> Any:
    return value


AT_EXIT = """
import asyncio, threading, sys, volmux
pool = volmux.open_pool("memory:")
pool.create_volume("web", "64MiB")
device = pool.open_volume("web", access="read-write")
view = device.read_view(0, 1 << 20)
volumes = pool.list_volumes()
server = pool.serve(listen="tcp:127.0.0.1:0")

def work():
    while True:
        device.write_at(0, b"x" * 100000)

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()

async def leave():
    for _ in range(100):
        device.read_at_async(0, 1 << 20)

asyncio.run(leave())
print("done")
"""


@pytest.mark.parametrize("turn", range(5))
def test_the_interpreter_ends_while_work_goes_on(turn: int) -> None:
    command = [sys.executable, "-W", "error", "-c", AT_EXIT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

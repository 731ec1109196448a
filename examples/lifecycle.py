#!/usr/bin/env python3
"""The life of a volume: create, write, snapshot, clone, diff, revert, copy, group, resize, delete.

    python examples/lifecycle.py                      # a directory pool that is gone afterwards
    python examples/lifecycle.py dir:///srv/volumes   # any other pool
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import volmux

# Pools answer in units of at most this size, so what is written below is a multiple of it.
BLOCK = 64 << 10
MIB = 1 << 20

WEB, MONDAY, TEST, SPARE = "lifecycle-web", "lifecycle-web-monday", "lifecycle-test", "lifecycle-spare"


def main(pool: volmux.Pool) -> None:
    print(f"pool {pool}")
    for what, support in pool.capabilities().as_dict().items():
        print(f"  {what:<16} {support}")
    before = len(pool.volumes())
    create_and_write(pool)
    snapshot_and_clone(pool)
    diff(pool)
    revert(pool)
    copy_and_resize(pool)
    group(pool)
    asyncio.run(read_all(pool))
    delete(pool)
    assert len(pool.volumes()) == before
    report = pool.audit()
    assert report.is_clean, report
    print("lifecycle: all as it should be")


def create_and_write(pool: volmux.Pool) -> None:
    web = pool.create_volume(WEB, "64MiB")
    print(f"create   {web.name}: {volmux.format_size(web.virtual_size)}, {web.provisioning}")
    # The same call again returns the same volume: a caller that lost the answer may just repeat.
    assert pool.create_volume(WEB, 64 * MIB).id == web.id
    assert read(pool, WEB, 0) == bytes(BLOCK), "what was never written is zeros"
    write(pool, WEB, 0, b"A" * BLOCK)
    write(pool, WEB, 32 * MIB, b"B" * BLOCK)
    held = list(pool.extents(WEB))
    assert sum(extent.length for extent in held) >= 2 * BLOCK
    print(f"write    two blocks; allocated: {show(held)}")


def snapshot_and_clone(pool: volmux.Pool) -> None:
    monday = pool.snapshot_volume(WEB, MONDAY)
    assert monday.is_snapshot
    print(f"snapshot {monday.name} of {WEB}")
    try:
        pool.open_volume(MONDAY, access="read-write")
    except volmux.InvalidInput as refused:
        print(f"         is read-only: {refused.reason}")
    else:
        raise AssertionError("a snapshot is read-only")
    test = pool.clone_volume(MONDAY, TEST)
    print(f"clone    {test.name} of {MONDAY}")
    assert read(pool, TEST, 32 * MIB) == b"B" * BLOCK


def diff(pool: volmux.Pool) -> None:
    write(pool, WEB, 0, b"C" * BLOCK)
    write(pool, TEST, 16 * MIB, b"D" * BLOCK)
    for name, offset in ((WEB, 0), (TEST, 16 * MIB)):
        changed = pool.extents(name, since=MONDAY)
        ranges = list(changed)
        print(f"diff     {name} since {MONDAY}: {show(ranges)} ({changed.grade})")
        # They may be more than what changed, if their grade says so, and never less.
        assert any(r.offset <= offset and r.end >= offset + BLOCK for r in ranges)
    assert read(pool, MONDAY, 0) == b"A" * BLOCK, "the snapshot stays as it was"


def revert(pool: volmux.Pool) -> None:
    before = pool.volume(WEB)
    after = pool.revert_volume(WEB, MONDAY)
    assert before.id == after.id
    assert read(pool, WEB, 0) == b"A" * BLOCK
    assert read(pool, TEST, 16 * MIB) == b"D" * BLOCK, "the clone stays"
    print(f"revert   {WEB} to {MONDAY}")


def copy_and_resize(pool: volmux.Pool) -> None:
    seen: list[volmux.Progress] = []
    spare = pool.copy_volume(TEST, SPARE, control=volmux.Control(seen.append))
    assert read(pool, SPARE, 16 * MIB) == b"D" * BLOCK
    print(f"copy     {spare.name} of {TEST}: shares no block with it")
    grown = pool.resize_volume(SPARE, "128MiB")
    assert grown.virtual_size == 128 * MIB
    assert read(pool, SPARE, 100 * MIB) == bytes(BLOCK)
    print(f"resize   {grown.name} to {volmux.format_size(grown.virtual_size)}")
    try:
        pool.resize_volume(SPARE, "64MiB")
    except volmux.InvalidInput:
        pass
    else:
        raise AssertionError("shrinking needs leave")


def group(pool: volmux.Pool) -> None:
    """Snapshots of two volumes of one moment. What writes them is this program; it could be a guest."""
    disks = [pool.open_volume(name, access="read-write") for name in (WEB, TEST)]

    def freeze() -> None:
        for disk in disks:
            disk.flush()

    def thaw() -> None:
        pass  # nothing but this thread writes

    members = [(pool, WEB, f"{WEB}-now"), (pool, TEST, f"{TEST}-now")]
    taken = volmux.snapshot_group(members, freeze=freeze, thaw=thaw, deadline=5)
    print(f"group    {', '.join(snapshot.name for snapshot in taken)}")
    for disk in disks:
        disk.close()
    for snapshot in taken:
        assert read(pool, snapshot.name, 0) == b"A" * BLOCK
        pool.delete_volume(snapshot.name)


async def read_all(pool: volmux.Pool) -> None:
    """Every call can be awaited too."""
    names = [volume.name async for volume in pool.list_volumes() if volume.name.startswith("lifecycle-")]
    first = await asyncio.gather(*(read_async(pool, name) for name in names))
    print(f"await    {len(first)} volumes read at once")
    assert set(first) == {b"A" * BLOCK}


async def read_async(pool: volmux.Pool, name: str) -> bytes:
    async with await pool.open_volume_async(name) as device:
        return await device.read_at_async(0, BLOCK)


def delete(pool: volmux.Pool) -> None:
    # The parents first: what came from them does not mind.
    pool.delete_volume(WEB)
    pool.delete_volume(MONDAY)
    assert read(pool, TEST, 0) == b"A" * BLOCK
    assert pool.find_volume(WEB) is None
    pool.delete_volume(TEST)
    pool.delete_volume(SPARE)
    pool.delete_volume(SPARE)  # what does not exist is deleted already
    print("delete   all four, parents first")


def write(pool: volmux.Pool, name: str, offset: int, data: bytes) -> None:
    with pool.open_volume(name, access=volmux.Access.READ_WRITE) as device:
        device.write_at(offset, data)


def read(pool: volmux.Pool, name: str, offset: int) -> bytes:
    with pool.open_volume(name) as device:
        return device.read_at(offset, BLOCK)


def show(ranges: Iterable[volmux.ByteRange]) -> str:
    return ", ".join(f"{offset}+{volmux.format_size(length)}" for offset, length in ranges)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with volmux.open_pool(sys.argv[1]) as opened:
            main(opened)
    else:
        with tempfile.TemporaryDirectory() as directory, volmux.open_pool(Path(directory)) as opened:
            main(opened)

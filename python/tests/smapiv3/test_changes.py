"""What changed, against a comparison of every block."""

from __future__ import annotations

import base64
import random

import pytest
from smapi_host import MIB, Host, host, pool, sr, url, write  # noqa: F401

import volmux
from volmux.smapiv3 import changes

BLOCK = 64 << 10


def content(pool: volmux.Pool, key: str) -> bytes:
    with pool.open_volume(key) as device:
        return device.read_at(0, device.size)


def bits(bitmap: str) -> list[int]:
    """As bitstring and xapi's clients read it: the highest bit of a byte comes first."""
    return [byte >> (7 - bit) & 1 for byte in base64.b64decode(bitmap) for bit in range(8)]


def differing(old: bytes, new: bytes) -> list[int]:
    old = old.ljust(len(new), b"\0")
    return [int(old[at : at + BLOCK] != new[at : at + BLOCK]) for at in range(0, len(new), BLOCK)]


def scribble(pool: volmux.Pool, key: str, size: int, number: int, chance: random.Random) -> None:
    with pool.open_volume(key, access="read-write") as device:
        for _ in range(number):
            offset = chance.randrange(size // 512) * 512
            device.write_at(offset, chance.randbytes(min(512 * chance.randint(1, 300), size - offset)))


@pytest.mark.parametrize("seed", range(3))
def test_list_changed_blocks(host: Host, sr: str, pool: volmux.Pool, seed: int) -> None:
    chance = random.Random(seed)
    size = 4 * MIB + 3 * 4096
    key = host.create(sr, size=size)["key"]
    scribble(pool, key, size, 4, chance)
    snapshot = host.call("Volume.snapshot", sr=sr, key=key)["key"]
    scribble(pool, key, size, 4, chance)
    if seed == 1:
        size += 2 * MIB
        host.call("Volume.resize", sr=sr, key=key, new_size=size)
        scribble(pool, key, size, 4, chance)
    later = host.call("Volume.snapshot", sr=sr, key=key)["key"]
    truth = differing(content(pool, snapshot), content(pool, later))
    ranges = [(0, -1), (0, 0), (0, size), (0, size * 2), (size - 1, 1), (size, 5)]
    ranges += [(BLOCK, BLOCK), (BLOCK + 1, 1), (BLOCK - 1, 2)]
    ranges += [(chance.randrange(size), chance.randrange(size)) for _ in range(4)]
    for offset, length in ranges:
        arguments = {"sr": sr, "key": snapshot, "key2": later, "offset": offset, "length": length}
        told = host.call("Volume.list_changed_blocks", **arguments)
        assert told["granularity"] == BLOCK
        end = size if length < 0 else min(offset + length, size)
        first, last = offset // BLOCK, -(-end // BLOCK)
        wanted = truth[first:last]
        found = bits(told["bitmap"])
        assert len(found) == -(-len(wanted) // 8) * 8, (offset, length)
        assert found == wanted + [0] * (len(found) - len(wanted)), (offset, length)
    for offset in (-1, size + 1):
        arguments = {"sr": sr, "key": snapshot, "key2": later, "offset": offset, "length": 1}
        assert host.fails("Volume.list_changed_blocks", **arguments)[0] == "InvalidInput"


def test_compare(host: Host, sr: str, pool: volmux.Pool) -> None:
    size = 4 * MIB
    chance = random.Random(7)
    key = host.create(sr, size=size)["key"]
    scribble(pool, key, size, 3, chance)
    snapshot = host.call("Volume.snapshot", sr=sr, key=key)["key"]
    scribble(pool, key, size, 3, chance)

    def blocks(other: str) -> list[int]:
        told = host.call("Volume.compare", sr=sr, key=key, key2=other)
        assert told["blocksize"] == BLOCK
        found = [0] * (size // BLOCK)
        for first, length in told["ranges"]:
            found[first : first + length] = [1] * length
        return found

    assert blocks(snapshot) == differing(content(pool, snapshot), content(pool, key))
    assert blocks(key) == [0] * (size // BLOCK)
    # One that is not there: what is not empty.
    assert blocks("nothing") == differing(b"", content(pool, key))
    unrelated = host.create(sr, size=size)["key"]
    told = blocks(unrelated)
    assert all(one >= other for one, other in zip(told, differing(b"", content(pool, key)), strict=True))


def test_runs_of_blocks() -> None:
    """Extents may meet in a block, and touch it with a byte."""
    chance = random.Random(1)
    for _ in range(500):
        size = chance.randrange(1, 40 * BLOCK)
        touched = bytearray(-(-size // BLOCK))
        extents, at = [], 0
        while at < size:
            length = min(chance.choice([1, 512, BLOCK - 1, BLOCK, 3 * BLOCK]), size - at)
            if chance.random() < 0.5:
                extents.append(volmux.ByteRange(at, length))
                for block in range(at // BLOCK, -(-(at + length) // BLOCK)):
                    touched[block] = 1
            at += length
        runs = list(changes.blocks(extents))
        assert all(end < following for (_, end), (following, _) in zip(runs, runs[1:]))
        begin, end = changes.whole_blocks(0, size)
        found = bits(changes.bitmap(extents, begin, end))
        assert found[: len(touched)] == list(touched) and not any(found[len(touched) :])

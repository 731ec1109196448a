"""What differs between volumes, in the form that xapi's clients read."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

import volmux

#: What one bit stands for. xapi hands on the bitmap alone, and its manual says 64 KiB.
BLOCK = 64 << 10


def blocks(extents: Iterable[volmux.ByteRange]) -> Iterator[tuple[int, int]]:
    """First and end block of each run of blocks that extents touch; runs that meet are one."""
    first = end = -1
    for extent in extents:
        start, stop = extent.offset // BLOCK, -(-extent.end // BLOCK)
        if start > end:
            if end > first:
                yield first, end
            first = start
        end = max(end, stop)
    if end > first:
        yield first, end


def whole_blocks(begin: int, end: int) -> tuple[int, int]:
    """A range of bytes, extended to the borders of blocks."""
    return begin // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK


def bitmap(extents: Iterable[volmux.ByteRange], begin: int, end: int) -> str:
    """A bit for each block from ``begin`` to ``end``; the first is the highest of a byte."""
    origin = begin // BLOCK
    bits = bytearray(-(-(end // BLOCK - origin) // 8))
    for first, last in blocks(extents):
        _set(bits, first - origin, last - origin)
    return base64.b64encode(bits).decode()


def _set(bits: bytearray, first: int, end: int) -> None:
    while first < end and first % 8:
        bits[first // 8] |= 0x80 >> first % 8
        first += 1
    whole = (end - first) // 8
    bits[first // 8 : first // 8 + whole] = b"\xff" * whole
    for bit in range(first + whole * 8, end):
        bits[bit // 8] |= 0x80 >> bit % 8


def family(volumes: Iterable[volmux.Volume], key: str) -> list[str]:
    """The names of those that come from each other, as far as is known, by their distance from ``key``."""
    near: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    for volume in volumes:
        name = str(volume.id)
        names[name] = volume.name
        near.setdefault(name, set())
        if volume.origin is not None:
            # A parent that is gone still makes siblings of its children.
            parent = str(volume.origin.parent_id)
            near.setdefault(parent, set()).add(name)
            near[name].add(parent)
    begin = next(name for name, called in names.items() if called == key)
    reached, edge = [begin], [begin]
    while edge:
        edge = sorted({new for old in edge for new in near[old]} - set(reached))
        reached += edge
    return [names[name] for name in reached[1:] if name in names]

#!/usr/bin/env python3
"""Incremental backups of volumes: each one a file, which holds what changed since the one before.

    backup.py full        dir:///srv/volumes web web-0.backup
    backup.py incremental dir:///srv/volumes web web-1.backup --parent web-0.backup
    backup.py verify      web-0.backup web-1.backup
    backup.py restore     dir:///mnt/other web web-0.backup web-1.backup
    backup.py compare     dir:///mnt/other web web-0.backup web-1.backup

A backup takes a snapshot and reads that, so the volume may be in use. The snapshot stays: the next incremental backup
asks the pool what changed since then. `--drop-parent` deletes the one before, once it is needed no more.

A file is written under a temporary name, and has its own name only when all of it is on the disk. Its format, numbers
little-endian:

    magic       8 bytes  "VOLMUXB1"
    header      length (4 bytes) and JSON: volume, virtual_size, snapshot, parent (id and name each), created
    extents     "D", offset (8), length (4), SHA-256 of the data (32), data
             or "Z", offset (8), length (8): these bytes read as zeros
    end         "E", number of extents (8), SHA-256 of all that comes before it (32)

Extents are in ascending order and never overlap. `restore` reads every file and checks all of that, and that each file
follows the one before, before it writes anything; and it checks each extent once more as it writes it. What it has
written it compares, as `compare` does, with what the files say, before the volume gets its name.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import datetime
import hashlib
import json
import os
import struct
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import volmux

MAGIC = b"VOLMUXB1"
LENGTH = struct.Struct("<I")
DATA = struct.Struct("<QI32s")
ZEROS = struct.Struct("<QQ")
END = struct.Struct("<Q")
#: The longest extent in a file; what changed in one piece is written as several.
PIECE = 1 << 20
#: A header is short. A length beyond this is not one.
LONGEST_HEADER = 1 << 16
NOTHING = bytes(PIECE)


class Wrong(Exception):
    """A backup file that is not what it should be."""


@dataclass(frozen=True)
class Point:
    """A snapshot: a moment in a volume's life."""

    id: str
    name: str


@dataclass(frozen=True)
class Header:
    """What a backup file says of itself."""

    volume: str
    virtual_size: int
    snapshot: Point
    parent: Point | None
    created: str


@dataclass(frozen=True)
class Extent:
    """Bytes of a volume: `data`, or zeros if that is `None`."""

    offset: int
    length: int
    data: bytes | None


class Seen:
    """Which bytes of a volume were looked at. Ranges that touch are one, so it stays short."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> list[tuple[int, int]]:
        """Adds a range. Returns the parts of it that were not there."""
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        new, position = [], start
        for there, until in zip(self._starts[first:last], self._ends[first:last]):
            if position < there:
                new.append((position, there))
            position = max(position, until)
        if position < end:
            new.append((position, end))
        self._starts[first:last] = [min([start, *self._starts[first:last]])]
        self._ends[first:last] = [max([end, *self._ends[first:last]])]
        return new


class Writer:
    """Writes a file and keeps its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.extents = 0

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)

    def header(self, header: Header) -> None:
        text = json.dumps(asdict(header)).encode()
        self._put(MAGIC + LENGTH.pack(len(text)) + text)

    def data(self, offset: int, data: bytes) -> None:
        self.extents += 1
        self._put(b"D" + DATA.pack(offset, len(data), hashlib.sha256(data).digest()))
        self._put(data)

    def zeros(self, offset: int, length: int) -> None:
        self.extents += 1
        self._put(b"Z" + ZEROS.pack(offset, length))

    def end(self) -> None:
        self._put(b"E" + END.pack(self.extents))
        self._file.write(self._sum.digest())


class Reader:
    """Reads a file, and checks everything that it says. Only at the end of `extents` is the whole known to be right."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._sum = hashlib.sha256()
        if self._take(len(MAGIC)) != MAGIC:
            raise self.wrong("this is no backup of this format")
        (length,) = LENGTH.unpack(self._take(LENGTH.size))
        if length > LONGEST_HEADER:
            raise self.wrong("the header is too long")
        self.header = self._header(self._take(length))

    def wrong(self, why: str) -> Wrong:
        return Wrong(f"{self.path}: {why}")

    def _take(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise self.wrong("the file ends too early")
        self._sum.update(data)
        return data

    def _header(self, text: bytes) -> Header:
        try:
            fields: dict[str, Any] = json.loads(text)
            parent = fields["parent"]
            header = Header(
                volume=str(fields["volume"]),
                virtual_size=int(fields["virtual_size"]),
                snapshot=Point(**fields["snapshot"]),
                parent=parent if parent is None else Point(**parent),
                created=str(fields["created"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise self.wrong("the header is damaged") from error
        if header.virtual_size <= 0:
            raise self.wrong("the header is damaged")
        return header

    def extents(self) -> Iterator[Extent]:
        """Every extent. Raises `Wrong` as soon as something is."""
        number = position = 0
        while (kind := self._take(1)) != b"E":
            extent = self._extent(kind)
            if extent.offset < position or extent.length == 0:
                raise self.wrong(f"the extent at {extent.offset} is out of order")
            position = extent.offset + extent.length
            if position > self.header.virtual_size:
                raise self.wrong(f"the extent at {extent.offset} reaches past the volume's end")
            number += 1
            yield extent
        (told,) = END.unpack(self._take(END.size))
        found = self._sum.digest()
        if told != number or self._take(len(found)) != found:
            raise self.wrong("the checksum of the file does not fit")
        if self._file.read(1):
            raise self.wrong("there is more after the end")

    def _extent(self, kind: bytes) -> Extent:
        if kind == b"Z":
            offset, length = ZEROS.unpack(self._take(ZEROS.size))
            return Extent(offset, length, None)
        if kind != b"D":
            raise self.wrong("there is something that is no extent")
        offset, length, checksum = DATA.unpack(self._take(DATA.size))
        if length > PIECE:
            raise self.wrong(f"the extent at {offset} is too long")
        data = self._take(length)
        if hashlib.sha256(data).digest() != checksum:
            raise self.wrong(f"the checksum of the extent at {offset} does not fit")
        return Extent(offset, length, data)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reader]:
    with path.open("rb") as file:
        yield Reader(path, file)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once all of it is on the disk, and never replaces another."""
    if path.exists():
        raise Wrong(f"{path}: there is such a file already")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4()}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # Fails where somebody made a file of that name meanwhile.
        os.link(temporary, path)
        temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def backup(pool: volmux.Pool, volume: str, path: Path, parent: Point | None) -> Header:
    """Takes a snapshot of `volume` and writes what changed since `parent`, or all that it holds."""
    if parent is not None:
        check_parent(pool, volume, parent)
    now = datetime.datetime.now(datetime.timezone.utc)
    name = f"{volume[:80]}-{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    snapshot = pool.snapshot_volume(volume, name)
    try:
        point = Point(str(snapshot.id), name)
        header = Header(volume, snapshot.virtual_size, point, parent, now.isoformat())
        with replacing(path) as file, pool.open_volume(name) as device:
            writer = Writer(file)
            writer.header(header)
            for extent in pool.extents(name, since=parent.name if parent else None):
                # What was shrunk away is not there any more, and the size says so.
                end = min(extent.end, snapshot.virtual_size)
                for offset in range(extent.offset, end, PIECE):
                    length = min(PIECE, end - offset)
                    data = device.read_at(offset, length)
                    if data == NOTHING[:length]:
                        writer.zeros(offset, length)
                    else:
                        writer.data(offset, data)
            writer.end()
    except BaseException:
        pool.delete_volume(name)
        raise
    return header


def check_parent(pool: volmux.Pool, volume: str, parent: Point) -> None:
    """The snapshot must be the very one, not merely one of that name."""
    found = pool.find_volume(parent.name)
    if found is None or str(found.id) != parent.id:
        raise Wrong(f"{pool} has no snapshot {parent.name} with id {parent.id}: make a full backup")
    if found.origin is None or found.origin.parent_id != pool.volume(volume).id:
        raise Wrong(f"{parent.name} is not a snapshot of {volume}")


def verify(paths: list[Path]) -> list[Header]:
    """Reads every file and checks it, and that each follows the one before."""
    headers: list[Header] = []
    for path in paths:
        with reading(path) as reader:
            header = reader.header
            expected = headers[-1].snapshot if headers else None
            if header.parent != expected:
                after = header.parent.name if header.parent else "nothing"
                raise reader.wrong(f"it follows {after}, and stands after {expected.name if expected else 'nothing'}")
            for _ in reader.extents():
                pass
        headers.append(header)
    if not headers:
        raise Wrong("there is no file")
    return headers


def restore(pool: volmux.Pool, volume: str, paths: list[Path]) -> volmux.Volume:
    """Writes what the files hold to a new volume, which has its name once it is complete."""
    headers = verify(paths)
    if pool.find_volume(volume) is not None:
        raise Wrong(f"{pool} has a volume {volume} already")
    temporary = f"{volume[:80]}.restore-{uuid.uuid4().hex[:8]}"
    thin = volmux.Provisioning.THIN if pool.capabilities().thin else volmux.Provisioning.THICK
    # As large as the largest, so that each file finds its place; what is too much is cut at the end.
    size = max(header.virtual_size for header in headers)
    pool.create_volume(temporary, size, provisioning=thin)
    try:
        with pool.open_volume(temporary, access=volmux.Access.READ_WRITE) as device:
            for path, header in zip(paths, headers):
                apply(device, path, header)
        pool.resize_volume(temporary, headers[-1].virtual_size, allow_shrink=True)
        compare(pool, temporary, paths)
        return pool.rename_volume(temporary, volume)
    except BaseException:
        pool.delete_volume(temporary)
        raise


def apply(device: volmux.Device, path: Path, header: Header) -> None:
    """Writes what one file holds over what those before it left."""
    with reading(path) as reader:
        if reader.header != header:
            raise reader.wrong("the file has changed meanwhile")
        for extent in reader.extents():
            if extent.data is None:
                device.write_zeroes(extent.offset, extent.length, may_discard=True)
            else:
                device.write_at(extent.offset, extent.data)
        past = device.size - header.virtual_size
        if past:
            # A volume that was shrunk and grown again reads as zeros there.
            device.write_zeroes(header.virtual_size, past, may_discard=True)


def compare(pool: volmux.Pool, volume: str, paths: list[Path]) -> None:
    """Reads a volume, and raises `Wrong` where it does not hold what the files say."""
    headers = verify(paths)
    size = headers[-1].virtual_size
    with pool.open_volume(volume) as device:
        # A pool may round sizes up.
        if device.size < size:
            raise Wrong(f"{volume} has {device.size} bytes, not {size}")
        seen = Seen()
        # The last file that tells of a byte is right.
        for path in reversed(paths):
            with reading(path) as reader:
                for extent in reader.extents():
                    # It was longer then.
                    end = min(extent.offset + extent.length, device.size)
                    if extent.offset < end:
                        for start, until in seen.add(extent.offset, end):
                            expect(device, volume, start, until, extent)
                end = reader.header.virtual_size
                if end < device.size:
                    for start, until in seen.add(end, device.size):
                        expect(device, volume, start, until, None)
        # Of the others nobody told: they are zeros, and only where something is stored can they be anything else.
        others = seen.add(0, device.size)
        for start, end in others:
            for stored in pool.extents(volume, offset=start, length=end - start):
                expect(device, volume, stored.offset, stored.end, None)


def expect(device: volmux.Device, volume: str, start: int, end: int, extent: Extent | None) -> None:
    """Bytes must be those of `extent`, or zeros."""
    for offset in range(start, end, PIECE):
        length = min(PIECE, end - offset)
        wanted = NOTHING[:length]
        if extent is not None and extent.data is not None:
            wanted = extent.data[offset - extent.offset :][:length]
        if device.read_at(offset, length) != wanted:
            raise Wrong(f"{volume} differs from its backup between {offset} and {offset + length}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Incremental backups of volumes.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, told in (("full", "all that a volume holds"), ("incremental", "what changed since another backup")):
        command = commands.add_parser(name, help=told)
        command.add_argument("pool", help="URL of the pool")
        command.add_argument("volume")
        command.add_argument("file", type=Path, help="the backup, which must not exist")
        if name == "incremental":
            command.add_argument("--parent", type=Path, required=True, help="the backup before this one")
            command.add_argument("--drop-parent", action="store_true", help="delete the snapshot before, at last")
    for name, told, which in (
        ("restore", "make a volume from backups", "the volume, which must not exist"),
        ("compare", "hold a volume against backups", "the volume, as it was restored"),
    ):
        command = commands.add_parser(name, help=told)
        command.add_argument("pool", help="URL of the pool")
        command.add_argument("volume", help=which)
        command.add_argument("files", type=Path, nargs="+", help="the full backup, and those that follow it, in order")
    command = commands.add_parser("verify", help="check backups")
    command.add_argument("files", type=Path, nargs="+", help="the full backup, and those that follow it, in order")
    return parser.parse_args()


def run(given: argparse.Namespace) -> None:
    if given.command == "verify":
        for path, header in zip(given.files, verify(given.files)):
            print(f"{path}: {header.volume} at {header.created}, {volmux.format_size(header.virtual_size)}")
        return
    with volmux.open_pool(given.pool) as pool:
        if given.command == "restore":
            volume = restore(pool, given.volume, given.files)
            print(f"restored {volume.name}: {volmux.format_size(volume.virtual_size)}")
            return
        if given.command == "compare":
            compare(pool, given.volume, given.files)
            print(f"{given.volume} holds what the backups say")
            return
        parent = None
        if given.command == "incremental":
            with reading(given.parent) as reader:
                parent = reader.header.snapshot
        header = backup(pool, given.volume, given.file, parent)
        print(f"{given.file}: {header.snapshot.name}, {volmux.format_size(given.file.stat().st_size)}")
        if parent is not None and given.drop_parent:
            pool.delete_volume(parent.name)


def main() -> int:
    try:
        run(arguments())
    except (Wrong, volmux.Error, OSError) as error:
        print(f"backup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes a call as the executables do, and kills itself at a point of it: `killed_at.py POINT CALL`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import volmux
from volmux.smapiv3 import metadata, program, volume

#: In the order in which they come. A write of metadata is torn when half of it was written.
POINTS = ("before-note", "torn-note", "note", "work", "torn-entry", "entry")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def main(point: str, call: str) -> int:
    written = 0
    write, make = metadata._write, volume._make

    def writes(device: volmux.Device, generation: int, text: bytes) -> None:
        nonlocal written
        written += 1
        name = {1: "note", 2: "entry"}[written]
        if point == f"before-{name}":
            die()
        if point == f"torn-{name}":
            half = metadata._HEADER.pack(metadata.MAGIC, generation, len(text), metadata._checksum(generation, text))
            device.write_at(metadata._offsets(device)[generation % 2], half.ljust(metadata.BLOCK, b"\0"))
            device.flush()
            die()
        write(device, generation, text)
        if point == name:
            die()

    def makes(sr: str, pool: volmux.Pool, entry: Any, work: Callable[[str], volmux.Volume]) -> Any:
        def works(key: str) -> volmux.Volume:
            made = work(key)
            if point == "work":
                die()
            return made

        return make(sr, pool, entry, works)

    metadata._write = writes
    volume._make = makes
    return program.main([call, "--json"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))

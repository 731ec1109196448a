"""Does what the benchmark asks for, one line each, and answers with a number."""

import asyncio
import sys
import time

import volmux

MIB = 1 << 20
CALLS = 2000


def read(device, one):
    start = time.perf_counter()
    for offset in range(0, device.size, MIB):
        one(offset)
    return device.size / MIB / (time.perf_counter() - start)


def microseconds(start):
    return (time.perf_counter() - start) * 1e6 / CALLS


def waiting(pool):
    start = time.perf_counter()
    for _ in range(CALLS):
        pool.volume("disk")
    return microseconds(start)


async def awaiting(pool, at_once):
    start = time.perf_counter()
    for _ in range(CALLS // at_once):
        await asyncio.gather(*(pool.volume_async("disk") for _ in range(at_once)))
    return microseconds(start)


async def awaiting_one(pool):
    start = time.perf_counter()
    for _ in range(CALLS):
        await pool.volume_async("disk")
    return microseconds(start)


def nothing(device):
    start = time.perf_counter()
    for _ in range(CALLS):
        device.close()
    return microseconds(start)


def main():
    pool = volmux.open_pool(sys.argv[1])
    if str(pool) == "memory:":
        pool.create_volume("disk", MIB)
    device = pool.open_volume("disk")
    closed = pool.open_volume("disk")
    closed.close()
    buffer = bytearray(MIB)
    answers = {
        "read_view": lambda: read(device, lambda offset: device.read_view(offset, MIB)),
        "read_at": lambda: read(device, lambda offset: device.read_at(offset, MIB)),
        "read_into": lambda: read(device, lambda offset: device.read_into(offset, buffer)),
        "volume": lambda: waiting(pool),
        "volume_async": lambda: asyncio.run(awaiting_one(pool)),
        "volume_async_100": lambda: asyncio.run(awaiting(pool, 100)),
        "nothing": lambda: nothing(closed),
    }
    for line in sys.stdin:
        print(answers[line.strip()](), flush=True)


main()

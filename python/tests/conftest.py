"""What the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import volmux

BLOCK = 64 << 10
"""Pools answer in units of at most this size."""

MIB = 1 << 20


@pytest.fixture(params=["memory", "dir"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[volmux.Pool]:
    """An empty pool of each kind that needs no server."""
    if request.param == "memory":
        opened = volmux.open_pool("memory:")
    else:
        (tmp_path / "pool").mkdir()
        opened = volmux.open_pool(tmp_path / "pool")
    with opened:
        yield opened


@pytest.fixture
def memory() -> Iterator[volmux.Pool]:
    """An empty pool in memory."""
    with volmux.open_pool("memory:") as opened:
        yield opened


def write(pool: volmux.Pool, name: str, offset: int, data: bytes) -> None:
    with pool.open_volume(name, access="read-write") as device:
        device.write_at(offset, data)


def read(pool: volmux.Pool, name: str, offset: int = 0, length: int = BLOCK) -> bytes:
    with pool.open_volume(name) as device:
        return device.read_at(offset, length)

"""Events of volmux in `logging`."""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path

import pytest
from conftest import MIB

import volmux


def leave_a_socket(place: Path) -> None:
    """A Unix socket that nobody listens on any more, of which a server tells."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))


def serve_once(pool: volmux.Pool, place: Path) -> None:
    leave_a_socket(place)
    pool.serve("web", listen=place).stop()


def test_events_are_there_when_the_call_returns(
    memory: volmux.Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory.create_volume("web", MIB)
    with caplog.at_level(logging.INFO, "volmux"):
        serve_once(memory, tmp_path / "socket")
    records = [record for record in caplog.records if "left over" in record.message]
    assert [record.levelno for record in records] == [logging.INFO]
    assert records[0].name == "volmux.gateway.listen"
    assert records[0].pathname.endswith("listen.rs") and records[0].lineno > 0
    assert str(tmp_path / "socket") in records[0].message


def test_levels_are_those_of_logging(
    memory: volmux.Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory.create_volume("web", MIB)
    with caplog.at_level(logging.WARNING, "volmux"):
        serve_once(memory, tmp_path / "socket")
    assert caplog.records == []


def test_nothing_is_printed_unasked(capfd: pytest.CaptureFixture[str]) -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("volmux").handlers)


def test_a_handler_may_use_the_pool(memory: volmux.Pool, tmp_path: Path) -> None:
    """No lock of volmux's is held, and no thread of its waits, while Python is told."""
    memory.create_volume("web", MIB)
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(memory.volume("web").name)

    logger, handler = logging.getLogger("volmux.gateway"), Handler()
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        turns = [
            threading.Thread(target=serve_once, args=(memory, tmp_path / f"socket-{number}"))
            for number in range(8)
        ]
        for turn in turns:
            turn.start()
        for turn in turns:
            turn.join(30)
            assert not turn.is_alive()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert seen and set(seen) == {"web"}

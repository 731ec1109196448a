"""Signals, controls and callbacks while a call waits."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import MIB

import volmux

# What shells start in the background ignores SIGINT, and so would its children.
LISTENING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""

SILENT = """
import signal, sys, threading, time
import volmux

def ring():
    time.sleep(0.5)
    signal.raise_signal(signal.SIGINT)

threading.Thread(target=ring, daemon=True).start()
start = time.monotonic()
try:
    volmux.open_pool(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - start < 5)
"""

COPY = """
import os, signal, threading, time
import volmux

pool, target = volmux.open_pool("memory:"), volmux.open_pool("memory:")
pool.create_volume("web", "64MiB")
with pool.open_volume("web", access="read-write") as device:
    device.write_at(0, b"x" * (64 << 20))

reports = []

def slow(progress):
    reports.append(progress)
    if len(reports) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)

try:
    pool.copy_volume_to("web", target, "copy", control=volmux.Control(slow))
except KeyboardInterrupt:
    print("interrupted", target.find_volume("copy"), len(reports) < 20)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", LISTENING + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a pool whose store takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"iscsi://127.0.0.1:{server.getsockname()[1]}/iqn.2026-01.example:silent"


def test_ctrl_c_ends_a_call_that_waits(silent: str) -> None:
    done = python(SILENT, silent)
    assert (done.stdout, done.stderr) == ("interrupted True\n", "")


def test_ctrl_c_in_a_callback(memory: volmux.Pool) -> None:
    done = python(COPY)
    assert (done.stdout, done.stderr) == ("interrupted None True\n", "")


class Enough(Exception):
    """What the handler raises at last."""


def test_a_handler_that_returns_lets_the_call_go_on(silent: str) -> None:
    rung: list[float] = []

    def handle(number: int, frame: object) -> None:
        rung.append(time.monotonic())
        if len(rung) == 3:
            raise Enough

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
        with pytest.raises(Enough):
            volmux.open_pool(silent)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rung) == 3


def filled(pool: volmux.Pool) -> None:
    pool.create_volume("web", 64 * MIB)
    with pool.open_volume("web", access="read-write") as device:
        device.write_at(0, b"x" * (64 * MIB))


def test_a_control_cancels_from_another_thread(memory: volmux.Pool) -> None:
    filled(memory)
    target = volmux.open_pool("memory:")
    control = volmux.Control(lambda progress: time.sleep(0.05))
    assert not control.cancelled
    threading.Timer(0.2, control.cancel).start()
    with pytest.raises(volmux.TimedOut):
        memory.copy_volume_to("web", target, "copy", control=control)
    assert control.cancelled and target.volumes() == []
    with pytest.raises(volmux.TimedOut):
        memory.copy_volume("web", "other", control=control)


def test_progress_ends_with_all(memory: volmux.Pool) -> None:
    filled(memory)
    target = volmux.open_pool("memory:")
    seen: list[volmux.Progress] = []
    memory.copy_volume_to("web", target, "copy", control=volmux.Control(seen.append))
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[0].done == 0 and seen[-1] == volmux.Progress(64 * MIB, 64 * MIB)


def test_what_a_callback_raises_is_raised(memory: volmux.Pool) -> None:
    filled(memory)
    target = volmux.open_pool("memory:")
    calls: list[volmux.Progress] = []

    def refuse(progress: volmux.Progress) -> None:
        calls.append(progress)
        raise LookupError("no more")

    control = volmux.Control(refuse)
    with pytest.raises(LookupError, match="no more"):
        memory.copy_volume_to("web", target, "copy", control=control)
    assert len(calls) == 1 and target.volumes() == [] and not control.cancelled
    with pytest.raises(SystemExit):
        memory.copy_volume_to("web", target, "copy", control=volmux.Control(lambda progress: sys.exit(1)))


def test_a_callback_that_calls_the_pool_is_told(memory: volmux.Pool) -> None:
    filled(memory)
    target = volmux.open_pool("memory:")
    control = volmux.Control(lambda progress: memory.volume("web"))
    with pytest.raises(volmux.InvalidInput, match="within an async runtime"):
        memory.copy_volume_to("web", target, "copy", control=control)

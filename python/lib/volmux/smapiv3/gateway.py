"""Volumes that have no device of their own: a server for each, which is started again if it dies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

from . import host
from .failure import Failure

#: Seconds between two starts of a server that dies.
PAUSE = 1.0
_TICK = 0.02


def directory(sr: str, key: str) -> str:
    """Where a volume's server has its files. Short: a socket's path has 107 bytes."""
    return host.run_path("nbd", hashlib.sha256(f"{sr}/{key}".encode()).hexdigest()[:20])


def socket(sr: str, key: str) -> str:
    return os.path.join(directory(sr, key), "socket")


def start(sr: str, configuration: dict[str, str], key: str, mode: str, sharable: bool) -> None:
    """Has the volume served. One that is served so already, is."""
    place = directory(sr, key)
    order = {"configuration": configuration, "key": key, "mode": mode, "sharable": sharable}
    if is_up(sr, key) and host.read_json(os.path.join(place, "order")) == order:
        return
    stop(sr, key)
    os.makedirs(place, mode=0o700, exist_ok=True)
    for name in ("ready", "failed", "result"):
        host.remove(os.path.join(place, name))
    host.write_json(os.path.join(place, "order"), order)
    vector = [*host.launcher(), sys.executable, "-m", "volmux.smapiv3", "supervise", place]
    with open(os.path.join(place, "log"), "ab") as log:
        supervisor = subprocess.Popen(
            vector, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    _wait_until_ready(place, supervisor)


def _wait_until_ready(place: str, supervisor: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + float(host.settings()["server"])
    while not os.path.exists(os.path.join(place, "ready")):
        failed = host.read_json(os.path.join(place, "failed"))
        if failed is not None:
            supervisor.wait()
            raise Failure(*failed["params"])
        if supervisor.poll() is not None or time.monotonic() > deadline:
            supervisor.kill()
            supervisor.wait()
            raise Failure("ServerFailed", f"the server of the volume did not start: see {place}/log")
        time.sleep(_TICK)
    # It goes on without this process.
    supervisor.returncode = 0


def is_up(sr: str, key: str) -> bool:
    place = directory(sr, key)
    return _supervisor(place) is not None and os.path.exists(os.path.join(place, "ready"))


def _alive(place: str, name: str) -> int | None:
    process = host.read_json(os.path.join(place, name))
    return None if process is None or host.is_dead(process) else int(process["pid"])


def _supervisor(place: str) -> int | None:
    return _alive(place, "pid")


def stop(sr: str, key: str) -> None:
    """Ends a server in order: what clients were answered is then in the pool. Nothing to do if there is none."""
    place = directory(sr, key)
    supervised = _supervisor(place) is not None
    # The server too: its supervisor may have been killed.
    for name in ("pid", "ready"):
        _end(place, name)
    host.remove(os.path.join(place, "pid"))
    host.remove(os.path.join(place, "ready"))
    result = host.read_json(os.path.join(place, "result"))
    if supervised and (result is None or result["status"] != 0):
        raise Failure("ServerFailed", f"the server of the volume did not end in order: see {place}/log")


def _end(place: str, name: str) -> None:
    pid = _alive(place, name)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + float(host.settings()["server"]) + 10
    while _alive(place, name) is not None:
        if time.monotonic() > deadline:
            raise Failure("ServerFailed", f"the server of the volume does not end: process {pid}")
        time.sleep(_TICK)


class Supervisor:
    """The process that starts a server, and again if it dies, until it is told to end."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.child: subprocess.Popen[bytes] | None = None
        self.ending = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        host.write_json(os.path.join(self.place, "pid"), host.myself())
        while True:
            status = self._once()
            if self.ending or not os.path.exists(os.path.join(self.place, "ready")):
                host.write_json(os.path.join(self.place, "result"), {"status": status})
                return status
            print(f"the server ended with status {status}, and is started again", file=sys.stderr, flush=True)
            time.sleep(PAUSE)

    def _once(self) -> int:
        vector = [sys.executable, "-m", "volmux.smapiv3", "serve", self.place]
        self.child = subprocess.Popen(vector, stdin=subprocess.DEVNULL)
        if self.ending:
            self.child.terminate()
        return self.child.wait()

    def _end(self, *_: object) -> None:
        self.ending = True
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()


def serve(place: str) -> int:
    """The server itself, until it is told to end, or its supervisor is gone."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    order = host.read_json(os.path.join(place, "order"))
    if order is None:
        return 1
    supervisor = os.getppid()
    try:
        server = _listen(place, order)
    except Exception as error:
        from .failure import report

        host.write_json(os.path.join(place, "failed"), report(error))
        print(error, file=sys.stderr, flush=True)
        return 1
    host.write_json(os.path.join(place, "ready"), host.myself())
    while signal.sigtimedwait(signals, 1.0) is None and os.getppid() == supervisor:
        pass
    server.stop(float(host.settings()["server"]))
    return 0


def _listen(place: str, order: dict[str, Any]) -> Any:
    import volmux

    from .attached import open_pool

    export = volmux.ExportOptions(
        order["key"],
        volmux.Access.READ_WRITE if order["mode"] == "rw" else volmux.Access.READ_ONLY,
        volmux.Sharing.SHARED if order["sharable"] else volmux.Sharing.EXCLUSIVE,
    )
    return open_pool(order["configuration"]).serve(export, listen="unix:" + os.path.join(place, "socket"))

"""This host: who it is, its settings, its files below /run, and the programs it runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any, BinaryIO

from .failure import Failure

SETTINGS = "/etc/volmux/smapiv3.json"
INVENTORY = "/etc/xensource-inventory"

#: What can be set, with what holds otherwise.
DEFAULTS: dict[str, Any] = {
    # How other hosts know this one; None: XenServer's installation, or the machine's id.
    "host": None,
    "run": "/run/volmux-smapiv3",
    # Seconds to wait for another host that has the metadata.
    "wait": 60,
    # Seconds that a server may take to begin, and to end.
    "server": 60,
    "commands": {"losetup": ["losetup"], "nbd-client": ["nbd-client"], "modprobe": ["modprobe"]},
    # What a process is started with that must outlive xapi-storage-script; None: a scope of systemd, if that runs.
    "launcher": None,
    "sys": "/sys",
    "dev": "/dev",
}


_once: dict[str, Any] = {}


def settings() -> dict[str, Any]:
    if "settings" not in _once:
        _once["settings"] = _read_settings()
    found: dict[str, Any] = _once["settings"]
    return found


def _read_settings() -> dict[str, Any]:
    path = os.environ.get("VOLMUX_SMAPIV3_SETTINGS", SETTINGS)
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
    except FileNotFoundError:
        given = {}
    if not isinstance(given, dict) or given.keys() - DEFAULTS.keys():
        raise Failure("InvalidConfig", f"{path}: settings are {', '.join(DEFAULTS)}")
    commands = {**DEFAULTS["commands"], **given.get("commands", {})}
    return {**DEFAULTS, **given, "commands": commands}


def host() -> str:
    """What volumes are attached to: the same after a restart."""
    given = settings()["host"]
    if given:
        return str(given)
    with contextlib.suppress(FileNotFoundError), open(INVENTORY, encoding="utf-8") as file:
        for line in file:
            key, _, value = line.strip().partition("=")
            if key == "INSTALLATION_UUID":
                return value.strip("'\"")
    with open("/etc/machine-id", encoding="utf-8") as file:
        return file.read().strip()


def run_path(*parts: str) -> str:
    """A path below the directory of this host's state, which is gone after a restart, as are its guests."""
    path = os.path.join(settings()["run"], *parts)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return path


def read_json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return None
    return value if isinstance(value, dict) else None


def write_json(path: str, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    new = f"{path}.{os.getpid()}"
    with open(new, "w", encoding="utf-8", opener=_private) as file:
        json.dump(value, file)
    os.replace(new, path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Alone on this host, among those who lock the same path."""
    # Removed by nobody: who holds a removed file's lock holds nothing.
    with open(path, "w", opener=_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def command(name: str, *arguments: str, apart: bool = False) -> str:
    """Runs a program by its argument vector, and returns what it printed. ``apart``: it may leave a process, which
    must outlive this one."""
    vector = [*(launcher() if apart else []), *settings()["commands"][name], *arguments]
    # No pipes: a process that is left would keep them open, and the end of the output would never come.
    with _memory() as output, _memory() as wrong:
        try:
            status = subprocess.run(
                vector, stdin=subprocess.DEVNULL, stdout=output, stderr=wrong, check=False, timeout=120
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failure("CommandFailed", f"{' '.join(vector)}: {error}") from error
        printed, said = _all_of(output), _all_of(wrong)
    if status:
        raise Failure("CommandFailed", f"{' '.join(vector)}: status {status}: {(said or printed).strip()}")
    return printed


def _memory() -> BinaryIO:
    return open(os.memfd_create("output"), "r+b")


def _all_of(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def launcher() -> list[str]:
    given = settings()["launcher"]
    if given is not None:
        return list(given)
    scope = ["systemd-run", "--scope", "--quiet", "--collect", "--"]
    return scope if os.path.isdir("/run/systemd/system") else []


def process_start(pid: int) -> str | None:
    """When a process began: with its number, what tells it from a later one. None for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def myself() -> dict[str, Any]:
    """This process, for others to see whether it still lives."""
    pid = os.getpid()
    return {"host": host(), "boot": boot(), "pid": pid, "start": process_start(pid)}


def is_dead(process: dict[str, Any]) -> bool:
    """Whether it surely lives no more. Of other hosts nothing is known."""
    if process["host"] != host():
        return False
    return bool(process["boot"] != boot() or process_start(process["pid"]) != process["start"])

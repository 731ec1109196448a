"""The interface Datapath: the way from a volume to a guest. What this host does is noted below /run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import syslog
from collections.abc import Iterator
from typing import Any

from . import attached, devices, gateway, host
from .failure import Failure, in_use, invalid, unimplemented

_URI = re.compile(r"volmux://([0-9A-Fa-f-]{36})/([A-Za-z0-9_][A-Za-z0-9_.+-]{0,126})")

#: domains: each with how it is active (``rw``, ``ro``, None); device: as `devices` has it, or None; taking: the mode
#: in which a call began to take the volume; what is known of the volume: sharable, read_only, served.
State = dict[str, Any]


def parse(uri: str) -> tuple[str, str]:
    match = _URI.fullmatch(uri)
    if match is None:
        raise invalid(f"{uri}: not a URI of this plugin, volmux://SR/KEY")
    return match[1].lower(), match[2]


def _path(sr: str, key: str) -> str:
    return host.run_path("datapath", sr, key + ".json")


@contextlib.contextmanager
def _state(sr: str, key: str) -> Iterator[State]:
    """What this host has of a volume, locked; written at the end, also after an error."""
    path = _path(sr, key)
    with host.locked(path + ".lock"):
        state = host.read_json(path) or {"domains": {}, "device": None, "taking": None}
        try:
            yield state
        finally:
            _save(sr, key, state)


def _save(sr: str, key: str, state: State) -> None:
    if state["domains"] or state["device"] or state["taking"]:
        host.write_json(_path(sr, key), state)
    else:
        host.remove(_path(sr, key))


def open_(dbg: str, uri: str, persistent: bool) -> None:
    parse(uri)
    if not persistent:
        raise unimplemented("NONPERSISTENT: xapi clones the volume, and destroys the clone")


def close(dbg: str, uri: str) -> None:
    parse(uri)


def attach(dbg: str, uri: str, domain: str) -> dict[str, Any]:
    sr, key = parse(uri)
    with _state(sr, key) as state:
        answer = _learn(sr, key, state)
        state["domains"].setdefault(domain, None)
        return answer


def _learn(sr: str, key: str, state: State) -> dict[str, Any]:
    """Notes what the volume is, so that activating it takes no more time than it must. Returns its description."""
    import volmux

    from .volume import describe, find_data, opened

    configuration = attached.record(sr)["configuration"]
    with opened(sr) as (pool, document):
        volume = find_data(pool, document, key)
        described = describe(sr, document, volume)
        state["read_only"] = not described["read_write"]
        if state["device"] is None:
            state["sharable"] = described["sharable"]
            state["served"] = devices.is_served(pool, configuration, volume)
    device = devices.path(sr, key)
    target: volmux.AttachTarget = volmux.BlockDeviceTarget(_pathlib(device))
    if state["served"]:
        target = volmux.NbdTarget(f"unix:{gateway.socket(sr, key)}", key)
    access = volmux.Access.READ_ONLY if state["read_only"] else volmux.Access.READ_WRITE
    found = volmux.Attachment(key, volume.id, host.host(), access, target)
    rendered: dict[str, Any] = json.loads(found.render("smapiv3", host_device=device).text)
    return rendered


def _pathlib(path: str) -> Any:
    import pathlib

    return pathlib.Path(path)


def activate(dbg: str, uri: str, domain: str) -> None:
    _activate(uri, domain, "rw")


def activate_readonly(dbg: str, uri: str, domain: str) -> None:
    _activate(uri, domain, "ro")


def _activate(uri: str, domain: str, mode: str) -> None:
    sr, key = parse(uri)
    with _state(sr, key) as state:
        if domain not in state["domains"]:
            _learn(sr, key, state)
            state["domains"][domain] = None
        mode = "ro" if state["read_only"] else mode
        _agree(key, state, domain, mode)
        device = state["device"]
        if device is None or not devices.is_alive(sr, key, device):
            _take(sr, key, state, mode)
        state["domains"][domain] = mode


def _agree(key: str, state: State, domain: str, mode: str) -> None:
    """Whether this goes together with what other domains of this host do."""
    for other, present in state["domains"].items():
        if present is None or (other == domain and present == mode):
            continue
        if present != mode or (mode == "rw" and not state["sharable"]):
            raise in_use(f"{key} is active in the domain {other} ({present})")


def _take(sr: str, key: str, state: State, mode: str) -> None:
    # Written before, so that whoever comes after a crash knows that there may be something to undo.
    state["taking"] = mode
    _save(sr, key, state)
    try:
        state["device"] = devices.take(sr, key, mode, state["sharable"], state["served"])
    except Failure:
        _give_back(sr, key)
        raise
    finally:
        state["taking"] = None


def _give_back(sr: str, key: str) -> None:
    """What was taken halfway."""
    with contextlib.suppress(Exception):
        gateway.stop(sr, key)


def import_activate(dbg: str, uri: str, domain: str) -> str:
    raise unimplemented("VDI_MIRROR_IN: a connection that is handed over as a file descriptor")


def deactivate(dbg: str, uri: str, domain: str) -> None:
    sr, key = parse(uri)
    with _state(sr, key) as state:
        _deactivate(sr, key, state, domain)


def _deactivate(sr: str, key: str, state: State, domain: str) -> None:
    others = [one for one, mode in state["domains"].items() if mode and one != domain]
    if not others:
        _release(sr, key, state)
    if domain in state["domains"]:
        state["domains"][domain] = None


def _release(sr: str, key: str, state: State) -> None:
    if state["taking"] is not None:
        # A call died while it took the volume: its result is found by doing it again.
        state["device"] = devices.take(sr, key, state["taking"], state["sharable"], state["served"])
        state["taking"] = None
    if state["device"] is not None:
        devices.release(sr, key, state["device"])
        state["device"] = None


def detach(dbg: str, uri: str, domain: str) -> None:
    """Never fails. What can't be undone now is undone when the volume is destroyed or reverted, or the SR is detached."""
    try:
        sr, key = parse(uri)
        with _state(sr, key) as state:
            try:
                _deactivate(sr, key, state, domain)
            finally:
                state["domains"].pop(domain, None)
    except Exception as error:
        syslog.openlog("volmux-smapiv3")
        syslog.syslog(syslog.LOG_ERR, f"detach {uri}: {error}: it is tried again later")


def keys(sr: str) -> list[str]:
    """The volumes of which this host has something."""
    names = os.listdir(os.path.dirname(_path(sr, "x")))
    return sorted(name[: -len(".json")] for name in names if name.endswith(".json"))


def settle(sr: str, key: str) -> bool:
    """Undoes what `detach` could not, if no domain has the volume any more. Returns whether it is in use."""
    if not os.path.exists(_path(sr, key)):
        return False
    with _state(sr, key) as state:
        try:
            if not any(state["domains"].values()):
                _release(sr, key, state)
        except Exception as error:
            syslog.syslog(syslog.LOG_ERR, f"{key}: {error}")
        used = bool(state["device"] or state["taking"])
        if not used:
            state["domains"].clear()
        return used


def tidy(sr: str) -> list[str]:
    """The volumes of an SR that are in use, when what can be undone was."""
    return [key for key in keys(sr) if settle(sr, key)]


def states(sr: str) -> dict[str, State | None]:
    """For `Plugin.diagnostics`."""
    return {key: host.read_json(_path(sr, key)) for key in keys(sr)}

"""The calls: which arguments each one has, by name, and of what type. From xapi's IDL (ocaml/xapi-storage)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .failure import invalid

Arguments = dict[str, Any]

INT64 = 1 << 63


def _text(value: object) -> bool:
    return isinstance(value, str)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -INT64 <= value < INT64


def _truth(value: object) -> bool:
    return isinstance(value, bool)


def _texts(value: object) -> bool:
    """A dictionary of texts; JSON's keys are texts anyway."""
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _blocks(value: object) -> bool:
    if not isinstance(value, dict) or not _integer(value.get("blocksize")):
        return False
    ranges = value.get("ranges")
    return isinstance(ranges, list) and all(
        isinstance(item, list) and len(item) == 2 and all(map(_integer, item)) for item in ranges
    )


def _operation(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and value[0] in ("CopyV1", "MirrorV1")
        and isinstance(value[1], str)
    )


CHECKS: dict[str, Callable[[object], bool]] = {
    "string": _text,
    "int": _integer,
    "bool": _truth,
    "string map": _texts,
    "blocklist": _blocks,
    "operation": _operation,
}

_SR = {"sr": "string"}
_VOLUME = {"sr": "string", "key": "string"}
_PATH = {"uri": "string", "domain": "string"}
_TASK = {"id": "string"}
_OPERATION = {"operation": "operation"}
_CONFIGURATION = {"configuration": "string map"}

#: Every call, with its arguments; each has ``dbg`` besides.
CALLS: dict[str, dict[str, str]] = {
    "Plugin.query": {},
    "Plugin.ls": {},
    "Plugin.diagnostics": {},
    "SR.probe": _CONFIGURATION,
    "SR.create": {"uuid": "string", **_CONFIGURATION, "name": "string", "description": "string"},
    "SR.attach": _CONFIGURATION,
    "SR.detach": _SR,
    "SR.destroy": _SR,
    "SR.stat": _SR,
    "SR.set_name": {**_SR, "new_name": "string"},
    "SR.set_description": {**_SR, "new_description": "string"},
    "SR.ls": _SR,
    "Volume.create": {
        "sr": "string",
        "name": "string",
        "description": "string",
        "size": "int",
        "sharable": "bool",
    },
    "Volume.snapshot": _VOLUME,
    "Volume.clone": _VOLUME,
    "Volume.copy": {**_VOLUME, "dest_sr": "string"},
    "Volume.destroy": _VOLUME,
    "Volume.revert": {"sr": "string", "snapshot": "string", "key": "string"},
    "Volume.set_name": {**_VOLUME, "new_name": "string"},
    "Volume.set_description": {**_VOLUME, "new_description": "string"},
    "Volume.set": {**_VOLUME, "k": "string", "v": "string"},
    "Volume.unset": {**_VOLUME, "k": "string"},
    "Volume.resize": {**_VOLUME, "new_size": "int"},
    "Volume.stat": _VOLUME,
    "Volume.compare": {**_VOLUME, "key2": "string"},
    "Volume.similar_content": _VOLUME,
    "Volume.enable_cbt": _VOLUME,
    "Volume.disable_cbt": _VOLUME,
    "Volume.data_destroy": _VOLUME,
    "Volume.list_changed_blocks": {**_VOLUME, "key2": "string", "offset": "int", "length": "int"},
    "Volume.compose": {**_VOLUME, "key2": "string"},
    "Datapath.open": {"uri": "string", "persistent": "bool"},
    "Datapath.attach": _PATH,
    "Datapath.activate": _PATH,
    "Datapath.activate_readonly": _PATH,
    "Datapath.import_activate": _PATH,
    "Datapath.deactivate": _PATH,
    "Datapath.detach": _PATH,
    "Datapath.close": {"uri": "string"},
    "Data.copy": {**_PATH, "remote": "string", "blocklist": "blocklist"},
    "Data.mirror": {**_PATH, "remote": "string"},
    "Data.stat": _OPERATION,
    "Data.cancel": _OPERATION,
    "Data.destroy": _OPERATION,
    "Data.ls": {},
    "Task.stat": _TASK,
    "Task.cancel": _TASK,
    "Task.destroy": _TASK,
    "Task.ls": {},
}

#: The interfaces of each kind of plugin.
VOLUME = ("Plugin", "SR", "Volume", "Task")
DATAPATH = ("Plugin", "Datapath", "Data", "Task")


def find(name: str) -> str | None:
    """The call of this name; as xapi-storage-script does, without regard to case."""
    return next((call for call in CALLS if call.lower() == name.lower()), None)


def take(call: str, given: object) -> Arguments:
    """The arguments of a call, checked. Others than its own are left out."""
    if not isinstance(given, dict):
        raise invalid(f"{call}: the arguments are not a JSON object")
    taken = {}
    for name, kind in {"dbg": "string", **CALLS[call]}.items():
        if name not in given:
            raise invalid(f"{call}: the argument {name} is missing")
        if not CHECKS[kind](given[name]):
            raise invalid(f"{call}: the argument {name} is not of type {kind}")
        taken[name] = given[name]
    return taken

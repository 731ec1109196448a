"""Puts the executables where xapi-storage-script looks for them: links to one program."""

from __future__ import annotations

import os
import shutil
import sys

from . import idl
from .failure import Failure

#: What xapi calls storage drivers by: only queues with this prefix are asked. The rest is the type of the SR.
PREFIX = "org.xen.xapi.storage."
TYPE = "volmux"
#: URIs of this scheme are for the datapath of the same name.
SCHEME = "volmux"
PROGRAM = "volmux-smapiv3"
ROOTS = ("/usr/libexec/xapi-storage-script", "/var/lib/xapi/storage-scripts")

_SOURCE = """#!{python}
import sys

from volmux.smapiv3.program import main

sys.exit(main(sys.argv))
"""


def places(root: str) -> dict[str, tuple[str, ...]]:
    return {
        os.path.join(root, "volume", PREFIX + TYPE): idl.VOLUME,
        os.path.join(root, "datapath", SCHEME): idl.DATAPATH,
    }


def default_root() -> str:
    for root in ROOTS:
        if os.path.isdir(root):
            return root
    raise Failure("NotFound", f"xapi-storage-script has none of its directories {', '.join(ROOTS)}: name one (--root)")


def install(root: str) -> list[str]:
    """Returns the directories. May be repeated: then the program is replaced."""
    for place, interfaces in places(root).items():
        os.makedirs(os.path.dirname(place), exist_ok=True)
        # xapi-storage-script calls Plugin.query as soon as it sees the directory: it must be whole by then.
        new = os.path.join(root, f".{os.path.basename(place)}.{os.getpid()}")
        os.mkdir(new)
        try:
            _fill(new, interfaces)
            _publish(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return list(places(root))


def _fill(directory: str, interfaces: tuple[str, ...]) -> None:
    program = os.path.join(directory, PROGRAM)
    with open(program, "w", encoding="utf-8") as file:
        file.write(_SOURCE.format(python=sys.executable))
    os.chmod(program, 0o755)
    for call in idl.CALLS:
        if call.split(".")[0] in interfaces:
            os.symlink(PROGRAM, os.path.join(directory, call))


def _publish(new: str, place: str) -> None:
    if not os.path.isdir(place):
        os.rename(new, place)
        return
    for name in os.listdir(new):
        os.replace(os.path.join(new, name), os.path.join(place, name))


def uninstall(root: str) -> None:
    for place in places(root):
        shutil.rmtree(place, ignore_errors=True)

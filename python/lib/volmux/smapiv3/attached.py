"""The SRs that are attached to this host, and their pools."""

from __future__ import annotations

import os
import re
import uuid as uuids
from typing import Any

import volmux

from . import host
from .failure import Failure, invalid, sr_not_attached

#: What a configuration holds that is not for the pool.
OURS = ("url", "config", "sr_uuid", "datapath", "SRmaster")
_SECRET = re.compile(r"(?i)(^key$|password|secret|passphrase|token)(?!.*_(file|path|env)$)")


def record(sr: str) -> dict[str, Any]:
    """The configuration of an attached SR."""
    found = host.read_json(_path(sr)) if is_uuid(sr) else None
    if found is None:
        raise sr_not_attached(sr)
    return found


def pool(sr: str) -> volmux.Pool:
    """The pool of an attached SR."""
    return open_pool(record(sr)["configuration"])


def add(sr: str, configuration: dict[str, str]) -> None:
    host.write_json(_path(sr), {"configuration": configuration})


def remove(sr: str) -> None:
    if is_uuid(sr):
        host.remove(_path(sr))


def every() -> list[str]:
    names = os.listdir(os.path.dirname(_path("x")))
    return sorted(name[: -len(".json")] for name in names if name.endswith(".json"))


def is_uuid(text: str) -> bool:
    try:
        return str(uuids.UUID(text)) == text.lower()
    except ValueError:
        return False


def _path(sr: str) -> str:
    path = host.run_path("sr", sr + ".json")
    return path


def open_pool(configuration: dict[str, str]) -> volmux.Pool:
    """The pool that a configuration names: by ``url``, or by ``config``, a file of this host with all of it."""
    url, file = configuration.get("url"), configuration.get("config")
    options = {key: value for key, value in configuration.items() if key not in OURS}
    for key in options:
        if _SECRET.search(key):
            raise invalid(f"{key}: a secret is never in a configuration, which everybody can read: name a file")
    if (url is None) == (file is None):
        raise invalid("a configuration has a url, or the path of a file with the pool's configuration (config)")
    if url is not None:
        _check_lasting(url)
        return volmux.open_pool(url, **options)
    read = host.read_json(str(file))
    if read is None or not isinstance(read.get("url"), str):
        raise Failure("InvalidConfig", f"{file}: not there, or not a JSON object with the pool's url")
    _check_lasting(read["url"])
    return volmux.open_pool(read, **options)


def _check_lasting(url: str) -> None:
    if url.startswith(("memory:", "memory+object:")):
        raise invalid("a pool in memory ends with each call")

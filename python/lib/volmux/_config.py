"""From what `open_pool` takes to the JSON that the core reads."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any


def as_json(source: str | os.PathLike[str] | Mapping[str, Any], options: Mapping[str, Any] | None) -> str:
    """``source`` and ``options`` as one JSON object."""
    more = dict(options or {})
    if isinstance(source, str):
        if not source.lstrip().startswith("{"):
            return _dump({"url": source, **more})
        # As it is, the core says what is wrong with it.
        return source if not more else _merge(json.loads(source), more)
    if isinstance(source, os.PathLike):
        path = pathlib.Path(source).absolute()
        return _dump({"url": path.as_uri().replace("file:", "dir:", 1), **more})
    if isinstance(source, Mapping):
        return _merge(source, more)
    raise TypeError(f"a pool is a URL, a path or a mapping, not {type(source).__name__}")


def _merge(configuration: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    twice = configuration.keys() & more.keys()
    if twice:
        raise TypeError(f"given twice: {', '.join(sorted(twice))}")
    return _dump({**configuration, **more})


def _dump(configuration: Mapping[str, Any]) -> str:
    return json.dumps(configuration, default=os.fspath, allow_nan=False)

"""From the log of volmux to `logging`."""

from __future__ import annotations

import logging

ROOT = logging.getLogger("volmux")
ROOT.addHandler(logging.NullHandler())


def emit(level: int, name: str, path: str | None, line: int, message: str, lost: int) -> None:
    """Hands an event to the logger ``name``; ``lost`` events before it found no room."""
    if lost:
        ROOT.warning("%d records were lost: there were more than could be told", lost)
    logger = logging.getLogger(name)
    if logger.isEnabledFor(level):
        record = logger.makeRecord(name, level, path or "volmux", line, message, (), None, "volmux")
        logger.handle(record)

"""The interface Task. Every call of this plugin is done when it returns, so there are never tasks."""

from __future__ import annotations

from typing import NoReturn

from .failure import Failure


def _unknown(id: str) -> NoReturn:
    raise Failure("NotFound", f"there is no task {id}")


def stat(dbg: str, id: str) -> NoReturn:
    _unknown(id)


def cancel(dbg: str, id: str) -> NoReturn:
    _unknown(id)


def destroy(dbg: str, id: str) -> NoReturn:
    _unknown(id)


def ls(dbg: str) -> list[str]:
    return []

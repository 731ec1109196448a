"""What a call fails with, and how that is told."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence

CODE = "SR_BACKEND_FAILURE"


class Failure(Exception):
    """An error of the interface: its name and what it is about, as xapi-storage-script takes them."""

    def __init__(self, name: str, *about: str) -> None:
        super().__init__(": ".join((name, *about)))
        self.params = [name, *about]


def sr_not_attached(sr: str) -> Failure:
    return Failure("Sr_not_attached", sr)


def no_sr(what: str) -> Failure:
    return Failure("SR_does_not_exist", what)


def no_volume(key: str) -> Failure:
    return Failure("Volume_does_not_exist", key)


def unimplemented(why: str) -> Failure:
    return Failure("Unimplemented", why)


def active_elsewhere(host: str) -> Failure:
    return Failure("Activated_on_another_host", host)


def invalid(why: str) -> Failure:
    return Failure("InvalidInput", why)


def in_use(why: str) -> Failure:
    return Failure("Busy", why)


def report(error: BaseException) -> dict[str, object]:
    """What is written to standard output. ``backtrace`` has the form that xapi-storage-script takes."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "code": CODE,
        "params": _params(error),
        "error": str(error),
        "backtrace": {
            "error": str(error),
            "files": [frame.filename for frame in frames],
            "lines": [frame.lineno or 0 for frame in frames],
        },
    }


def _params(error: BaseException) -> Sequence[str]:
    if isinstance(error, Failure):
        return error.params
    if isinstance(error, OSError) and error.errno and not hasattr(error, "kind"):
        return [type(error).__name__, f"{os.strerror(error.errno)}: {error.filename or error}"]
    return [type(error).__name__, str(error)]

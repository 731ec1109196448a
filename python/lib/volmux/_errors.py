"""Exceptions: one class for each kind of error."""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable
from typing import ClassVar


class ErrorKind(enum.IntEnum):
    """What sort of failure an error is. The numbers are those of the C library and of the program's exit codes."""

    NOT_FOUND = 1
    ALREADY_EXISTS = 2
    UNSUPPORTED = 3
    INVALID_INPUT = 4
    INVALID_CONFIG = 5
    NO_SPACE = 6
    BUSY = 7
    FENCED = 8
    PERMISSION_DENIED = 9
    UNAUTHENTICATED = 10
    UNAVAILABLE = 11
    TIMED_OUT = 12
    CORRUPT = 13
    INTERNAL = 14


class Error(Exception):
    """The base of all errors of volmux.

    Each kind has a class, which also derives from the exception of Python's that fits it, so that
    ``except FileNotFoundError`` catches `NotFound`. The text names operation, kind and context in one line;
    the cause, if there is one, is ``__cause__``.
    """

    #: What sort of failure this is.
    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL
    #: Whether the same call may succeed later without the caller changing anything.
    is_retryable: ClassVar[bool] = False
    _errno: ClassVar[int | None] = None

    #: The operation that failed, such as ``create_volume``.
    op: str
    #: What is known of it, in order. Usual keys: ``pool``, ``volume``, ``path``, ``reason``, ``help``.
    context: list[tuple[str, str]]

    def __init__(self, message: str = "", *, op: str = "", context: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.op = op
        self.context = list(context)
        if self._errno is not None:
            # An attribute of OSError's, from which those with a number derive.
            setattr(self, "errno", self._errno)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def code(self) -> int:
        """The number of the kind."""
        return int(self.kind)

    def get(self, key: str) -> str | None:
        """The first value of the context under ``key``."""
        return next((value for name, value in self.context if name == key), None)

    @property
    def reason(self) -> str | None:
        """What is wrong, in a sentence."""
        return self.get("reason")

    @property
    def help(self) -> str | None:
        """What can be done about it."""
        return self.get("help")


class NotFound(Error, FileNotFoundError):
    """The named object does not exist. Check the name; create it first."""

    kind = ErrorKind.NOT_FOUND
    _errno = errno.ENOENT


class AlreadyExists(Error, FileExistsError):
    """The name is taken by an object made with other arguments. Choose another name."""

    kind = ErrorKind.ALREADY_EXISTS
    _errno = errno.EEXIST


class Unsupported(Error, NotImplementedError):
    """This pool cannot do that, as its `capabilities()` say. Use another pool or another way."""

    kind = ErrorKind.UNSUPPORTED


class InvalidInput(Error, ValueError):
    """An argument is wrong. Correct the call; repeating it cannot help."""

    kind = ErrorKind.INVALID_INPUT


class InvalidConfig(Error, ValueError):
    """The pool's URL, configuration or stored configuration is wrong. Correct it."""

    kind = ErrorKind.INVALID_CONFIG


class NoSpace(Error, OSError):
    """There is no room, or the pool's policy refuses. Free or add space."""

    kind = ErrorKind.NO_SPACE
    _errno = errno.ENOSPC


class Busy(Error, OSError):
    """Somebody else uses the object. Try again once they are done."""

    kind = ErrorKind.BUSY
    is_retryable = True
    _errno = errno.EBUSY


class Fenced(Error, OSError):
    """Another writer took over; this handle is dead. Do not retry: find out who took over."""

    kind = ErrorKind.FENCED
    _errno = errno.ESTALE


class PermissionDenied(Error, PermissionError):
    """The operating system or the store does not allow it. Grant the right, or change the user."""

    kind = ErrorKind.PERMISSION_DENIED
    _errno = errno.EACCES


class Unauthenticated(Error, PermissionError):
    """Credentials are missing or wrong. Correct them."""

    kind = ErrorKind.UNAUTHENTICATED
    _errno = errno.EPERM


class Unavailable(Error, ConnectionError):
    """The store cannot be reached or answered with a passing fault. Try again later."""

    kind = ErrorKind.UNAVAILABLE
    is_retryable = True
    _errno = errno.EIO


class TimedOut(Error, TimeoutError):
    """The operation was stopped before it finished: its deadline passed, or it was cancelled. Calling again
    converges."""

    kind = ErrorKind.TIMED_OUT
    is_retryable = True
    _errno = errno.ETIMEDOUT


class Corrupt(Error, OSError):
    """Stored data or metadata is damaged. Stop writing, run an audit, restore from a backup."""

    kind = ErrorKind.CORRUPT
    _errno = errno.EBADMSG


class Internal(Error, RuntimeError):
    """A fault in volmux itself. Report it."""

    kind = ErrorKind.INTERNAL


#: The class of each kind, by its number.
BY_CODE: dict[int, type[Error]] = {
    int(error.kind): error
    for error in (
        NotFound,
        AlreadyExists,
        Unsupported,
        InvalidInput,
        InvalidConfig,
        NoSpace,
        Busy,
        Fenced,
        PermissionDenied,
        Unauthenticated,
        Unavailable,
        TimedOut,
        Corrupt,
        Internal,
    )
}

for _class in (Error, ErrorKind, *BY_CODE.values()):
    _class.__module__ = "volmux"

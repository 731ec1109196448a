"""The tree of exceptions."""

from __future__ import annotations

import errno
import pickle
import traceback
from pathlib import Path

import pytest

import volmux
from volmux import ErrorKind

CLASSES: dict[ErrorKind, tuple[type[volmux.Error], type[Exception]]] = {
    ErrorKind.NOT_FOUND: (volmux.NotFound, FileNotFoundError),
    ErrorKind.ALREADY_EXISTS: (volmux.AlreadyExists, FileExistsError),
    ErrorKind.UNSUPPORTED: (volmux.Unsupported, NotImplementedError),
    ErrorKind.INVALID_INPUT: (volmux.InvalidInput, ValueError),
    ErrorKind.INVALID_CONFIG: (volmux.InvalidConfig, ValueError),
    ErrorKind.NO_SPACE: (volmux.NoSpace, OSError),
    ErrorKind.BUSY: (volmux.Busy, OSError),
    ErrorKind.FENCED: (volmux.Fenced, OSError),
    ErrorKind.PERMISSION_DENIED: (volmux.PermissionDenied, PermissionError),
    ErrorKind.UNAUTHENTICATED: (volmux.Unauthenticated, PermissionError),
    ErrorKind.UNAVAILABLE: (volmux.Unavailable, ConnectionError),
    ErrorKind.TIMED_OUT: (volmux.TimedOut, TimeoutError),
    ErrorKind.CORRUPT: (volmux.Corrupt, OSError),
    ErrorKind.INTERNAL: (volmux.Internal, RuntimeError),
}


def test_numbers_are_those_of_the_contract() -> None:
    assert [int(kind) for kind in ErrorKind] == list(range(1, 15))
    assert set(CLASSES) == set(ErrorKind)
    assert (ErrorKind.FENCED, ErrorKind.CORRUPT) == (8, 13)


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_each_class(kind: ErrorKind) -> None:
    made, builtin = CLASSES[kind]
    error = made("op: text", op="op", context=[("volume", "web"), ("reason", "because"), ("help", "do")])
    assert isinstance(error, volmux.Error) and isinstance(error, builtin)
    assert (error.kind, error.code, str(error)) == (kind, int(kind), "op: text")
    assert (error.op, error.get("volume"), error.reason, error.help) == ("op", "web", "because", "do")
    assert error.get("pool") is None
    assert error.is_retryable == (kind in (ErrorKind.BUSY, ErrorKind.UNAVAILABLE, ErrorKind.TIMED_OUT))
    assert made.__module__ == "volmux" and made.__doc__
    if isinstance(error, OSError):
        assert errno.errorcode[error.errno or 0]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is made
    assert (str(again), again.op, again.context) == (str(error), error.op, error.context)


def test_an_error_of_a_call_tells_all(memory: volmux.Pool) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        memory.volume("web")
    error = caught.value
    assert isinstance(error, volmux.NotFound)
    assert error.op == "volume"
    assert ("volume", "web") in error.context
    assert str(error).startswith("volume: not found (")
    assert error.errno == errno.ENOENT


def test_causes_are_chained(memory: volmux.Pool, tmp_path: Path) -> None:
    memory.create_volume("web", 1 << 20)
    with pytest.raises(volmux.NotFound) as caught:
        memory.serve("web", listen=tmp_path / "socket", tls_directory=tmp_path)
    cause = caught.value.__cause__
    assert isinstance(cause, OSError) and cause.errno == errno.ENOENT
    text = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
    assert "direct cause" in text and "FileNotFoundError: [Errno 2]" in text

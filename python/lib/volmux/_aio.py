"""Futures of work that volmux does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Pending(asyncio.Future):  # type: ignore[type-arg]  # not generic at run time in Python 3.10
    """Work that is under way. Cancelling it stops the work, and the future is cancelled once that has ended: so
    whoever is told of the cancellation finds nothing that still runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
        super().__init__(loop=loop)
        self._stop = stop
        self._cancelled = False
        self._forgiven = False
        self._message: Any = None

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        self._cancelled = True
        self._message = msg
        self._stop()
        return True

    def _forgive(self) -> None:
        """Lets errors of volmux pass: there is an exception already."""
        self._forgiven = True

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self.done():
            return
        if self._cancelled and error is None:
            super().cancel(self._message)
        elif self._cancelled and _is_ours(error):
            super().cancel(self._message)
        elif error is None or (self._forgiven and _is_ours(error)):
            self.set_result(value)
        else:
            self.set_exception(error)


def _is_ours(error: BaseException | None) -> bool:
    from ._errors import Error

    return isinstance(error, Error)


def ready(value: T) -> asyncio.Future[T]:
    """A future that is done."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def from_threads(function: Callable[[], object]) -> Callable[[], None]:
    """For other threads: calls a function, and waits for it on the running event loop if it is a coroutine function."""
    if not callable(function):
        raise TypeError("freeze and thaw must be callable")
    loop = asyncio.get_running_loop()

    def call() -> None:
        result = function()
        if inspect.isawaitable(result):
            asyncio.run_coroutine_threadsafe(_wait_for(result), loop).result()

    return call


async def _wait_for(result: Awaitable[object]) -> None:
    await result

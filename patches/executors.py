"""asyncio's own thread pool stays native: what runs there may block or compute.

`loop.run_in_executor(None, ...)`, `asyncio.to_thread` and asyncio's getaddrinfo use a pool whose
workers are native threads; they can wait in green locks and queues. A ThreadPoolExecutor that a
program makes itself has green workers, as its threads are started by threading.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

from ._engine import Change, Replace

_classes: dict[str, Any] = {}


def native_pool(**arguments: Any) -> Any:
    """A ThreadPoolExecutor whose workers are native threads; its parameters."""
    if not _classes:
        _make_classes()
    return _classes["pool"](**arguments)


def _make_classes() -> None:
    import concurrent.futures.thread as source
    import threading

    class NativeThread(threading.Thread):
        """A Thread that `_thread` starts natively: pyglue/threads.c looks for the mark."""

        _portalpatch_native = True

    class ThreadPoolExecutor(source.ThreadPoolExecutor):
        """The standard library's, starting NativeThread where it says `threading.Thread`."""

    # The very same code, with another `threading`.
    adjust = source.ThreadPoolExecutor._adjust_thread_count
    variables = {**adjust.__globals__, "threading": SimpleNamespace(Thread=NativeThread)}
    ThreadPoolExecutor._adjust_thread_count = FunctionType(  # type: ignore[method-assign]
        adjust.__code__, variables, adjust.__name__, adjust.__defaults__, adjust.__closure__
    )
    ThreadPoolExecutor.__module__ = source.ThreadPoolExecutor.__module__
    ThreadPoolExecutor.__qualname__ = source.ThreadPoolExecutor.__qualname__
    _classes["pool"] = ThreadPoolExecutor


def _run_in_executor(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_in_executor(self: Any, executor: Any, func: Any, *args: Any) -> Any:
        if (
            executor is None
            and self._default_executor is None
            and not self.is_closed()
            and not self._executor_shutdown_called
        ):
            self._default_executor = native_pool(thread_name_prefix="asyncio")
        return original(self, executor, func, *args)

    return run_in_executor


CHANGES: tuple[Change, ...] = (
    Replace("asyncio.base_events", "BaseEventLoop.run_in_executor", _run_in_executor),
)

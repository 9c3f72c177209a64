"""The loops' own thread pools stay native: what runs there may block or compute.

`loop.run_in_executor(None, ...)`, `asyncio.to_thread` and asyncio's getaddrinfo use a pool whose
workers are native threads, on uvloop as well; they can wait in green locks and queues. A pool that a
program makes itself has green workers, as its threads are started by threading.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

from ._engine import Call, Change, Replace, put

_classes: dict[str, Any] = {}


def native_pool(**arguments: Any) -> Any:
    """A ThreadPoolExecutor whose workers are native threads; its parameters."""
    if not _classes:
        _make_classes()
    return _classes["pool"](**arguments)


def native_thread() -> Any:
    """A subclass of threading.Thread whose instances are native threads."""
    if not _classes:
        _make_classes()
    return _classes["thread"]


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
    _classes["thread"] = NativeThread


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


def _use_native_pool_of_uvloop(uvloop: Any) -> None:
    """uvloop keeps its default executor to itself, so it is given one before it makes its own."""
    from weakref import WeakSet

    loop_type = uvloop.Loop
    if "run_in_executor" in vars(loop_type) or "set_default_executor" in vars(loop_type):
        return
    run, set_default = loop_type.run_in_executor, loop_type.set_default_executor
    decided: WeakSet[Any] = WeakSet()

    @functools.wraps(run)
    def run_in_executor(self: Any, executor: Any, func: Any, *args: Any) -> Any:
        if executor is None and self not in decided and not self.is_closed():
            set_default(self, native_pool())
            decided.add(self)
        return run(self, executor, func, *args)

    @functools.wraps(set_default)
    def set_default_executor(self: Any, executor: Any) -> None:
        set_default(self, executor)
        decided.add(self)

    put(loop_type, "run_in_executor", run_in_executor)
    put(loop_type, "set_default_executor", set_default_executor)


CHANGES: tuple[Change, ...] = (
    Replace("asyncio.base_events", "BaseEventLoop.run_in_executor", _run_in_executor),
    Call("uvloop", _use_native_pool_of_uvloop, lambda _: None),
)

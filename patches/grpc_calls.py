"""gRPC's C core waits on native threads: it keeps per-thread state across its waits.

A thread that waits in a completion queue is noted in C++ thread-local variables and woken through
raw futex calls. Two green threads of one OS thread in there overwrite each other's notes: gRPC aborts.
So the threads that gRPC starts (a channel's events, a server, grpc.aio's poller) are native, with them
the handlers of a server's executor; a green thread's blocking call runs on a worker, its caller parked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .._hidden import hide
from .._offload import offload
from ._engine import Change, Replace
from .executors import native_thread


class _NativeThreading:
    """The module `threading`, but for `Thread`, whose instances are native."""

    def __init__(self, threading: Any) -> None:
        self._threading = threading

    def __getattr__(self, name: str) -> Any:
        return native_thread() if name == "Thread" else getattr(self._threading, name)


def _offloaded(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @hide
    def waits(*args: Any, **kwds: Any) -> Any:
        return offload(original, *args, **kwds)

    return waits


CHANGES: tuple[Change, ...] = (
    Replace("grpc._cython.cygrpc", "threading", _NativeThreading),
    Replace("grpc._server", "threading", _NativeThreading),
    Replace("grpc._channel", "_UnaryUnaryMultiCallable._blocking", _offloaded),
    Replace("grpc._channel", "_StreamUnaryMultiCallable._blocking", _offloaded),
    Replace("grpc._channel", "_SingleThreadedRendezvous._consume_next_event", _offloaded),
)

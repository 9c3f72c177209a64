"""Condition, Event, Semaphore and queue.Queue: the usual case of each hot method runs in C.

The classes stay `threading`'s and `queue`'s own, Python-visible state included (pyglue/conditions.c);
their functions ask a C function first (`_shortcuts`). A subclass that overrides a method, a lock of
the user's own, a timeout that has to be awaited, a tracer: the Python code runs as ever. All this is
made when the first green thread starts: a program without threads does not pay for it.
"""

from __future__ import annotations

from typing import Any

from .. import _core
from . import _shortcuts
from ._engine import Call, Change, apply
from ._shortcuts import Shortcut


def _use_condition(threading: Any) -> None:
    from collections import deque

    _core.use_condition(threading.Condition, deque)


SHORTCUTS: tuple[Change, ...] = (
    Call("threading", _use_condition, lambda _: None),
    Shortcut("threading", "Condition.wait", _core.condition_wait, "acquire", True),
    Shortcut("threading", "Condition.notify", _core.condition_notify),
    Shortcut("threading", "Event.set", _core.event_set),
    Shortcut("threading", "Event.clear", _core.event_clear),
    Shortcut("threading", "Event.wait", _core.event_wait, "wait"),
    Shortcut("threading", "Semaphore.acquire", _core.semaphore_acquire, "wait"),
    Shortcut("threading", "Semaphore.release", _core.semaphore_release),
    Shortcut("threading", "BoundedSemaphore.release", _core.bounded_semaphore_release),
    Call("threading", lambda _: _shortcuts.forget_sources(), lambda _: None),
    Call("queue", lambda queue: _core.use_queue(queue.Queue), lambda _: None),
    Shortcut("queue", "Queue.get", _core.queue_get, "wait"),
    Shortcut("queue", "Queue.put", _core.queue_put, "wait"),
    Call("queue", lambda _: _shortcuts.forget_sources(), lambda _: None),
)

CHANGES: tuple[Change, ...] = (
    Call(
        "_thread",
        lambda _: _core.on_first_thread(lambda: apply(SHORTCUTS)),
        lambda _: _core.on_first_thread(None),
    ),
)

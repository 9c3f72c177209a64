"""Locks: `_thread` gives out green ones, and native ones made before wait greenly.

New locks are `_core`'s, for green and native threads at once; Condition, Event, Semaphore, Barrier
and queue.Queue are Python code and stand on them. Locks that exist already stay what they are; their
methods are exchanged in place, wherever they are kept: in globals, closures, Conditions or slots.
The rule for such a lock: a green thread that must wait for it parks; a release from Python hands it
over at once; a release from C code (the end of a native thread) is seen within 64 ms.
"""

from __future__ import annotations

from typing import Any

from .. import _core
from ._engine import Call, Change, Replace, Swap, put


def _lock_type(_original: Any) -> Any:
    return _core.Lock


class _ImportLocks:
    """`_thread` as importlib's module locks see it: every task of a loop is somebody else.

    Two tasks have one get_ident(), so the second to import a module would take a half-made one
    for a circular import of its own.
    """

    get_ident = _core.strand_key
    allocate_lock = _core.allocate_lock
    RLock = _core.RLock


def _import_locks(module: Any) -> None:
    if module._thread is not None:
        put(module, "_thread", _ImportLocks)


CHANGES: tuple[Change, ...] = (
    *(
        Swap("_thread", f"LockType.{name}", f"_thread.lock.{stand_in}")
        for name, stand_in in (
            ("acquire", "acquire"),
            ("acquire_lock", "acquire"),
            ("__enter__", "acquire"),
            ("release", "release"),
            ("release_lock", "release"),
            ("__exit__", "__exit__"),
            ("_at_fork_reinit", "_at_fork_reinit"),
        )
    ),
    *(
        Swap("_thread", f"RLock.{name}", f"_thread.RLock.{stand_in}")
        for name, stand_in in (
            ("acquire", "acquire"),
            ("__enter__", "acquire"),
            ("release", "release"),
            ("__exit__", "__exit__"),
            ("_release_save", "_release_save"),
            ("_acquire_restore", "_acquire_restore"),
            ("_is_owned", "_is_owned"),
            ("_at_fork_reinit", "_at_fork_reinit"),
        )
    ),
    Swap("_thread", "allocate_lock"),
    Swap("_thread", "allocate", "_thread.allocate_lock"),
    Replace("_thread", "RLock", lambda _: _core.RLock, aliases=True),
    Replace("_thread", "LockType", _lock_type, aliases=True),
    Replace("_thread", "lock", _lock_type, since=(3, 13)),
    Call("_frozen_importlib", _import_locks, lambda _: None),
)

"""What portalpatch changes in Python itself: everything that libc hooks cannot see.

Called by `portalpatch.patch_all()` and `unpatch_all()`. Each patch is one module of this package
that declares its changes (`CHANGES`, see `_engine`); the table below names them in the order they
are applied. Invariants: applying never imports a module only to change it (the change waits for
its import); undoing restores exactly what was there, and leaves alone what others changed since.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from . import _engine

# name -> module of this package
_MODULES = {
    "locks": "green_locks",
    "threads": "green_threads",
    "conditions": "conditions",
    "queues": "queues",
    "executors": "executors",
    "processes": "processes",
    "signals": "signals",
    "faulthandler": "faults",
    "asyncio": "asyncio_tasks",
    "trio": "trio_tasks",
    "grpc": "grpc_calls",
    "forks": "forks",
}


def names() -> tuple[str, ...]:
    """The names of all patches, in the order in which they are applied."""
    return tuple(_MODULES)


def _known(wanted: Iterable[str]) -> set[str]:
    wanted = set(wanted)
    for name in sorted(wanted - _MODULES.keys()):
        raise ValueError(f"unknown patch {name!r}: known are {', '.join(_MODULES)}")
    return wanted


def apply(only: Iterable[str] | None = None, without: Iterable[str] = ()) -> None:
    """Apply the patches.

    Parameters:
        only: names of the patches to apply; None: all of them.
        without: names of patches to leave out.
    Raises:
        ValueError: a name that is not in `names()`; nothing is patched then.
    """
    selected = _known(_MODULES if only is None else only) - _known(without)
    try:
        for name, module in _MODULES.items():
            if name in selected:
                _engine.apply(import_module(f"{__name__}.{module}").CHANGES)
        _engine.replace_aliases()
    except BaseException:
        _engine.undo()
        raise


def undo() -> None:
    """Undo all patches, the last one first. Does nothing where none is applied."""
    _engine.undo()

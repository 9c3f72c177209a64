"""`patch_all()` and its undoing: puts the portal, the hooks and the Python patches in place.

Called by user code and by `_activate`. Calls `_core` (hub, portal, GOT hooks) and `patches`.
Invariant: a failed `patch_all()` leaves nothing patched.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import IO, Any

from . import _core, _stats, patches
from ._stats import Statistics

HOSTS = ("asyncio", "trio")

_state: dict[str, Any] = {"patched": False, "host": "asyncio"}


class _CarrierType(type):
    """Calling a class of this type returns the exception that waits for the current strand.

    `PyThreadState_SetAsyncExc` takes classes only; this delivers the very instance.
    """

    def __call__(cls, *args: object) -> Any:
        return _core.take_thrown() or super().__call__(*args)

    def __subclasscheck__(cls, other: type) -> bool:
        # Normalizing (carrier, exception) a second time must take the exception as it is.
        return True


class _Carrier(BaseException, metaclass=_CarrierType):
    """Stands for a pending cancellation until it is raised."""


def patch_all(
    *,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    host: str = "asyncio",
    stats: bool = False,
    stall: float | None = None,
    mutex_guard: Iterable[str] = (),
    sigquit: bool = False,
) -> None:
    """Make the blocking calls of this thread, and of green threads, wait in the hub.

    Call it as early as possible, before threads are started; a second call changes nothing.

    Parameters:
        only: names of patches (`portalpatch.patches.names()`) to apply and no others;
            default: all. The libc hooks are always in place.
        without: names of patches to leave out.
        host: the loop that `await_` runs on where the program runs none: "asyncio" or "trio".
        stats: print `statistics()` as a table on stderr (fd 2 itself) at exit.
        mutex_guard: patterns (`fnmatch`) of file names of libraries that hold a mutex across their
            blocking calls: while one is held, calls really block. See `statistics()`'s
            `blocked_by_call`. Default: none.
        stall: seconds; report code that ran longer than this without a wait. None: never.
        sigquit: SIGQUIT does what `dump()` does, and the program goes on. Where this is not called
            in the main thread, which alone can handle signals: no effect.

    Raises:
        ValueError: an unknown patch name or host.
        OSError: the hooks could not be written.

    Semantics: as `gevent.monkey.patch_all`, for every libc call instead of Python classes.
    """
    if host not in HOSTS:
        raise ValueError(f"unknown host {host!r}: one of {', '.join(HOSTS)}")
    if stall is not None and not stall > 0:
        raise ValueError(f"stall must be a positive number of seconds, not {stall!r}")
    if _state["patched"]:
        return
    patches.apply(only=only, without=without)
    try:
        _core.set_carrier(_Carrier)
        _core.guard_mutexes(",".join(mutex_guard))
        _core.start()
    except BaseException:
        patches.undo()
        raise
    with contextlib.suppress(ValueError):  # not the main thread: the carrier class serves alone
        _state["signal"] = signal.signal(_core.CANCEL_SIGNAL, _core.raise_thrown)
    if stats:
        _stats.print_at_exit()
    atexit.register(_core.close_gates)
    _core.set_deadlock_hook(_report_deadlock)
    if sigquit:
        from . import _reports

        with contextlib.suppress(ValueError):
            _reports.dump_on_sigquit(True)
    if stall is not None:
        from . import _reports

        _reports.watch_stalls(stall)
    _state.update(patched=True, host=host)


def unpatch_all() -> None:
    """Restore every hook and patch. Green threads that still run keep their locks and waits.

    Does nothing where `patch_all()` was not called.
    """
    if not _state["patched"]:
        return
    _core.set_deadlock_hook(None)
    if "portalpatch._reports" in sys.modules:
        sys.modules["portalpatch._reports"].watch_stalls(None)
        with contextlib.suppress(ValueError):
            sys.modules["portalpatch._reports"].dump_on_sigquit(False)
    _core.stop()
    atexit.unregister(_core.close_gates)
    _stats.print_at_exit(False)
    patches.undo()
    if _state.get("signal") is not None:
        with contextlib.suppress(ValueError):
            signal.signal(_core.CANCEL_SIGNAL, _state.pop("signal"))
    _state["patched"] = False


def _report_deadlock() -> bool:
    from . import _reports

    return _reports.deadlock()


def dump(file: IO[str] | None = None) -> None:
    """Print every thread, green thread and parked task: what it waits for, and its stack.

    Parameters:
        file: where to; default: standard error (fd 2 itself).
    """
    from . import _reports

    _reports.dump(file)


def is_patched() -> bool:
    """Whether `patch_all()` is in force."""
    return bool(_state["patched"])


def host() -> str:
    """The host loop's name given to `patch_all()`."""
    return str(_state["host"])


@contextlib.contextmanager
def native() -> Iterator[None]:
    """Inside this block the calls of this task or green thread really block.

    The whole OS thread waits with it: for calls that must not be interleaved with anything.
    """
    _core.native_enter(1)
    try:
        yield
    finally:
        _core.native_enter(-1)


def statistics() -> Statistics:
    """What portalpatch has done in this process so far: an immutable record."""
    counts = _core.statistics()
    for name in ("waits_by_call", "passed_by_call", "blocked_by_call"):
        counts[name] = MappingProxyType(counts[name])
    return Statistics(**counts)

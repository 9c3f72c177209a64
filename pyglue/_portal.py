"""The portal API, with greenback's names and meanings: synchronous code awaits at any depth.

Called by user code. Calls `_core` (the portal coroutine, in C) and, where no loop runs, `_host`.
Semantics: greenback's documentation, https://greenback.readthedocs.io/en/stable/reference.html.
"""

from __future__ import annotations

import collections.abc
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from . import _core
from ._core import async_context, async_iter, await_
from ._hidden import hide

__all__ = [
    "async_context",
    "async_iter",
    "autoawait",
    "await_",
    "bestow_portal",
    "decorate_as_sync",
    "ensure_portal",
    "has_portal",
    "with_portal_run",
    "with_portal_run_sync",
    "with_portal_run_tree",
]

T = TypeVar("T")
P = ParamSpec("P")

_MISSING = (
    "You must create a portal for this task in order to use 'portalpatch.await_()'. Try "
    "'await portalpatch.ensure_portal()' or 'await portalpatch.with_portal_run(some_fn, *args)', "
    "or call portalpatch.patch_all() before the task starts."
)


def _current_task() -> Any:
    """The running task and its library's name; (None, None) where no loop runs."""
    if _core.portal_host() == "trio":  # perhaps run by a task of asyncio, which is current too
        return sys.modules["trio"].lowlevel.current_task(), "trio"
    trio_task = _current_trio_task()
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and (trio_task is None or not _core.in_context(trio_task.context)):
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task(loop)
        if task is None and loop is not None:  # 3.14 does not tell of a task written in Python
            task = getattr(asyncio.tasks, "_current_tasks", {}).get(loop)
        if task is not None:
            return task, "asyncio"
    return (None, None) if trio_task is None else (trio_task, "trio")


def _current_trio_task() -> Any:
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        return trio.lowlevel.current_task()
    except RuntimeError:
        return None


async def _find_current_task() -> Any:
    """The same, asked for by a task: curio tells its current task to nobody else."""
    task, library = _current_task()
    curio = sys.modules.get("curio")
    if task is None and curio is not None and curio.meta.curio_running():
        task, library = await curio.current_task(), "curio"
    return task, library


def _coroutine_of(task: Any) -> Any:
    """What the loop steps: `get_coro()` and Trio's `coro` show the user's coroutine instead."""
    for name in ("_coro", "_run_coro"):  # of asyncio, curio
        if hasattr(task, name):
            return getattr(task, name)
    return _core.stepped_coroutine(task)  # of Trio


def portalize_trio_task(task: Any) -> None:
    """Put a portal in the place of the coroutine of a Trio task, scheduled or not."""
    coroutine = _core.stepped_coroutine(task)
    if _core.is_portal(coroutine):
        return
    portal = task.coro = _core.portal_coroutine_trio(coroutine)
    scheduled = task._next_send_fn  # the old coroutine's send or throw, already bound
    if scheduled is not None:
        # The names as constants: CPython's method cache would keep each task's own str of `__name__`.
        task._next_send_fn = portal.send if scheduled.__name__ == "send" else portal.throw
    if "trio" not in _shown:
        _shown.add("trio")
        _core.show_trio_coroutines(type(task), vars(sys.modules["trio._core._run"]))


def bestow_portal(task: Any) -> None:
    """Give `task` a portal, so that synchronous code in it can `await_`.

    Parameters:
        task: an asyncio, Trio or curio task. The portal of the current task is usable only after
            its next checkpoint.
    Raises:
        RuntimeError: the task's coroutine could not be replaced.
    """
    coroutine = _coroutine_of(task)
    if coroutine is None or _core.is_portal(coroutine):
        return  # it has finished (eagerly), or has one
    library = type(task).__module__.partition(".")[0]
    if library == "trio":
        portalize_trio_task(task)
        return
    if library == "curio":
        portal = task._run_coro = _core.portal_coroutine_other(coroutine)
        task._send, task._throw = portal.send, portal.throw
        return
    show_coroutines()
    show_python_coroutines(sys.modules["asyncio.tasks"])
    portal = _core.portal_coroutine(coroutine, task.get_loop())
    if type(task).__dict__.get("_coro") is None and hasattr(task, "__dict__"):
        try:
            task._coro = portal  # asyncio's Task in Python
            return
        except AttributeError:
            pass
    if not _core.replace_task_coroutine(task, coroutine, portal):
        raise RuntimeError(f"cannot give {task!r} a portal: its coroutine could not be replaced")


def show_coroutines() -> None:
    """From now on `get_coro()` of asyncio's C tasks shows the user's coroutine, not its portal."""
    if "asyncio in C" in _shown:
        return
    import _asyncio

    _core.use_task_type(_asyncio.Task)
    _core.swap(_asyncio.Task.get_coro, "_asyncio.Task.get_coro")
    _shown.add("asyncio in C")


def show_python_coroutines(tasks: Any) -> None:
    """The same for the Task class that is written in Python, in module asyncio.tasks."""
    if "asyncio in Python" in _shown:
        return
    _shown.add("asyncio in Python")
    original = tasks._PyTask.get_coro

    @functools.wraps(original)
    def get_coro(self: Any) -> Any:
        return _core.portal_inner(original(self))

    tasks._PyTask.get_coro = get_coro


_shown: set[str] = set()  # whose tasks show the user's coroutine


@hide
async def ensure_portal() -> None:
    """Ensure that the current task can use `await_`. A checkpoint, whether or not it could before.

    Raises:
        RuntimeError: called outside a task of asyncio, Trio or curio.
    """
    task, library = await _find_current_task()
    if task is None:
        raise RuntimeError("ensure_portal() must be called in a task of asyncio, Trio or curio")
    if not _core.in_portal():
        bestow_portal(task)
    await sys.modules[library].sleep(0)


def has_portal(task: Any = None) -> bool:
    """Whether `task` (default: the current one) can use `await_` now, or when it next runs."""
    current, _ = _current_task()
    if task is None or task is current:
        return bool(_core.in_portal())
    return bool(_core.is_portal(_coroutine_of(task)))


@hide
async def with_portal_run(
    async_fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwds: P.kwargs
) -> T:
    """`await async_fn(*args, **kwds)` with a portal that lasts for the call.

    Adds no checkpoint of its own. An existing portal is used as it is.
    """
    if _core.in_portal():
        return await async_fn(*args, **kwds)
    awaitable = async_fn(*args, **kwds)
    if not isinstance(awaitable, collections.abc.Coroutine):
        awaitable = _adapt(awaitable)
    result: T = await _core.portal_coroutine_auto(awaitable)
    return result


@hide
async def with_portal_run_sync(sync_fn: Callable[P, T], /, *args: P.args, **kwds: P.kwargs) -> T:
    """`sync_fn(*args, **kwds)` with a portal that lasts for the call."""
    if _core.in_portal():
        return sync_fn(*args, **kwds)
    result: T = await _core.portal_call(sync_fn, args, kwds)
    return result


@hide
async def with_portal_run_tree(
    async_fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwds: P.kwargs
) -> T:
    """As `with_portal_run`, and the tasks spawned inside have portals too, recursively."""
    from . import _portal_tree

    result: T = await _portal_tree.run(async_fn, *args, **kwds)
    return result


async def _adapt(awaitable: Awaitable[T]) -> T:
    result: T = await awaitable
    return result


def _await_outside(awaitable: Any) -> Any:
    """What `await_` does outside a portal, or where it is forbidden. Its frames are not shown."""
    from . import _patching
    from ._await_checks import AwaitForbidden

    task, library = _current_task()
    running = sys.modules.get("asyncio")
    outside = task is None and not _core.in_portal()
    if outside and running is not None and running._get_running_loop() is not None:
        outside = False
    if outside and _patching.is_patched():
        from . import _host

        return _host.run(awaitable)
    if isinstance(awaitable, collections.abc.Coroutine):
        awaitable.close()  # no "was never awaited" beside the error
    if _core.in_portal():
        raise AwaitForbidden("await_() was called inside forbid_await()")
    if task is not None and _core.is_portal(_coroutine_of(task)):
        raise RuntimeError(
            f"You must yield to the event loop (try 'await {library}.sleep(0)') after giving the "
            "current task a portal and before using it"
        )
    raise RuntimeError(_MISSING)


def autoawait(function: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Decorator: a synchronous function that awaits the result of async `function`."""

    @hide
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwds: P.kwargs) -> T:
        return await_(function(*args, **kwds))

    return wrapper


def decorate_as_sync(decorator: Callable[..., Any]) -> Callable[..., Any]:
    """Make `decorator`, meant for synchronous functions, fit an async function."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        @decorator
        @hide
        @functools.wraps(function)
        def inner(*args: Any, **kwds: Any) -> Any:
            return await_(function(*args, **kwds))

        @hide
        @functools.wraps(inner)
        async def outer(*args: Any, **kwds: Any) -> Any:
            return await with_portal_run_sync(inner, *args, **kwds)

        return outer

    return decorate

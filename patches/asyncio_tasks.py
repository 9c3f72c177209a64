"""Every asyncio task gets a portal, and the running loop is each line of control's own.

`create_task` wraps the coroutine before any task factory sees it, so C tasks, eager ones and a
user's factory all run it, and `get_task_factory()` says what the user has set. uvloop's loop gets the
same. The running loop is kept per strand: a green thread has none until it runs one, and a plain
function called in a task may run one too, or wait for its task's own (pyglue/tasks.c).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .. import _core
from .._hidden import or_nested
from .._portal import show_coroutines, show_python_coroutines
from ._engine import Call, Change, Replace, Swap, put, undo_with


def _create_task(original: Callable[..., Any]) -> Callable[..., Any]:
    create_task = _core.create_task_with_portals(original, _is_foreign_coroutine)
    return functools.update_wrapper(create_task, original)


def _is_foreign_coroutine(coro: Any) -> bool:
    """Whether what is neither native coroutine nor portal is a coroutine to asyncio (of Cython, say)."""
    from collections.abc import Coroutine

    return isinstance(coro, Coroutine)


def _run_until_complete(original: Callable[..., Any]) -> Callable[..., Any]:
    def await_instead(self: Any, future: Any) -> Any:
        import asyncio

        return _core.await_(asyncio.ensure_future(future, loop=self))

    return or_nested(original, await_instead)


def _change_uvloop(uvloop: Any) -> None:
    if "create_task" not in vars(uvloop.Loop):
        put(uvloop.Loop, "create_task", _create_task(uvloop.Loop.create_task))
        changed = _run_until_complete(uvloop.Loop.run_until_complete)
        put(uvloop.Loop, "run_until_complete", changed)


def _keep_running_loop(module: Any) -> None:
    _core.use_asyncio(_core.original(module._set_running_loop))


def _allow_nested_runs(runners: Any) -> None:
    """Once asyncio.runners is there: what in asyncio refuses to run a loop while one runs."""
    import _asyncio
    from asyncio.base_events import BaseEventLoop

    functions = [runners.run, BaseEventLoop._check_running]  # type: ignore[attr-defined]
    if hasattr(runners, "Runner"):
        functions.append(runners.Runner.run)
    _core.use_checks(_asyncio, tuple(function.__code__ for function in functions))
    target = _asyncio._get_running_loop
    _core.swap(target, "_asyncio._get_running_loop")
    undo_with(lambda: _core.unswap(target))


CHANGES: tuple[Change, ...] = (
    Call("_asyncio", _keep_running_loop, lambda _: None),
    Swap("_asyncio", "_set_running_loop"),
    Call("_asyncio", lambda _: show_coroutines(), lambda _: None),  # harmless where none has one
    Call("asyncio.tasks", show_python_coroutines, lambda _: None),
    Replace("asyncio.base_events", "BaseEventLoop.create_task", _create_task),
    Replace("asyncio.base_events", "BaseEventLoop.run_until_complete", _run_until_complete),
    Call("asyncio.runners", _allow_nested_runs, lambda _: None),
    Call("uvloop", _change_uvloop, lambda _: None),
)

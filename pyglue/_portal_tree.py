"""`with_portal_run_tree`: a portal for a call and for every task spawned inside it.

Called by `_portal`. On Trio an instrument portalizes tasks of nurseries opened inside the call, as
greenback does; on asyncio a context variable marks the call, tasks inherit it with their context,
and a task factory, composed with the loop's own and removed with the last call, looks at it.
"""

from __future__ import annotations

import contextvars
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from . import _core
from ._portal import _current_task, bestow_portal, with_portal_run

_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("portalpatch_tree", default=False)


class _TreeFactory:
    """A task factory that gives tasks of marked contexts a portal, whoever makes them."""

    def __init__(self, inner: Callable[..., Any] | None) -> None:
        self.inner = inner
        self.users = 0

    def __call__(self, loop: Any, coroutine: Any, **kwds: Any) -> Any:
        context = kwds.get("context")
        if context.get(_inside, False) if context is not None else _inside.get():
            coroutine = _core.portal_coroutine(coroutine, loop)
        if self.inner is not None:
            return self.inner(loop, coroutine, **kwds)
        import asyncio

        return asyncio.Task(coroutine, loop=loop, **kwds)


class _TreeInstrument:
    """For each task of a tree, from which nursery on its children belong to the tree too."""

    def __init__(self) -> None:
        self.depths: dict[Any, int] = {}
        self.users = 0

    def task_spawned(self, task: Any) -> None:
        nursery = task.parent_nursery
        if nursery is None:
            return
        parent = nursery.parent_task
        depth = self.depths.get(parent)
        if depth is not None and parent.child_nurseries.index(nursery) >= depth:
            bestow_portal(task)
            self.depths[task] = 0

    def task_exited(self, task: Any) -> None:
        self.depths.pop(task, None)


_instruments: weakref.WeakKeyDictionary[Any, _TreeInstrument] = weakref.WeakKeyDictionary()


async def run(async_fn: Callable[..., Awaitable[Any]], *args: Any, **kwds: Any) -> Any:
    task, library = _current_task()
    if library == "asyncio":
        return await _run_asyncio(task.get_loop(), async_fn, *args, **kwds)
    if library == "trio":
        return await _run_trio(task, async_fn, *args, **kwds)
    curio = sys.modules.get("curio")
    if task is None and curio is not None and curio.meta.curio_running():
        raise RuntimeError(
            "with_portal_run_tree() works on asyncio and Trio only: curio tells nobody of the tasks "
            "it spawns. Give each task a portal of its own: spawn(portalpatch.with_portal_run, "
            "async_fn, *args), or 'await portalpatch.ensure_portal()' inside it"
        )
    raise RuntimeError("with_portal_run_tree() must be called in a task of asyncio or Trio")


async def _run_asyncio(loop: Any, async_fn: Any, *args: Any, **kwds: Any) -> Any:
    factory = loop.get_task_factory()
    if not isinstance(factory, _TreeFactory):
        factory = _TreeFactory(factory)
        loop.set_task_factory(factory)
    factory.users += 1
    token = _inside.set(True)
    try:
        return await with_portal_run(async_fn, *args, **kwds)
    finally:
        _inside.reset(token)
        factory.users -= 1
        if factory.users == 0 and loop.get_task_factory() is factory:
            loop.set_task_factory(factory.inner)


async def _run_trio(task: Any, async_fn: Any, *args: Any, **kwds: Any) -> Any:
    import trio

    token = trio.lowlevel.current_trio_token()
    instrument = _instruments.get(token)
    if instrument is None:
        instrument = _instruments[token] = _TreeInstrument()
    if task in instrument.depths:
        return await async_fn(*args, **kwds)
    if instrument.users == 0:
        trio.lowlevel.add_instrument(instrument)  # type: ignore[arg-type,unused-ignore]
    instrument.users += 1
    instrument.depths[task] = len(task.child_nurseries)
    try:
        return await with_portal_run(async_fn, *args, **kwds)
    finally:
        instrument.depths.pop(task, None)
        instrument.users -= 1
        if instrument.users == 0:
            trio.lowlevel.remove_instrument(instrument)  # type: ignore[arg-type,unused-ignore]

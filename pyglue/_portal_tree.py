"""`with_portal_run_tree` and its kin: a portal for a call and for every task spawned inside it.

Called by `_portal` and by user code. On Trio an instrument portalizes tasks of nurseries opened inside
the call, as greenback does; on asyncio a context variable marks the call, tasks inherit it with their
context, and a task factory, composed with the loop's own and removed with the last call, looks at it.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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


class AutoPortalInstrument:
    """A Trio instrument that gives tasks portals: `trio.run(main, instruments=[it])`, all of a run's.

    `with_portal_run_tree` and `portals_for_children` use one for the tasks inside them.
    """

    def __init__(self) -> None:
        self._depths: dict[Any, int] = {}  # from which nursery on a task's children belong to it
        self._users = 0

    def before_run(self) -> None:
        import trio

        self._users = 1  # it stays for the whole run
        _instruments[trio.lowlevel.current_trio_token()] = self

    def task_spawned(self, task: Any) -> None:
        nursery = task.parent_nursery
        if nursery is None:  # the first of a run, and only seen where given to trio.run()
            bestow_portal(task)
            self._depths[task] = 0
            return
        parent = nursery.parent_task
        depth = self._depths.get(parent)
        if depth is not None and parent.child_nurseries.index(nursery) >= depth:
            bestow_portal(task)
            self._depths[task] = 0

    def task_exited(self, task: Any) -> None:
        self._depths.pop(task, None)


_instruments: weakref.WeakKeyDictionary[Any, AutoPortalInstrument] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def portals_for_children() -> Iterator[None]:
    """`with portals_for_children():` tasks of nurseries opened inside have portals, recursively.

    The task that enters it does not get one. Trio only.
    Raises:
        RuntimeError: not called in a Trio task.
    """
    task = _trio_task()
    import trio

    token = trio.lowlevel.current_trio_token()
    instrument = _instruments.get(token)
    if instrument is None:
        instrument = _instruments[token] = AutoPortalInstrument()
    if task in instrument._depths:
        yield
        return
    if instrument._users == 0:
        trio.lowlevel.add_instrument(instrument)  # type: ignore[arg-type,unused-ignore]
    instrument._users += 1
    instrument._depths[task] = len(task.child_nurseries)
    try:
        yield
    finally:
        instrument._depths.pop(task, None)
        instrument._users -= 1
        if instrument._users == 0:
            trio.lowlevel.remove_instrument(instrument)  # type: ignore[arg-type,unused-ignore]


@contextlib.asynccontextmanager
async def portals_for_tree() -> AsyncIterator[None]:
    """`async with portals_for_tree():` inside it this task has a portal, and the tasks spawned there too.

    Entering and leaving let other tasks run, but are no cancellation points. Trio only.
    Raises:
        RuntimeError: not called in a Trio task.
    """
    task = _trio_task()
    import trio

    with portals_for_children():
        is_new = not _core.in_portal() and not _core.is_portal(_core.stepped_coroutine(task))
        if is_new:
            bestow_portal(task)
        try:
            await trio.lowlevel.cancel_shielded_checkpoint()
            yield
        finally:
            if is_new and _is_awaited_natively(task):
                _core.remove_portal(task)  # what runs now still does so in the portal
            await trio.lowlevel.cancel_shielded_checkpoint()


def _trio_task() -> Any:
    task, library = _current_task()
    if library != "trio":
        raise RuntimeError("This function is only supported when running under Trio")
    return task


def _is_awaited_natively(task: Any) -> bool:
    """Whether between the caller and the task there is no synchronous function."""
    import inspect

    coroutine = _core.portal_inner(_core.stepped_coroutine(task))
    frame = sys._getframe(1)
    asynchronous = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR
    while frame is not coroutine.cr_frame:
        if frame.f_back is None or not frame.f_code.co_flags & asynchronous:
            return False
        frame = frame.f_back
    return True


async def run(async_fn: Callable[..., Awaitable[Any]], *args: Any, **kwds: Any) -> Any:
    task, library = _current_task()
    if library == "asyncio":
        return await _run_asyncio(task.get_loop(), async_fn, *args, **kwds)
    if library == "trio":
        return await _run_trio(async_fn, *args, **kwds)
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


async def _run_trio(async_fn: Any, *args: Any, **kwds: Any) -> Any:
    with portals_for_children():
        return await with_portal_run(async_fn, *args, **kwds)

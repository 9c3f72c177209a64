"""The loop `await_` uses where the program runs none: a green thread that runs asyncio or Trio.

Called by `_portal.await_` outside any task. Made at the first use and kept for the life of the
process, as a daemon. Invariant: the caller's line of control waits; everything else goes on.
"""

from __future__ import annotations

import contextvars
from typing import Any

from . import _core, _patching

_hosts: dict[int, Any] = {}


class _AsyncioHost:
    def __init__(self) -> None:
        import asyncio

        self.loop = asyncio.new_event_loop()
        _core.start_new_thread(self._main, ())

    def _main(self) -> None:
        import asyncio

        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, awaitable: Any) -> Any:
        from ._portal import _adapt

        coroutine = _adapt(awaitable)
        context = contextvars.copy_context()
        finished = _core.allocate_lock()
        finished.acquire()
        task: Any = None

        def start() -> None:
            nonlocal task
            task = context.run(self.loop.create_task, coroutine)
            task.add_done_callback(lambda _: finished.release())

        self.loop.call_soon_threadsafe(start)
        try:
            finished.acquire()
        except BaseException:  # an interrupt: as asyncio.run, cancel and let it clean up
            if task is None:
                coroutine.close()
            elif not task.done():
                self.loop.call_soon_threadsafe(task.cancel)
                finished.acquire()
            raise
        return task.result()


class _TrioHost:
    def __init__(self) -> None:
        started = _core.allocate_lock()
        started.acquire()
        self.token: Any = None
        _core.start_new_thread(self._main, (started,))
        started.acquire()

    def _main(self, started: Any) -> None:
        import trio

        async def main() -> None:
            self.token = trio.lowlevel.current_trio_token()
            started.release()
            await trio.sleep_forever()

        trio.run(main)

    def run(self, awaitable: Any) -> Any:
        import trio

        from ._portal import _adapt

        finished = _core.allocate_lock()
        finished.acquire()
        scope = trio.CancelScope()
        outcome: list[Any] = []

        async def call() -> None:
            with scope:
                try:
                    outcome.append((await _adapt(awaitable), None))
                except Exception as error:
                    outcome.append((None, error))
            finished.release()

        context = contextvars.copy_context()
        self.token.run_sync_soon(lambda: trio.lowlevel.spawn_system_task(call, context=context))
        try:
            finished.acquire()
        except BaseException:
            self.token.run_sync_soon(scope.cancel)
            finished.acquire()
            raise
        value, error = outcome[0]
        if error is not None:
            raise error
        return value


def run(awaitable: Any) -> Any:
    """Run `awaitable` on this OS thread's host loop; returns or raises what it does."""
    import threading

    _core.awaitable_iterator(awaitable)  # raises the TypeError native await gives
    key = threading.get_native_id()
    host = _hosts.get(key)
    if host is None:
        host = _hosts[key] = _TrioHost() if _patching.host() == "trio" else _AsyncioHost()
    return host.run(awaitable)

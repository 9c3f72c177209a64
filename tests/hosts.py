"""The host loops that portal tests run on, behind one small interface.

`@every_host` runs a test once a host as its argument `host`. A host whose library does not support
this interpreter is not collected (curio ends with Python 3.11).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import trio
import uvloop


class AsyncioHost:
    name = library = "asyncio"
    Cancelled: type[BaseException] = asyncio.CancelledError

    def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return asyncio.run(async_fn(*args))

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def current_task(self) -> Any:
        return asyncio.current_task()

    async def together(self, async_fns: Iterable[Callable[[], Awaitable[Any]]]) -> None:
        """Run them as concurrent tasks."""
        await asyncio.gather(*(fn() for fn in async_fns))

    def event(self) -> Any:
        return asyncio.Event()

    def __repr__(self) -> str:
        return self.name


class UvloopHost(AsyncioHost):
    name = "uvloop"

    def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async def main() -> Any:
            assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
            return await async_fn(*args)

        return uvloop.run(main())


class TrioHost:
    name = library = "trio"
    Cancelled: type[BaseException] = trio.Cancelled

    def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return trio.run(async_fn, *args)

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()

    async def current_task(self) -> Any:
        return trio.lowlevel.current_task()

    async def together(self, async_fns: Iterable[Callable[[], Awaitable[Any]]]) -> None:
        async with trio.open_nursery() as nursery:
            for fn in async_fns:
                nursery.start_soon(fn)

    def event(self) -> Any:
        return trio.Event()

    def __repr__(self) -> str:
        return self.name


ASYNCIO, UVLOOP, TRIO = AsyncioHost(), UvloopHost(), TrioHost()
HOSTS: list[Any] = [ASYNCIO, UVLOOP, TRIO]

try:
    import curio
except AttributeError:  # curio 1.6 reads what Python 3.12 has renamed
    pass
else:

    class CurioHost:
        name = library = "curio"
        Cancelled: type[BaseException] = curio.CancelledError

        def run(self, async_fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
            return curio.run(async_fn, *args)

        async def checkpoint(self) -> None:
            await curio.sleep(0)

        async def current_task(self) -> Any:
            return await curio.current_task()

        async def together(self, async_fns: Iterable[Callable[[], Awaitable[Any]]]) -> None:
            async with curio.TaskGroup() as group:
                for fn in async_fns:
                    await group.spawn(fn)

        def event(self) -> Any:
            return curio.Event()

        def __repr__(self) -> str:
            return self.name

    HOSTS.append(CurioHost())

every_host = pytest.mark.parametrize("host", HOSTS, ids=repr)
asyncio_hosts = pytest.mark.parametrize("host", [ASYNCIO, UVLOOP], ids=repr)

"""What a task of any host does when it is cancelled or times out: bodies for test_portal_cancel.py.

See twins.py: they share a namespace with the host's own bodies, which bring `tick()`, the waits
`forever(log)` and `nap()`, and `shielded()`, a context in which a cancelled task can wait.
"""

from __future__ import annotations

import contextlib
import contextvars
import socket
import time

variable = contextvars.ContextVar("variable", default="unset")
silent, peer = socket.socketpair()  # nobody ever writes to it


def blocking_forever(log):
    log.append("waiting")
    try:
        silent.recv(1)
    finally:
        log.append("woken")


def blocking_nap():
    time.sleep(0.001)


async def body_returns(log):
    return "value"


async def body_raises(log):
    raise LookupError("raised")


async def body_waits_and_returns(log):
    await tick()
    log.append("ticked")
    await nap()
    await tick()
    return "value"


async def body_waits_and_raises(log):
    await nap()
    raise LookupError("raised")


async def body_raises_from_inside(log):
    async def inner():
        try:
            await nap()
            raise LookupError("inner")
        except LookupError as error:
            await tick()
            raise ValueError("middle") from error

    try:
        await inner()
    except ValueError:
        await nap()
        raise KeyError("outer")  # noqa: B904


async def body_stop_iteration(log):
    await tick()
    raise StopIteration("stop")


async def body_forever(log):
    await forever(log)


async def body_forever_deep(log):
    async def deeper(n):
        try:
            if n:
                await deeper(n - 1)
            else:
                await forever(log)
        finally:
            log.append(n)

    await deeper(5)


async def body_returns_in_finally(log):
    try:
        await forever(log)
    finally:
        with shielded():
            await nap()
        return "finally"  # noqa: B012


class Manager:
    def __init__(self, log, swallow):
        self.log, self.swallow = log, swallow

    async def __aenter__(self):
        await tick()
        return self

    async def __aexit__(self, kind, value, traceback):
        self.log.append(kind.__name__ if kind else None)
        with shielded():
            await nap()
        return self.swallow


async def body_in_async_with(log):
    async with Manager(log, False), Manager(log, False):
        await forever(log)


async def body_swallowed_by_async_with(log):
    async with Manager(log, True):
        await forever(log)
    log.append("left")
    await tick()
    return "swallowed"


async def numbers(log):
    try:
        for value in range(3):
            yield value
            await tick()
        await forever(log)
    finally:
        log.append("generator ends")
        with shielded():
            await nap()


async def body_in_async_for(log):
    async with contextlib.aclosing(numbers(log)) as values:
        async for value in values:
            log.append(value)


async def body_sets_context(log):
    variable.set("before")
    try:
        await forever(log)
    finally:
        log.append(variable.get())
        variable.set("cleanup")
        with shielded():
            await nap()
        log.append(variable.get())

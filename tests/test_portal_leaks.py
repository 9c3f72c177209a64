"""Nothing leaks: 100,000 portals made and dropped leave memory, references and greenlets as before.

On a debug build of CPython (`make refcounts PYTHON=python3.11-dbg`) the total of all reference counts
is compared too, which finds what no object or block shows: a count of None, of a type or of a task.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import types

import greenlet
import pytest
import trio
from hosts import ASYNCIO, TRIO
from portalpatch import (
    _core,
    async_context,
    async_iter,
    await_,
    bestow_portal,
    ensure_portal,
    with_portal_run,
    with_portal_run_sync,
)

ROUNDS = 10_000  # ten kinds of portals below: 100,000 in all


@types.coroutine
def trap(value):
    return (yield value)


def counts():
    gc.collect()
    # CPython's C calls methods by names made for the call (ExceptionGroup.split does), and the cache
    # of methods keeps up to 4,096 of those.
    getattr(sys, "_clear_type_cache", int)()
    objects = gc.get_objects()
    greenlets = sum(isinstance(thing, greenlet.greenlet) for thing in objects)
    portals = sum(type(thing).__name__ == "Portal" for thing in objects)
    total = getattr(sys, "gettotalrefcount", int)()
    return total, sys.getallocatedblocks(), len(objects), greenlets, portals


def assert_stable(work, rounds, warm=2):
    """Call work(rounds): as much again must leave no more references and blocks than a few caches'."""
    for _ in range(warm):
        work(rounds // 10)
    before = counts()
    work(rounds)
    after = counts()
    assert after[3:] == before[3:]
    assert abs(after[0] - before[0]) < rounds // 20, (before, after)
    assert after[1] - before[1] < rounds // 20, (before, after)
    assert after[2] - before[2] < rounds // 20, (before, after)


async def at_once():
    return 1


async def waits():
    return await trap(1)


async def fails():
    await trap(1)
    raise LookupError


def drive(portal, *values):
    try:
        for value in (None, *values):
            portal.send(value)
    except (StopIteration, LookupError):
        pass


async def synchronously(async_fn):
    return await_(async_fn())


BY_HAND = {
    "never started": lambda: _core.portal_coroutine_auto(at_once()).close(),
    "ends at once": lambda: drive(_core.portal_coroutine_auto(at_once())),
    "waits natively": lambda: drive(_core.portal_coroutine_auto(waits()), 2),
    "waits synchronously": lambda: drive(_core.portal_coroutine_auto(synchronously(waits)), 2),
    "fails": lambda: drive(_core.portal_coroutine_auto(synchronously(fails)), 2),
    "dropped while it waits": lambda: drive(_core.portal_coroutine_auto(synchronously(waits))),
    "function": lambda: drive(_core.portal_call(lambda: await_(waits()), (), {}), 2),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_portals_made_and_dropped_leave_nothing(kind):
    make = BY_HAND[kind]

    def work(rounds):
        for _ in range(rounds):
            make()

    assert_stable(work, ROUNDS)


def test_exceptions_thrown_into_portals_leave_nothing():
    def work(rounds):
        for _ in range(rounds):
            portal = _core.portal_coroutine_auto(synchronously(waits))
            portal.send(None)
            with pytest.raises(ZeroDivisionError):
                portal.throw(ZeroDivisionError())

    assert_stable(work, ROUNDS)


def test_references_to_values_and_exceptions_are_given_back():
    value, error = object(), LookupError("one object")

    async def yields():
        assert await trap(value) is value
        raise error

    def once():
        portal = _core.portal_coroutine_auto(synchronously(yields))
        assert portal.send(None) is value
        with pytest.raises(LookupError):
            portal.send(value)
        error.__traceback__ = None

    once()
    before = sys.getrefcount(value), sys.getrefcount(error), sys.getrefcount(None)
    for _ in range(1000):
        once()
    gc.collect()
    after = sys.getrefcount(value), sys.getrefcount(error), sys.getrefcount(None)
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 500


class Manager:
    async def __aenter__(self):
        await asyncio.sleep(0)

    async def __aexit__(self, *exc):
        await asyncio.sleep(0)


class Numbers:
    def __init__(self):
        self.value = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.value += 1
        if self.value > 2:
            raise StopAsyncIteration
        return self.value


def test_asyncio_tasks_with_portals_leave_nothing():
    async def cancelled():
        with async_context(Manager()):
            await_(asyncio.sleep(60))

    async def in_task():
        await ensure_portal()
        with async_context(Manager()):
            assert list(async_iter(Numbers())) == [1, 2]
        await with_portal_run(at_once)

    async def main(rounds):
        for _ in range(rounds // 10):
            tasks = [asyncio.ensure_future(in_task()) for _ in range(4)]
            tasks += [asyncio.ensure_future(with_portal_run(in_task)) for _ in range(3)]
            doomed = [asyncio.ensure_future(cancelled()) for _ in range(3)]
            for task in doomed:
                bestow_portal(task)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in doomed:
                task.cancel()
            await asyncio.wait([*tasks, *doomed])
            await with_portal_run_sync(lambda: await_(asyncio.sleep(0)))

    assert_stable(lambda rounds: ASYNCIO.run(main, rounds), ROUNDS)


def test_trio_tasks_with_portals_leave_nothing():
    async def cancelled():
        await ensure_portal()
        await_(trio.sleep_forever())

    async def in_task():
        await ensure_portal()
        await_(trio.lowlevel.checkpoint())
        await with_portal_run(at_once)

    async def main(rounds):
        for _ in range(rounds // 10):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(in_task)
                for _ in range(5):
                    nursery.start_soon(cancelled)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    assert_stable(lambda rounds: TRIO.run(main, rounds), ROUNDS // 2)


PARKED = """
import asyncio, contextvars, os, socket, sys, time
sys.path.insert(0, {folder!r})
import trio
from portalpatch import offload
from test_portal_leaks import assert_stable

variable = contextvars.ContextVar("variable")
pairs = [socket.socketpair() for _ in range(3)]

def parks(i):
    variable.set(i)
    if i % 4 == 3:
        time.sleep(60)
    else:
        pairs[i % 4][0].recv(1)

async def doomed(i):
    parks(i)

async def ends(i):
    variable.set(i)
    time.sleep(0)
    os.getpid() if i % 5 else offload(os.getpid)

async def on_asyncio(rounds):
    for _ in range(rounds // 10):
        cancelled = [asyncio.ensure_future(doomed(i)) for i in range(6)]
        done = [asyncio.ensure_future(ends(i)) for i in range(4)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await asyncio.wait([*cancelled, *done])
        assert all(task.cancelled() for task in cancelled)
        assert not any(task.exception() for task in done)

async def on_trio(rounds):
    for _ in range(rounds // 10):
        async with trio.open_nursery() as nursery:
            for i in range(6):
                nursery.start_soon(doomed, i)
            for i in range(4):
                nursery.start_soon(ends, i)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

assert_stable(lambda rounds: {run}, 2_000, warm=15)
print("stable")
"""


@pytest.mark.parametrize("run", ["asyncio.run(on_asyncio(rounds))", "trio.run(on_trio, rounds)"])
def test_tasks_cancelled_while_parked_in_libc_leave_nothing(run, run_app):
    folder = os.path.dirname(__file__)
    done = run_app(PARKED.format(folder=folder, run=run), mode="cli", limit=100)
    assert done.check().out == "stable\n"

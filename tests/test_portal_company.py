"""Portals beside whatever else runs tasks and greenlets: each program as it is, and with every task patched."""

from __future__ import annotations

import sys

import pytest

# A busy machine's slow callbacks, which -X dev reports, are not at issue.
COMMON = """
import asyncio, functools, logging, sys, time, traceback
logging.getLogger("asyncio").setLevel(logging.ERROR)
import greenlet, trio
import portalpatch
from portalpatch import await_, bestow_portal, ensure_portal, with_portal_run_sync, with_portal_run_tree

def block(seconds=0.005):  # parks where libc is caught
    if portalpatch.is_patched():
        time.sleep(seconds)

async def value(value):
    await asyncio.sleep(0)
    return value

async def trio_value(value):
    await trio.sleep(0)
    return value
"""

TRIO_GUEST_OF_ASYNCIO = """
async def guest():
    await ensure_portal()
    def plain():
        got = []
        for i in range(3):
            got.append(await_(trio_value(i)))
            block()
        return got
    async with trio.open_nursery() as nursery:
        nursery.start_soon(with_portal_run_sync, plain)
        nursery.start_soon(with_portal_run_tree, with_portal_run_sync, plain)
    with trio.move_on_after(0.01) as scope:
        await with_portal_run_sync(lambda: (block(0), await_(trio.sleep(60))))
    print(scope.cancelled_caught, plain())

async def main():
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    trio.lowlevel.start_guest_run(
        guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result)
    await ensure_portal()
    while not done.done():
        assert await_(value("host")) == "host"
        await asyncio.sleep(0.001)
    done.result().unwrap()
    print(await_(value("host")))

asyncio.run(main())
"""

SQLALCHEMY = """
from sqlalchemy.util import await_only, greenlet_spawn

def both():
    first = await_only(value("only"))
    block()
    return first, await_(value("portal"))

async def spawn(function):
    return await greenlet_spawn(function)

async def main():
    await ensure_portal()
    print(await spawn(both))
    print(await_(spawn(both)))
    print(await with_portal_run_sync(lambda: await_(spawn(both))))
    print(await spawn(lambda: await_only(spawn(both))))
    print(await spawn(lambda: await_(spawn(both))))
    async def fails():
        await asyncio.sleep(0)
        raise KeyError("in the database")
    for wait in await_, await_only:
        try:
            await spawn(lambda: wait(fails()))
        except KeyError as error:
            print(error, traceback.extract_tb(error.__traceback__)[-1].name)

asyncio.run(main())
"""

GREENLETS_OF_MANY_TASKS = """
from sqlalchemy.util import await_only, greenlet_spawn

async def hop(times):
    for _ in range(times):
        await asyncio.sleep(0)
    return times

def work(i, n):
    # each wait goes to the greenlet that was current as this one was made, steps of the task ago
    return [await_only(hop((i * 7 + k) % 5 + 1)) for k in range(n)], await_(hop(i % 3)), await_only(hop(2))

async def task(i):
    if i % 2:
        await ensure_portal()
    results = []
    for n in range(1, 4):
        await hop(i % 4)
        if i % 2:
            results.append(await greenlet_spawn(work, i, n))
        else:
            results.append(await portalpatch.with_portal_run(greenlet_spawn, work, i, n))
        if i % 5 == 0:
            block(0.001)
    return results == [([(i * 7 + k) % 5 + 1 for k in range(n)], i % 3, 2) for n in range(1, 4)]

async def forgotten():
    await ensure_portal()
    await greenlet_spawn(lambda: await_only(asyncio.get_running_loop().create_future()))

async def main():
    for _ in range(3):
        waiting = [asyncio.create_task(forgotten()) for _ in range(5)]
        print(all(await asyncio.gather(*(task(i) for i in range(40)))))
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

asyncio.run(main())
"""

RAW_GREENLETS = """
async def main():
    await ensure_portal()
    log = []
    def worker(name):
        for i in range(3):
            log.append(name + str(await_(value(i))))
            block(0.001)
            greenlet.getcurrent().parent.switch()
        return name
    workers = {name: greenlet.greenlet(worker) for name in "abc"}
    for name, one in workers.items():
        one.switch(name)
    while any(workers.values()):
        for one in workers.values():
            if one:
                one.switch()
    print(log)
    dropped = greenlet.greenlet(worker)
    dropped.switch("d")
    del dropped
    thrown = greenlet.greenlet(worker)
    thrown.switch("e")
    try:
        thrown.throw(KeyError("thrown"))
    except KeyError as error:
        print(repr(error), await_(value("still here")))

asyncio.run(main())
"""

TASK_FACTORIES = """
import asyncio.tasks

class OwnTask(asyncio.Task):
    pass

made = []
def own_class(loop, coroutine, **kwds):
    made.append(type(coroutine).__name__)
    return OwnTask(coroutine, loop=loop, **kwds)

def in_python(loop, coroutine, **kwds):
    made.append(type(coroutine).__name__)
    return asyncio.tasks._PyTask(coroutine, loop=loop, **kwds)

async def ensures():
    await ensure_portal()
    block()
    return await_(value(1))

async def waits():
    await asyncio.sleep(0.001)
    return await_(value(2))

async def tree():
    async def leaf():
        return await_(value(3))
    return await asyncio.gather(*(asyncio.create_task(leaf()) for _ in range(3)))

async def main(factory):
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    print(await asyncio.create_task(ensures()))
    task = asyncio.create_task(waits())
    bestow_portal(task)
    print(type(task).__name__, await task)
    if factory is not in_python:
        coroutine = waits()
        task = asyncio.create_task(coroutine)
        bestow_portal(task)
        print(task.get_coro() is coroutine, await task)
    print(await with_portal_run_tree(tree), loop.get_task_factory() is factory)
    # From 3.14 on asyncio.current_task() does not know of a task written in Python.
    if factory is in_python and sys.version_info >= (3, 14):
        print(await with_portal_run_sync(lambda: await_(value(4))))
        return
    async with asyncio.timeout(60) if sys.version_info >= (3, 11) else asyncio.Lock():
        print(await asyncio.wait_for(with_portal_run_sync(lambda: await_(value(4))), 60))

for factory in own_class, in_python, None:
    asyncio.run(main(factory))
print(len(made) > 10)
"""

EAGER_TASKS = """
async def main():
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    async def child(n):
        if n % 2:
            await ensure_portal()
        result = await with_portal_run_sync(lambda: await_(value(n)))
        block()
        return result
    async def quick():
        return "quick"
    async def tree():
        async def leaf():
            return await_(value("leaf"))
        return await asyncio.gather(*(asyncio.create_task(leaf()) for _ in range(3)))
    for _ in range(2):
        tasks = [asyncio.create_task(child(i)) for i in range(4)]
        finished = asyncio.create_task(quick())
        bestow_portal(finished)
        print(finished.done(), await finished, [await task for task in tasks])
        print(await with_portal_run_tree(tree))
        await ensure_portal()
        print(await_(value("parent")), await_(asyncio.create_task(child(5))))
    def plain():
        return [await_(asyncio.create_task(child(i))) for i in range(2)]
    print(plain(), loop.get_task_factory() is asyncio.eager_task_factory)

asyncio.run(main())
"""

NATIVE = """
async def main():
    await ensure_portal()
    ticks = []
    async def ticker():
        for _ in range(3):
            await asyncio.sleep(0)
            ticks.append(1)
    task = asyncio.create_task(ticker())
    await asyncio.sleep(0)
    seen = len(ticks)
    with portalpatch.native():
        time.sleep(0.01)
        with portalpatch.native():
            time.sleep(0.001)
        time.sleep(0.001)
        print(len(ticks) - seen)  # nothing else ran
        try:
            with portalpatch.native():
                raise KeyError
        except KeyError:
            pass
        time.sleep(0.001)
        print(len(ticks) - seen)
        await_(asyncio.sleep(0))  # this is no call of libc's: it goes on as ever
    await task
    print(len(ticks))

asyncio.run(main())
"""

PROGRAMS = {
    "trio as the guest of asyncio": (
        TRIO_GUEST_OF_ASYNCIO,
        ["True [0, 1, 2]", "host"],
    ),
    "sqlalchemy": (
        SQLALCHEMY,
        ["('only', 'portal')"] * 5 + ["'in the database' fails"] * 2,
    ),
    "greenlets of many tasks": (GREENLETS_OF_MANY_TASKS, ["True"] * 3),
    "raw greenlets": (
        RAW_GREENLETS,
        [str([name + str(i) for i in range(3) for name in "abc"]), "KeyError('thrown') still here"],
    ),
    "task factories": (
        TASK_FACTORIES,
        [
            *("1", "OwnTask 2", "True 2", "[3, 3, 3] True", "4"),
            *("1", "Task 2", "[3, 3, 3] True", "4"),
            *("1", "Task 2", "True 2", "[3, 3, 3] True", "4"),
            "True",
        ],
    ),
    "native()": (NATIVE, ["0", "0", "3"]),
}
if sys.version_info >= (3, 12):
    PROGRAMS["eager tasks"] = (
        EAGER_TASKS,
        ["True quick [0, 1, 2, 3]", "['leaf', 'leaf', 'leaf']", "parent 5"] * 2 + ["[0, 1] True"],
    )


@pytest.mark.parametrize("mode", ["plain", "patch_all", "cli"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_portals_work_beside(name, mode, run_app):
    source, expected = PROGRAMS[name]
    done = run_app(
        COMMON + source, mode=mode, flags=["-X", "dev", "-W", "ignore::DeprecationWarning"]
    ).check()
    assert done.out.splitlines() == expected
    assert done.err == ""


def test_trio_guest_learns_of_a_task_that_goes_on_while_it_asks_for_events(run_app):
    """As a guest Trio asks with a timeout of 0 before it waits in a thread. In that call the hub may go
    on with a task; here it always does."""
    source = """
    import asyncio, select, time, trio
    from trio._core._io_epoll import EpollIOManager

    seen = []
    events_of = EpollIOManager.get_events

    def get_events(self, timeout):
        events = events_of(self, timeout)
        if timeout == 0 and "parks" in seen and "goes on" not in seen:
            with select.epoll() as nothing:
                while "goes on" not in seen:
                    nothing.poll(0)
        return events

    EpollIOManager.get_events = get_events

    async def guest():
        seen.append("parks")
        time.sleep(0.01)
        seen.append("goes on")

    async def main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result)
        (await done).unwrap()
        print(*seen)

    asyncio.run(main())
    """
    assert run_app(source, mode="cli", limit=20).check().out == "parks goes on\n"


def test_trio_wait_that_ends_before_its_task_is_stepped(run_app):
    """A task goes on directly after a parked call and waits for an event, which another task sets in the same
    turn of Trio's loop; half the time that one comes first."""
    source = """
    import time, trio
    from portalpatch import await_

    async def waits(wait, log):
        time.sleep(0)
        log.append(await wait())

    def plain(wait, log):
        time.sleep(0)
        log.append(await_(wait()))

    async def waits_in_plain_function(wait, log):
        plain(wait, log)

    async def main():
        log = []
        for i in range(40):
            event = trio.Event()
            send, receive = trio.open_memory_channel(0)
            for waiter in waits, waits_in_plain_function:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter, event.wait, log)
                    while not event.statistics().tasks_waiting:
                        await trio.lowlevel.checkpoint()
                    event.set()
                event = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter, receive.receive, log)
                    while not receive.statistics().tasks_waiting_receive:
                        await trio.lowlevel.checkpoint()
                    send.send_nowait(i)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter, event.wait, log)
                    while not event.statistics().tasks_waiting:
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
                assert not event.statistics().tasks_waiting
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(cancels_itself, scope, waiter, event.wait)
                assert scope.cancelled_caught
        assert log == [x for i in range(40) for x in (None, i) * 2], log
        print("end")

    async def cancels_itself(scope, waiter, wait):
        time.sleep(0)
        scope.cancel()
        await waiter(wait, [])

    trio.run(main)
    """
    done = run_app(source, mode="cli", limit=30).check()
    assert (done.out, done.err) == ("end\n", "")

"""What leaves a portal, and every decorator of this package, shows the user's frames only."""

from __future__ import annotations

import asyncio
import collections.abc
import functools
import inspect
import pickle
import traceback

import pytest
import trio
from hosts import HOSTS, TRIO, asyncio_hosts, every_host
from portalpatch import (
    async_context,
    autoawait,
    await_,
    bestow_portal,
    decorate_as_sync,
    ensure_portal,
    forbid_await,
    offload,
    require_await,
    with_portal_run,
    with_portal_run_sync,
    with_portal_run_tree,
)


def frames(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def raised(awaitable):
    try:
        await awaitable
    except BaseException as error:
        return frames(error)[1:]
    raise AssertionError("nothing was raised")


@every_host
def test_decorators_and_portal_makers_show_no_frame(host):
    async def fails():
        await host.checkpoint()
        raise ValueError

    class Thing:
        @autoawait
        async def method(self, value):
            await host.checkpoint()
            raise ValueError(value)

    automatic = autoawait(fails)
    required = require_await(automatic)

    @decorate_as_sync(functools.lru_cache(maxsize=None))
    async def decorated():
        await fails()

    def plain():
        required()

    async def in_async():
        Thing().method(1)

    async def main():
        assert await raised(with_portal_run_sync(plain)) == ["plain", "fails"]
        assert await raised(with_portal_run(in_async)) == ["in_async", "method"]
        assert await raised(with_portal_run(with_portal_run_sync, plain)) == ["plain", "fails"]
        assert await raised(decorated()) == ["decorated", "fails"]
        if host.library != "curio":
            assert await raised(with_portal_run_tree(in_async)) == ["in_async", "method"]
        await ensure_portal()
        assert await raised(with_portal_run_sync(plain)) == ["plain", "fails"]
        assert await raised(with_portal_run(in_async)) == ["in_async", "method"]
        assert await raised(decorated()) == ["decorated", "fails"]

        async def forbidden():
            with forbid_await():
                automatic()

        assert await raised(forbidden()) == ["forbidden"]

        async def unready():
            require_await(lambda: None)()

        assert await raised(unready()) == ["unready"]

        async def offloads():
            offload(int, "x")

        assert (await raised(offloads()))[0] == "offloads"
        assert not any(name == "offload" for name in await raised(offloads()))

    host.run(main)


@every_host
def test_ten_alternations_of_sync_and_async_show_each_frame_once(host):
    def alternate(n):
        async def level(depth):
            if depth == n:
                await host.checkpoint()
                raise ValueError("deep")
            below(depth + 1)

        below = autoawait(level)

        def top():
            below(0)

        return top

    async def main():
        return await raised(with_portal_run_sync(alternate(10)))

    assert host.run(main) == ["top"] + ["level"] * 11


def own_frames(error):
    """The frames of an exception, and of the exceptions of a group below it, that are not the host's."""
    names = [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in ("/asyncio/", "/trio/", "/outcome/"))
    ]
    return [names, *(own_frames(inner) for inner in getattr(error, "exceptions", ()))]


def group_of(host):
    """The host's own group of tasks, as `async with` takes it, and how a task is started in it."""
    if host.library == "trio":
        return trio.open_nursery, lambda group, async_fn: group.start_soon(async_fn)
    return asyncio.TaskGroup, lambda group, async_fn: group.create_task(async_fn())


GROUP_HOSTS = [host for host in HOSTS if host.library == "trio" or hasattr(asyncio, "TaskGroup")]


@pytest.mark.parametrize(
    "host", [host for host in GROUP_HOSTS if host.library != "curio"], ids=repr
)
def test_exception_groups_show_the_users_frames(host):
    """Of the block's own code and of each child, in a plain function and in its native twin."""
    open_group, start = group_of(host)

    async def fails():
        await host.checkpoint()
        raise ValueError("child")

    def plain_child():
        await_(fails())

    async def child():
        await with_portal_run_sync(plain_child)

    def block():
        with async_context(open_group()) as group:
            start(group, child)
            start(group, functools.partial(with_portal_run, child))
            await_(host.event().wait())

    async def main():
        await ensure_portal()
        try:
            block()
        except BaseException as error:
            return own_frames(error)

    top, *children = host.run(main)
    assert top == ["main", "block"]
    assert children and all(child == [["child", "plain_child", "fails"]] for child in children)


@asyncio_hosts
def test_portal_makers_are_coroutines_to_their_loop_and_show_the_users_frames(host):
    event = asyncio.Event()

    async def users():
        await event.wait()
        return 1

    def plain():
        return await_(users())

    async def main():
        nonlocal event
        event = asyncio.Event()
        tasks = [
            asyncio.create_task(with_portal_run(users)),
            asyncio.create_task(with_portal_run_sync(plain)),
            asyncio.create_task(with_portal_run_tree(users)),
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task, name in zip(tasks, ["users", "plain", "users"], strict=True):
            assert [frame.f_code.co_name for frame in task.get_stack()][-1] == name
        tasks[0].cancel()
        event.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert [await task for task in tasks[1:]] == [1, 1]
        coroutine = with_portal_run(users)
        assert isinstance(coroutine, collections.abc.Coroutine) and inspect.iscoroutine(coroutine)
        assert asyncio.iscoroutine(coroutine)
        coroutine.close()
        with pytest.raises(RuntimeError):
            await coroutine

    host.run(main)


def test_portal_makers_start_in_nurseries():
    async def main():
        log = []

        async def users(name):
            await trio.sleep(0)
            log.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(with_portal_run, users, 1)
            nursery.start_soon(with_portal_run_sync, lambda: await_(users(2)))
            nursery.start_soon(with_portal_run_tree, users, 3)
            nursery.start_soon(autoawait_inside)
        assert sorted(log) == [1, 2, 3]

    async def autoawait_inside():
        await ensure_portal()

    TRIO.run(main)


@autoawait
async def add(first: int, *, second: int = 2) -> int:
    "Adds."
    return first + second


class Holder:
    @autoawait
    async def get(self) -> Holder:
        return self

    @staticmethod
    @autoawait
    async def static(value):
        return value

    @property
    @autoawait
    async def attribute(self):
        return "attribute"


def test_hidden_functions_are_functions_to_who_looks():
    assert str(inspect.signature(add)) == "(first: 'int', *, second: 'int' = 2) -> 'int'"
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Adds.", __name__)
    assert pickle.loads(pickle.dumps(add)) is add
    assert inspect.iscoroutinefunction(add.__wrapped__) and not inspect.iscoroutinefunction(add)
    for function in (with_portal_run, with_portal_run_sync, with_portal_run_tree, ensure_portal):
        assert inspect.iscoroutinefunction(function)
        assert pickle.loads(pickle.dumps(function)) is function
    assert list(inspect.signature(with_portal_run_sync).parameters) == ["sync_fn", "args", "kwds"]
    add.mark = "set"
    assert add.mark == "set"

    async def main():
        await ensure_portal()
        holder = Holder()
        assert holder.get() is holder and Holder.get(holder) is holder
        assert (Holder.static(1), holder.attribute, add(1)) == (1, "attribute", 3)

    TRIO.run(main)


@asyncio_hosts
def test_get_coro_of_a_bestowed_task_is_the_users_coroutine(host):
    async def users():
        await asyncio.sleep(0)

    async def main():
        coroutine = users()
        task = asyncio.create_task(coroutine)
        bestow_portal(task)
        assert task.get_coro() is coroutine
        await task
        own = asyncio.current_task()
        coroutine = own.get_coro()
        await ensure_portal()
        assert own.get_coro() is coroutine

    host.run(main)

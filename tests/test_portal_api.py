"""The portal API: names, meanings and errors as greenback has them, on every host."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
import types
import warnings

import greenlet
import portalpatch
import pytest
import trio
import trio.testing
from hosts import HOSTS, TRIO, asyncio_hosts, every_host
from portalpatch import (
    AutoPortalInstrument,
    async_context,
    async_iter,
    autoawait,
    await_,
    bestow_portal,
    decorate_as_sync,
    ensure_portal,
    has_portal,
    portals_for_children,
    portals_for_tree,
    with_portal_run,
    with_portal_run_sync,
    with_portal_run_tree,
)


def error_of(function, *args):
    """Type and text of what function(*args) raises."""
    try:
        function(*args)
    except BaseException as error:
        return type(error), str(error)
    raise AssertionError(f"{function} did not raise")


async def async_error_of(async_fn, *args):
    try:
        await async_fn(*args)
    except BaseException as error:
        return type(error), str(error)
    raise AssertionError(f"{async_fn} did not raise")


@types.coroutine
def yield_to_host(value):
    return (yield value)


# ---- await_ ----------------------------------------------------------------------------------


@every_host
def test_tasks_with_a_portal_await_from_synchronous_functions(host):
    ticks = []

    def synchronous(name):
        for _ in range(20):
            await_(host.checkpoint())
            ticks.append(name)

    def task(name):
        async def run():
            await ensure_portal()
            synchronous(name)

        return run

    async def main():
        await host.together([task("a"), task("b")])

    host.run(main)
    assert sorted(ticks) == ["a"] * 20 + ["b"] * 20
    assert ticks[:20] != ["a"] * 20 and ticks[:20] != ["b"] * 20  # they took turns


@every_host
def test_await_returns_what_the_awaitable_returns(host):
    async def double(value):
        await host.checkpoint()
        return 2 * value

    async def at_once(value):
        return value

    async def main():
        await ensure_portal()
        assert await_(double(4)) == 8
        assert await_(at_once((1, 2))) == (1, 2)
        assert await_(at_once(None)) is None
        return await_(double(21))

    assert host.run(main) == 42


@every_host
def test_await_without_a_portal_says_how_to_make_one(host):
    coroutines = []

    async def never_run():
        raise AssertionError

    async def main():
        assert not has_portal()
        coroutines.append(never_run())
        with pytest.raises(RuntimeError, match=r"create a portal.*ensure_portal\(\)") as caught:
            await_(coroutines[0])
        assert type(caught.value) is RuntimeError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.run(main)
        assert inspect.getcoroutinestate(coroutines[0]) == inspect.CORO_CLOSED
        coroutines.clear()
        gc.collect()


def test_await_outside_any_loop_says_how_to_make_a_portal():
    async def never_run():
        raise AssertionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="create a portal"):
            await_(never_run())
        with pytest.raises(RuntimeError, match="create a portal"):
            await_(42)
        gc.collect()


class ReturnsFromAwait:
    def __init__(self, value):
        self.value = value

    def __await__(self):
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def plain_generator():
    yield


async def async_generator():
    yield


async def a_coroutine():
    return 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: 42,
        lambda: None,
        lambda: len,
        lambda: a_coroutine,
        lambda: plain_generator(),
        lambda: async_generator(),
        lambda: iter([]),
        lambda: object(),
        lambda: ReturnsFromAwait(42),
        lambda: ReturnsFromAwait(None),
        lambda: ReturnsFromAwait([]),
        lambda: ReturnsFromAwait(ValueError("from __await__")),
        lambda: types.SimpleNamespace(__await__=lambda: iter([])),
    ],
)
def test_non_awaitable_fails_as_native_await(make):
    async def native():
        await make()

    async def main():
        expected = await async_error_of(native)
        await ensure_portal()
        assert error_of(await_, make()) == expected

    asyncio.run(main())


def test_coroutine_returned_from_await_method_fails_as_native_await():
    async def native():
        await ReturnsFromAwait(a_coroutine())

    async def main():
        expected = await async_error_of(native)
        await ensure_portal()
        assert error_of(await_, ReturnsFromAwait(a_coroutine())) == expected

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # native await leaves that coroutine unawaited too
        asyncio.run(main())
        gc.collect()


def test_coroutine_awaited_twice_fails_as_native_await():
    async def twice(awaiter):
        coroutine = a_coroutine()
        await awaiter(coroutine)
        await awaiter(coroutine)

    async def native(coroutine):
        return await coroutine

    async def portal(coroutine):
        return await_(coroutine)

    async def main():
        await ensure_portal()
        return await async_error_of(twice, native), await async_error_of(twice, portal)

    native_error, portal_error = asyncio.run(main())
    assert native_error == portal_error


@every_host
def test_awaitables_of_all_kinds(host):
    class Awaitable:
        def __await__(self):
            yield from host.checkpoint().__await__()
            return "object"

    class AwaitableReturnsIterator:
        def __await__(self):
            return iter([])

    @types.coroutine
    def generator_based():
        yield from host.checkpoint().__await__()
        return "generator"

    async def values():
        received = yield "first"
        yield received

    async def main():
        await ensure_portal()
        assert await_(Awaitable()) == "object"
        assert await_(AwaitableReturnsIterator()) is None
        assert await_(generator_based()) == "generator"
        generator = values()
        assert await_(generator.__anext__()) == "first"
        assert await_(generator.asend("second")) == "second"
        assert await_(anext(generator, "default")) == "default"
        await_(generator.aclose())

    host.run(main)


@asyncio_hosts
def test_futures_and_tasks_are_awaited(host):
    async def later(future):
        await asyncio.sleep(0)
        future.set_result("set")
        return "task"

    async def main():
        await ensure_portal()
        future = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(later(future))
        assert await_(future) == "set"
        assert await_(task) == "task"
        assert await_(future) == "set"  # done: no switch
        assert await_(asyncio.gather(a_coroutine(), a_coroutine())) == [1, 1]

    host.run(main)


@every_host
def test_exceptions_pass_through_await(host):
    async def fails(wait):
        if wait:
            await host.checkpoint()
        raise LookupError("key")

    async def main():
        await ensure_portal()
        for wait in (False, True):
            with pytest.raises(LookupError, match="key"):
                await_(fails(wait))
        with pytest.raises(LookupError):
            await fails(True)

    host.run(main)


@every_host
def test_stop_iteration_becomes_runtime_error_as_natively(host):
    async def stops():
        await host.checkpoint()
        raise StopIteration(5)

    class StopsInAwait:
        def __await__(self):
            raise StopIteration(5)

    class StopsInIterator:
        def __await__(self):
            yield from host.checkpoint().__await__()
            raise StopIteration(5)

    async def main():
        await ensure_portal()
        for make in (stops, StopsInIterator):

            async def native(make=make):
                return await make()

            assert error_of(await_, make()) == await async_error_of(native)

        def synchronous():
            raise StopIteration(5)  # no coroutine frame turns it into something else

        assert error_of(synchronous) == (StopIteration, "5")

    host.run(main)


@every_host
def test_value_the_host_does_not_know_fails_as_natively(host):
    if host.library == "curio":
        return  # its kernel dies of unknown traps

    async def main():
        expected = await async_error_of(yield_to_host, 42)
        await ensure_portal()
        assert await async_error_of(yield_to_host, 42) == expected
        assert error_of(await_, yield_to_host(42)) == expected

    host.run(main)


def test_task_that_ends_by_an_unknown_value_fails_in_trio():
    async def failing():
        await ensure_portal()
        await yield_to_host(42)

    with pytest.raises(TypeError):
        TRIO.run(failing)


def test_checkpoints_are_those_of_the_awaitable():
    async def main():
        with trio.testing.assert_checkpoints():
            await ensure_portal()
        with trio.testing.assert_checkpoints():
            await ensure_portal()
        with trio.testing.assert_checkpoints():
            await_(trio.sleep(0))
        with trio.testing.assert_no_checkpoints():
            await_(a_coroutine())
        with trio.testing.assert_no_checkpoints():
            await with_portal_run(a_coroutine)

    TRIO.run(main)


def test_with_portal_run_adds_no_checkpoint():
    async def main():
        with trio.testing.assert_no_checkpoints():
            assert await with_portal_run(a_coroutine) == 1
        with trio.testing.assert_no_checkpoints():
            assert await with_portal_run_sync(lambda: await_(a_coroutine())) == 1

    TRIO.run(main)


@every_host
def test_alternation_of_many_levels(host):
    async def countdown(n):
        if n == 0:
            await host.checkpoint()
            return 0
        return 1 + (await countdown(n - 1) if n % 2 else await_(countdown(n - 1)))

    async def main():
        await ensure_portal()
        return await countdown(60)

    assert host.run(main) == 60


# ---- making portals --------------------------------------------------------------------------


@every_host
def test_ensure_portal_is_idempotent_and_lasts(host):
    async def main():
        assert not has_portal()
        await ensure_portal()
        assert has_portal()
        task = await host.current_task()
        assert has_portal(task)
        await ensure_portal()
        await with_portal_run(host.checkpoint)
        assert has_portal()
        await_(host.checkpoint())

    host.run(main)


def test_ensure_portal_outside_a_task_is_an_error():
    with pytest.raises(RuntimeError, match="task"):
        ensure_portal().send(None)


def test_has_portal_outside_a_task_is_false():
    assert has_portal() is False


@every_host
def test_other_tasks_do_not_share_a_portal(host):
    async def other():
        assert not has_portal()
        with pytest.raises(RuntimeError, match="create a portal"):
            await_(host.checkpoint())

    async def main():
        await ensure_portal()
        await host.together([other])
        assert has_portal()

    host.run(main)


@every_host
def test_bestow_portal_on_a_waiting_task(host):
    tasks = []

    async def main():
        started, bestowed = host.event(), host.event()

        async def target():
            tasks.append(await host.current_task())
            await started.set() if host.library == "curio" else started.set()
            await bestowed.wait()
            assert has_portal()
            assert has_portal(tasks[0])
            await_(host.checkpoint())
            return "done"

        async def bestower():
            await started.wait()
            assert not has_portal(tasks[0])
            bestow_portal(tasks[0])
            assert has_portal(tasks[0])
            bestow_portal(tasks[0])
            await bestowed.set() if host.library == "curio" else bestowed.set()
            assert not has_portal()
            with pytest.raises(RuntimeError, match="create a portal"):
                await_(host.checkpoint())

        await host.together([target, bestower])

    host.run(main)


@every_host
def test_bestow_portal_on_the_current_task_works_after_a_checkpoint(host):
    async def main():
        task = await host.current_task()
        bestow_portal(task)
        assert not has_portal()
        if host.library != "curio":  # which does not tell synchronous code its task
            assert not has_portal(task)
            with pytest.raises(RuntimeError, match=f"yield to the event loop.*{host.library}"):
                await_(host.checkpoint())
        await host.checkpoint()
        assert has_portal()
        assert has_portal(task)
        await_(host.checkpoint())

    host.run(main)


@asyncio_hosts
def test_bestow_portal_before_the_first_step(host):
    async def target():
        return await_(a_coroutine()) + await_(asyncio.sleep(0, 1))

    async def main():
        task = asyncio.ensure_future(target())
        bestow_portal(task)
        assert has_portal(task)
        return await task

    assert host.run(main) == 2


@asyncio_hosts
def test_bestow_portal_on_a_finished_task_does_nothing(host):
    async def main():
        task = asyncio.ensure_future(a_coroutine())
        await task
        bestow_portal(task)
        assert task.result() == 1
        assert not has_portal()

    host.run(main)


@asyncio_hosts
def test_bestow_portal_on_a_cancelled_task(host):
    async def main():
        task = asyncio.ensure_future(asyncio.sleep(10))
        await asyncio.sleep(0)
        task.cancel()
        bestow_portal(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    host.run(main)


def test_bestow_portal_on_a_task_written_in_python():
    async def target():
        return await_(asyncio.sleep(0, "python task"))

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.tasks._PyTask(target(), loop=loop)
        bestow_portal(task)
        return await task

    assert asyncio.run(main()) == "python task"


def test_bestow_portal_on_a_subclassed_task():
    class MyTask(asyncio.Task):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.mine = 1

    async def target():
        await ensure_portal()
        return await_(asyncio.sleep(0, "subclass"))

    async def main():
        loop = asyncio.get_running_loop()
        return await MyTask(target(), loop=loop)

    assert asyncio.run(main()) == "subclass"


@every_host
def test_with_portal_run_lasts_for_the_call(host):
    class Awaitable:
        def __init__(self, value):
            self.value = value

        def __await__(self):
            await_(host.checkpoint())
            yield from host.checkpoint().__await__()
            return await_(echo(self.value))

    async def echo(value, *, more=0):
        await host.checkpoint()
        await_(host.checkpoint())
        assert has_portal()
        return value + more

    async def main():
        for _ in range(3):
            assert not has_portal()
            assert await with_portal_run(echo, 1) == 1
            assert await with_portal_run(echo, 1, more=2) == 3
            assert await with_portal_run(Awaitable, 4) == 4
            assert await with_portal_run(with_portal_run, echo, 5) == 5
            assert await with_portal_run_sync(lambda: await_(echo(6))) == 6
            nested = lambda: await_(with_portal_run_sync(lambda: await_(echo(7))))  # noqa: E731
            assert await with_portal_run_sync(nested) == 7
            with pytest.raises(RuntimeError, match="ensure_portal"):
                await_(host.checkpoint())

    host.run(main)


@every_host
def test_with_portal_run_inside_a_portal_uses_it(host):
    async def main():
        await ensure_portal()
        assert await with_portal_run(a_coroutine) == 1
        assert await with_portal_run_sync(lambda: await_(a_coroutine())) == 1
        assert has_portal()
        await_(host.checkpoint())

    host.run(main)


@every_host
def test_ensure_portal_inside_with_portal_run_makes_no_second_one(host):
    async def inside():
        await ensure_portal()
        await_(host.checkpoint())

    async def main():
        await with_portal_run(inside)
        assert not has_portal()

    host.run(main)


@every_host
def test_with_portal_run_passes_exceptions(host):
    async def fails():
        await_(host.checkpoint())
        raise LookupError("async")

    def fails_sync(wait):
        if wait:
            await_(host.checkpoint())
        raise LookupError("sync")

    async def main():
        with pytest.raises(LookupError, match="async"):
            await with_portal_run(fails)
        with pytest.raises(LookupError, match="sync"):
            await with_portal_run_sync(fails_sync, True)
        with pytest.raises(LookupError, match="sync"):
            await with_portal_run_sync(fails_sync, False)
        with pytest.raises(TypeError, match="argument"):
            await with_portal_run_sync(fails_sync)
        with pytest.raises(TypeError, match="argument"):
            await with_portal_run(a_coroutine, 1)
        with pytest.raises(TypeError, match="await"):
            await with_portal_run(lambda: 3)
        assert not has_portal()

    host.run(main)


@every_host
def test_with_portal_run_sync_returns_any_value(host):
    async def main():
        for value in (None, (), (1, 2), StopIteration(3), ValueError("value"), [4]):
            assert await with_portal_run_sync(lambda value=value: value) is value

    host.run(main)


def test_with_portal_run_functions_are_coroutine_functions():
    for function in (ensure_portal, with_portal_run, with_portal_run_sync, with_portal_run_tree):
        assert inspect.iscoroutinefunction(function)


@pytest.mark.parametrize("host", [host for host in HOSTS if host.library != "curio"], ids=repr)
def test_tree_gives_child_tasks_portals(host):
    seen = []

    async def leaf():
        seen.append(has_portal())
        await_(host.checkpoint())

    async def branch(depth=2):
        seen.append(has_portal())
        await_(host.checkpoint())
        if depth:
            await host.together([leaf, functools.partial(branch, depth - 1)])
            await_(with_portal_run_tree(leaf))

    async def outside():
        await host.checkpoint()
        assert not has_portal()

    async def main():
        assert not has_portal()
        await host.together([outside, functools.partial(with_portal_run_tree, branch), outside])
        assert not has_portal()
        await host.together([outside])

    host.run(main)
    assert seen == [True] * 7


@every_host
def test_tree_is_a_working_tree_or_an_error_that_names_what_works(host):
    async def leaf():
        await host.checkpoint()
        return await_(value())

    async def value():
        await host.checkpoint()
        return "leaf"

    async def ensured():
        await ensure_portal()
        return await_(value())

    async def main():
        if host.library != "curio":
            return [await with_portal_run_tree(leaf), await with_portal_run_tree(leaf)]
        import curio

        with pytest.raises(RuntimeError) as caught:
            await with_portal_run_tree(leaf)
        message = str(caught.value)
        assert "asyncio and Trio only" in message
        assert "spawn(portalpatch.with_portal_run, async_fn, *args)" in message
        assert "await portalpatch.ensure_portal()" in message
        tasks = [await curio.spawn(with_portal_run, leaf), await curio.spawn(ensured)]
        return [await task.join() for task in tasks]

    assert host.run(main) == ["leaf", "leaf"]


def test_portals_for_tree_last_for_the_block():
    async def leaf(seen):
        seen.append(has_portal())
        await_(trio.sleep(0))

    async def bare(seen):
        await trio.sleep(0)
        seen.append(has_portal())

    async def block(seen):
        async with portals_for_tree():
            assert has_portal()
            async with portals_for_tree(), trio.open_nursery() as nursery:
                nursery.start_soon(leaf, seen)
                nursery.start_soon(portalless, nursery, seen)
            await_(trio.sleep(0))
        assert has_portal() is was_there

    async def portalless(nursery, seen):
        with portals_for_children():
            nursery.start_soon(leaf, seen)

    async def main(give):
        nonlocal was_there
        seen, without = [], []
        if give:
            await ensure_portal()
        was_there = give
        task = trio.lowlevel.current_task()
        coroutine = task.coro
        async with trio.open_nursery() as outer:
            for _ in range(3):
                await block(seen)
                assert task.coro is coroutine and has_portal(task) is give
                outer.start_soon(bare, without)
                await trio.sleep(0)
                with pytest.raises(ZeroDivisionError):
                    async with portals_for_tree():
                        await_(trio.sleep(0))
                        raise ZeroDivisionError
                assert has_portal() is give
            with trio.CancelScope() as scope:
                scope.cancel()
                async with portals_for_tree():
                    assert has_portal()
                assert has_portal() is give
        assert seen == [True] * 6 and without == [False] * 3
        if not give:
            with pytest.raises(RuntimeError, match="create a portal"):
                await_(trio.sleep(0))
        return "end"

    was_there = False
    assert trio.run(main, False) == trio.run(main, True) == "end"


def test_portals_for_tree_left_in_synchronous_code_keeps_the_portal():
    async def leaves(manager):
        await manager.__aexit__(None, None, None)

    async def main():
        manager = portals_for_tree()
        await manager.__aenter__()
        (lambda: await_(leaves(manager)))()
        assert has_portal()
        await trio.sleep(0)
        return await_(value())

    async def value():
        await trio.sleep(0)
        return "value"

    assert trio.run(main) == "value"


def test_portals_for_children_give_none_to_their_own_task():
    async def leaf(seen):
        seen.append(has_portal())
        await_(trio.sleep(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deeper, seen)

    async def deeper(seen):
        seen.append(await_(value()))

    async def value():
        await trio.sleep(0)
        return True

    async def main():
        seen = []
        with portals_for_children():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leaf, seen)
                with portals_for_children():
                    nursery.start_soon(leaf, seen)
            assert not has_portal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(portalless, seen)
        return seen

    async def portalless(seen):
        assert not has_portal()

    assert trio.run(main) == [True] * 4


@pytest.mark.parametrize("context", [portals_for_children, portals_for_tree])
def test_portals_of_a_tree_are_trios_only(context):
    async def enter():
        with pytest.raises(RuntimeError, match="only supported when running under Trio"):
            if context is portals_for_tree:
                async with context():
                    pass
            else:
                with context():
                    pass

    asyncio.run(enter())


def test_instrument_of_a_whole_run_gives_every_task_a_portal():
    async def leaf():
        return await_(value())

    async def value():
        await trio.sleep(0)
        return has_portal()

    async def main():
        system = trio.lowlevel.spawn_system_task(leaf)
        assert has_portal(system)
        async with portals_for_tree(), trio.open_nursery() as nursery:
            nursery.start_soon(with_portal_run_tree, leaf)
            nursery.start_soon(leaf)
        return await leaf()

    assert trio.run(main, instruments=[AutoPortalInstrument()])


def test_tree_ends_where_outer_nurseries_begin():
    async def without_portal():
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            assert not has_portal()

    async def with_portal():
        assert has_portal()
        await_(trio.lowlevel.checkpoint())

    async def inside(outer):
        outer.start_soon(without_portal)
        async with trio.open_nursery() as inner:
            inner.start_soon(with_portal)
            outer.start_soon(without_portal)

    async def main():
        async with trio.open_nursery() as outer:
            await with_portal_run_tree(inside, outer)
            outer.start_soon(without_portal)
            await with_portal_run_tree(inside, outer)

    TRIO.run(main)


@asyncio_hosts
def test_tree_composes_with_the_users_task_factory(host):
    made = []

    def factory(loop, coroutine, **kwds):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **kwds)

    async def child():
        return has_portal(), await_(asyncio.sleep(0, "value"))

    async def tree():
        return await asyncio.ensure_future(child())

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        assert await with_portal_run_tree(tree) == (True, "value")
        assert loop.get_task_factory() is factory
        return len(made)

    assert host.run(main) == 1


@asyncio_hosts
def test_overlapping_trees_leave_no_task_factory_behind(host):
    async def tree(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
            assert await asyncio.ensure_future(child())

    async def child():
        return has_portal()

    async def main():
        await asyncio.gather(*(with_portal_run_tree(tree, turns) for turns in (3, 1, 2)))
        assert asyncio.get_running_loop().get_task_factory() is None
        assert not await asyncio.ensure_future(child())

    host.run(main)


# ---- decorators and statements ---------------------------------------------------------------


@every_host
def test_autoawait_makes_a_synchronous_function(host):
    @autoawait
    async def double(value, *, times=2):
        "Doubles."
        await host.checkpoint()
        return value * times

    class Counter:
        def __init__(self):
            self.count = 0

        @autoawait
        async def next(self):
            await host.checkpoint()
            self.count += 1
            return self.count

    async def main():
        await ensure_portal()
        assert double(4) == 8
        assert double(4, times=3) == 12
        counter = Counter()
        assert [counter.next(), counter.next()] == [1, 2]

    assert double.__name__ == "double" and double.__doc__ == "Doubles."
    assert not inspect.iscoroutinefunction(double)
    assert list(inspect.signature(double).parameters) == ["value", "times"]
    host.run(main)


@every_host
def test_decorate_as_sync_lets_synchronous_decorators_decorate_async_functions(host):
    calls = []

    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwds):
            calls.append(function.__name__)
            result = function(*args, **kwds)
            calls.append(result)
            return result

        return wrapper

    @decorate_as_sync(logged)
    async def compute(value, *, more=1):
        "Computes."
        await host.checkpoint()
        return value + more

    @decorate_as_sync(functools.lru_cache(maxsize=1))
    async def cached(value):
        calls.append("cached")
        await host.checkpoint()
        return value

    async def main():
        await ensure_portal()
        assert await compute(1) == 2
        assert await compute(1, more=2) == 3
        assert await cached(1) == 1
        assert await cached(1) == 1

    assert inspect.iscoroutinefunction(compute)
    assert compute.__name__ == "compute" and compute.__doc__ == "Computes."
    host.run(main)
    assert calls == ["compute", 2, "compute", 3, "cached"]
    assert cached.__wrapped__.cache_info().hits == 1

    async def without_portal():
        assert not has_portal()
        assert await compute(5) == 6
        assert not has_portal()

    host.run(without_portal)


@every_host
def test_async_iter_of_a_generator_passes_on_what_yield_from_sends(host):
    log = []

    async def numbers(suppress=False):
        try:
            yield (yield 10) + 1
        except BaseException as error:
            await host.checkpoint()
            log.append(repr(error))
            if not suppress:
                raise
        finally:
            log.append("closed")

    class Plain:
        def __aiter__(self):
            return self

        async def __anext__(self):
            return 1

    def delegate(iterable):
        yield from async_iter(iterable)

    def use():
        generator = delegate(numbers())
        assert [next(generator), generator.send(20)] == [10, 21]
        with pytest.raises(ValueError, match="hi"):
            generator.throw(ValueError("hi"))
        generator = delegate(numbers())
        assert next(generator) == 10
        generator.close()
        generator = delegate(numbers(suppress=True))
        assert generator.send(None) == 10
        with pytest.raises(StopIteration):
            generator.throw(ValueError("lo"))
        generator = delegate(numbers())
        assert [next(generator), generator.send(20)] == [10, 21]
        with pytest.raises(StopIteration):
            generator.send(30)
        plain = async_iter(Plain())
        assert not any(hasattr(plain, name) for name in ("send", "throw", "close"))
        generator = delegate(Plain())
        assert next(generator) == 1
        generator.close()

    async def main():
        await ensure_portal()
        use()

    host.run(main)
    closed = ["closed"]
    assert log == [
        "ValueError('hi')",
        *closed,
        "GeneratorExit()",
        *closed,
        "ValueError('lo')",
        *closed,
        *closed,
    ]


class Manager:
    """An async context manager that logs."""

    def __init__(self, host, log, swallow=False, fail=None):
        self.host, self.log, self.swallow, self.fail = host, log, swallow, fail

    async def __aenter__(self):
        await self.host.checkpoint()
        self.log.append("enter")
        if self.fail == "enter":
            raise LookupError("enter")
        return "value"

    async def __aexit__(self, kind, value, traceback):
        await self.host.checkpoint()
        self.log.append((kind, str(value), traceback is None))
        if self.fail == "exit":
            raise LookupError("exit")
        return self.swallow


@every_host
@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize("fail", [None, "enter", "exit", "body"])
def test_async_context_behaves_as_async_with(host, swallow, fail):
    native_log, portal_log = [], []

    async def native():
        async with Manager(host, native_log, swallow, fail) as value:
            native_log.append(value)
            if fail == "body":
                raise ValueError("body")

    async def portal():
        with async_context(Manager(host, portal_log, swallow, fail)) as value:
            portal_log.append(value)
            if fail == "body":
                raise ValueError("body")

    async def main():
        await ensure_portal()
        outcomes = []
        for function in (native, portal):
            try:
                outcomes.append(await function())
            except Exception as error:
                context = error.__context__
                outcomes.append((type(error), str(error), type(context), str(context)))
        assert outcomes[0] == outcomes[1]

    host.run(main)
    assert native_log == portal_log


class Numbers:
    """An async iterable that ends, or fails, after two values."""

    def __init__(self, host, fail=False):
        self.host, self.fail, self.value = host, fail, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self.host.checkpoint()
        self.value += 1
        if self.value == 3:
            if self.fail:
                raise LookupError("anext")
            raise StopAsyncIteration
        return self.value


@every_host
def test_async_iter_behaves_as_async_for(host):
    async def generate():
        try:
            for value in range(3):
                await host.checkpoint()
                yield value
        finally:
            await host.checkpoint()

    async def main():
        await ensure_portal()
        assert list(async_iter(Numbers(host))) == [1, 2]
        assert list(async_iter(generate())) == [0, 1, 2]
        with pytest.raises(LookupError, match="anext"):
            list(async_iter(Numbers(host, fail=True)))
        iterator = async_iter(Numbers(host))
        assert iter(iterator) is iterator
        assert [next(iterator), next(iterator)] == [1, 2]
        with pytest.raises(StopIteration):
            next(async_iter(Ended()))
        assert next(async_iter(Ended()), "default") == "default"

    host.run(main)


class Ended:
    def __aiter__(self):
        return self

    async def __anext__(self):
        raise StopAsyncIteration("unused")


def with_methods(**methods):
    return type("Malformed", (), methods)


async def returns_none(self, *args):
    return None


MALFORMED_MANAGERS = {
    "neither": with_methods(),
    "no aexit": with_methods(__aenter__=returns_none),
    "no aenter": with_methods(__aexit__=returns_none),
    "synchronous": with_methods(__enter__=returns_none, __exit__=returns_none),
    "aenter is no method": with_methods(__aenter__=3, __aexit__=returns_none),
    "aenter is not async": with_methods(__aenter__=lambda self: 3, __aexit__=returns_none),
    "aexit is not async": with_methods(__aenter__=returns_none, __aexit__=lambda self, *exc: 3),
    "aenter in the instance": lambda: types.SimpleNamespace(__aenter__=1, __aexit__=2),
}

MALFORMED_ITERABLES = {
    "a list": lambda: [1],
    "no aiter": with_methods(__anext__=returns_none),
    "no anext": with_methods(__aiter__=lambda self: 3),
    "aiter is a coroutine": with_methods(__aiter__=returns_none, __anext__=returns_none),
    "anext is not async": with_methods(__aiter__=lambda self: self, __anext__=lambda self: 3),
    "anext is no method": with_methods(__aiter__=lambda self: self, __anext__=3),
    "aiter raises": with_methods(__aiter__=lambda self: 1 / 0),
    "aiter in the instance": lambda: types.SimpleNamespace(__aiter__=1),
}


@pytest.mark.parametrize("what", MALFORMED_MANAGERS)
def test_async_context_of_malformed_objects_fails_as_async_with(what):
    make = MALFORMED_MANAGERS[what]

    async def native():
        async with make():
            pass

    def portal():
        with async_context(make()):
            pass

    async def main():
        await ensure_portal()
        return await async_error_of(native), error_of(portal)

    native_error, portal_error = asyncio.run(main())
    assert portal_error == native_error


@pytest.mark.parametrize("what", MALFORMED_ITERABLES)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_async_iter_of_malformed_objects_fails_as_async_for(what):
    make = MALFORMED_ITERABLES[what]

    async def native():
        async for _ in make():
            pass

    def portal():
        for _ in async_iter(make()):
            pass

    async def main():
        await ensure_portal()
        return await async_error_of(native), error_of(portal)

    native_error, portal_error = asyncio.run(main())
    assert portal_error == native_error


# ---- beside other greenlets ------------------------------------------------------------------


@every_host
def test_await_works_in_raw_greenlets_inside_a_portal(host):
    async def inner(outer):
        for turn in range(10):
            await host.checkpoint()
            assert outer.switch(turn) == f"resume {turn + 1}"
        return "success"

    def middle():
        worker = greenlet.greenlet(await_)
        assert worker.switch(inner(greenlet.getcurrent())) == 0
        for turn in range(1, 10):
            await_(host.checkpoint())
            assert worker.switch(f"resume {turn}") == turn
            assert not worker.dead
        assert worker.switch("resume 10") == "success"
        assert worker.dead

    async def middle_async():
        middle()

    async def main():
        await with_portal_run(middle_async)
        await with_portal_run_sync(middle)
        await ensure_portal()
        middle()

    host.run(main)


@every_host
def test_raw_greenlet_created_outside_the_portal_can_await_inside(host):
    def work():
        return await_(echo("from a foreign greenlet"))

    async def echo(value):
        await host.checkpoint()
        return value

    async def main():
        foreign = greenlet.greenlet(work)
        await ensure_portal()
        foreign.parent = greenlet.getcurrent()
        assert foreign.switch() == "from a foreign greenlet"

    host.run(main)


@asyncio_hosts
def test_sqlalchemy_greenlet_spawn_inside_a_portal(host):
    from sqlalchemy.util import await_only, greenlet_spawn

    async def value_of(value):
        await asyncio.sleep(0)
        return value

    def synchronous():
        first = await_only(value_of(1))
        second = await_(value_of(2))
        third = await_only(nested())
        return first, second, third

    async def nested():
        return await greenlet_spawn(lambda: (await_(value_of(3)), await_only(value_of(4))))

    async def main():
        await ensure_portal()
        assert await greenlet_spawn(synchronous) == (1, 2, (3, 4))
        assert await_(greenlet_spawn(synchronous)) == (1, 2, (3, 4))
        with pytest.raises(LookupError):
            await greenlet_spawn(lambda: {}["key"] if await_(value_of(True)) else None)

    host.run(main)


# ---- ohwait's cases --------------------------------------------------------------------------


@every_host
def test_one_variable_holds_functions_that_await_and_functions_that_do_not(host):
    def plain():
        return "plain"

    def awaits():
        await_(host.checkpoint())
        return "awaits"

    async def main():
        await ensure_portal()
        results = []
        for function in (plain, awaits, plain, awaits, plain):
            results.append(function())
        return results

    assert host.run(main) == ["plain", "awaits", "plain", "awaits", "plain"]


@every_host
def test_exception_is_caught_in_the_synchronous_frame(host):
    async def fails():
        await host.checkpoint()
        raise ValueError("caught")

    def synchronous():
        try:
            await_(fails())
        except ValueError as error:
            await_(host.checkpoint())
            return str(error)
        return "not raised"

    async def main():
        await ensure_portal()
        return synchronous()

    assert host.run(main) == "caught"


@every_host
def test_await_inside_map_sort_and_other_c_functions(host):
    async def double(value):
        await host.checkpoint()
        return value * 2

    class Key:
        def __init__(self, value):
            self.value = value

        def __lt__(self, other):
            await_(host.checkpoint())
            return self.value < other.value

    async def main():
        await ensure_portal()
        assert list(map(lambda x: await_(double(x)), [1, 2, 3])) == [2, 4, 6]  # noqa: C417
        assert [key.value for key in sorted(map(Key, [3, 1, 2]))] == [1, 2, 3]
        assert {x: await_(double(x)) for x in (1, 2)} == {1: 2, 2: 4}
        assert functools.reduce(lambda a, b: a + await_(double(b)), [1, 2, 3]) == 11

        def generator():
            for value in range(3):
                yield await_(double(value))

        assert list(generator()) == [0, 2, 4]

    host.run(main)


@every_host
def test_await_as_the_only_line_and_a_second_run(host):
    async def value_of(value):
        await host.checkpoint()
        return value

    def only_line(value):
        return await_(value_of(value))

    async def main():
        await ensure_portal()
        return [only_line(1), only_line(1), only_line(2)]

    assert host.run(main) == [1, 1, 2]
    assert host.run(main) == [1, 1, 2]


# ---- eager tasks -----------------------------------------------------------------------------

if sys.version_info >= (3, 12):

    def run_eagerly(main):
        async def with_factory():
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            return await main()

        return asyncio.run(with_factory())

    def test_bestow_portal_on_an_eagerly_finished_task():
        async def main():
            task = asyncio.ensure_future(a_coroutine())
            assert task.done()
            bestow_portal(task)
            assert not has_portal(task)
            return await task

        assert run_eagerly(main) == 1

    @pytest.mark.parametrize("wait", [False, True])
    def test_eager_task_spawned_from_a_portal_runs_its_own(wait):
        def synchronous():
            if wait:
                await_(asyncio.sleep(0))
            return await_(a_coroutine())

        async def child_async():
            synchronous()
            return await with_portal_run(a_coroutine)

        async def child_sync():
            return await with_portal_run_sync(synchronous)

        async def child_run():
            return await with_portal_run(child_async)

        async def main():
            await ensure_portal()
            tasks = [asyncio.ensure_future(fn()) for fn in (child_sync, child_run, child_sync)]
            assert [task.done() for task in tasks] == [not wait] * 3
            assert await_(asyncio.gather(*tasks)) == [1, 1, 1]
            assert has_portal()
            await_(asyncio.sleep(0))
            return "parent"

        assert run_eagerly(main) == "parent"

    def test_eager_task_does_not_use_its_parents_portal():
        async def child():
            assert not has_portal()
            with pytest.raises(RuntimeError, match="create a portal"):
                await_(asyncio.sleep(0))
            await ensure_portal()
            return await_(asyncio.sleep(0, "own portal"))

        async def main():
            await ensure_portal()
            task = asyncio.ensure_future(child())
            assert has_portal()
            return await_(task)

        assert run_eagerly(main) == "own portal"


# ---- beyond greenback ------------------------------------------------------------------------


@every_host
def test_require_await_is_an_error_where_nothing_waited(host):
    @portalpatch.require_await
    def maybe(wait):
        if wait:
            await_(host.checkpoint())
        return wait

    async def main():
        with pytest.raises(RuntimeError, match="inside a portal"):
            maybe(True)
        await ensure_portal()
        assert maybe(True) is True
        with pytest.raises(portalpatch.AwaitRequired, match="maybe"):
            maybe(False)

        @portalpatch.require_await
        def fails():
            raise LookupError

        with pytest.raises(LookupError):
            fails()

    host.run(main)


@every_host
def test_forbid_await_makes_await_an_error(host):
    coroutines = []

    async def never_run():
        raise AssertionError

    async def main():
        with portalpatch.forbid_await():
            await host.checkpoint()  # without a portal: nothing to forbid
        await ensure_portal()
        with warnings.catch_warnings(), portalpatch.forbid_await():
            warnings.simplefilter("error")
            coroutines.append(never_run())
            with pytest.raises(portalpatch.AwaitForbidden):
                await_(coroutines[0])
            await host.checkpoint()
            with portalpatch.forbid_await():
                pass
            with pytest.raises(portalpatch.AwaitForbidden):
                await_(host.checkpoint())
        await_(host.checkpoint())

    host.run(main)
    assert inspect.getcoroutinestate(coroutines[0]) == inspect.CORO_CLOSED


@every_host
def test_forbid_await_is_one_tasks_own(host):
    async def forbids():
        await ensure_portal()
        with portalpatch.forbid_await():
            for _ in range(5):
                await host.checkpoint()

    async def awaits():
        await ensure_portal()
        for _ in range(5):
            await_(host.checkpoint())

    async def main():
        await host.together([forbids, awaits, forbids, awaits])

    host.run(main)


@every_host
def test_offload_runs_on_a_native_thread_while_others_run(host):
    import contextvars
    import threading

    variable = contextvars.ContextVar("variable", default="default")
    ticks = []
    release = threading.Event()

    def blocking(value, *, more):
        assert release.wait(30)
        return value, more, variable.get(), threading.get_ident()

    async def caller():
        await ensure_portal()
        variable.set("caller's")
        value, more, seen, ident = portalpatch.offload(blocking, 1, more=2)
        assert (value, more, seen) == (1, 2, "caller's")
        assert ident != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            portalpatch.offload(lambda: 1 / 0)

    async def ticker():
        for _ in range(5):
            await host.checkpoint()
            ticks.append(1)
        release.set()

    async def main():
        await host.together([caller, ticker])

    host.run(main)
    assert len(ticks) == 5


def test_offload_where_nothing_can_park_calls_the_function():
    assert portalpatch.offload(lambda value: value + 1, 1) == 2


@every_host
def test_native_block_is_entered_in_and_out_of_portals(host):
    async def main():
        with portalpatch.native():
            pass
        await ensure_portal()
        with portalpatch.native():
            await_(host.checkpoint())
        await_(host.checkpoint())

    host.run(main)

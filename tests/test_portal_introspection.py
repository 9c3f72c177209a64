"""What debuggers, loops and tracebacks show of a task with a portal is the user's own code."""

from __future__ import annotations

import asyncio
import asyncio.tasks
import collections
import inspect
import io
import sys
import traceback

import portalpatch
import pytest
import trio
from hosts import TRIO, asyncio_hosts, every_host
from portalpatch import async_context, async_iter, await_, bestow_portal, ensure_portal


def frames_of(error):
    """(function, value of n if any) of each traceback entry, outermost first."""
    return [
        (frame.f_code.co_name, frame.f_locals.get("n"))
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]


# ---- tracebacks ------------------------------------------------------------------------------


@every_host
@pytest.mark.parametrize("wait", [False, True])
def test_traceback_of_a_ten_deep_alternation_shows_only_user_frames(host, wait):
    async def countdown(n):
        if wait:
            await host.checkpoint()
        if n == 0:
            raise ValueError("Blastoff!")
        return synchronous(n - 1)

    def synchronous(n):
        if n == 0:
            raise ValueError("Blastoff!")
        return await_(countdown(n - 1))

    async def main():
        await ensure_portal()
        with pytest.raises(ValueError, match="Blastoff!") as caught:
            await countdown(10)
        return frames_of(caught.value)[1:]  # the first is this function

    names = ["countdown", "synchronous"] * 5 + ["countdown"]
    assert host.run(main) == list(zip(names, range(10, -1, -1), strict=True))


@every_host
def test_traceback_of_an_awaitable_object_shows_only_user_frames(host):
    class Fails:
        def __await__(self):
            yield from host.checkpoint().__await__()
            raise ValueError("nope")

    async def main():
        await ensure_portal()
        with pytest.raises(ValueError, match="nope") as caught:
            await_(Fails())
        return [name for name, _ in frames_of(caught.value)]

    assert host.run(main) == ["main", "__await__"]


@every_host
def test_traceback_of_statements_shows_only_user_frames(host):
    class Fails:
        async def __aenter__(self):
            await host.checkpoint()
            raise ValueError("in aenter")

        async def __aexit__(self, *exc):
            pass

        def __aiter__(self):
            return self

        async def __anext__(self):
            await host.checkpoint()
            raise ValueError("in anext")

    def with_statement():
        with async_context(Fails()):
            pass

    def for_statement():
        for _ in async_iter(Fails()):
            pass

    async def main():
        await ensure_portal()
        for function, method in ((with_statement, "__aenter__"), (for_statement, "__anext__")):
            with pytest.raises(ValueError, match="in a") as caught:
                function()
            names = [name for name, _ in frames_of(caught.value)]
            assert names == ["main", function.__name__, method]

    host.run(main)


@every_host
def test_traceback_of_cancellation_and_errors_of_the_task_ends_in_user_code(host):
    def synchronous():
        await_(fails())

    async def fails():
        await host.checkpoint()
        raise LookupError("end")

    async def main():
        await ensure_portal()
        synchronous()

    caught = None
    try:
        host.run(main)
    except BaseException as error:
        caught = error
    while not isinstance(caught, LookupError):  # curio wraps it
        caught = caught.__cause__
    assert [name for name, _ in frames_of(caught)][-3:] == ["main", "synchronous", "fails"]


def test_missing_portal_error_shows_no_frames_of_ours():
    async def main():
        with pytest.raises(RuntimeError, match="create a portal") as caught:
            await_(asyncio.sleep(0))
        return [name for name, _ in frames_of(caught.value)]

    assert asyncio.run(main()) == ["main"]


# ---- asyncio ---------------------------------------------------------------------------------


async def parks(event, started):
    started.set()
    middle(event)


def middle(event):
    await_(innermost(event))


async def innermost(event):
    await event.wait()


@asyncio_hosts
@pytest.mark.parametrize("synchronous", [False, True])
def test_task_shows_the_users_coroutine(host, synchronous):
    async def native(event, started):
        started.set()
        await event.wait()

    async def main():
        event, started = asyncio.Event(), asyncio.Event()
        async_fn = parks if synchronous else native
        coroutine = async_fn(event, started)
        task = asyncio.ensure_future(coroutine)
        bestow_portal(task)
        assert async_fn.__name__ in repr(task)
        await started.wait()
        assert task in asyncio.all_tasks()
        stack = task.get_stack()
        assert stack[0].f_code.co_name == async_fn.__name__
        text = io.StringIO()
        task.print_stack(file=text)
        assert async_fn.__name__ in text.getvalue()
        assert f"{async_fn.__qualname__}() running at {__file__}" in repr(task)
        shown = task.get_coro()
        assert shown is coroutine
        assert shown.cr_code is async_fn.__code__
        assert repr(shown) == repr(coroutine)
        assert shown.__qualname__ == async_fn.__qualname__
        event.set()
        await task
        assert "done" in repr(task)
        assert task.get_stack() == []

    host.run(main)


if sys.version_info >= (3, 14):

    @asyncio_hosts
    def test_call_graph_shows_the_users_coroutines(host):
        def names_in(graph):
            return [entry.frame.f_code.co_name for entry in graph.call_stack]

        async def inner(event, started):
            started.set()
            await event.wait()

        async def outer(event, started):
            await inner(event, started)

        async def look(task, event, started):
            await started.wait()
            graph = asyncio.capture_call_graph(task)
            event.set()
            return names_in(graph), [names_in(awaiting)[0] for awaiting in graph.awaited_by]

        async def main():
            await ensure_portal()
            event, started = asyncio.Event(), asyncio.Event()
            task = asyncio.ensure_future(outer(event, started))
            bestow_portal(task)
            looking = asyncio.ensure_future(look(task, event, started))
            await task
            return await looking

        assert host.run(main) == (["wait", "inner", "outer"], ["main"])


@asyncio_hosts
def test_current_task_and_all_tasks_inside_synchronous_code(host):
    async def main():
        await ensure_portal()
        task = asyncio.current_task()

        def synchronous():
            assert asyncio.current_task() is task
            await_(asyncio.sleep(0))
            assert asyncio.current_task() is task
            assert asyncio.all_tasks() == {task}
            assert asyncio.get_running_loop() is task.get_loop()

        synchronous()

    host.run(main)


def test_debug_mode_and_never_retrieved_exceptions_name_the_user_code():
    reports = []

    async def fails():
        raise LookupError("never retrieved")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reports.append(context))
        task = asyncio.ensure_future(fails())
        bestow_portal(task)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    asyncio.run(main(), debug=True)
    (context,) = reports
    assert isinstance(context["exception"], LookupError)
    assert "fails()" in repr(context["future"])


# ---- Trio ------------------------------------------------------------------------------------


def test_trio_shows_the_frames_of_a_waiting_task():
    tasks = []

    async def waits(event):
        tasks.append(trio.lowlevel.current_task())
        await ensure_portal()
        middle(event)

    async def main():
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, event)
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            task = tasks[0]
            assert task.name.endswith("waits")
            assert repr(task)
            assert task.coro.cr_code is waits.__code__
            names = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
            assert names[:3] == ["waits", "middle", "innermost"]
            event.set()

    TRIO.run(main)


def test_trio_instruments_see_tasks_with_portals_as_any_other():
    class Instrument(trio.abc.Instrument):
        def __init__(self):
            self.calls = collections.Counter()

        def task_spawned(self, task):
            self.calls["spawned"] += 1

        def task_scheduled(self, task):
            self.calls["scheduled"] += 1

        def before_task_step(self, task):
            self.calls["before"] += 1

        def after_task_step(self, task):
            self.calls["after"] += 1

        def task_exited(self, task):
            self.calls["exited"] += 1

    async def steps(awaiter):
        for _ in range(5):
            await awaiter()

    def run(portal):
        async def in_portal():
            await_(trio.lowlevel.checkpoint())

        async def main():
            await ensure_portal() if portal else await trio.lowlevel.checkpoint()
            await steps(in_portal if portal else trio.lowlevel.checkpoint)

        instrument = Instrument()
        trio.run(main, instruments=[instrument])
        return instrument.calls

    assert run(portal=True) == run(portal=False)


@pytest.mark.parametrize("way", ["ensure", "bestow", "none"])
def test_trio_task_and_instruments_show_the_users_coroutine_in_each_state(way):
    """What `task.coro` says, to the task itself, to others and to an instrument, is the same with a
    portal and without one."""

    async def users(event, log):
        if way == "ensure":
            await ensure_portal()
        else:
            await trio.lowlevel.checkpoint()
        look(trio.lowlevel.current_task(), log)
        await event.wait()

    def look(task, log):
        log.append(
            (
                type(task.coro),
                task.coro is coroutines[0] and task.coro == coroutines[0],
                coroutines[0] == task.coro and task.coro in set(coroutines),
                task.coro.__qualname__,
                inspect.iscoroutine(task.coro),
                inspect.getcoroutinestate(task.coro),
                [frame.f_code.co_name for frame, _ in task.iter_await_frames()][:1],
            )
        )

    class Instrument(trio.abc.Instrument):
        def before_task_step(self, task):
            if task.name.endswith("users") and coroutines:
                look(task, log)

        task_scheduled = after_task_step = task_exited = before_task_step

    coroutines, log = [], []

    async def main():
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(users, event, log)
            (task,) = nursery.child_tasks
            coroutines.append(task.coro)
            if way == "bestow":
                bestow_portal(task)
            look(task, log)
            for _ in range(4):
                await trio.lowlevel.checkpoint()
            look(task, log)
            event.set()
        look(task, log)

    trio.run(main, instruments=[Instrument()])
    states = [entry[5].removeprefix("CORO_") for entry in log]
    assert states[0] == "CREATED" and states[-1] == "CLOSED"
    assert {"RUNNING", "SUSPENDED"} < set(states)
    assert {entry[:5] for entry in log} == {
        (type(coroutines[0]), True, True, users.__qualname__, True)
    }
    assert all(
        entry[6] == (["users"] if state != "CLOSED" else [])
        for entry, state in zip(log, states, strict=True)
    )


def test_trio_task_stopped_in_synchronous_code_shows_an_equal_that_is_suspended():
    async def main():
        event, tasks = trio.Event(), []
        coroutine = waits(event, tasks)

        async def parent():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: coroutine)
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                (task,) = tasks
                assert task.coro == coroutine and coroutine == task.coro
                assert (task.coro != coroutine) is False
                assert {coroutine: 1}[task.coro] == 1
                assert task.coro.__qualname__ == waits.__qualname__
                assert inspect.iscoroutine(task.coro)
                assert inspect.getcoroutinestate(task.coro) == inspect.CORO_SUSPENDED
                event.set()
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                assert inspect.getcoroutinestate(task.coro) == inspect.CORO_CLOSED

        await parent()

    async def waits(event, tasks):
        tasks.append(trio.lowlevel.current_task())
        await ensure_portal()
        middle(event)

    TRIO.run(main)


def test_trio_attribute_can_be_written_and_looked_at_as_before():
    async def main():
        await ensure_portal()
        task = trio.lowlevel.current_task()
        coroutine = task.coro
        task.coro = task.coro  # as greenback does, with its own
        assert task.coro is coroutine
        await_(trio.lowlevel.checkpoint())
        assert type(trio.lowlevel.Task.coro).__name__
        assert repr(trio.lowlevel.Task.coro).startswith("<member 'coro' of 'Task'")
        assert trio.lowlevel.Task.coro.__name__ == "coro"
        with pytest.raises(AttributeError):
            del trio.lowlevel.Task.__new__(trio.lowlevel.Task).coro

    TRIO.run(main)


def test_get_coro_of_a_task_written_in_python_is_the_users_coroutine():
    task = None

    async def users():
        await asyncio.sleep(0)
        return task.get_coro()

    async def main():
        nonlocal task
        coroutine = users()
        task = asyncio.tasks._PyTask(coroutine, loop=asyncio.get_running_loop())
        assert task.get_coro() is coroutine
        bestow_portal(task)
        assert task.get_coro() is coroutine
        assert await task is coroutine

    asyncio.run(main())


def test_public_names_have_docstrings():
    for name in portalpatch.__all__:
        value = getattr(portalpatch, name)
        assert name.startswith("__") or (value.__doc__ or "").strip(), name

"""The patches as a whole: names, selection, lazy application, and exact undoing."""

from __future__ import annotations

import textwrap

import pytest
from test_locks import same  # noqa: F401

# What a program can see of the modules that patches change: every attribute, by identity.
SNAPSHOT = """
import importlib, sys

def snapshot(names):
    state = {}
    for name in names:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            state[name, key] = value
            if isinstance(value, type):
                for member, thing in vars(value).items():
                    state[name, key, member] = thing
    return state

NAMES = ["_thread", "threading", "queue", "_queue", "signal", "_signal", "asyncio", "_asyncio",
         "asyncio.base_events", "asyncio.events", "asyncio.runners", "concurrent.futures.thread",
         "_frozen_importlib", "logging", "functools", "reprlib"]

def difference(before, after):
    return sorted({key for key in before.keys() | after.keys()
                   if before.get(key, after) is not after.get(key, before)
                   and key[-1] not in ("_abc_impl", "__annotations__")})
"""


@pytest.fixture
def plain(run_app):
    """plain(source): stdout of a script that imports portalpatch itself."""

    def run(source, **how):
        done = run_app(SNAPSHOT + textwrap.dedent(source), mode="plain", **how).check()
        assert done.err == ""
        return done.out

    return run


def test_undo_restores_every_attribute(plain):
    out = plain("""
        import signal
        before = snapshot(NAMES)
        handlers = [signal.getsignal(number) for number in range(1, 32)]
        import portalpatch
        portalpatch.patch_all()
        print(len(difference(before, snapshot(NAMES))) > 0)
        portalpatch.unpatch_all()
        print(difference(before, snapshot(NAMES)))
        print(handlers == [signal.getsignal(number) for number in range(1, 32)])
        print([type(finder).__name__ for finder in sys.meta_path if "portalpatch" in type(finder).__module__])
    """)
    assert out == "True\n[]\nTrue\n[]\n"


def test_patch_undo_patch_again_works(plain):
    out = plain("""
        import threading, time, portalpatch

        def together():
            threads = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(5)]
            [thread.start() for thread in threads]
            count = len(__import__("os").listdir("/proc/self/task"))
            [thread.join() for thread in threads]
            return count

        for _ in range(2):
            portalpatch.patch_all()
            print(together())
            portalpatch.unpatch_all()
            print(together())
    """)
    assert out == "1\n6\n1\n6\n"


def test_undo_leaves_alone_what_others_replaced_since(plain):
    out = plain("""
        import _thread, portalpatch
        portalpatch.patch_all()
        mine = object()
        _thread.RLock = mine
        portalpatch.unpatch_all()
        print(_thread.RLock is mine)
    """)
    assert out == "True\n"


def test_unknown_names_are_refused_and_nothing_is_patched(plain):
    out = plain("""
        import portalpatch
        from portalpatch import patches
        before = snapshot(NAMES)
        for arguments in ({"only": ["locks", "nonsense"]}, {"without": ["nonsense"]}):
            try:
                patches.apply(**arguments)
            except ValueError as error:
                print(error)
        print(difference(before, snapshot(NAMES)), patches.names())
    """)
    known = (
        "locks, threads, conditions, queues, executors, processes, signals, faulthandler, "
        "asyncio, trio, grpc, forks"
    )
    names = tuple(known.split(", "))
    assert out == f"unknown patch 'nonsense': known are {known}\n" * 2 + f"[] {names}\n"


def test_only_and_without_select_patches(plain):
    out = plain("""
        import queue, threading, portalpatch
        native = type(threading.Lock()), queue.SimpleQueue
        portalpatch.patch_all(only=["queues"])
        print(queue.SimpleQueue is native[1], type(threading.Lock()) is native[0])
        portalpatch.unpatch_all()
        portalpatch.patch_all(without=["queues"])
        print(queue.SimpleQueue is native[1], type(threading.Lock()) is native[0])
    """)
    assert out == "False True\nTrue False\n"


def test_patching_imports_no_module_that_it_patches(plain):
    out = plain("""
        before = set(sys.modules)
        import portalpatch
        portalpatch.patch_all()
        heavy = {"asyncio", "trio", "queue", "_queue", "concurrent.futures", "uvloop", "multiprocessing"}
        print(sorted(heavy & set(sys.modules) - before))
    """)
    assert out == "[]\n"


def test_modules_imported_later_are_patched_and_look_untouched(plain):
    out = plain("""
        import portalpatch
        portalpatch.patch_all()
        import queue, asyncio, concurrent.futures
        from portalpatch import _core
        print(queue.SimpleQueue is _core.SimpleQueue)
        print(hasattr(asyncio.BaseEventLoop.create_task, "__wrapped__"))
        for module in (queue, asyncio, asyncio.base_events, sys.modules["_queue"], concurrent.futures):
            loader = module.__spec__.loader
            print(module.__loader__ is loader, "exec_module" in vars(loader),
                  type(loader).__module__, bool(module.__spec__.origin))
    """)
    lines = out.splitlines()
    assert lines[:2] == ["True", "True"]
    assert lines[2:] == ["True False _frozen_importlib_external True"] * 5


def test_failing_import_shows_no_frame_of_the_import_hook(run_app, tmp_path):
    (tmp_path / "trio").mkdir()
    (tmp_path / "trio" / "__init__.py").write_text("from . import _core\n")
    (tmp_path / "trio" / "_core").mkdir()
    (tmp_path / "trio" / "_core" / "__init__.py").write_text("from . import _run\n")
    (tmp_path / "trio" / "_core" / "_run.py").write_text("def f():\n    1 / 0\nf()\n")
    source = "import sys\nsys.path.insert(0, '.')\nimport trio\n"
    (tmp_path / "app.py").write_text(source)
    plain = run_app("app.py", mode="plain", cwd=tmp_path).check(1)
    patched = run_app("app.py", mode="cli", cwd=tmp_path).check(1)
    assert patched.err == plain.err


def test_asyncio_shows_the_programs_own_coroutines_and_factories(plain):
    out = plain("""
        import portalpatch
        portalpatch.patch_all()
        import asyncio, inspect, time
        seen = []

        def factory(loop, coro, **arguments):
            seen.append(coro.__name__)
            return asyncio.Task(coro, loop=loop, **arguments)

        async def work():
            time.sleep(0.001)
            return 5

        async def main():
            loop = asyncio.get_running_loop()
            print(loop.get_task_factory())
            loop.set_task_factory(factory)
            print(loop.get_task_factory() is factory)
            coroutine = work()
            task = asyncio.create_task(coroutine, name="named")
            print(task.get_coro() is coroutine, "work() running at" in repr(task), task.get_name())
            print(await task, seen)
            print(inspect.signature(loop.create_task) == inspect.signature(asyncio.BaseEventLoop.create_task.__wrapped__.__get__(loop)))
            loop.set_task_factory(None)
            try:
                loop.create_task(5)
            except TypeError as error:
                print(error)

        asyncio.run(main())
    """)
    assert out == (
        "None\nTrue\nTrue True named\n5 ['work']\nTrue\na coroutine was expected, got 5\n"
    )


def test_create_task_takes_and_refuses_what_it_did(same):
    same("""
        import asyncio, inspect, traceback, types

        async def work():
            return 5

        @types.coroutine
        def old_style():
            yield

        def bad_factory(loop, coro, **arguments):
            coro.close()
            raise LookupError("no tasks today")

        class Loop(asyncio.SelectorEventLoop):
            def create_task(self, coro, **arguments):
                print("mine")
                return super().create_task(coro, **arguments)

        async def main():
            loop = asyncio.get_running_loop()
            create = asyncio.BaseEventLoop.create_task
            print(await loop.create_task(coro=work()), await create(loop, work()))
            named = loop.create_task(work(), name="a"), loop.create_task(name="b", coro=work())
            print([task.get_name() for task in named], await asyncio.gather(*named))
            for arguments, keywords in [((), {}), ((1, 2, 3), {}), ((5,), {"nonsense": 1}), ((5,), {})]:
                try:
                    loop.create_task(*arguments, **keywords)
                except TypeError as error:
                    print(error)
            try:  # refused from 3.12 on
                print(await loop.create_task(old_style()))
            except TypeError as error:
                print(str(error).split(" at ")[0])
            print(repr(create).split(" at ")[0], inspect.signature(loop.create_task),
                  create.__name__, create.__qualname__, inspect.isroutine(create))
            loop.set_debug(True)
            task = loop.create_task(work())
            print([frame.name for frame in task._source_traceback[-1:]])
            await task
            loop.set_debug(False)
            loop.set_task_factory(bad_factory)
            try:
                loop.create_task(work())
            except LookupError as error:
                print([frame.name for frame in traceback.extract_tb(error.__traceback__)])
            loop.set_task_factory(None)

        asyncio.run(main())
        loop = Loop()
        print(loop.run_until_complete(work()))
        loop.close()
    """)


def test_eager_tasks_park_in_synchronous_code(plain):
    out = plain("""
        import portalpatch
        portalpatch.patch_all()
        import asyncio, sys, time

        async def work(number):
            time.sleep(0.02)
            await asyncio.sleep(0.01)
            time.sleep(0.02)
            return number

        async def main():
            if sys.version_info >= (3, 14):
                tasks = [asyncio.create_task(work(n), eager_start=True) for n in range(20)]
                print(await asyncio.gather(*tasks))
            else:
                print(list(range(20)))
            if hasattr(asyncio, "eager_task_factory"):
                asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            print(await asyncio.gather(*[asyncio.create_task(work(n)) for n in range(20)]))

        asyncio.run(main())
    """)
    assert out == f"{list(range(20))}\n" * 2


def test_tasks_park_on_loops_with_any_selector(plain):
    out = plain("""
        import portalpatch
        portalpatch.patch_all()
        import asyncio, selectors, time

        async def work():
            time.sleep(0.01)
            return True

        async def both():
            return await asyncio.gather(work(), work())

        for selector in (selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector):
            loop = asyncio.SelectorEventLoop(selector())
            print(loop.run_until_complete(work()), loop.run_until_complete(both()))
            loop.close()
    """)
    assert out == "True [True, True]\n" * 3


def test_plain_function_in_a_task_may_run_a_loop_of_its_own(plain):
    out = plain("""
        import portalpatch
        portalpatch.patch_all()
        import asyncio, time

        async def inner(number):
            await asyncio.sleep(0.01)
            time.sleep(0.01)
            return number

        def synchronous(number):
            return asyncio.run(inner(number))

        async def task(number):
            loop, me = asyncio.get_running_loop(), asyncio.current_task()
            result = synchronous(number)
            await asyncio.sleep(0)
            coroutine = inner(0)
            try:
                asyncio.run(coroutine)
            except RuntimeError as error:
                result = f"{result} {error}"
            coroutine.close()
            return result, asyncio.get_running_loop() is loop and asyncio.current_task() is me

        async def main():
            return await asyncio.gather(*[task(number) for number in range(3)])

        for result in asyncio.run(main()):
            print(*result)
    """)
    assert out == "".join(
        f"{n} asyncio.run() cannot be called from a running event loop True\n" for n in range(3)
    )


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_plain_function_in_a_task_may_wait_for_the_tasks_own_loop(plain, library):
    """The cases of nest_asyncio's own tests, each call in a plain function."""
    out = plain(f"""
        import portalpatch
        portalpatch.patch_all()
        import asyncio, time, traceback
        import {library}

        def until_complete(future):
            return asyncio.get_event_loop().run_until_complete(future)

        async def fails():
            await asyncio.sleep(0)
            raise KeyError("inner")

        async def nested(depth):
            time.sleep(0.001)
            if depth == 0:
                return await asyncio.sleep(0.001, "innermost")
            result = until_complete(nested(depth - 1))
            assert result == await nested(0)
            return result

        async def slowly(first, then, result):
            until_complete(asyncio.sleep(first))
            until_complete(asyncio.sleep(then))
            return result

        async def main():
            loop, me = asyncio.get_running_loop(), asyncio.current_task()
            print(await nested(3))
            print(await asyncio.gather(slowly(0.02, 0, 1), slowly(0.01, 0.02, 2), slowly(0, 0, 3)))
            task = asyncio.ensure_future(asyncio.sleep(0.001, "task"))
            done, pending = until_complete(asyncio.wait([task]))
            print(done == {{task}}, pending, task.result())
            try:
                until_complete(fails())
            except KeyError as error:
                print([frame.name for frame in traceback.extract_tb(error.__traceback__)])
            waiting = asyncio.ensure_future(slowly(60, 0, None))
            await asyncio.sleep(0.001)
            waiting.cancel()
            print((await asyncio.gather(waiting, return_exceptions=True))[0].__class__.__name__)
            task = asyncio.ensure_future(nested(0))
            try:
                loop.run_until_complete(task)
            except RuntimeError as error:
                print(str(error).lower().rstrip("."))
            await task
            print(asyncio.get_running_loop() is loop and asyncio.current_task() is me, loop.is_running())
            return "end"

        print({library}.run(main()))
    """)
    assert out == (
        "innermost\n[1, 2, 3]\nTrue set() task\n['main', 'until_complete', 'fails']\nCancelledError\n"
        "this event loop is already running\nTrue True\nend\n"
    )


def test_trio_tasks_park_in_synchronous_code(plain):
    pytest.importorskip("trio")
    out = plain("""
        import portalpatch
        portalpatch.patch_all()
        import time, trio
        ticks = []

        async def work(number):
            time.sleep(0.02)
            await trio.sleep(0.01)
            time.sleep(0.02)
            ticks.append(number)

        async def main():
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(work, number)

        trio.run(main)
        print(sorted(ticks) == list(range(20)))
    """)
    assert out == "True\n"

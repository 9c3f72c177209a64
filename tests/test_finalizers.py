"""Finalizers that wait, run by the garbage collector wherever it likes, threads and tasks alike.

Natively the collector runs them in whatever thread allocates, which waits there while the others go on.
"""

from __future__ import annotations

import pytest

BODIES = {
    "threads": """
        threads = [threading.Thread(target=work, args=(10,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """,
    "asyncio": """
        import asyncio

        async def task():
            for _ in range(10):
                Cycle()
                work(1)
                await asyncio.sleep(0)

        async def main():
            await asyncio.gather(*(task() for _ in range(10)))

        asyncio.run(main())
    """,
    "trio": """
        import trio

        async def task():
            for _ in range(10):
                Cycle()
                work(1)
                await trio.sleep(0)

        async def main():
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(task)
            gc.set_threshold(0)  # Trio's own tasks are cancelled now, and with them what waits in one

        trio.run(main)
    """,
}


@pytest.mark.parametrize(
    "waits_for, threshold", [("time.sleep(0.0005)", 1), ("with lock: time.sleep(0.0005)", 3)]
)
@pytest.mark.parametrize("body", BODIES)
def test_finalizers_may_wait(run_app, body, waits_for, threshold):
    if body == "trio":
        pytest.importorskip("trio")
    program = f"""
        import gc, select, socket, sys, threading, time

        lock = threading.RLock()
        finalized = 0

        class Cycle:
            def __init__(self):
                self.me = self

            def __del__(self):
                global finalized
                finalized += 1
                {waits_for}

        def work(times):
            a, b = socket.socketpair()
            for _ in range(times):
                Cycle()
                time.sleep(0.0003)
                Cycle()
                select.select([a], [], [], 0.0003)
                Cycle()
                with lock:
                    time.sleep(0.0001)
                b.send(b"x")
                a.recv(1)
            a.close()
            b.close()

        gc.set_threshold({threshold})
        {BODIES[body]}
        gc.set_threshold(0)
        assert finalized > 100, finalized
    """
    completed = run_app(program).check()
    assert completed.err == ""


def test_trio_instrument_may_wait_between_the_tasks_and_the_loops_own_wait(run_app):
    """A task that goes on meanwhile puts itself on a queue that the loop has looked at already."""
    pytest.importorskip("trio")
    completed = run_app("""
        import time, trio

        class Slow(trio.abc.Instrument):
            def before_io_wait(self, timeout):
                time.sleep(0.003)

        async def task():
            for _ in range(20):
                time.sleep(0.001)
                await trio.lowlevel.checkpoint()

        async def main():
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(task)

        trio.run(main, instruments=[Slow()])
        print("done")
    """).check()
    assert (completed.out, completed.err) == ("done\n", "")


def test_cancellation_is_not_raised_in_what_the_collector_calls(run_app):
    """From 3.12 on C code that looks for signals collects garbage first; callbacks' exceptions are ignored."""
    completed = run_app("""
        import asyncio, gc, select, socket, time, weakref

        class Cycle:
            def __init__(self):
                self.me = self

        def called(_):
            for _ in range(3):
                callbacks.append(1)

        def make_garbage():
            cycle = Cycle()
            callbacks.append(weakref.ref(cycle, called))

        def wait(a):
            make_garbage()
            select.select([a], [], [], 30)
            lost.append(a)

        async def task(a):
            wait(a)

        async def main():
            a, b = socket.socketpair()
            for _ in range(100):
                waiting = asyncio.create_task(task(a))
                await asyncio.sleep(0.001)
                waiting.cancel()
                make_garbage()
                await asyncio.wait([waiting], timeout=5)
                assert waiting.cancelled()

        lost, callbacks = [], []
        gc.set_threshold(1)
        asyncio.run(main())
        gc.set_threshold(0)
        print(lost, sum(each == 1 for each in callbacks) > 50)
    """).check()
    assert (completed.out, completed.err) == ("[] True\n", "")

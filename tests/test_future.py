"""portalpatch.Future: asyncio's protocol, completed from any thread, awaited on every host."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
import trio
from portalpatch import Future, await_, ensure_portal


def from_a_thread(function, *args):
    thread = threading.Timer(0.01, function, args)
    thread.start()
    return thread


async def natively(future):
    return await future


async def in_a_portal(future):
    await ensure_portal()
    return await_(future)


RUNNERS = {"asyncio": asyncio.run, "trio": lambda coroutine: trio.run(lambda: coroutine)}


@pytest.mark.parametrize("host", RUNNERS)
@pytest.mark.parametrize("wait", [natively, in_a_portal])
def test_result_and_exception_come_from_another_thread(host, wait):
    async def main():
        future = Future()
        thread = from_a_thread(future.set_result, 42)
        assert await wait(future) == 42
        thread.join()
        future = Future()
        thread = from_a_thread(future.set_exception, KeyError("gone"))
        with pytest.raises(KeyError, match="gone"):
            await wait(future)
        thread.join()
        assert await wait(future_done(7)) == 7
        return "done"

    def future_done(value):
        future = Future()
        future.set_result(value)
        return future

    assert RUNNERS[host](main()) == "done"


def test_cancelling_the_task_cancels_the_future_as_asyncio_does():
    async def main():
        for make in (Future, lambda: asyncio.get_running_loop().create_future()):
            future = make()
            task = asyncio.create_task(natively(future))
            await asyncio.sleep(0)
            assert task.cancel("why")
            with pytest.raises(asyncio.CancelledError):
                await task
            assert future.cancelled() and future.done()
            assert not future.cancel()
            with pytest.raises(asyncio.InvalidStateError):
                future.set_result(1)

    asyncio.run(main())


def test_cancelled_trio_wait_leaves_the_future_alone():
    async def main():
        future = Future()
        with trio.move_on_after(0.01) as scope:
            await future
        assert scope.cancelled_caught and not future.done()
        future.set_result(1)
        assert await future == 1

    trio.run(main)


def test_callbacks_run_in_the_loop_with_their_context():
    import contextvars

    variable = contextvars.ContextVar("variable", default="outside")

    async def main():
        future, seen = Future(), []
        loop_thread = threading.get_ident()
        context = contextvars.copy_context()
        context.run(variable.set, "inside")

        def callback(done):
            seen.append((done is future, variable.get(), threading.get_ident() == loop_thread))

        def unwanted(done):
            seen.append("unwanted")

        future.add_done_callback(callback, context=context)
        future.add_done_callback(unwanted)
        assert future.remove_done_callback(unwanted) == 1
        thread = from_a_thread(future.set_result, None)
        await future
        await asyncio.sleep(0)
        thread.join()
        assert seen == [(True, "inside", True)]

    asyncio.run(main())


def test_asyncio_tools_take_it_as_a_future():
    async def main():
        future = Future()
        assert asyncio.isfuture(future) and future.get_loop() is asyncio.get_running_loop()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0.01)
        assert future.cancelled()
        futures = [Future() for _ in range(3)]
        for number, one in enumerate(futures):
            asyncio.get_running_loop().call_soon(one.set_result, number)
        assert await asyncio.gather(*futures) == [0, 1, 2]

    asyncio.run(main())


def test_errors_say_what_is_wrong():
    future = Future()
    with pytest.raises(asyncio.InvalidStateError, match="Result is not set"):
        future.result()
    with pytest.raises(asyncio.InvalidStateError, match="Exception is not set"):
        future.exception()
    with pytest.raises(TypeError, match="cannot be given"):
        future.set_exception(StopIteration())
    with pytest.raises(TypeError, match="cannot be given"):
        future.set_exception(5)
    with pytest.raises(RuntimeError, match="without an asyncio loop"):
        future.get_loop()
    future.set_exception(ValueError)
    assert type(future.exception()) is ValueError
    with pytest.raises(asyncio.InvalidStateError, match="done already"):
        future.set_result(1)


def test_cycles_are_collected():
    future = Future()
    future.set_result([future])
    gone = weakref.ref(future)
    del future
    gc.collect()
    assert gone() is None

"""What an asyncio task does when it is cancelled or timed out: bodies for test_portal_cancel.py.

See twins.py; those of common_bodies.py come before these.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

shielded = contextlib.nullcontext


async def forever(log):
    log.append("waiting")
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        log.append("woken")


async def nap():
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(loop.call_soon, lambda: future.done() or future.set_result(None))
    await future


async def tick():
    await asyncio.sleep(0)


# ---- ends by itself --------------------------------------------------------------------------


async def body_stop_async_iteration(log):
    await tick()
    raise StopAsyncIteration("stop")


async def body_generator_exit(log):
    await tick()
    raise GeneratorExit("exit")


async def body_inner_generator_exit(log):
    async def inner():
        await tick()
        raise GeneratorExit("exit")

    try:
        await inner()
    except GeneratorExit as error:
        await nap()
        return repr(error)


async def body_raises_cancelled_itself(log):
    await tick()
    raise asyncio.CancelledError("by hand")


# ---- waits for ever --------------------------------------------------------------------------


async def body_catches_and_returns(log):
    try:
        await forever(log)
    except asyncio.CancelledError as error:
        return repr(error)


async def body_catches_and_waits(log):
    try:
        await forever(log)
    except asyncio.CancelledError:
        log.append("caught")
        await tick()
        log.append("ticked")
        await nap()
        log.append("napped")
        raise


async def body_catches_and_raises(log):
    try:
        await forever(log)
    except asyncio.CancelledError:
        raise ValueError("instead")  # noqa: B904


async def body_catches_and_raises_from(log):
    try:
        await forever(log)
    except asyncio.CancelledError as error:
        raise ValueError("instead") from error


async def body_ignores_one(log):
    for _ in range(2):
        try:
            await forever(log)
        except asyncio.CancelledError:
            log.append("ignored")
    await nap()
    return "after two"


async def body_cleans_up_for_ever(log):
    try:
        await forever(log)
    finally:
        log.append("cleanup")
        await forever(log)


async def body_cleans_up_twice(log):
    try:
        try:
            await forever(log)
        finally:
            log.append("first")
            await forever(log)
    finally:
        log.append("second")
        await nap()
        log.append("cleaned")


async def body_waits_between(log):
    await tick()
    await nap()
    await forever(log)
    return "never"


async def body_cancelled_in_child(log):
    child = asyncio.ensure_future(native_child(log))
    try:
        await child
    finally:
        log.append(("child", child.done()))


async def native_child(log):
    try:
        log.append("waiting")
        await asyncio.get_running_loop().create_future()
    finally:
        log.append("woken")
        await asyncio.sleep(0)


async def body_shields(log):
    child = asyncio.ensure_future(native_child(log))
    try:
        await asyncio.shield(child)
    except asyncio.CancelledError:
        log.append(("shielded", child.done()))
        child.cancel()
        await asyncio.wait([child])
        raise


async def body_gathers(log):
    try:
        await asyncio.gather(native_child(log), nap(), tick())
    except asyncio.CancelledError:
        await nap()
        raise


async def body_gather_fails(log):
    async def native_fails():
        await nap()
        raise LookupError("one of them")

    try:
        await asyncio.gather(native_fails(), tick())
    except LookupError as error:
        await tick()
        return repr(error)


async def body_event_and_lock(log):
    lock = asyncio.Lock()
    await lock.acquire()
    try:
        log.append("waiting")
        async with lock:
            log.append("not reached")
    finally:
        log.append("woken")
        log.append(lock.locked())
        lock.release()
        async with lock:
            await nap()


# ---- cancels itself --------------------------------------------------------------------------


async def body_cancels_itself_and_returns(log):
    await tick()
    asyncio.current_task().cancel()
    return "value"


async def body_cancels_itself_and_raises(log):
    await nap()
    asyncio.current_task().cancel()
    raise LookupError("raised")


async def body_cancels_itself_and_waits(log):
    await nap()
    asyncio.current_task().cancel("itself")
    log.append("still running")
    try:
        await forever(log)
    except asyncio.CancelledError as error:
        log.append(error.args)
        await tick()
        await nap()
        raise


async def body_cancels_itself_and_ticks(log):
    await nap()
    asyncio.current_task().cancel()
    await tick()
    log.append("not reached")


async def body_cancels_itself_twice(log):
    task = asyncio.current_task()
    for _ in range(2):
        task.cancel()
        try:
            await nap()
        except asyncio.CancelledError:
            log.append("cancelled")
            await nap()
    return "survived"


async def body_cancels_itself_while_parked_by_callback(log):
    asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
    try:
        await forever(log)
    except asyncio.CancelledError:
        await nap()
        return "cancelled by callback"


# ---- timeouts --------------------------------------------------------------------------------


async def body_wait_for(log):
    try:
        await asyncio.wait_for(native_child(log), log.timeout)
    except asyncio.TimeoutError as error:
        await nap()
        return repr(error)


async def body_wait_for_in_time(log):
    async def native_returns():
        await nap()
        await tick()
        return "value"

    return await asyncio.wait_for(native_returns(), 30)


async def body_wait_for_fails(log):
    async def native_fails():
        await nap()
        raise LookupError("raised")

    await asyncio.wait_for(native_fails(), 30)


if sys.version_info >= (3, 11):

    async def body_timeout(log):
        try:
            async with asyncio.timeout(log.timeout):
                await forever(log)
        except TimeoutError as error:
            await nap()
            return repr(error)

    async def body_timeout_escapes(log):
        async with asyncio.timeout(log.timeout):
            await forever(log)

    async def body_timeout_in_time(log):
        async with asyncio.timeout(30):
            await nap()
        await nap()
        return asyncio.current_task().cancelling()

    async def body_nested_timeouts(log):
        try:
            async with asyncio.timeout(log.timeout):
                try:
                    async with asyncio.timeout(30):
                        await forever(log)
                finally:
                    log.append("inner")
        except TimeoutError:
            log.append("outer")
        async with asyncio.timeout(log.timeout) as timeout:
            timeout.reschedule(None)
            await nap()
        return timeout.expired()

    async def body_timeout_with_cleanup(log):
        try:
            async with asyncio.timeout(log.timeout):
                try:
                    await forever(log)
                finally:
                    await nap()
                    log.append("cleaned")
        except TimeoutError:
            await forever(log)

    async def body_two_timeouts_in_turn(log):
        for turn in range(3):
            try:
                async with asyncio.timeout(log.timeout):
                    await forever(log)
            except TimeoutError:
                log.append(turn)
        return asyncio.current_task().cancelling()

    async def body_uncancels(log):
        try:
            await forever(log)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            log.append(task.cancelling())
            log.append(task.uncancel())
            await nap()
            return "uncancelled"

    async def body_task_group(log):
        async with asyncio.TaskGroup() as group:
            await nap()
            group.create_task(native_child(log))

    async def body_task_group_waits(log):
        async with asyncio.TaskGroup() as group:
            group.create_task(native_child(log))
            await forever(log)

    async def body_task_group_child_fails(log):
        async def native_fails():
            await nap()
            raise LookupError("child")

        async with asyncio.TaskGroup() as group:
            group.create_task(native_fails())
            try:
                await forever(log)
            finally:
                log.append("body ends")
                await nap()

    async def body_task_group_body_fails(log):
        async with asyncio.TaskGroup() as group:
            group.create_task(native_child(log))
            await tick()
            raise LookupError("body")

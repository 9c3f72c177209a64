"""How a task of asyncio_bodies.py is cancelled, and how its end is told.

`outcome()` runs one scenario to its end and returns what can be compared between twins: result or
exception, what the body logged, and the task's cancellation count. No driver waits for a time: it
waits until the body has logged that it waits, or has ended.
"""

from __future__ import annotations

import asyncio

from twins import Log, describe


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def reached(task, log, count=1):
    """Until the body waits for the `count`th time, or the task is done."""
    while log.count("waiting") < count and not task.done():
        await asyncio.sleep(0 if count < 2 else 0.0005)
    await turns(3)


async def drive_to_its_end(task, log):
    await reached(task, log)


async def drive_slowly(task, log):
    """To its end, with timeouts that do not expire."""
    await reached(task, log)


async def drive_cancel_before_first_step(task, log):
    task.cancel()


async def drive_cancel_before_first_step_twice(task, log):
    task.cancel()
    task.cancel("again")


async def drive_cancel(task, log):
    await reached(task, log)
    task.cancel()


async def drive_cancel_with_message(task, log):
    await reached(task, log)
    task.cancel("why")


async def drive_cancel_twice_at_once(task, log):
    await reached(task, log)
    task.cancel("first")
    task.cancel("second")


async def drive_cancel_again_when_it_waits_again(task, log):
    await reached(task, log)
    task.cancel()
    await reached(task, log, 2)
    task.cancel()


async def drive_cancel_three_times(task, log):
    for count in range(1, 4):
        await reached(task, log, count)
        task.cancel(count)


async def drive_cancel_in_the_next_turn_too(task, log):
    await reached(task, log)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()


async def drive_wait_for(task, log):
    async def wait():
        try:
            await asyncio.wait_for(task, 0.002)
        except asyncio.TimeoutError:
            log.append("timed out")
        except BaseException as error:
            log.append(describe(error))

    await reached(task, log)
    await turns(20)
    if task.done():
        return None
    waiting = asyncio.ensure_future(wait())
    await turns(1)
    return waiting  # it may take until the body has ended


async def drive_uncancel(task, log):
    await reached(task, log)
    task.cancel()
    if hasattr(task, "uncancel"):
        task.uncancel()


DRIVERS = [value for name, value in list(globals().items()) if name.startswith("drive_")]


def cancel_after(count):
    """A driver that cancels after so many turns of the loop, wherever the body is then."""

    async def drive(task, log):
        await turns(count)
        task.cancel()

    drive.__name__ = f"cancel_after_{count}"
    return drive


async def outcome(body, driver, start):
    """Run `body` in the task that `start(body, log)` makes, and `driver` beside it.

    Returns what happened, and whether the body had to be cancelled at last.
    """
    log = Log()
    if driver not in (drive_to_its_end, drive_cancel_before_first_step):
        log.timeout = 30
    task = start(body, log)
    waiting = await driver(task, log)
    if waiting is not None:
        await asyncio.wait([waiting], timeout=0.02)
    await turns(10)
    cancelled_waits = set()
    while not task.done():
        wait = log.count("waiting")
        if driver is drive_to_its_end:
            await asyncio.sleep(0.008)  # a timeout of its own ends first
            await turns(20)
        stuck = wait == log.count("waiting") > log.count("woken")
        if stuck and wait not in cancelled_waits:
            cancelled_waits.add(wait)  # it would wait for ever
            task.cancel()
        await asyncio.sleep(0.0002)
    if waiting is not None:
        await waiting
    if task.cancelled():
        try:
            await task
        except asyncio.CancelledError as error:
            end = ["cancelled", repr(error.args)]
    elif task.exception() is not None:
        end = describe(task.exception())
    else:
        end = ["returned", repr(task.result())]
    cancelling = task.cancelling() if hasattr(task, "cancelling") else None
    result = {
        "end": end,
        "log": repr(log),
        "cancelling": cancelling,
    }
    return result, bool(cancelled_waits)

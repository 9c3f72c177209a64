"""How a task of trio_bodies.py is cancelled, and how its end is told: as asyncio_drivers.py."""

from __future__ import annotations

import math

import trio
import trio._core._run as trio_run
from twins import Log, describe


class State:
    def __init__(self):
        self.log = Log()
        self.scope = trio.CancelScope()
        self.end = None  # set when the body has ended


async def turns(count):
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def reached(state, count=1):
    """Until the body waits for the `count`th time, or has ended."""
    while state.log.count("waiting") < count and state.end is None:
        await trio.sleep(0.0001)
    await turns(3)


async def drive_to_its_end(state):
    await reached(state)


async def drive_slowly(state):
    """To its end, with timeouts that do not expire."""
    await reached(state)


async def drive_cancel_before_first_step(state):
    state.scope.cancel()


async def drive_cancel(state):
    await reached(state)
    state.scope.cancel()


async def drive_cancel_twice(state):
    await reached(state)
    state.scope.cancel()
    await reached(state, 2)
    state.scope.cancel()


async def drive_deadline(state):
    await reached(state)
    state.scope.deadline = trio.current_time() + 0.002


async def drive_deadline_in_the_past(state):
    await reached(state)
    state.scope.deadline = -math.inf


async def drive_shield(state):
    await reached(state)
    state.scope.shield = True
    state.scope.cancel()


DRIVERS = [value for name, value in list(globals().items()) if name.startswith("drive_")]


def cancel_after(count):
    """A driver that cancels after so many turns of the loop, wherever the body is then."""

    async def drive(state):
        await turns(count)
        state.scope.cancel()

    drive.__name__ = f"cancel_after_{count}"
    return drive


async def outcome(body, driver, wrap):
    """Run `body` in a task, called by `wrap(body, log)`, and `driver` beside it.

    Returns what happened, and whether the body had to be cancelled at last.
    """
    trio_run._r.seed(1)  # Trio shuffles the tasks that are ready; the same way for both twins
    state = State()
    if driver not in (drive_to_its_end, drive_cancel_before_first_step):
        state.log.timeout = 30

    async def task():
        with state.scope:
            try:
                value = await wrap(body, state.log)
            except trio.Cancelled:
                state.end = "cancelled"
                raise
            except BaseException as error:
                state.end = describe(error)
            else:
                state.end = ["returned", repr(value)]

    stuck = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await driver(state)
        await turns(10)
        while state.end is None:
            wait = state.log.count("waiting")
            if driver in (drive_to_its_end, drive_deadline):
                await trio.sleep(0.008)  # a timeout of its own ends first
                await turns(20)
            if wait == state.log.count("waiting") > state.log.count("woken"):
                stuck = True
                state.scope.cancel()  # it would wait for ever
                state.scope.shield = False
            await trio.sleep(0.0002)
    result = {
        "end": state.end,
        "log": repr(state.log),
        "caught": state.scope.cancelled_caught,
    }
    return result, stuck

"""Cancellation and exceptions: a task with a portal ends as its native `async def` twin does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import asyncio_drivers
import pytest
import trio
import trio.testing
import trio_drivers
import twins
import uvloop
from portalpatch import bestow_portal, with_portal_run

HERE = Path(__file__).parent
ASYNCIO = {mode: twins.load(HERE / "asyncio_bodies.py", mode) for mode in ("native", "portal")}
TRIO_BODIES = {mode: twins.load(HERE / "trio_bodies.py", mode) for mode in ("native", "portal")}


# ---- asyncio ---------------------------------------------------------------------------------


def start_native(body, log):
    return asyncio.ensure_future(body(log))


def start_bestowed(body, log):
    task = asyncio.ensure_future(body(log))
    bestow_portal(task)
    return task


def start_with_portal_run(body, log):
    return asyncio.ensure_future(with_portal_run(body, log))


ASYNCIO_TWINS = {
    "native code in a portal": ("native", start_bestowed),
    "bestowed": ("portal", start_bestowed),
    "with_portal_run": ("portal", start_with_portal_run),
}


async def compare_on_asyncio(name, drivers):
    for driver in drivers:
        expected, _ = await asyncio_drivers.outcome(ASYNCIO["native"][name], driver, start_native)
        for twin, (mode, start) in ASYNCIO_TWINS.items():
            result, _ = await asyncio_drivers.outcome(ASYNCIO[mode][name], driver, start)
            assert result == expected, (driver.__name__, twin)


@pytest.mark.parametrize("name", ASYNCIO["native"]["BODIES"])
def test_asyncio_task_ends_as_its_native_twin(name):
    drivers = [*asyncio_drivers.DRIVERS, *map(asyncio_drivers.cancel_after, range(1, 8))]
    asyncio.run(compare_on_asyncio(name, drivers))


@pytest.mark.parametrize("name", ASYNCIO["native"]["BODIES"])
def test_uvloop_task_ends_as_its_native_twin(name):
    uvloop.run(compare_on_asyncio(name, asyncio_drivers.DRIVERS[:7]))


# ---- Trio ------------------------------------------------------------------------------------


async def wrap_native(body, log):
    return await body(log)


async def wrap_portal(body, log):
    return await with_portal_run(body, log)


async def compare_on_trio(name, drivers):
    for driver in drivers:
        expected, _ = await trio_drivers.outcome(TRIO_BODIES["native"][name], driver, wrap_native)
        for mode in ("native", "portal"):
            result, _ = await trio_drivers.outcome(TRIO_BODIES[mode][name], driver, wrap_portal)
            assert result == expected, (driver.__name__, mode)


@pytest.mark.parametrize("name", TRIO_BODIES["native"]["BODIES"])
def test_trio_task_ends_as_its_native_twin(name):
    drivers = [*trio_drivers.DRIVERS, *map(trio_drivers.cancel_after, range(1, 5))]
    clock = trio.testing.MockClock(
        autojump_threshold=0
    )  # what ends first does not hang on the machine
    trio.run(compare_on_trio, name, drivers, clock=clock)


# ---- waits in libc ---------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["asyncio", "uvloop", "trio"])
def test_task_parked_in_libc_ends_as_its_native_twin(library, run_app):
    program = HERE / "parked_twins.py"
    quiet = ["-W", "ignore::SyntaxWarning"]  # 3.14 on the twins that return in a finally clause
    result = run_app(str(program), library, mode="plain", flags=quiet, limit=120).check()
    assert result.err == ""
    mismatches = json.loads(result.out)
    assert mismatches == []

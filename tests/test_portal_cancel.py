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
from hosts import HOSTS
from portalpatch import bestow_portal, with_portal_run

HERE = Path(__file__).parent
ASYNCIO = {mode: twins.load("asyncio", mode) for mode in ("native", "portal")}
TRIO_BODIES = {mode: twins.load("trio", mode) for mode in ("native", "portal")}


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


# ---- curio -----------------------------------------------------------------------------------


async def end_on_curio(body, wrap, steps, times):
    """How a task ends that is cancelled `times` times after so many steps; None: never."""
    import curio

    log = twins.Log()
    task = await curio.spawn(wrap, body, log)
    if steps is not None:
        log.timeout = 600  # a cancellation comes first on any machine
        for _ in range(steps):
            await curio.sleep(0)
        for _ in range(times):
            await task.cancel(blocking=False)
            await curio.sleep(0)
    try:
        result = await task.join()
    except curio.TaskError as error:
        result = twins.describe(error.__cause__)
    return result, log


if CURIO := [host for host in HOSTS if host.library == "curio"]:

    @pytest.mark.parametrize("host", CURIO, ids=repr)
    def test_curio_task_ends_as_its_native_twin(host):
        native, portal = (twins.load("curio", mode) for mode in ("native", "portal"))
        ends = {
            f"body_{name}" for name in ("returns", "raises", "raises_from_inside", "stop_iteration")
        }
        ends |= {"body_waits_and_returns", "body_waits_and_raises", "body_times_out", "body_group"}

        async def compare():
            for name in native["BODIES"]:
                cases = [(steps, times) for steps in range(6) for times in (1, 2)]
                if name == "body_group":  # which children a cancelled one stops first is chance
                    cases.clear()
                if name in ends:
                    cases.append((None, 0))
                for case in cases:
                    expected = await end_on_curio(native[name], wrap_native, *case)
                    for names in native, portal:
                        assert await end_on_curio(names[name], wrap_portal, *case) == expected, (
                            name,
                            case,
                        )

        host.run(compare)


# ---- waits in libc ---------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["asyncio", "uvloop", "trio"])
def test_task_parked_in_libc_ends_as_its_native_twin(library, run_app):
    program = HERE / "parked_twins.py"
    quiet = ["-W", "ignore::SyntaxWarning"]  # 3.14 on the twins that return in a finally clause
    result = run_app(str(program), library, mode="plain", flags=quiet, limit=120).check()
    assert result.err == ""
    mismatches = json.loads(result.out)
    assert mismatches == []

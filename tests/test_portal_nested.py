"""A portal's synchronous function runs another library's loop, unpatched: whose task does await_ mean?"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys

import greenlet
import pytest
import trio
from hosts import HOSTS, every_host
from portalpatch import await_, ensure_portal, has_portal, with_portal_run, with_portal_run_sync


async def value_after(checkpoint, value):
    await checkpoint()
    return value


async def use_a_portal_of_ones_own(checkpoint):
    """What a task does that runs inside the synchronous function of another library's task."""
    assert not has_portal()
    with pytest.raises(RuntimeError, match="must create a portal for this task"):
        await_(value_after(checkpoint, "in the outer task"))
    assert await with_portal_run_sync(await_, value_after(checkpoint, 0)) == 0
    await ensure_portal()
    assert has_portal()
    assert await_(value_after(checkpoint, 1)) == 1
    assert greenlet.greenlet(await_).switch(value_after(checkpoint, 2)) == 2
    assert contextvars.copy_context().run(await_, value_after(checkpoint, 3)) == 3
    return "done"


async def in_ensured_portal(function):
    await ensure_portal()
    function()


async def in_with_portal_run(function):
    async def call():
        function()

    await with_portal_run(call)


ENTERS = [in_ensured_portal, in_with_portal_run, with_portal_run_sync]
every_way_in = pytest.mark.parametrize("enter", ENTERS, ids=lambda enter: enter.__name__)


def run_inside(host, enter, run):
    """run() in a portal of host, whose own await_ works before and after."""
    results = []

    def function():
        for _ in range(2):
            assert await_(value_after(host.checkpoint, "outer")) == "outer"
            results.append(run())
            assert has_portal()
        assert greenlet.greenlet(await_).switch(value_after(host.checkpoint, "raw")) == "raw"

    host.run(enter, function)
    assert results == ["done"] * 2


@pytest.mark.filterwarnings("ignore:.*signal handling code:RuntimeWarning")  # Trio's, of uvloop's
@pytest.mark.parametrize("host", [host for host in HOSTS if host.library != "trio"], ids=repr)
@every_way_in
def test_trio_run_in_a_portal_is_not_the_outer_task(host, enter):
    checkpoint = trio.lowlevel.checkpoint
    run_inside(host, enter, lambda: trio.run(use_a_portal_of_ones_own, checkpoint))


@pytest.mark.parametrize(
    "host", [host for host in HOSTS if host.library in ("trio", "curio")], ids=repr
)
@every_way_in
def test_asyncio_run_in_a_portal_is_not_the_outer_task(host, enter):
    checkpoint = functools.partial(asyncio.sleep, 0)
    run_inside(host, enter, lambda: asyncio.run(use_a_portal_of_ones_own(checkpoint)))


# ---- what is handled around a portal ----------------------------------------------------------


def chain(error):
    """Types and texts of an exception and its contexts."""
    found = []
    while error is not None:
        found.append((type(error).__name__, str(error)))
        error = error.__context__
    return found


async def fails(checkpoint, when):
    if when == "late":
        await checkpoint()
    seen = str(sys.exc_info()[1])
    try:
        raise KeyError(seen)
    except KeyError:
        raise ValueError("new")  # noqa: B904


@every_host
@pytest.mark.parametrize("when", ["at once", "late"])
def test_an_exception_handled_around_a_portal_is_the_context_of_new_ones(host, when):
    async def call_natively():
        await fails(host.checkpoint, when)

    async def call_with_run():
        await with_portal_run(fails, host.checkpoint, when)

    async def call_with_run_sync():
        await with_portal_run_sync(lambda: await_(fails(host.checkpoint, when)))

    async def main(call):
        try:
            try:
                raise OSError("old")
            except OSError:
                await call()
        except ValueError as error:
            return chain(error)

    native = host.run(main, call_natively)
    assert native == [("ValueError", "new"), ("KeyError", "'old'"), ("OSError", "old")]
    assert host.run(main, call_with_run) == native
    assert host.run(main, call_with_run_sync) == native


@every_host
def test_a_portal_handles_nothing_after_its_end(host):
    async def main():
        for _ in range(3):
            try:
                raise OSError("old")
            except OSError:
                await with_portal_run_sync(lambda: None)
            assert await with_portal_run_sync(sys.exc_info) == (None, None, None)

    host.run(main)

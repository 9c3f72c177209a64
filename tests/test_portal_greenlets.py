"""Raw greenlets that outlive the task, the step or the wait in which they were made.

Such a greenlet's parent is one of the portal's; natively it is the thread's main greenlet, the one in
which every task runs. So each scenario ends the same with portals and without.
"""

from __future__ import annotations

import gc

import greenlet
import pytest
from hosts import ASYNCIO, UVLOOP, every_host
from portalpatch import await_, ensure_portal


def returns(sent):
    return "end"


def raises(sent):
    raise KeyError("end")


def yields(sent):
    got = greenlet.getcurrent().parent.switch("middle")
    return f"end after {got}"


def yields_many(sent):
    got = greenlet.getcurrent().parent.switch(1, 2)
    got = greenlet.getcurrent().parent.switch()
    return f"end after {got}"


def exits(sent):
    raise greenlet.GreenletExit("bye")


def drive(raw, log):
    """Switch to it until it has ended: what each switch gave."""
    try:
        while not raw.dead:
            log.append(repr(raw.switch("sent")))
    except KeyError as error:
        log.append(repr(error))
    return log


def run(host, body, way, maker_has_portal, user_has_portal):
    made = []

    async def maker(may_end):
        if maker_has_portal:
            await ensure_portal()
        made.append(greenlet.greenlet(body))
        if way == "while its maker waits" and maker_has_portal:
            await_(may_end.wait())
        elif way != "after its maker":
            await may_end.wait()

    async def user():
        if user_has_portal:
            await ensure_portal()
        log = drive(made.pop(), [])
        if user_has_portal:
            await_(host.checkpoint())
        await host.checkpoint()
        return log

    async def main():
        results = []
        for _ in range(3):
            may_end = host.event()

            async def makes(may_end=may_end):
                await maker(may_end)

            async def uses(may_end=may_end):
                while not made:
                    await host.checkpoint()
                for _ in range(3):
                    await host.checkpoint()
                results.append(await user())
                done = may_end.set()
                if done is not None:
                    await done

            await host.together([makes, uses])
        return results

    return host.run(main)


@every_host
@pytest.mark.parametrize(
    "way", ["after its maker", "while its maker waits", "between its maker's steps"]
)
@pytest.mark.parametrize("body", [returns, raises, yields, yields_many, exits])
def test_greenlet_ends_in_another_task_as_without_portals(host, body, way):
    native = run(host, body, way, False, False)
    for maker_has_portal, user_has_portal in ((True, True), (True, False), (False, True)):
        assert run(host, body, way, maker_has_portal, user_has_portal) == native


@every_host
def test_greenlet_that_is_dropped_after_its_task_leaves_nothing(host):
    async def maker():
        await ensure_portal()
        raw = greenlet.greenlet(yields)
        assert raw.switch("sent") == "middle"
        await_(host.checkpoint())
        return raw

    async def main():
        await ensure_portal()
        for _ in range(3):
            raw = await maker()
            await_(host.checkpoint())
            del raw
            gc.collect()
        return await_(after())

    async def after():
        await host.checkpoint()
        return "after"

    assert host.run(main) == "after"


@pytest.mark.parametrize("host", [ASYNCIO, UVLOOP], ids=repr)
def test_greenlet_of_a_callback_is_driven_by_a_task_and_the_other_way(host):
    import asyncio

    async def main():
        loop = asyncio.get_running_loop()
        await ensure_portal()
        made, results = [], []
        loop.call_soon(lambda: made.append(greenlet.greenlet(yields)))
        await_(asyncio.sleep(0))
        drive(made.pop(), results)
        made.append(greenlet.greenlet(yields))
        loop.call_soon(lambda: drive(made.pop(), results))
        await_(asyncio.sleep(0.001))
        return results

    assert host.run(main) == ["'middle'", "'end after sent'"] * 2

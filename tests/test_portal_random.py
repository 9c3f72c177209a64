"""Random trees of synchronous and asynchronous calls, cancels and exceptions: as their native twins.

A tree is run as `async def` functions alone, and again with the functions it marks as synchronous
being that, in a task with a portal. Both must end alike and log the same.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

import trio
import trio._core._run as trio_run
from hosts import ASYNCIO, TRIO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from portalpatch import await_, bestow_portal, with_portal_run
from twins import describe

EXAMPLES = 2500  # a host
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

WAITS = st.sampled_from(["tick", "nap", "value", "at once"])
ERRORS = st.sampled_from([LookupError, ValueError, StopIteration, GeneratorExit])
CATCHES = st.sampled_from(["all", "LookupError", "finally", "finally waits", "return", "replace"])


@dataclass
class Call:
    """A function: its steps one after the other, perhaps in a try statement."""

    synchronous: bool
    steps: list
    catch: str | None = None
    number: int = field(default=0, compare=False)


STEPS = st.one_of(
    st.tuples(st.just("wait"), WAITS),
    st.tuples(st.just("wait"), WAITS),
    st.tuples(st.just("raise"), ERRORS),
    st.tuples(st.just("cancel"), st.none()),
    st.tuples(st.just("log"), st.none()),
)


def calls(children):
    steps = st.one_of(STEPS, STEPS, st.tuples(st.just("call"), children))
    return st.builds(
        Call, st.booleans(), st.lists(steps, max_size=4), st.one_of(st.none(), CATCHES)
    )


TREES = st.recursive(
    st.builds(Call, st.booleans(), st.lists(STEPS, max_size=3), st.none()), calls, max_leaves=12
)
CANCELS = st.lists(st.integers(0, 8), max_size=3)  # turns of the loop between cancellations


class Program:
    """Runs a tree on a host; `portal` says whether synchronous calls are."""

    def __init__(self, host, portal):
        self.host, self.portal, self.log = host, portal, []

    async def wait(self, kind):
        if kind == "tick":
            await self.host.checkpoint()
        elif kind == "nap":
            for _ in range(2):
                await self.host.checkpoint()
        elif kind == "value":
            self.log.append(await self.value())
        return kind

    async def value(self):
        await self.host.checkpoint()
        return "value"

    def cancelled_type(self):
        return self.host.Cancelled

    # The same function twice: `call` is the native one, `call_sync` its synchronous twin.

    async def call(self, call):
        if call.synchronous and self.portal:
            return self.call_sync(call)
        if call.catch is None:
            return await self.steps(call)
        try:
            return await self.steps(call)
        except LookupError as error:
            if call.catch == "replace":
                raise KeyError("replaced") from error
            if call.catch not in ("all", "LookupError"):
                raise
            self.log.append(repr(error))
            await self.wait("tick")
        except BaseException as error:
            self.log.append(type(error).__name__)
            if call.catch != "all":
                raise
            await self.wait("nap")
        finally:
            self.log.append("finally")
            if call.catch == "finally waits":
                await self.wait("tick")
                self.log.append("waited")
            if call.catch == "return":
                return "from finally"  # noqa: B012

    def call_sync(self, call):
        if call.catch is None:
            return self.steps_sync(call)
        try:
            return self.steps_sync(call)
        except LookupError as error:
            if call.catch == "replace":
                raise KeyError("replaced") from error
            if call.catch not in ("all", "LookupError"):
                raise
            self.log.append(repr(error))
            await_(self.wait("tick"))
        except BaseException as error:
            self.log.append(type(error).__name__)
            if call.catch != "all":
                raise
            await_(self.wait("nap"))
        finally:
            self.log.append("finally")
            if call.catch == "finally waits":
                await_(self.wait("tick"))
                self.log.append("waited")
            if call.catch == "return":
                return "from finally"  # noqa: B012

    async def steps(self, call):
        for kind, value in call.steps:
            if kind == "wait":
                await self.wait(value)
            elif kind == "call":
                self.log.append(await self.call(value))
            else:
                self.other_step(kind, value)
        return len(call.steps)

    def steps_sync(self, call):
        for kind, value in call.steps:
            if kind == "wait":
                await_(self.wait(value))
            elif kind == "call":
                called = value
                if called.synchronous:
                    self.log.append(self.sync_boundary(called))
                else:
                    self.log.append(await_(self.call(called)))
            else:
                self.other_step(kind, value)
        return len(call.steps)

    def sync_boundary(self, call):
        """A synchronous function that an asynchronous one would have wrapped: PEP 479."""
        try:
            return self.call_sync(call)
        except StopIteration as error:
            raise RuntimeError("coroutine raised StopIteration") from error

    def other_step(self, kind, value):
        if kind == "raise":
            if value is StopIteration:  # which no coroutine lets out
                raise RuntimeError("coroutine raised StopIteration")
            raise value("raised")
        if kind == "cancel":
            self.cancel()
        self.log.append(kind)

    def cancel(self):
        raise NotImplementedError


class AsyncioProgram(Program):
    def cancel(self):
        asyncio.current_task().cancel()

    async def outcome(self, tree, cancels):
        task = asyncio.ensure_future(self.call(tree))
        if self.portal:
            bestow_portal(task)
        for turns in cancels:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        for _ in range(200):
            if task.done():
                break
            await asyncio.sleep(0)
        assert task.done(), self.log
        if task.cancelled():
            end = "cancelled"
        elif task.exception() is not None:
            end = describe(task.exception())
        else:
            end = task.result()
        cancelling = task.cancelling() if sys.version_info >= (3, 11) else None
        return end, self.log, cancelling


class TrioProgram(Program):
    def cancel(self):
        self.scope.cancel()

    async def outcome(self, tree, cancels):
        trio_run._r.seed(1)
        self.scope = trio.CancelScope()
        end = []

        async def task():
            with self.scope:
                try:
                    if self.portal:
                        end.append(await with_portal_run(self.call, tree))
                    else:
                        end.append(await self.call(tree))
                except trio.Cancelled:
                    end.append("cancelled")
                    raise
                except BaseException as error:
                    end.append(describe(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            for turns in cancels[:1]:
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                self.scope.cancel()
        return end, self.log, self.scope.cancelled_caught


def test_random_trees_on_asyncio_end_as_their_native_twins():
    async def compare(tree, cancels):
        expected = await AsyncioProgram(ASYNCIO, portal=False).outcome(tree, cancels)
        assert await AsyncioProgram(ASYNCIO, portal=True).outcome(tree, cancels) == expected

    loop = asyncio.new_event_loop()

    @QUICK
    @given(TREES, CANCELS)
    def run(tree, cancels):
        loop.run_until_complete(compare(tree, cancels))

    try:
        run()
    finally:
        loop.close()


def test_random_trees_on_trio_end_as_their_native_twins():
    async def compare(tree, cancels):
        expected = await TrioProgram(TRIO, portal=False).outcome(tree, cancels)
        assert await TrioProgram(TRIO, portal=True).outcome(tree, cancels) == expected

    @QUICK
    @given(TREES, CANCELS)
    def run(tree, cancels):
        TRIO.run(compare, tree, cancels)

    run()

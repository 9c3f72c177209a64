"""Context variables and thread-local values of tasks with portals are those of the task itself."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import greenlet
import pytest
import trio
from hosts import ASYNCIO, TRIO, UVLOOP, asyncio_hosts, every_host
from portalpatch import await_, bestow_portal, ensure_portal, with_portal_run, with_portal_run_sync

variable = contextvars.ContextVar("variable", default="default")


@every_host
def test_context_variables_propagate_both_ways(host):
    async def inner():
        assert variable.get() == "by synchronous"
        await host.checkpoint()
        variable.set("by inner")

    def synchronous():
        assert variable.get() == "by main"
        variable.set("by synchronous")
        await_(inner())
        assert variable.get() == "by inner"
        await_(host.checkpoint())
        variable.set("at last")

    async def main():
        variable.set("by main")
        await ensure_portal()
        assert variable.get() == "by main"
        synchronous()
        assert variable.get() == "at last"
        await host.checkpoint()
        assert variable.get() == "at last"

    host.run(main)


@every_host
def test_with_portal_run_shares_the_tasks_context(host):
    async def inside():
        assert variable.get() == "outside"
        await host.checkpoint()
        await_(host.checkpoint())
        variable.set("inside")

    def inside_sync():
        assert variable.get() == "inside"
        await_(host.checkpoint())
        variable.set("inside sync")

    async def main():
        variable.set("outside")
        await with_portal_run(inside)
        assert variable.get() == "inside"
        await with_portal_run_sync(inside_sync)
        assert variable.get() == "inside sync"

    host.run(main)


@every_host
def test_await_in_a_context_of_its_own_stays_isolated(host):
    async def inner():
        assert variable.get() == "isolated"
        await host.checkpoint()
        assert variable.get() == "isolated"
        variable.set("by inner")
        return "returned"

    def synchronous():
        variable.set("outside")
        context = contextvars.copy_context()
        context.run(variable.set, "isolated")
        assert context.run(await_, inner()) == "returned"
        assert context[variable] == "by inner"
        assert variable.get() == "outside"
        await_(host.checkpoint())
        assert variable.get() == "outside"

    async def main():
        await ensure_portal()
        synchronous()
        assert variable.get() == "outside"

    host.run(main)


@pytest.mark.parametrize("host", [ASYNCIO, UVLOOP, TRIO], ids=repr)  # curio's tasks share one
def test_contexts_of_tasks_do_not_leak_into_each_other(host):
    def task(name):
        def synchronous():
            for turn in range(10):
                assert variable.get() == (name, turn)
                variable.set((name, turn + 1))
                await_(host.checkpoint())

        async def run():
            variable.set((name, 0))
            await ensure_portal()
            synchronous()
            assert variable.get() == (name, 10)

        return run

    async def main():
        variable.set("main")
        await host.together([task("a"), task("b"), task("c")])
        assert variable.get() == "main"

    host.run(main)


def test_bestowed_portal_uses_the_targets_context():
    async def target(bestowed):
        variable.set("target")
        await bestowed.wait()
        assert variable.get() == "target"
        await_(asyncio.sleep(0))
        assert variable.get() == "target"

    async def main():
        variable.set("main")
        bestowed = asyncio.Event()
        task = asyncio.ensure_future(target(bestowed))
        await asyncio.sleep(0)
        bestow_portal(task)
        bestowed.set()
        await task
        assert variable.get() == "main"

    ASYNCIO.run(main)


def test_context_given_to_a_trio_task_meanwhile_is_used():
    async def main():
        task = trio.lowlevel.current_task()
        await ensure_portal()
        variable.set("first")
        other = contextvars.copy_context()
        other.run(variable.set, "second")

        def synchronous():
            task.context = other
            assert variable.get() == "first"
            await_(trio.lowlevel.checkpoint())
            assert variable.get() == "second"

        synchronous()
        await trio.lowlevel.checkpoint()
        assert variable.get() == "second"

    TRIO.run(main)


@asyncio_hosts
def test_child_tasks_inherit_the_context_of_synchronous_code(host):
    async def child():
        return variable.get()

    def synchronous():
        variable.set("parent")
        return await_(asyncio.ensure_future(child()))

    async def main():
        await ensure_portal()
        assert synchronous() == "parent"

    host.run(main)


@every_host
def test_raw_greenlet_in_a_portal_keeps_its_own_context(host):
    async def inner():
        await host.checkpoint()
        return variable.get()

    def raw():
        assert variable.get() == "default"  # a new greenlet has an empty context
        variable.set("raw")
        assert await_(inner()) == "raw"
        return variable.get()

    async def main():
        await ensure_portal()
        variable.set("task")
        assert greenlet.greenlet(raw).switch() == "raw"
        assert variable.get() == "task"

    host.run(main)


@every_host
def test_tasks_share_the_threads_local_values_without_patches(host):
    local = threading.local()
    local.value = "thread"

    def synchronous():
        assert local.value == "thread"
        local.value = "changed"
        await_(host.checkpoint())
        assert local.value == "changed"

    async def main():
        await ensure_portal()
        synchronous()

    host.run(main)
    assert local.value == "changed"

"""The portal's own costs: checkpoint, `await_`, creation, automatic portals, direct resume.

All in one process, beside greenback, greenletio and SQLAlchemy's greenlet_spawn: CPU microseconds
for each operation, on asyncio and on Trio. What runs before `patch_all()` measures the portal
alone; automatic portals and parked waits are measured between `patch_all()` and `unpatch_all()`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import harness
import portalpatch

US = {"us": "us each"}
Timed = Callable[[int], Awaitable[float]]


async def no_op() -> None:
    pass


def nothing() -> None:
    pass


class Asyncio:
    """The operations of one host that the measurements need."""

    name = "asyncio"
    run = staticmethod(asyncio.run)

    @staticmethod
    async def checkpoint() -> None:
        await asyncio.sleep(0)


class Trio:
    name = "Trio"

    @staticmethod
    def run(main: Awaitable[float]) -> float:
        import trio

        async def outer() -> float:
            return await main

        return trio.run(outer)

    @staticmethod
    async def checkpoint() -> None:
        await sys.modules["trio"].lowlevel.checkpoint()


def clock() -> float:
    return time.process_time()


# Each function below takes a host and a count and gives the CPU seconds that `count` took.


async def native_checkpoint(host, count):
    start = clock()
    for _ in range(count):
        await host.checkpoint()
    return clock() - start


async def native_no_op(host, count):
    start = clock()
    for _ in range(count):
        await no_op()
    return clock() - start


async def native_call(host, count):
    start = clock()
    for _ in range(count):
        nothing()
    return clock() - start


def portal_cases(library):
    """The same four measurements for portalpatch and greenback: their API is the same."""

    async def checkpoint(host, count):
        await library.ensure_portal()
        return await native_checkpoint(host, count)

    async def await_checkpoint(host, count):
        await library.ensure_portal()

        def synchronous():
            await_ = library.await_
            start = clock()
            for _ in range(count):
                await_(host.checkpoint())
            return clock() - start

        return synchronous()

    async def await_no_op(host, count):
        await library.ensure_portal()

        def synchronous():
            await_ = library.await_
            start = clock()
            for _ in range(count):
                await_(no_op())
            return clock() - start

        return synchronous()

    async def create_async(host, count):
        run = library.with_portal_run
        start = clock()
        for _ in range(count):
            await run(no_op)
        return clock() - start

    async def create_sync(host, count):
        run = library.with_portal_run_sync
        start = clock()
        for _ in range(count):
            await run(nothing)
        return clock() - start

    async def create_sync_waiting(host, count):
        run = library.with_portal_run_sync

        def waiting():
            library.await_(host.checkpoint())

        start = clock()
        for _ in range(count):
            await run(waiting)
        return clock() - start

    return {
        "checkpoint in a portal": checkpoint,
        "await_(checkpoint)": await_checkpoint,
        "await_(no-op)": await_no_op,
        "with_portal_run(no-op)": create_async,
        "with_portal_run_sync(no-op)": create_sync,
        "with_portal_run_sync, one await_(checkpoint)": create_sync_waiting,
    }


def greenletio_cases():
    from greenletio import async_, await_

    def loop(awaitable):
        async def run(host, count):
            def synchronous():
                start = clock()
                for _ in range(count):
                    await_(awaitable(host))
                return clock() - start

            return await async_(synchronous)()

        return run

    async def create_sync(host, count):
        start = clock()
        for _ in range(count):
            await async_(nothing)()
        return clock() - start

    return {
        "await_(checkpoint)": loop(lambda host: host.checkpoint()),
        "await_(no-op)": loop(lambda host: no_op()),
        "with_portal_run_sync(no-op)": create_sync,
    }


def sqlalchemy_cases():
    from sqlalchemy.util import await_only, greenlet_spawn

    def loop(awaitable):
        async def run(host, count):
            def synchronous():
                start = clock()
                for _ in range(count):
                    await_only(awaitable(host))
                return clock() - start

            return await greenlet_spawn(synchronous)

        return run

    async def create_sync(host, count):
        start = clock()
        for _ in range(count):
            await greenlet_spawn(nothing)
        return clock() - start

    return {
        "await_(checkpoint)": loop(lambda host: host.checkpoint()),
        "await_(no-op)": loop(lambda host: no_op()),
        "with_portal_run_sync(no-op)": create_sync,
    }


# --- Tasks from end to end, and parked waits: the host is asyncio ---------------------------------


async def tasks(count: int) -> float:
    """Tasks that never wait synchronously, made, run and awaited: 3 checkpoints in each."""

    async def body():
        for _ in range(3):
            await asyncio.sleep(0)

    async def batch(number):
        await asyncio.gather(*[asyncio.create_task(body()) for _ in range(number)])

    await batch(200)
    start = clock()
    for _ in range(count // 200):
        await batch(200)
    return clock() - start


async def future_wait(count: int) -> float:
    """A native task awaits an asyncio.Future that a callback of the loop completes."""
    loop = asyncio.get_running_loop()
    start = clock()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
    return clock() - start


async def future_ping_pong(count: int) -> float:
    """Two native tasks wake each other, each wait an asyncio.Future: two waits a turn."""
    loop = asyncio.get_running_loop()
    box: list[asyncio.Future] = [loop.create_future(), loop.create_future()]

    async def player(me, other):
        for _ in range(count // 2):
            await box[me]
            box[me] = loop.create_future()
            box[other].set_result(None)

    both = [loop.create_task(player(0, 1)), loop.create_task(player(1, 0))]
    await asyncio.sleep(0)
    start = clock()
    box[0].set_result(None)
    await asyncio.gather(*both)
    return clock() - start


async def parked_ping_pong(count: int) -> float:
    """Two tasks wake each other through green locks, waiting synchronously: two waits a turn."""
    import threading

    locks = [threading.Lock(), threading.Lock()]
    locks[0].acquire()
    locks[1].acquire()

    async def player(me, other):
        mine, theirs = locks[me].acquire, locks[other].release

        def synchronous():
            for _ in range(count // 2):
                mine()
                theirs()

        synchronous()

    both = [asyncio.create_task(player(0, 1)), asyncio.create_task(player(1, 0))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    start = clock()
    locks[0].release()
    await asyncio.gather(*both)
    return clock() - start


async def awaited_future(count: int) -> float:
    """As future_wait, but a synchronous function awaits the future, with await_."""
    loop = asyncio.get_running_loop()

    def synchronous():
        start = clock()
        for _ in range(count):
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            portalpatch.await_(future)
        return clock() - start

    await portalpatch.ensure_portal()
    return synchronous()


async def native_sockets(count: int) -> float:
    """Two native tasks exchange a byte over a socket pair, `loop.sock_recv`: two waits a turn."""
    import socket

    loop = asyncio.get_running_loop()
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)

    async def player(end):
        for _ in range(count // 2):
            await loop.sock_recv(end, 1)
            await loop.sock_sendall(end, b"x")

    both = [loop.create_task(player(end)) for end in ends]
    await asyncio.sleep(0)
    start = clock()
    ends[0].send(b"x")
    await asyncio.gather(*both)
    elapsed = clock() - start
    for end in ends:
        end.close()
    return elapsed


async def parked_sockets(count: int) -> float:
    """Two tasks exchange a byte over a socket pair with blocking calls: two waits a turn."""
    import socket

    ends = socket.socketpair()

    async def player(end):
        def synchronous():
            for _ in range(count // 2):
                end.recv(1)
                end.send(b"x")

        synchronous()

    both = [asyncio.create_task(player(end)) for end in ends]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    start = clock()
    ends[0].send(b"x")
    await asyncio.gather(*both)
    elapsed = clock() - start
    for end in ends:
        end.close()
    return elapsed


def main() -> None:
    args = harness.options(__doc__)
    harness.pin(harness.SERVER_CPU)
    bench = harness.Benchmark(
        "portal",
        "checkpoints, await_ and portals, CPU us for each operation, one process",
        args,
        "greenback",
        "greenletio",
        "SQLAlchemy",
        "trio",
    )
    count = 4_000 if bench.quick else 20_000

    libraries = {"portalpatch": portal_cases(portalpatch)}
    if bench.present("greenback", "greenback"):
        import greenback

        libraries["greenback"] = portal_cases(greenback)
    if bench.present("greenletio", "greenletio"):
        libraries["greenletio"] = greenletio_cases()
    if bench.present("SQLAlchemy greenlet_spawn", "sqlalchemy"):
        libraries["greenlet_spawn"] = sqlalchemy_cases()

    hosts: list = [Asyncio]
    if bench.present("Trio", "trio"):
        import trio  # noqa: F401

        hosts.append(Trio)

    def timed(host, function):
        def once():
            number = count
            return {"us": host.run(function(host, number)) / number * 1e6}

        return once

    native = {
        "checkpoint": native_checkpoint,
        "no-op": native_no_op,
        "call": native_call,
    }
    for host in hosts:
        cases = {f"native: {what}": timed(host, function) for what, function in native.items()}
        for library, operations in libraries.items():
            if host is Trio and library == "greenletio":
                continue  # asyncio only
            for what, function in operations.items():
                cases[f"{library}: {what}"] = timed(host, function)
        group = bench.measure(f"{host.name}, operations", US, cases)
        if args.only:
            continue

        def compare(what, base, limit, group=group, host=host):
            figure = group.added_ratio(
                "us", f"portalpatch: {what}", f"greenback: {what}", f"native: {base}"
            )
            bench.target(f"{host.name}: {what}, added cost over greenback's", figure, limit)

        compare("checkpoint in a portal", "checkpoint", 0.25)
        compare("await_(checkpoint)", "checkpoint", 0.125)
        bench.target(
            f"{host.name}: await_(no-op), us",
            group.median("portalpatch: await_(no-op)", "us"),
            0.25,
        )
        compare("with_portal_run_sync(no-op)", "call", 0.1)

    def plain(function):
        return lambda: {"us": asyncio.run(function(count)) / count * 1e6}

    def patched(function):
        def once():
            portalpatch.patch_all()
            try:
                return {"us": asyncio.run(function(count)) / count * 1e6}
            finally:
                portalpatch.unpatch_all()

        return once

    group = bench.measure(
        "asyncio: tasks and waits",
        US,
        {
            "plain task, 3 checkpoints": plain(tasks),
            "the same with an automatic portal": patched(tasks),
            "native: future completed by a callback": plain(future_wait),
            "portal: await_ of such a future": plain(awaited_future),
            "native: two tasks, futures, a wait": plain(future_ping_pong),
            "portal: two tasks, green locks, a wait": patched(parked_ping_pong),
            "native: two tasks, sock_recv, a wait": plain(native_sockets),
            "portal: two tasks, blocking recv, a wait": patched(parked_sockets),
        },
    )
    if not args.only:
        bench.target(
            "a task with an automatic portal, end to end, over a plain task",
            group.ratio("us", "the same with an automatic portal", "plain task, 3 checkpoints"),
            1.10,
        )
        bench.target(
            "direct resume: a parked wait over awaiting an asyncio.Future",
            group.ratio(
                "us",
                "portal: two tasks, green locks, a wait",
                "native: two tasks, futures, a wait",
            ),
            1.0,
        )
    bench.finish()


if __name__ == "__main__":
    main()

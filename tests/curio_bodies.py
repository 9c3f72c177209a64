"""What a curio task does when it is cancelled or times out: bodies for test_portal_cancel.py.

See twins.py; those of common_bodies.py come before these.
"""

from __future__ import annotations

import contextlib

import curio

shielded = contextlib.nullcontext


async def forever(log):
    log.append("waiting")
    try:
        await curio.Event().wait()
    finally:
        log.append("woken")


async def nap():
    for _ in range(3):
        await curio.sleep(0)


async def tick():
    await curio.sleep(0)


async def body_cleans_up(log):
    try:
        await forever(log)
    finally:
        log.append("cleaning")
        await nap()
        log.append("clean")


async def body_cleanup_fails(log):
    try:
        await forever(log)
    finally:
        await tick()
        raise LookupError("in cleanup")


async def body_refuses_once(log):
    with contextlib.suppress(curio.CancelledError):
        await forever(log)
    log.append("refused")
    await nap()
    return "value"


async def body_shields(log):
    async with curio.disable_cancellation():
        await nap()
        log.append("shielded")
    await forever(log)


async def body_deep(log):
    async def deeper(n):
        try:
            if n:
                await deeper(n - 1)
            else:
                await forever(log)
        finally:
            log.append(n)
            await tick()

    await deeper(4)


async def body_times_out(log):
    try:
        async with curio.timeout_after(log.timeout):
            await forever(log)
    except curio.TaskTimeout as error:
        log.append(type(error).__name__)
    async with curio.ignore_after(log.timeout) as scope:
        await forever(log)
    log.append(scope.expired)
    await nap()


async def body_group(log):
    async def native_child(n):
        await nap()
        if n == 2:
            raise LookupError("child")
        await forever(log)

    async with curio.TaskGroup(wait=any) as group:
        for n in range(3):
            await group.spawn(native_child, n)
    log.append(type(group.exception).__name__)

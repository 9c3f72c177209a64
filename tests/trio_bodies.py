"""What a Trio task does when it is cancelled or times out: bodies for test_portal_cancel.py.

See twins.py; those of common_bodies.py come before these.
"""

from __future__ import annotations

import math

import trio


def shielded():
    return trio.CancelScope(shield=True)


async def forever(log):
    log.append("waiting")
    try:
        await trio.sleep_forever()
    finally:
        log.append("woken")


async def nap():
    for _ in range(3):
        await trio.lowlevel.checkpoint()


async def tick():
    await trio.lowlevel.checkpoint()


# ---- ends by itself --------------------------------------------------------------------------


async def body_generator_exit(log):
    async def inner():
        await tick()
        raise GeneratorExit("exit")

    try:
        await inner()
    except GeneratorExit as error:
        await nap()
        return repr(error)


# ---- waits for ever --------------------------------------------------------------------------


async def body_catches_and_waits(log):
    try:
        await forever(log)
    except trio.Cancelled:
        log.append("caught")
        try:
            await nap()
            log.append("not reached")
        finally:
            log.append("cancelled again")
            with shielded():
                await nap()
                log.append("shielded")


async def body_catches_and_returns(log):
    try:
        await forever(log)
    except trio.Cancelled:
        return "swallowed"


async def body_catches_and_raises(log):
    try:
        await forever(log)
    except trio.Cancelled:
        raise ValueError("instead")  # noqa: B904


async def body_shields_its_cleanup_by_a_timeout(log):
    try:
        await forever(log)
    finally:
        with trio.move_on_after(0.002) as scope:
            scope.shield = True
            await forever(log)
        log.append(scope.cancelled_caught)


async def body_waits_for_event(log):
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(native_sets, event)
        await event.wait()
        log.append("set")
        await nap()
        await forever(log)


async def native_sets(event):
    await trio.sleep(0.001)
    event.set()


# ---- scopes ----------------------------------------------------------------------------------


async def body_move_on_after(log):
    with trio.move_on_after(log.timeout) as scope:
        await forever(log)
    log.append(scope.cancelled_caught)
    await nap()
    return "moved on"


async def body_move_on_in_turn(log):
    for turn in range(3):
        with trio.move_on_after(log.timeout):
            await forever(log)
        log.append(turn)
    return "three times"


async def body_fail_after(log):
    with trio.fail_after(log.timeout):
        await forever(log)


async def body_fail_after_caught(log):
    try:
        with trio.fail_after(log.timeout):
            await forever(log)
    except trio.TooSlowError:
        await nap()
        return "too slow"


async def body_in_time(log):
    with trio.fail_after(30):
        await nap()
        await tick()
    return "in time"


async def body_deadline_in_the_past(log):
    with trio.CancelScope(deadline=-math.inf) as scope:
        log.append("inside")
        await nap()
        log.append("not reached")
    return scope.cancelled_caught


async def body_cancels_its_scope(log):
    with trio.CancelScope() as scope:
        await nap()
        scope.cancel()
        log.append("still running")
        await forever(log)
    await nap()
    return scope.cancelled_caught


async def body_cancels_its_scopes_in_turn(log):
    for turn in range(4):
        with trio.CancelScope() as scope:
            scope.cancel()
            await nap()
            log.append("not reached")
        log.append((turn, scope.cancelled_caught))
        with trio.move_on_after(log.timeout):
            await forever(log)
    return "four times"


async def body_cancels_its_scope_and_leaves(log):
    with trio.CancelScope() as scope:
        await nap()
        scope.cancel()
    await nap()
    return scope.cancelled_caught


async def body_cancels_its_scope_and_ticks(log):
    with trio.CancelScope() as scope:
        await nap()
        scope.cancel()
        await tick()
        log.append("not reached")
    await nap()
    return scope.cancelled_caught


async def body_enters_a_cancelled_scope(log):
    scope = trio.CancelScope()
    scope.cancel()
    await nap()
    with scope:
        await forever(log)
    await nap()
    return scope.cancelled_caught


async def body_moves_its_deadline(log):
    await nap()
    with trio.CancelScope() as scope:
        scope.deadline = trio.current_time() + log.timeout
        await forever(log)
    await nap()
    return scope.cancelled_caught


async def body_inner_scope_of_two(log):
    with trio.CancelScope() as outer:
        with trio.CancelScope() as inner:
            await nap()
            inner.cancel()
            await forever(log)
        log.append("between")
        await nap()
        outer.cancel()
        try:
            await nap()
        finally:
            log.append("cleanup")
    return inner.cancelled_caught, outer.cancelled_caught


async def body_lifts_its_shield(log):
    with trio.CancelScope() as outer, trio.CancelScope(shield=True) as shield:
        outer.cancel()
        await nap()
        log.append("shielded")
        shield.shield = False
        await nap()
        log.append("not reached")
    await nap()
    return outer.cancelled_caught


async def body_raises_in_a_cancelled_scope(log):
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await nap()
        except trio.Cancelled:
            raise LookupError("instead")  # noqa: B904


# ---- nurseries -------------------------------------------------------------------------------


async def native_child(log):
    try:
        log.append("waiting")
        await trio.sleep_forever()
    finally:
        log.append("woken")


async def native_sleeps():
    await trio.sleep_forever()


async def native_fails():
    await nap()
    raise LookupError("child")


async def body_nursery(log):
    async with trio.open_nursery() as nursery:
        await nap()
        nursery.start_soon(native_child, log)


async def body_nursery_cancelled_by_itself(log):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(native_sleeps)
        await nap()
        nursery.cancel_scope.cancel()
        await nap()
        log.append("not reached")
    await nap()
    return "left"


async def body_nursery_child_fails(log):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(native_fails)
        try:
            await forever(log)
        finally:
            log.append("body ends")


async def body_nursery_body_fails(log):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(native_child, log)
        await tick()
        raise LookupError("body")


async def body_from_thread(log):
    value = await trio.to_thread.run_sync(lambda: 5)
    await nap()
    return value

"""Several OS threads, each with a loop and a hub of its own, beside the main one."""

from __future__ import annotations

import pytest

PROGRAM = """
import asyncio, threading, time

async def job(number):
    time.sleep(0.02)
    await asyncio.sleep(0.01)
    time.sleep(0.02)
    return number

async def cancelled(wait):
    task = asyncio.create_task(wait())
    await asyncio.sleep(0.02)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as error:
        return type(error).__name__

async def sleeping():
    time.sleep(60)

async def receiving():
    import socket
    a, b = socket.socketpair()
    a.recv(1)

async def caught_as_oserror():
    try:
        time.sleep(60)
    except OSError:
        return "seen as an OSError"

def run_loop():
    async def main():
        results = await asyncio.gather(*(job(n) for n in range(20)))
        for wait in (sleeping, receiving, caught_as_oserror):
            results.append(await cancelled(wait))
        return results
    return asyncio.run(main())

async def main():
    everything = await asyncio.gather(*(asyncio.to_thread(run_loop) for _ in range(4)))
    print(all(one == everything[0] for one in everything), everything[0][20:])
    print(sorted(everything[0][:20]) == list(range(20)))

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["cli", "no-preload"])
def test_each_thread_runs_its_tasks_and_cancels_them_in_libc(run_app, mode):
    done = run_app(PROGRAM, mode=mode).check()
    assert done.out == "True ['CancelledError', 'CancelledError', 'CancelledError']\nTrue\n"


@pytest.mark.parametrize("mode", ["cli"])
def test_oserror_of_a_program_itself_is_left_alone(run_app, mode):
    run_app(
        """
        import errno
        error = OSError(errno.ECANCELED, "mine")
        assert type(error) is OSError and error.errno == errno.ECANCELED
        try:
            raise OSError(errno.ECANCELED, "mine")
        except OSError as caught:
            assert caught.args == (errno.ECANCELED, "mine")
        """,
        mode=mode,
    ).check()

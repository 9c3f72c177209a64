"""Several OS threads, each with a loop and a hub of its own, beside the main one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

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


@pytest.mark.parametrize("mode", ["cli", "patch_all"])
def test_subclasses_of_oserror_take_their_arguments_as_plain(run_app, mode):
    """requests' exceptions, for one, have an __init__ with keywords of its own."""
    source = """
        import sys
        class Before(OSError):
            pass
        if sys.argv[1] == "patch":
            import portalpatch
            portalpatch.patch_all()
        class Init(OSError):
            def __init__(self, *args, **kwargs):
                self.extra = kwargs.pop("extra", None)
                super().__init__(*args[:2], **kwargs)
        class New(Before):
            def __new__(cls, *args, extra):
                self = super().__new__(cls, *args)
                self.extra = extra
                return self
        made = [Init("a", "b", "c", extra=1), Init(2, extra=3), Init(), New(2, "x", extra=4),
                OSError.__new__(Before, 2, "y"), OSError.__new__(ConnectionError, "z"),
                OSError(), OSError(2, "x", "name"), OSError("a", "b", "c", "d", "e", "f")]
        for error in made:
            print(repr(error), error.errno, error.filename, vars(error))
        try:
            OSError(1, extra=2)
        except TypeError as error:
            print(error)
    """
    plain = run_app(source, "", mode="plain").check()
    ours = run_app(source, "patch" if mode == "patch_all" else "", mode=mode).check()
    assert ours.out == plain.out


LATE_WORKER = """
import asyncio, os, time, portalpatch
reading, writing = os.pipe()

def run_loop():
    async def work():
        portalpatch.offload(lambda: ended.append(os.read(reading, 1)))

    async def main():
        tasks.extend(asyncio.create_task(work()) for _ in range(3))
        await asyncio.sleep(0.01)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.run_until_complete(main())  # and nobody will ever run it again

async def main():
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, run_loop)
    await loop.shutdown_default_executor()  # its OS thread has ended, and that one's hub
    os.write(writing, b"...")  # only now may the workers end
    while len(ended) < 3:
        time.sleep(0.01)
    time.sleep(0.05)
    print(ended, [task.done() for task in tasks])

tasks, ended = [], []
asyncio.run(main())
"""


LATE_WORKERS_SAY = "[b'.', b'.', b'.'] [False, False, False]\n"


@pytest.mark.parametrize("mode", ["cli", "preload"])
def test_worker_that_outlives_its_callers_os_thread(run_app, mode):
    done = run_app(LATE_WORKER, mode=mode)
    assert done.check().out == LATE_WORKERS_SAY


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
@pytest.mark.skipif("SANITIZER_PRELOAD" in os.environ, reason="not under two checkers at once")
def test_worker_that_outlives_its_callers_os_thread_touches_nothing_freed(tmp_path):
    """It finds no hub to tell. libev knows no sanitizer, so valgrind looks who is in freed memory."""
    program = tmp_path / "app.py"
    program.write_text(LATE_WORKER)
    valgrind = ["valgrind", "-q", "--undef-value-errors=no", "--trace-children=yes"]
    run = subprocess.run(
        [*valgrind, sys.executable, "-m", "portalpatch", program],
        env={**os.environ, "PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.stdout == LATE_WORKERS_SAY
    assert "offload_done" not in run.stderr, run.stderr

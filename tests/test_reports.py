"""dump(), the stall report and the deadlock report: what a person is told, and when nothing is."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

DUMP = """
import socket, sys, threading, time, portalpatch
portalpatch.patch_all()
lock = threading.Lock()
lock.acquire()
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
def wait_for_lock(): lock.acquire()
def wait_for_data(): client.recv(1)
def sleep_long(): time.sleep(60)
for body in (wait_for_lock, wait_for_data, sleep_long):
    threading.Thread(target=body, name=body.__name__, daemon=True).start()
time.sleep(0.01)
portalpatch.dump(sys.stdout)
"""


def test_dump_names_each_thread_what_it_waits_for_and_where(run_app):
    out = run_app(DUMP, mode="plain").check().out
    assert "green thread wait_for_lock: waits in lock for <locked _thread.lock" in out
    assert "green thread wait_for_data: waits in recv on fd" in out
    assert "('127.0.0.1'" in out
    assert "green thread sleep_long: waits in" in out
    assert "s left" in out
    assert "def sleep_long(): time.sleep(60)" in out
    assert "main MainThread: running" in out


def test_dump_shows_parked_tasks(run_app):
    out = (
        run_app(
            """
        import asyncio, sys, time, portalpatch
        portalpatch.patch_all()
        def blocking(): time.sleep(60)
        async def job(): blocking()
        async def main():
            task = asyncio.create_task(job())
            await asyncio.sleep(0.01)
            portalpatch.dump(sys.stdout)
            task.cancel()
        asyncio.run(main())
        """,
            mode="plain",
        )
        .check()
        .out
    )
    assert "task <coroutine object job" in out
    assert "def blocking(): time.sleep(60)" in out


def test_dump_shows_what_each_task_awaits_and_who_holds_a_lock(run_app):
    out = (
        run_app(
            """
        import asyncio, sys, threading, portalpatch
        portalpatch.patch_all()
        lock = threading.Lock()
        def hold(): lock.acquire(); threading.Event().wait()
        def wait(): lock.acquire()
        async def inner(): await asyncio.sleep(60)
        async def outer(): await inner()
        async def main():
            for body in (hold, wait):
                threading.Thread(target=body, name=body.__name__, daemon=True).start()
            task = asyncio.create_task(outer())
            late = asyncio.create_task(inner())
            await asyncio.sleep(0.01)
            not_yet = asyncio.create_task(inner())
            portalpatch.dump(sys.stdout)
            for each in (task, late, not_yet):
                each.cancel()
        asyncio.run(main())
        """,
            mode="plain",
        )
        .check()
        .out
    )
    assert "green thread wait: waits in lock for <locked _thread.lock" in out
    assert ", held by hold\n" in out
    assert out.count("held by") == 1
    awaiting = out[out.index("task <coroutine object outer") :]
    assert ": awaits <" in awaiting
    assert "async def outer(): await inner()" in awaiting
    assert awaiting.index("await inner()") < awaiting.index("await asyncio.sleep(60)")
    assert out.count("task <coroutine object inner") == 2
    assert ": not started" in out


SIGQUIT = """
import os, signal, sys, threading, time
before = signal.getsignal(signal.SIGQUIT)
if sys.argv[1:]:
    import portalpatch
    portalpatch.patch_all(sigquit=True)
threading.Thread(target=time.sleep, args=(60,), name="sleeper", daemon=True).start()
def compute():
    end = time.process_time() + 2
    while time.process_time() < end and not told:
        pass
told = []
print("ready", flush=True)
sys.stdin.readline()
thread = threading.Thread(target=compute, name="computing", daemon=True)
thread.start()
time.sleep(0.05)
os.kill(os.getpid(), signal.SIGQUIT)
told.append(1)
thread.join()
print("goes on")
if sys.argv[1:]:
    portalpatch.unpatch_all()
    print(signal.getsignal(signal.SIGQUIT) is before)
"""


@pytest.mark.parametrize("how", ["cli", "environment", "patch_all"])
def test_sigquit_dumps_and_the_program_goes_on(start_program, how):
    options = {
        "cli": {"mode": "cli", "options": ["--sigquit"]},
        "environment": {"mode": "preload", "env": {"PORTALPATCH_SIGQUIT": "1"}},
        "patch_all": {"mode": "plain"},
    }[how]
    process = start_program(SIGQUIT, *(["patch"] if how == "patch_all" else []), **options)
    assert process.stdout.readline() == "ready\n"
    out, err = process.communicate("\n", timeout=30)
    assert (process.returncode, out) == (0, "goes on\n" + "True\n" * (how == "patch_all"))
    assert "main MainThread:" in err
    assert "green thread sleeper: waits in" in err
    assert "green thread computing: " in err


def test_sigquit_interrupts_no_wait_and_is_no_way_out_of_a_deadlock(start_program):
    process = start_program(DEADLOCK, mode="cli", options=["--sigquit"])
    assert process.stdout.readline() == "waiting\n"
    assert "portalpatch: deadlock" in read_until(process, "green thread loser: waits in lock")
    process.send_signal(signal.SIGQUIT)
    assert "main MainThread: " in read_until(process, "green thread loser: waits in lock")
    assert process.poll() is None


def test_sigquit_ends_the_program_unless_asked_for(start_program):
    process = start_program(SIGQUIT, mode="cli")
    process.communicate("\n", timeout=30)
    assert process.returncode == -signal.SIGQUIT


def test_stall_report_shows_the_code_that_does_not_wait(run_app):
    done = run_app(
        """
        import time
        def busy():
            end = time.process_time() + 0.5
            while time.process_time() < end:
                pass
        busy()
        """,
        mode="cli",
        options=["--stall", "0.1"],
    ).check()
    assert "portalpatch: stall: no wait for" in done.err
    assert "in busy" in done.err


def test_no_stall_report_while_everything_waits(run_app):
    done = run_app("import time\ntime.sleep(0.6)\n", mode="cli", options=["--stall", "0.2"]).check()
    assert done.err == ""


DEADLOCK = """
import sys, threading
first = threading.Lock()
first.acquire()
thread = threading.Thread(target=first.acquire, name="loser", daemon=True)
thread.start()
print("waiting", flush=True)
thread.join()
"""


def read_until(process: subprocess.Popen, wanted: str, seconds: float = 20) -> str:
    text, end = "", time.monotonic() + seconds
    while wanted not in text and time.monotonic() < end:
        text += process.stderr.readline()
    return text


def test_deadlock_is_reported_once_with_stacks_and_waits_on(start_program):
    process = start_program(DEADLOCK, mode="cli")
    text = read_until(process, "green thread loser: waits in lock")
    assert "portalpatch: deadlock" in text
    assert process.poll() is None  # as native threads would
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in rest
    assert "portalpatch: deadlock" not in rest


def test_waiting_for_a_handled_signal_is_no_deadlock(start_program):
    process = start_program(
        """
        import signal, threading
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        print("ready", flush=True)
        stop.wait()
        print("stopped")
        """,
        mode="cli",
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "stopped\n", "")

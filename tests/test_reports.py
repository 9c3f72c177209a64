"""dump(), the stall report and the deadlock report: what a person is told, and when nothing is."""

from __future__ import annotations

import signal
import subprocess
import time

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

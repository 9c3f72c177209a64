"""A C library that holds a mutex across recv(): two of one OS thread enter it. Without the guard the
second waits parked for a plain mutex (test_c_mutexes.py), and for ever where the lock is of another kind; the
stall report says where. With it the first really blocks, and both get their byte.

The kernel tells what the program's thread sleeps in (/proc/PID/syscall): nothing here goes by a clock.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest
from programs import finish

FUTEX, RECVFROM = "202", "45"

LOAD = """
import ctypes, socket, sys
function = getattr(ctypes.CDLL(sys.argv[1]), sys.argv[3])
connections = [socket.create_connection(("127.0.0.1", int(sys.argv[2]))) for _ in range(2)]
results = []

def take(connection):
    results.append(chr(function(connection.fileno())))

"""
THREADS = """
import threading
threads = [threading.Thread(target=take, args=(one,)) for one in connections]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
TASKS = """
import asyncio
async def handler(connection):
    take(connection)
async def main():
    await asyncio.gather(*map(handler, connections))
asyncio.run(main())
"""
REPORT = """
import portalpatch
print("".join(sorted(results)), dict(portalpatch.statistics().blocked_by_call))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("library") / "libmutexy.so.1"
    source = Path(__file__).parent / "mutex_library.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-pthread", source, "-o", output], check=True)
    return output


@pytest.fixture
def peers(start_program, library):
    """peers(body, **how): (the started program, the two ends it takes its bytes from)."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def start(body: str, function: str = "take", **how: object):
        source = LOAD + body + REPORT
        port = listener.getsockname()[1]
        process = start_program(source, str(library), str(port), function, **how)
        listener.settimeout(30)
        accepted.extend(listener.accept()[0] for _ in range(2))
        return process, accepted

    yield start
    for one in [*accepted, listener]:
        one.close()


def wait_for_call(process: subprocess.Popen, number: str) -> None:
    """Until the program's main thread sleeps in this system call."""
    deadline = time.monotonic() + 30
    while call_of(process) != number:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)


def call_of(process: subprocess.Popen) -> str:
    return Path(f"/proc/{process.pid}/syscall").read_text().split()[0]


BODIES = pytest.mark.parametrize("body", [THREADS, TASKS], ids=["threads", "tasks"])
MODES = pytest.mark.parametrize("mode", ["cli", "no-preload"])


@MODES
@BODIES
def test_without_the_guard_the_second_waits_for_the_first_for_ever(peers, body, mode):
    process, (first, second) = peers(body, "take_c11", mode=mode)
    wait_for_call(process, FUTEX)
    first.send(b"a")
    second.send(b"b")
    time.sleep(0.5)
    assert call_of(process) == FUTEX and process.poll() is None


@MODES
@BODIES
def test_without_the_guard_the_second_waits_parked_for_a_plain_mutex(peers, body, mode):
    process, (first, second) = peers(body, mode=mode)
    second.send(b"b")
    first.send(b"a")
    assert finish(process, 30).check().out == "ab {}\n"


@MODES
@BODIES
def test_with_the_guard_calls_block_while_the_mutex_is_held(peers, body, mode):
    process, (first, second) = peers(
        body, mode=mode, options=["--mutex-guard", "nosuch,libmutexy*"]
    )
    wait_for_call(process, RECVFROM)
    first.send(b"a")
    second.send(b"b")
    assert finish(process, 30).check().out == "ab {'recv': 2}\n"


def test_guard_as_an_argument_of_patch_all(peers):
    patch = "import portalpatch; portalpatch.patch_all(mutex_guard=['libmutexy.so.?'])\n"
    process, (first, second) = peers(patch + THREADS, mode="plain")
    wait_for_call(process, RECVFROM)
    first.send(b"a")
    second.send(b"b")
    assert finish(process, 30).check().out == "ab {'recv': 2}\n"


def test_guard_of_other_libraries_leaves_this_one_alone(peers):
    process, (first, second) = peers(
        "take(connections[0]); take(connections[1])\n", options=["--mutex-guard", "libother*"]
    )
    first.send(b"a")
    second.send(b"b")
    assert finish(process, 30).check().out == "ab {}\n"


def test_stall_report_of_a_call_that_keeps_the_gil(peers):
    """No Python thread can run then."""
    process, _ = peers(
        "function = ctypes.PyDLL(sys.argv[1]).take_c11\n" + TASKS, options=["--stall", "0.3"]
    )
    report = ""
    while "in take" not in report:
        line = process.stderr.readline()
        assert line, report
        report += line
    assert "blocked in a mutex that this thread holds itself" in report
    assert "with the GIL held" in report


def test_stall_report_names_the_mutex_its_library_and_the_python_stack(peers):
    process, _ = peers(TASKS, "take_c11", options=["--stall", "0.3"])
    report = ""
    while "in take" not in report:
        line = process.stderr.readline()
        assert line, report
        report += line
    assert "blocked in a mutex that this thread holds itself" in report
    assert "called by libmutexy.so.1" in report


def test_stall_report_names_the_call_that_blocks(peers):
    process, (first, second) = peers(
        TASKS, options=["--stall", "0.3", "--mutex-guard", "libmutexy*"]
    )
    report = ""
    while "in take" not in report:
        line = process.stderr.readline()
        assert line, report
        report += line
    assert "blocked in recv on fd " in report
    assert "called by libmutexy.so.1" in report
    first.send(b"a")
    second.send(b"b")
    assert finish(process, 30).check().out == "ab {'recv': 2}\n"

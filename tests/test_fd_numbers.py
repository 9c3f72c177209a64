"""Numbers of fds that are closed and given out again where portalpatch sees neither: no wait is lost."""

from __future__ import annotations

import pytest
from programs import MODES

PROGRAM = """
import asyncio, ctypes, os, platform, select, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CLOSE, CREATE, SET = {"x86_64": (3, 283, 286), "aarch64": (57, 85, 86)}[platform.machine()]

def timer():
    '''An fd of which no hook knows: it can be read in 10 ms.'''
    fd = libc.syscall(CREATE, 1, 0)
    assert libc.syscall(SET, fd, 0, struct.pack("qqqq", 0, 0, 0, 10_000_000), None) == 0
    return fd

def wait_by_poll(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll.poll() == [(fd, select.POLLIN)]

def wait_by_select(fd):
    return select.select([fd], [], []) == ([fd], [], [])

def wait_by_read(fd):
    return os.read(fd, 8) == b"\\1" + bytes(7)

def waits():
    numbers = set()
    for _ in range(5):
        fd = timer()
        numbers.add(fd)
        assert globals()["wait_by_" + sys.argv[1]](fd)
        assert libc.syscall(CLOSE, fd) == 0
    return len(numbers)

async def main():
    return waits()

numbers = []
thread = threading.Thread(target=lambda: numbers.append(waits()))
thread.start()
thread.join()
print(asyncio.run(main()), numbers, waits())
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", ["poll", "select", "read"])
def test_number_that_raw_system_calls_closed_and_gave_out_again(run_app, call, mode):
    done = run_app(PROGRAM, call, mode=mode)
    assert (done.check().out, done.err) == ("1 [1] 1\n", "")

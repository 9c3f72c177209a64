"""What an OS thread of this process is blocked in: `describe()`, for the stall report.

The kernel says which system call a thread sleeps in, with its arguments and where its stack is
(proc(5), /proc/self/task/TID/syscall): true of every call, those that no library can stand before
as well. A lock of glibc's says who holds it. Which library made the call is read from the stack:
the first return address there that lies in neither libc nor this package.
Invariant: nothing is written, and what cannot be read is left out.
"""

from __future__ import annotations

import os
import platform
import struct

# System call numbers, of the calls that may wait, with the libc functions that make them.
_CALLS = {
    "x86_64": {
        0: "read", 1: "write", 7: "poll", 17: "pread", 19: "readv", 20: "writev", 23: "select",
        34: "pause", 35: "nanosleep", 40: "sendfile", 42: "connect", 43: "accept", 44: "send",
        45: "recv", 46: "sendmsg", 47: "recvmsg", 61: "waitpid", 72: "fcntl", 73: "flock",
        74: "fsync", 75: "fdatasync", 128: "sigtimedwait", 202: "futex", 230: "clock_nanosleep",
        232: "epoll_wait", 247: "waitid", 257: "open", 270: "pselect", 271: "ppoll",
        275: "splice", 281: "epoll_pwait", 288: "accept4",
    },
    "aarch64": {
        22: "epoll_pwait", 25: "fcntl", 32: "flock", 56: "open", 63: "read", 64: "write",
        65: "readv", 66: "writev", 67: "pread", 71: "sendfile", 72: "pselect", 73: "ppoll",
        76: "splice", 82: "fsync", 83: "fdatasync", 95: "waitid", 98: "futex", 101: "nanosleep",
        115: "clock_nanosleep", 137: "sigtimedwait", 202: "accept", 203: "connect", 206: "send",
        207: "recv", 211: "sendmsg", 212: "recvmsg", 242: "accept4", 260: "waitpid",
    },
}  # fmt: skip
_WITHOUT_FD = {
    "clock_nanosleep", "futex", "nanosleep", "open", "pause", "poll", "ppoll", "pselect", "select",
    "sigtimedwait", "splice", "waitid", "waitpid",
}  # fmt: skip
_STACK_BYTES = 8192


def describe(thread: int) -> str | None:
    """One line on the system call that the thread of that native id is blocked in; None: it runs.

    For example `recv on fd 5 (socket:[123]), called by libfoo.so.1`, or `a mutex that this thread
    holds itself, called by libfoo.so.1`.
    """
    try:
        with open(f"/proc/self/task/{thread}/syscall") as file:
            words = file.read().split()
        number, *values = (int(word, 0) for word in words)
    except (OSError, ValueError):
        return None  # running, or not to be told here
    if number < 0 or len(values) != 8:
        return None
    name = _CALLS.get(platform.machine(), {}).get(number, f"system call {number}")
    if name == "futex":
        text = _lock(thread, values[0])
    elif name in _WITHOUT_FD or name.startswith("system call"):
        text = name
    else:
        text = f"{name} on fd {values[0]} ({_target(values[0])})"
    caller = _caller(values[6])
    return f"{text}, called by {caller}" if caller else text


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "closed"


def _memory(address: int, size: int) -> bytes:
    """Memory of this process, b"" where there is none: never a fault."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)
    except (OSError, OverflowError, ValueError):
        return b""


def _lock(thread: int, address: int) -> str:
    """glibc's pthread_mutex_t begins with: lock word, count, owner (its native thread id)."""
    data = _memory(address, 12)
    if len(data) == 12:
        word, _, owner = struct.unpack("=iII", data)
        if owner == thread and word:
            return (
                "a mutex that this thread holds itself: some green thread or task is parked inside "
                "the library (see --mutex-guard)"
            )
        if word and owner and os.path.exists(f"/proc/self/task/{owner}"):
            return f"a mutex that thread {owner} holds"
    return "a lock"


def _caller(stack: int) -> str | None:
    """The file name of the library, or program, whose code made the call."""
    try:
        with open("/proc/self/maps") as file:
            maps = [line.split(maxsplit=5) for line in file]
    except OSError:
        return None
    code: list[tuple[int, int, str]] = []
    for fields in maps:
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            code.append((start, end, os.path.basename(fields[5].strip())))
    data = _memory(stack, _STACK_BYTES)
    for (word,) in struct.iter_unpack("=Q", data[: len(data) // 8 * 8]):
        for start, end, name in code:
            if start <= word < end and not _is_between(name) and _follows_a_call(word):
                return name
    return None


def _is_between(name: str) -> bool:
    """Libraries that a blocking call passes through on its way to the kernel."""
    return name.startswith(("libc.so", "libc-", "libpthread", "ld-linux", "libportalpatch"))


def _follows_a_call(address: int) -> bool:
    """Is this a return address? On x86-64 a call stands before it; elsewhere every address may be."""
    if platform.machine() != "x86_64":
        return True
    before = _memory(address - 7, 7)
    if len(before) < 7:
        return False
    # call rel32; or call r/m64 (opcode FF /2) with 2, 3, 4, 6 or 7 bytes
    return before[2] == 0xE8 or any(
        before[7 - size] == 0xFF and (before[8 - size] >> 3) & 7 == 2 for size in (2, 3, 6, 7)
    )

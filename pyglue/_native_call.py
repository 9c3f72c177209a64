"""What an OS thread of this process is blocked in: `describe()`, for the stall report.

`_core` says which call it is, from the kernel. Which library made the call is read from the stack
here: the first return address there that lies in neither libc nor this package's library.
Invariant: nothing is written, and what cannot be read is left out.
"""

from __future__ import annotations

import os
import platform
import struct

from . import _core

_STACK_BYTES = 8192


def describe(thread: int) -> str | None:
    """One line on the call that the thread of that native id is blocked in; None: it runs.

    For example `recv on fd 5 (socket:[123]), called by libfoo.so.1`, or `a mutex that this thread
    holds itself ..., called by libfoo.so.1`.
    """
    call = _core.native_call(thread)
    if call is None:
        return None
    text, fd, stack = call
    if fd >= 0:
        text += f" ({_target(fd)})"
    caller = _caller(stack)
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
    # call rel32; or call r/m64 (opcode FF /2) with 2, 3, 6 or 7 bytes
    return before[2] == 0xE8 or any(
        before[7 - size] == 0xFF and (before[8 - size] >> 3) & 7 == 2 for size in (2, 3, 6, 7)
    )

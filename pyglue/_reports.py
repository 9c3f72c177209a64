"""What is everybody doing? `dump()`, SIGQUIT, the stall reports of `--stall`, and the deadlock report.

`dump()` is called by people; `watch_stalls` and `deadlock` by `_patching`, which imports this only
then. Reads `_core`'s view of strands. Invariant: reports go to fd 2 as they are, in one write
each, whatever `sys.stderr` is, and never park.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from typing import IO, Any

from . import _core, _native_call


def dump(file: IO[str] | None) -> None:
    """`portalpatch.dump()`."""
    _write(_everything(), file)


def _everything() -> str:
    names = dict(threading._active)  # type: ignore[attr-defined] # no lock: it may be the trouble
    parts = []
    for strand in _core.strands():
        thread = names.get(strand["ident"])
        title = f"{strand['kind']} {thread.name if thread else hex(strand['ident'])}"
        parts.append(_one(title, strand, names))
    for portal in gc.get_objects():
        if _core.is_portal(portal):
            state = _core.portal_state(portal)
            if state["frame"] is not None:
                parts.append(_one(f"task {portal!r}", state, names))
            elif portal.cr_frame is not None and not portal.cr_running:
                parts.append(_awaiting(portal))
    return "\n".join(parts)


def _awaiting(portal: Any) -> str:
    """A task whose own coroutine awaits something; its stack is the chain of coroutines."""
    lines, awaited = [], portal
    while (frame := getattr(awaited, "cr_frame", getattr(awaited, "gi_frame", None))) is not None:
        lines += traceback.format_list(traceback.StackSummary.extract([(frame, frame.f_lineno)]))
        awaited = getattr(awaited, "cr_await", getattr(awaited, "gi_yieldfrom", None))
    what = "not started" if awaited is None else f"awaits {awaited!r}"
    return f"task {portal!r}: {what}\n" + "".join(lines)


def _one(title: str, strand: dict[str, Any], names: dict[int, Any]) -> str:
    lines = [f"{title}: {_what(strand, names)}\n"]
    frame = strand["frame"]
    if frame is None and strand["state"] != "new":
        frame = sys._getframe(3)  # it is the one that asks
    if frame is not None:
        lines += traceback.format_stack(frame)
    return "".join(lines)


def _what(strand: dict[str, Any], names: dict[int, Any]) -> str:
    if strand["state"] != "parked":
        return str(strand["state"])
    text = f"waits in {strand['reason']}"
    if strand["fd"] >= 0:
        text += f" on fd {strand['fd']} ({_describe_fd(strand['fd'])})"
    if strand["object"] is not None:
        text += f" for {strand['object']!r}{_held_by(strand, names)}"
    if strand["seconds"] >= 0:
        text += f", {strand['seconds']:.3f} s left"
    return text


def _held_by(strand: dict[str, Any], names: dict[int, Any]) -> str:
    try:
        holder, _ = _core.lock_state(strand["object"])
    except TypeError:
        return ""  # no lock of ours
    if holder in (0, strand["ident"]):  # a Condition's waiter locks its lock itself
        return ""
    return f", held by {names[holder].name if holder in names else hex(holder)}"


def _describe_fd(fd: int) -> str:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            try:
                return f"{copy.getsockname()} -> {copy.getpeername()}"
            except OSError:
                return str(copy.getsockname())
    except OSError:
        pass
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "closed"


def _write(text: str, file: IO[str] | None = None) -> None:
    if file is not None:
        file.write(text)
        return
    data = text.encode(errors="backslashreplace")
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass  # stderr is closed: there is nobody to tell


# ---- deadlock ----------------------------------------------------------------------------------


def deadlock() -> bool:
    """The hub is about to wait and nothing is left to wait for. False: nothing was said."""
    numbers = signal.valid_signals() - _OWN_SIGNALS
    if signal.getsignal(signal.SIGQUIT) is _dump_on_signal:
        numbers.discard(signal.SIGQUIT)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.discard(signal.SIGINT)  # it would only end the program
    if any(callable(signal.getsignal(number)) for number in numbers):
        return False
    _write(
        "portalpatch: deadlock: every thread waits for another, and nothing is left that could "
        "wake one. It goes on waiting, as native threads would.\n" + _everything() + "\n"
    )
    return True


_OWN_SIGNALS = {_core.CANCEL_SIGNAL, signal.SIGURG}


# ---- SIGQUIT -----------------------------------------------------------------------------------


def _dump_on_signal(number: int, frame: Any) -> None:
    dump(None)


_before: list[Any] = []


def dump_on_sigquit(wanted: bool) -> None:
    """SIGQUIT (Ctrl-\\ in a terminal) dumps and goes on, or does what it did before.

    Called in the main thread. Whatever executes just then, the handler runs in its place: only
    code that never comes back to Python is not interrupted.
    """
    set_handler = _core.original(importlib.import_module("_signal").signal)
    if wanted and not _before:
        _before.append(set_handler(signal.SIGQUIT, _dump_on_signal))
    elif _before and not wanted:
        before = _before.pop()
        if signal.getsignal(signal.SIGQUIT) is _dump_on_signal:
            set_handler(signal.SIGQUIT, signal.SIG_DFL if before is None else before)


# ---- stalls ------------------------------------------------------------------------------------


class _Watchdog(threading.Thread):
    """A native thread that looks, a few times per `limit`, whether code still runs unwaiting."""

    _portalpatch_native = True

    def __init__(self, limit: float) -> None:
        super().__init__(name="portalpatch-stall", daemon=True)
        self.limit = limit
        self.watched = threading.main_thread().ident
        self.native_id_watched = os.getpid()
        self.ended = threading.Event()

    def run(self) -> None:
        told = None
        while not self.ended.wait(self.limit / 4):
            state = _core.run_state()
            if state is None:
                continue
            run, seconds, waiting = state
            if waiting or seconds < self.limit or run == told:
                continue
            told = run
            frame = sys._current_frames().get(self.watched or 0)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
            call = _native_call.describe(self.native_id_watched)
            doing = f"blocked in {call}" if call else "running"
            _write(f"portalpatch: stall: no wait for {seconds:.3f} s, {doing}:\n{stack}")


_watchdogs: list[_Watchdog] = []

# At which faulthandler writes the stack of code that holds the GIL.
_STACK_SIGNAL = 62


def watch_stalls(limit: float | None) -> None:
    """Report code of the patched thread that runs longer than `limit` seconds without a wait.

    None: stop watching.
    """
    while _watchdogs:
        _watchdogs.pop().ended.set()
        _core.watch_stalls(0, _STACK_SIGNAL)
        faulthandler.unregister(_STACK_SIGNAL)
    if limit is not None:
        try:
            # What faulthandler puts back as the interpreter ends must not be deadly.
            if signal.getsignal(_STACK_SIGNAL) == signal.SIG_DFL:
                signal.signal(_STACK_SIGNAL, signal.SIG_IGN)
            faulthandler.register(_STACK_SIGNAL, file=2, all_threads=False)
            _core.watch_stalls(limit, _STACK_SIGNAL)
        except ValueError:
            pass  # not the main thread: reports where the GIL can be had
        watchdog = _Watchdog(limit)
        watchdog.start()
        _watchdogs.append(watchdog)

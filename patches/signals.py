"""Python signal handlers run in the main line of control, whatever green thread is executing.

`signal.signal()` and `getsignal()` are exchanged in place (pyglue/signals.c): they put a gate around
a handler and hide it again, and refuse a green thread as they do any thread but the main one, as does
`set_wakeup_fd()`. A green thread's signal mask is kept for itself only, and `pthread_kill` of a green
thread reaches the OS thread that runs it. Signals that are ignored or have their default action, the
wake-up fd and timers are the kernel's business and stay as they are.
"""

from __future__ import annotations

from .. import _core
from ._engine import Call, Change, Swap

CHANGES: tuple[Change, ...] = (
    Swap("_signal", "signal"),
    Swap("_signal", "getsignal"),
    Swap("_signal", "set_wakeup_fd"),
    Swap("_signal", "pthread_sigmask"),
    Swap("_signal", "pthread_kill"),
    Call("_signal", lambda _: _core.gate_signals(True), lambda _: _core.gate_signals(False)),
)

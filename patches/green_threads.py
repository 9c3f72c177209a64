"""Threads: what `_thread` starts is a green thread of the calling OS thread's hub.

`threading` is Python code on top of these functions and stays as it is. They are exchanged in place,
so code that imported them by name long ago starts green threads too. Threads that are running
already stay native; a native thread that has no hub goes on to start native ones.
"""

from __future__ import annotations

from typing import Any

from .. import _core
from ._engine import Call, Change, Replace, Swap, put


def _let_ctypes_stop_green_threads(ctypes: Any) -> None:
    """ctypes.pythonapi.PyThreadState_SetAsyncExc: found there once asked for, so put there first."""
    function = ctypes.pythonapi._FuncPtr(_core.set_async_exception)
    function.__name__ = "PyThreadState_SetAsyncExc"
    put(ctypes.pythonapi, function.__name__, function)


CHANGES: tuple[Change, ...] = (
    Call("_thread", lambda _: None, lambda _: _core.stop_preempting()),
    Swap("_thread", "start_new_thread"),
    Swap("_thread", "start_new", "_thread.start_new_thread"),
    Swap("_thread", "get_ident"),
    Swap("_thread", "_count"),
    Swap("_thread", "_set_sentinel", before=(3, 13)),
    Swap("_thread", "_ThreadHandle.join", since=(3, 13)),
    Swap("_thread", "start_joinable_thread", since=(3, 13)),
    Swap("_thread", "_make_thread_handle", since=(3, 13)),
    Swap("_thread", "_shutdown", since=(3, 13)),
    Swap("_thread", "_get_main_thread_ident", since=(3, 13)),
    Swap("_thread", "set_name", since=(3, 14)),
    Swap("sys", "_current_frames"),
    Swap("sys", "_current_exceptions"),
    Call("ctypes", _let_ctypes_stop_green_threads, lambda _: None),
    Swap("sys", "_settraceallthreads", since=(3, 12)),
    Swap("sys", "_setprofileallthreads", since=(3, 12)),
    Replace("_thread", "_ThreadHandle", lambda _: _core._ThreadHandle, aliases=True, since=(3, 13)),
)

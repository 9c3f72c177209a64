"""`offload`: CPU-bound or unpatchable blocking code on a native OS thread, the caller parked.

Called by user code. In a patched process the C pool of the interposer runs it; a portal without
patches awaits the host's own thread pool instead.
"""

from __future__ import annotations

import contextvars
import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from . import _core, _patching
from ._hidden import hide
from ._portal import _current_task, await_

T = TypeVar("T")
P = ParamSpec("P")


@hide
def offload(function: Callable[P, T], /, *args: P.args, **kwds: P.kwargs) -> T:
    """Run `function(*args, **kwds)` on a native thread while this caller is parked.

    It sees a copy of the caller's context variables, as `asyncio.to_thread` gives. A caller that is
    cancelled goes on at once; the function runs to its end and its result is dropped. Where
    nothing can park (no patches, no portal), it is called here.

    Returns: what `function` returns. Raises: what it raises.
    """
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwds)
    if _patching.is_patched():
        return _core.offload(call)  # type: ignore[no-any-return]
    if _core.in_portal():
        _, library = _current_task()
        waiting: Any
        if library == "trio":
            import trio

            waiting = trio.to_thread.run_sync(call, abandon_on_cancel=True)
        elif library == "asyncio":
            import asyncio

            waiting = asyncio.to_thread(call)
        else:
            waiting = sys.modules["curio"].run_in_thread(call)
        return await_(waiting)  # type: ignore[no-any-return]
    return function(*args, **kwds)

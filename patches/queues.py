"""`queue.SimpleQueue`: one that green and native threads can wait in at once.

`queue.Queue` and its kin are Python code on green locks and need nothing. A SimpleQueue made before
patching stays native; its methods are exchanged in place, so a green thread that waits in it parks
(pyglue/native_locks.c).
"""

from __future__ import annotations

from .. import _core
from ._engine import Call, Change, Replace, Swap

CHANGES: tuple[Change, ...] = (
    Call("_queue", lambda module: _core.use_empty(module.Empty), lambda _: None),
    Call(
        "_queue",
        lambda module: _core.use_simple_queue(module.SimpleQueue, module.Empty),
        lambda _: None,
    ),
    Swap("_queue", "SimpleQueue.get"),
    Swap("_queue", "SimpleQueue.put"),
    Swap("_queue", "SimpleQueue.put_nowait"),
    Replace("_queue", "SimpleQueue", lambda _: _core.SimpleQueue, aliases=True),
)

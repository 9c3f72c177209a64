"""`queue.SimpleQueue`: one that green and native threads can wait in at once.

`queue.Queue` and its kin are Python code on green locks and need nothing. A SimpleQueue made before
patching stays native: a green thread that waits in one blocks its OS thread.
"""

from __future__ import annotations

from .. import _core
from ._engine import Call, Change, Replace

CHANGES: tuple[Change, ...] = (
    Call("_queue", lambda module: _core.use_empty(module.Empty), lambda _: None),
    Replace("_queue", "SimpleQueue", lambda _: _core.SimpleQueue, aliases=True),
)

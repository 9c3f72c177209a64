"""multiprocessing's locks and semaphores: waiting for one lets other green threads run.

Queues, pools and managers wait for pipes and sockets, which the libc hooks see; what remains is
`SemLock`, whose waits are futexes (pyglue/semaphores.c).
"""

from __future__ import annotations

from .. import _core
from ._engine import Call, Change, Swap

CHANGES: tuple[Change, ...] = (
    Call("_multiprocessing", lambda module: _core.use_semlock(module.SemLock), lambda _: None),
    *(
        Swap("_multiprocessing", f"SemLock.{name}")
        for name in ("acquire", "__enter__", "release", "__exit__", "_is_mine", "_after_fork")
    ),
)

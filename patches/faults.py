"""faulthandler shows green threads: all of them, each by its own ident.

What CPython writes stays as it is and comes first (pyglue/faults.c); the threads that it cannot see
follow in the same format. A signal registered, or a dump asked for later, before patching shows the
OS threads only, as does a dump in another Python than 3.10 to 3.14, whose frames look different.
"""

from __future__ import annotations

from .. import _core
from ._engine import Call, Change, Swap

CHANGES: tuple[Change, ...] = (
    *(
        Swap("faulthandler", name, before=(3, 15))
        for name in (
            "enable",
            "register",
            "dump_traceback",
            "dump_traceback_later",
            "cancel_dump_traceback_later",
        )
    ),
    Call("faulthandler", _core.watch_faults, lambda _: _core.unwatch_faults(), before=(3, 15)),
)

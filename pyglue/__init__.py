"""portalpatch: unmodified synchronous code on the surrounding asyncio or Trio loop.

Three ways in: `python -m portalpatch app.py`, `portalpatch.patch_all()` at the top of a program, or
the preloaded library (`LD_PRELOAD=$(python -m portalpatch --library-path)` with `PORTALPATCH=1`).
Inside async code, a portal lets synchronous functions `await_` at any depth.

The names in `__all__` are the public API; whatever starts with an underscore is not.
"""

from __future__ import annotations

from ._await_checks import AwaitForbidden, AwaitRequired, forbid_await, require_await
from ._core import Future
from ._offload import offload
from ._patching import dump, is_patched, native, patch_all, statistics, unpatch_all
from ._portal import (
    async_context,
    async_iter,
    autoawait,
    await_,
    bestow_portal,
    decorate_as_sync,
    ensure_portal,
    has_portal,
    with_portal_run,
    with_portal_run_sync,
    with_portal_run_tree,
)
from ._stats import Statistics
from ._version import __version__

__all__ = [
    "AwaitForbidden",
    "AwaitRequired",
    "Future",
    "Statistics",
    "__version__",
    "async_context",
    "async_iter",
    "autoawait",
    "await_",
    "bestow_portal",
    "decorate_as_sync",
    "dump",
    "ensure_portal",
    "forbid_await",
    "has_portal",
    "is_patched",
    "native",
    "offload",
    "patch_all",
    "require_await",
    "statistics",
    "unpatch_all",
    "with_portal_run",
    "with_portal_run_sync",
    "with_portal_run_tree",
]

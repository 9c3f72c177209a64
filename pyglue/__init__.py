"""portalpatch: unmodified synchronous code on the surrounding asyncio or Trio loop.

Three ways in: `python -m portalpatch app.py`, `portalpatch.patch_all()` at the top of a program, or
the preloaded library (`LD_PRELOAD=$(python -m portalpatch --library-path)` with `PORTALPATCH=1`).
Inside async code, a portal lets synchronous functions `await_` at any depth.

The names in `__all__` are the public API; whatever starts with an underscore is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ._portal_tree import AutoPortalInstrument, portals_for_children, portals_for_tree

__all__ = [
    "AutoPortalInstrument",
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
    "portals_for_children",
    "portals_for_tree",
    "require_await",
    "statistics",
    "unpatch_all",
    "with_portal_run",
    "with_portal_run_sync",
    "with_portal_run_tree",
]


def __getattr__(name: str) -> Any:
    if name in ("AutoPortalInstrument", "portals_for_children", "portals_for_tree"):
        from . import _portal_tree  # few need it, and every start would pay for it

        return getattr(_portal_tree, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

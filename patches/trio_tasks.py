"""Every Trio task gets a portal as it is spawned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .. import _core
from ._engine import Change, Replace


def _spawn_impl(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def spawn_impl(*args: Any, **kwargs: Any) -> Any:
        task = original(*args, **kwargs)
        if not _core.is_portal(task.coro):
            task.coro = _core.portal_coroutine_trio(task.coro)
        return task

    return spawn_impl


CHANGES: tuple[Change, ...] = (Replace("trio._core._run", "Runner.spawn_impl", _spawn_impl),)

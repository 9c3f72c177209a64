"""Every Trio task gets a portal as it is spawned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .._portal import portalize_trio_task
from ._engine import Change, Replace


def _spawn_impl(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def spawn_impl(*args: Any, **kwargs: Any) -> Any:
        task = original(*args, **kwargs)
        portalize_trio_task(task)
        return task

    return spawn_impl


CHANGES: tuple[Change, ...] = (Replace("trio._core._run", "Runner.spawn_impl", _spawn_impl),)

"""`hide`: a function written in Python that leaves no frame of its own in a traceback (hidden.c)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from . import _core

F = TypeVar("F", bound=Callable[..., Any])


def hide(function: F) -> F:
    """Decorator: what leaves `function`, or the coroutine it makes, shows the user's frames only."""
    return _as_function(_core.Hidden(function), function)


def or_nested(method: F, nested: Callable[..., Any]) -> F:
    """`method` of an asyncio loop; `nested` where a task's plain function calls it for its own loop."""
    return _as_function(_core.Hidden(method, nested), method)


def _as_function(hidden: Any, function: F) -> F:
    functools.update_wrapper(hidden, function)
    if hasattr(function, "__wrapped__"):
        hidden.__wrapped__ = function.__wrapped__
    else:
        del hidden.__wrapped__
    return cast(F, hidden)

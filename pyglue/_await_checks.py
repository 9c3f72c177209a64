"""`require_await` and `forbid_await`: the two promises about waiting that can be checked.

Called by user code inside portals. The checks SQLAlchemy (`greenlet_spawn(_require_await=True)`,
`await_fallback`) and awaitlet offer, for any portal.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from . import _core
from ._hidden import hide

T = TypeVar("T")
P = ParamSpec("P")


class AwaitRequired(RuntimeError):
    """A function under `require_await` returned without having waited once."""


class AwaitForbidden(RuntimeError):
    """`await_` was called inside `forbid_await`."""


def require_await(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: calling synchronous `function` in a portal is an error where it did not wait.

    Waiting is an `await_`, or a libc call or lock that parked. Exceptions of `function` pass.

    Raises (from the wrapped function):
        AwaitRequired: it returned, and nothing waited.
        RuntimeError: called outside a portal.
    """

    @hide
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwds: P.kwargs) -> T:
        before = _core.await_count()
        if before is None:
            raise RuntimeError(f"{function!r} must be called inside a portal: it promises to await")
        result = function(*args, **kwds)
        if _core.await_count() == before:
            raise AwaitRequired(f"{function!r} returned without awaiting anything")
        return result

    return wrapper


@contextlib.contextmanager
def forbid_await() -> Iterator[None]:
    """Inside this block `await_` in the current portal raises AwaitForbidden.

    Libc calls still park: they are the code's own business. Does nothing outside a portal.
    """
    _core.forbid_await(1)
    try:
        yield
    finally:
        _core.forbid_await(-1)

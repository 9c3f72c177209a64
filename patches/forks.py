"""A forked child starts without a hub: its green threads do not exist there."""

from __future__ import annotations

from typing import Any

from .. import _core
from ._engine import Call, Change

_state = {"registered": False}


def _register(posix: Any) -> None:
    if not _state["registered"]:  # it cannot be unregistered
        posix.register_at_fork(after_in_child=_core.after_fork_child)
        _state["registered"] = True


CHANGES: tuple[Change, ...] = (Call("posix", _register, lambda _: None),)

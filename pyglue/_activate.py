"""Turns settings into `patch_all()`: what a program started under portalpatch runs first.

Called by `_autostart/start.py` with the PORTALPATCH_* variables as they were at the start of the
process, or by a program of its own accord through `activate_from_environment()`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from . import _settings, _stats


def activate_from_environment() -> None:
    """`activate(os.environ)`: for a program that wants the variables but not the command line."""
    activate(os.environ)


def activate(values: Mapping[str, str]) -> None:
    """Patch as the PORTALPATCH_* variables in `values` say.

    Raises SystemExit, with one line for stderr as its code, where a setting cannot be used.
    """
    import portalpatch

    try:
        wanted = _settings.parse(values)
        _settings.check(wanted)
    except _settings.SettingError as error:
        raise SystemExit(f"portalpatch: {error}") from None
    if wanted.stats:
        _stats.print_at_exit()  # before anything else is registered: it runs last
    portalpatch.patch_all(
        only=wanted.only,
        without=wanted.without,
        host=wanted.host,
        stats=wanted.stats,
        stall=wanted.stall,
        mutex_guard=wanted.mutex_guard,
        sigquit=wanted.sigquit,
    )

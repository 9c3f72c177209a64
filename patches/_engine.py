"""The kinds of changes a patch declares, and how they are applied and undone.

Used by the patch modules beside this one; calls `_core.swap` for built-in functions. A change names
the module it is about; where that is not imported yet, it is applied as soon as it has been
(`_imports`). Invariant: `_undo` holds, in order, how to take back each thing done so far.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from .. import _core
from . import _imports

_MISSING = object()

_undo: list[Callable[[], None]] = []
_aliases: dict[int, tuple[Any, Any]] = {}  # id(original) -> (original, replacement)


class Change:
    """One change to `module`, for Pythons from `since` (inclusive) to `before` (exclusive)."""

    def __init__(
        self,
        module: str,
        since: tuple[int, int] | None = None,
        before: tuple[int, int] | None = None,
    ) -> None:
        self.module = module
        version = sys.version_info[:2]
        self.fits = (since is None or version >= since) and (before is None or version < before)

    def apply(self, module: Any) -> None:
        """Make the change, and leave in `_undo` how to take it back."""
        raise NotImplementedError


class Swap(Change):
    """A built-in function or method does what our C stand-in does, wherever it is referred to.

    `path` is looked up in the module; `stand_in` is the stand-in's name, by default
    `module.path`. Where this Python has no such function there is nothing to do.
    """

    def __init__(self, module: str, path: str, stand_in: str = "", **versions: Any) -> None:
        super().__init__(module, **versions)
        self.path = path
        self.stand_in = stand_in or f"{module}.{path}"

    def apply(self, module: Any) -> None:
        target = module
        for name in self.path.split("."):
            target = getattr(target, name, None)
        if target is not None:
            _core.swap(target, self.stand_in)
            _undo.append(lambda: _core.unswap(target))


class Replace(Change):
    """An attribute of a module, or of a class in it (`path` "Class.method"), gets another value.

    `make` is called with the original, `_MISSING` aside, and returns the replacement. With
    `aliases`, modules that imported the original by name before get the replacement too: the
    rule is that every global of a module in `sys.modules` that is that very object is replaced.
    Where this Python has no such attribute there is nothing to do.
    """

    def __init__(
        self,
        module: str,
        path: str,
        make: Callable[[Any], Any],
        aliases: bool = False,
        **versions: Any,
    ) -> None:
        super().__init__(module, **versions)
        self.path = path
        self.make = make
        self.aliases = aliases

    def apply(self, module: Any) -> None:
        *owners, name = self.path.split(".")
        owner = module
        for part in owners:
            owner = getattr(owner, part, None)
        original = getattr(owner, name, _MISSING)
        if original is _MISSING:
            return
        replacement = self.make(original)
        put(owner, name, replacement)
        if self.aliases:
            _aliases[id(original)] = (original, replacement)
            _undo.append(lambda: _restore_aliases(original, replacement))


class Call(Change):
    """Call `start` now and `stop` on undo: for what is not an attribute."""

    def __init__(
        self,
        module: str,
        start: Callable[[Any], None],
        stop: Callable[[Any], None],
        **versions: Any,
    ) -> None:
        super().__init__(module, **versions)
        self.start = start
        self.stop = stop

    def apply(self, module: Any) -> None:
        self.start(module)
        _undo.append(lambda: self.stop(module))


def put(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, to be restored by undo() unless somebody else has set it since."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)

    def restore() -> None:
        if vars(owner).get(name) is value:
            if before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    _undo.append(restore)


def undo_with(function: Callable[[], None]) -> None:
    """Let undo() call `function`, too."""
    _undo.append(function)


def apply(changes: Iterable[Change]) -> None:
    """Apply each change that is for this Python, now or when its module has been imported."""
    for change in changes:
        if change.fits:
            _imports.when_imported(change.module, change.apply)


def replace_aliases() -> None:
    """Replace originals that modules have imported by name (see `Replace`)."""
    found = []
    for name, module in list(sys.modules.items()):
        variables = getattr(module, "__dict__", None)
        if type(variables) is dict and not name.startswith("portalpatch"):
            for key, value in variables.items():
                if id(value) in _aliases:
                    found.append((variables, key, value))
    for variables, key, value in found:
        original, replacement = _aliases[id(value)]
        if value is original:
            variables[key] = replacement
            _undo.append(_restorer(variables, key, original, replacement))
    _aliases.clear()


def _restore_aliases(original: Any, replacement: Any) -> None:
    """Modules imported since have taken the replacement by name: give them the original."""
    for name, module in list(sys.modules.items()):
        variables = getattr(module, "__dict__", None)
        if type(variables) is dict and name != "portalpatch._core":
            for key in [key for key, value in variables.items() if value is replacement]:
                variables[key] = original


def _restorer(
    variables: dict[str, Any], key: str, original: Any, replacement: Any
) -> Callable[[], None]:
    def restore() -> None:
        if variables.get(key) is replacement:
            variables[key] = original

    return restore


def undo() -> None:
    """Take back everything, the last change first; forget what still waits for an import."""
    _imports.forget()
    _aliases.clear()
    while _undo:
        _undo.pop()()

"""Calls a function as soon as a module has been imported, without a trace.

Used by `_engine` for modules that are not loaded yet, so that patching never imports asyncio or
trio. A finder at the front of `sys.meta_path` asks the other finders for the real spec and hangs a
function on its loader's own `exec_module`; it takes that off again as it runs. So spec, loader,
`__file__` and caching are the real ones, and importlib's frames (ours pass for one of them) are cut
out of tracebacks as always. Invariant: the finder is on `sys.meta_path` only while something waits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_waiting: dict[str, list[Callable[[Any], None]]] = {}


def when_imported(name: str, function: Callable[[Any], None]) -> None:
    """Call `function(module)` now, where the module `name` is imported, or once it has been."""
    module = sys.modules.get(name)
    if module is not None and not getattr(
        getattr(module, "__spec__", None), "_initializing", False
    ):
        function(module)
        return
    _waiting.setdefault(name, []).append(function)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def forget() -> None:
    """Nothing waits for an import any more."""
    _waiting.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


def _arrived(module: Any) -> None:
    functions = _waiting.pop(module.__name__, ())
    if not _waiting:
        forget()
    for function in functions:
        function(module)


class _Finder:
    """On `sys.meta_path` while a module is waited for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _waiting:
            return None
        spec = None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is not self and find is not None:
                spec = find(name, path, target)
                if spec is not None:
                    break
        loader = getattr(spec, "loader", None)
        if loader is not None and hasattr(loader, "exec_module"):
            _hang_on(loader, name)
        return spec


def _hang_on(loader: Any, name: str) -> None:
    """`loader` is an object made for this module, or the class that all built-in modules have."""
    real = loader.exec_module
    shared = vars(loader).get("exec_module") if isinstance(loader, type) else None

    def exec_module(module):  # type: ignore[no-untyped-def]
        if shared is None:
            vars(loader).pop("exec_module", None)
        elif module.__name__ == name:
            loader.exec_module = shared
        real(module)
        _arrived(module)

    exec_module.__code__ = exec_module.__code__.replace(co_filename="<frozen importlib._bootstrap>")
    try:
        loader.exec_module = exec_module if shared is None else staticmethod(exec_module)
    except (AttributeError, TypeError):
        pass  # a loader that cannot be changed: not what we wait for


_finder = _Finder()

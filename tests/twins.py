"""Twins: asynchronous scenarios, and the same text with every `await` turned into `await_`.

`load(host, mode)` runs common_bodies.py and the host's scenarios in one namespace and returns that,
with the names of all in BODIES: every `body_*(log)`. Modes:

- "native": as it is written;
- "portal": each async function calls a synchronous one that does its work, so that every level of
  the call stack alternates between the two; `async with` is `with async_context`, and so on;
- "park": as "portal", and waits of the functions in PRIMITIVES are blocking calls of libc, under
  `patch_all()`.

Functions whose names begin with "native_" stay what they are. `describe()` puts how a call ended into
a form that twins can be compared by.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PRIMITIVES = {"forever", "nap"}  # `await forever(log)` -> `blocking_forever(log)`


class _Synchronous(ast.NodeTransformer):
    def __init__(self, park: bool) -> None:
        self.park = park
        self.in_class = False

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        outside, self.in_class = self.in_class, True
        self.generic_visit(node)
        self.in_class = outside
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        if node.name.startswith("native_") or node.name in PRIMITIVES | {"tick"}:
            return node
        method, self.in_class = self.in_class, False
        self.generic_visit(node)
        self.in_class = method
        if any(isinstance(child, ast.Yield) for child in ast.walk(node)):
            return node  # an async generator, that calls await_
        name = f"sync_{node.name}"
        call = f"self.{name}(*a, **k)" if method else f"{name}(*a, **k)"
        me = "self, *a, **k" if method else "*a, **k"
        caller = ast.parse(f"async def {node.name}({me}): return {call}").body[0]
        caller.decorator_list = node.decorator_list
        fields = {field: getattr(node, field) for field in node._fields}
        fields.update(name=name, decorator_list=[])
        return [ast.FunctionDef(**fields), caller]

    def visit_Await(self, node: ast.Await) -> Any:
        self.generic_visit(node)
        call = node.value
        if self.park and isinstance(call, ast.Call) and getattr(call.func, "id", "") in PRIMITIVES:
            call.func.id = f"blocking_{call.func.id}"
            return call
        return ast.Call(ast.Name("await_", ast.Load()), [call], [])

    def visit_AsyncWith(self, node: ast.AsyncWith) -> Any:
        self.generic_visit(node)
        for item in node.items:
            item.context_expr = ast.Call(
                ast.Name("async_context", ast.Load()), [item.context_expr], []
            )
        return ast.With(node.items, node.body)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> Any:
        self.generic_visit(node)
        iterator = ast.Call(ast.Name("async_iter", ast.Load()), [node.iter], [])
        return ast.For(node.target, iterator, node.body, node.orelse)


def load(host: str, mode: str) -> dict[str, Any]:
    from portalpatch import async_context, async_iter, await_

    names: dict[str, Any] = {
        "__name__": f"{host}_bodies_{mode}",
        "await_": await_,
        "async_context": async_context,
        "async_iter": async_iter,
    }
    for path in (HERE / "common_bodies.py", HERE / f"{host}_bodies.py"):
        tree = ast.parse(path.read_text())
        if mode != "native":
            tree = _Synchronous(park=mode == "park").visit(tree)
            ast.fix_missing_locations(tree)
        exec(compile(tree, str(path), "exec"), names)
    names["BODIES"] = sorted(name for name in names if name.startswith("body_"))
    return names


class Log(list):
    """What a body writes down; `timeout` is for the timeouts around its waits."""

    timeout = 0.002


def describe(error: BaseException | None, depth: int = 3) -> Any:
    """An exception, those it came from and those in its group, without what differs between runs."""
    if error is None or depth == 0:
        return None
    if hasattr(error, "exceptions"):
        inside = sorted((describe(one, depth - 1) for one in error.exceptions), key=repr)
        return [type(error).__name__, inside]
    arguments = () if type(error).__name__ == "Cancelled" else error.args
    origin = None if error.__suppress_context__ else error.__context__
    return [
        type(error).__name__,
        repr(arguments),
        describe(error.__cause__, depth - 1),
        describe(origin, depth - 1),
    ]

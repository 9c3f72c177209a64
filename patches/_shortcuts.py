"""Lets a Python function of the standard library ask a C function first.

Used by `conditions`. The function object stays, with its name, signature, defaults and class; its code
is compiled again from its own source with two statements in front: call the C function, and return
what it says unless that is `_core.REFUSED`. They get the position of the statement that waits, so the
frame of a thread that waits inside the C function shows the line it would natively, in tracebacks
and dumps. Invariant: where the source is not there, or is not what the function was made from,
nothing is changed.
"""

from __future__ import annotations

import _ast
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from .. import _core
from ._engine import Change, undo_with

_HELPER, _REFUSED = "portalpatch: the C function", "portalpatch: refused"


class Shortcut(Change):
    """`Class.method` of `module` asks the C function `helper(self, *arguments)` first.

    `waits_in` names the method whose call is where it waits, the first such call; None: it never
    waits. With `waits_with_timeout` there are two such places, without arguments and with `timeout`,
    and that parameter says which.
    """

    def __init__(
        self,
        module: str,
        path: str,
        helper: Callable[..., Any],
        waits_in: str | None = None,
        waits_with_timeout: bool = False,
    ) -> None:
        super().__init__(module)
        self.path = path
        self.helper = helper
        self.waits_in = waits_in
        self.waits_with_timeout = waits_with_timeout

    def apply(self, module: Any) -> None:
        owner, name = self.path.split(".")
        function = vars(getattr(module, owner, None)).get(name)
        if type(function) is not FunctionType:
            return
        before = function.__code__
        code = self._code(owner, before)
        if code is None:
            return
        function.__code__ = code

        def restore() -> None:
            if function.__code__ is code:
                function.__code__ = before

        undo_with(restore)

    def _code(self, owner: str, code: CodeType) -> CodeType | None:
        """`code` with the call in front, or None."""
        source = _source_of(owner, code)
        if source is None:
            return None
        try:
            tree: Any = compile(source, code.co_filename, "exec", _ast.PyCF_ONLY_AST, True)
            if _find_code(compile(tree, code.co_filename, "exec", dont_inherit=True), code) != code:
                return None
            if not self._prepend(tree.body[0].body[0]):
                return None
            made = _find_code(compile(tree, code.co_filename, "exec", dont_inherit=True), code)
        except (SyntaxError, ValueError):
            return None
        if made is None:
            return None
        constants = {_HELPER: self.helper, _REFUSED: _core.REFUSED}
        return made.replace(
            co_consts=tuple(
                constants.get(value, value) if type(value) is str else value
                for value in made.co_consts
            )
        )

    def _prepend(self, function: Any) -> bool:
        statements = function.body
        first = 1 if _is_docstring(statements[0]) else 0
        arguments = [argument.arg for argument in function.args.args]
        if self.waits_in is None:
            statements[first:first] = _call(arguments, statements[first])
            return True
        waits = [call for call in _calls(statements) if call.func.attr == self.waits_in]
        if not waits:
            return False
        if not self.waits_with_timeout:
            statements[first:first] = _call(arguments, waits[0])
            return True
        # `if timeout is None` picks the place: the last call without arguments, or the one that is given it
        without = [call for call in waits if not call.args]
        with_timeout = [call for call in waits if any(_is_timeout(each) for each in call.args)]
        if not without or not with_timeout:
            return False
        there = without[-1]
        test = _at(there, _ast.Compare, left=_name(there, "timeout"), ops=[_ast.Is()],
                   comparators=[_constant(there, None)])  # fmt: skip
        statements[first:first] = [
            _at(
                there,
                _ast.If,
                test=test,
                body=_call(arguments, there),
                orelse=_call(arguments, with_timeout[0]),
            )
        ]
        return True


# ---- source ------------------------------------------------------------------------------------


def _source_of(owner: str, code: CodeType) -> str | None:
    """Source of `class owner:` with this method alone, each line where it is in the file."""
    lines = _lines(code.co_filename)
    first = code.co_firstlineno - 1
    if first < 1 or first >= len(lines):
        return None
    indent = len(lines[first]) - len(lines[first].lstrip())
    end = first + 1
    while end < len(lines):
        line = lines[end]
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        end += 1
    return "\n" * (first - 1) + f"class {owner}:\n" + "".join(lines[first:end])


_files: dict[str, list[str]] = {}


def _lines(filename: str) -> list[str]:
    if filename not in _files:
        try:
            with open(filename, encoding="utf-8") as stream:
                _files[filename] = stream.readlines()
        except (OSError, UnicodeDecodeError):
            _files[filename] = []
    return _files[filename]


def forget_sources() -> None:
    """Drop the files read: every shortcut has been made."""
    _files.clear()


def _find_code(module: CodeType, wanted: CodeType) -> CodeType | None:
    for outer in module.co_consts:
        if isinstance(outer, CodeType):
            for inner in outer.co_consts:
                if isinstance(inner, CodeType) and inner.co_name == wanted.co_name:
                    return inner
    return None


# ---- syntax trees ------------------------------------------------------------------------------


def _is_docstring(statement: Any) -> bool:
    return isinstance(statement, _ast.Expr) and isinstance(statement.value, _ast.Constant)


def _is_timeout(argument: Any) -> bool:
    return isinstance(argument, _ast.Name) and argument.id == "timeout"


def _calls(statements: Any) -> Iterator[Any]:
    """Calls of methods in these statements, in the order of the source."""
    for node in statements:
        if isinstance(node, _ast.Call) and isinstance(node.func, _ast.Attribute):
            yield node
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                yield from _calls([each for each in value if isinstance(each, _ast.AST)])
            elif isinstance(value, _ast.AST):
                yield from _calls([value])


def _at(place: Any, kind: Any, **fields: Any) -> Any:
    position = {
        name: getattr(place, name)
        for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")
    }
    return kind(**fields, **position)


def _name(place: Any, name: str) -> Any:
    return _at(place, _ast.Name, id=name, ctx=_ast.Load())


def _constant(place: Any, value: Any) -> Any:
    return _at(place, _ast.Constant, value=value)


def _assign(place: Any, name: str, value: Any) -> Any:
    target = _at(place, _ast.Name, id=name, ctx=_ast.Store())
    return _at(place, _ast.Assign, targets=[target], value=value)


def _call(arguments: list[str], place: Any) -> list[Any]:
    """The statements: ask, and return the answer unless it is the refusal.

    The placeholders go through variables since Python warns of a constant that is called.
    """
    asked = _at(
        place,
        _ast.Call,
        func=_name(place, "_answer"),
        args=[_name(place, argument) for argument in arguments],
        keywords=[],
    )
    test = _at(
        place,
        _ast.Compare,
        left=_name(place, "_answer"),
        ops=[_ast.IsNot()],
        comparators=[_name(place, "_refused")],
    )
    return [
        _assign(place, "_refused", _constant(place, _REFUSED)),
        _assign(place, "_answer", _constant(place, _HELPER)),
        _assign(place, "_answer", asked),
        _at(
            place,
            _ast.If,
            test=test,
            orelse=[],
            body=[_at(place, _ast.Return, value=_name(place, "_answer"))],
        ),
    ]

"""The stub of the C module names what the C module has, and the package says that it is typed."""

from __future__ import annotations

import ast
import sys
from importlib import resources

import portalpatch
from portalpatch import _core


def stub_tree() -> ast.Module:
    return ast.parse((resources.files(portalpatch) / "_core.pyi").read_text())


def names_of(body) -> set[str]:
    names = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.AnnAssign):
            names.add(statement.target.id)
        elif isinstance(statement, ast.If) and eval(ast.unparse(statement.test), {"sys": sys}):
            names |= names_of(statement.body)
    return names - {"_T"}


def test_stub_has_the_names_of_the_module():
    assert names_of(stub_tree().body) == {name for name in dir(_core) if not name.startswith("__")}


def test_stub_has_the_methods_of_the_classes():
    for statement in stub_tree().body:
        if isinstance(statement, ast.ClassDef):
            methods = {name for name in vars(getattr(_core, statement.name)) if name[:2] != "__"}
            public = {name for name in names_of(statement.body) if name[:2] != "__"}
            assert public == methods, statement.name


def test_package_is_marked_as_typed():
    assert (resources.files(portalpatch) / "py.typed").is_file()

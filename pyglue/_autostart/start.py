"""Starts portalpatch in a fresh interpreter and leaves no other trace of how that was done.

Used by sitecustomize.py and boot.py. Uses only what `site` has imported anyway until the real
sitecustomize has run. Afterwards os.environ, sys.path, sys.argv, sys.modules and `__main__` are
what plain Python would have; only then is `portalpatch._activate` asked to patch.
"""

from __future__ import annotations

import os
import sys
from types import CodeType, ModuleType, TracebackType
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(HERE)

# Set by the command line: JSON, {variable: its value before, or null}.
RESTORE = "_PORTALPATCH_RESTORE"
# Set by the command line for boot.py: folders that hold what portalpatch itself needs to import.
IMPORTS = "_PORTALPATCH_IMPORTS"


def take_settings() -> dict[str, str]:
    """Read the PORTALPATCH* variables, then make os.environ what the user's own was."""
    environ = os.environ
    path = environ.get("PYTHONPATH")
    if path == HERE:
        # interpose/autostart.c: PYTHONPATH was empty, or unset and then took PORTALPATCH's place.
        if "PORTALPATCH" in environ:
            environ["PYTHONPATH"] = ""
        else:
            del environ["PYTHONPATH"]
            environ["PORTALPATCH"] = "1"
    elif path is not None and path.startswith(HERE + os.pathsep):
        environ["PYTHONPATH"] = path[len(HERE) + 1 :]
    settings = {name: environ[name] for name in environ if "PORTALPATCH" in name}
    before = environ.pop(RESTORE, None)
    environ.pop(IMPORTS, None)
    if before is not None:
        import json

        for name, value in json.loads(before).items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
    while HERE in sys.path:
        sys.path.remove(HERE)
    sys.path_importer_cache.pop(HERE, None)
    return settings


def activate(settings: dict[str, str]) -> None:
    """Import the portalpatch this file belongs to and let it patch; exit 2 where it cannot."""
    if RESTORE not in settings and is_foreign():
        return
    try:
        extra = [path for path in settings.get(IMPORTS, "").split(os.pathsep) if path]
        sys.path.extend(extra)
        try:
            package = import_package()
            package.activate(settings)
        finally:
            for path in extra:
                sys.path.reverse()
                sys.path.remove(path)
                sys.path.reverse()
    except SystemExit as stop:
        message = stop.code
    except BaseException:
        import traceback

        message = f"portalpatch: could not start\n{traceback.format_exc()}"
    else:
        return
    # Raised through `site`, an exit would be reported as a fatal error of the interpreter.
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(2)


def is_foreign() -> bool:
    """Whether this Python, which inherited LD_PRELOAD and PORTALPATCH, cannot run this portalpatch.

    System tools are written in Python too: another version, or without greenlet. They stay native.
    """
    import importlib.util
    from importlib.machinery import EXTENSION_SUFFIXES

    built = {name for name in os.listdir(PACKAGE) if name.startswith("_core.cpython-")}
    wanted = {"_core" + suffix for suffix in EXTENSION_SUFFIXES}
    if built and wanted.isdisjoint(built):
        return True
    return importlib.util.find_spec("greenlet") is None


def import_package() -> Any:
    """portalpatch._activate, by name if that leads to PACKAGE, else by location."""
    import importlib
    import importlib.util

    spec = importlib.util.find_spec("portalpatch")
    origin = os.path.dirname(spec.origin) if spec is not None and spec.origin else ""
    if os.path.realpath(origin or ".") != os.path.realpath(PACKAGE) or not origin:
        load("portalpatch", PACKAGE)
        patches = os.path.join(os.path.dirname(PACKAGE), "patches")
        if not os.path.isdir(os.path.join(PACKAGE, "patches")) and os.path.isdir(patches):
            load("portalpatch.patches", patches)  # an editable install: beside, not inside
    return importlib.import_module("portalpatch._activate")


def load(name: str, folder: str) -> ModuleType:
    """Import the package in `folder` as `name`, wherever sys.path leads."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# ---- sitecustomize ---------------------------------------------------------------------------


def from_sitecustomize() -> bool:
    """Start, and run the real sitecustomize if there is one. Returns whether there is."""
    fresh = is_led_here()
    settings = take_settings()
    try:
        return run_real_sitecustomize()
    finally:
        if fresh:
            activate(settings)


def is_led_here() -> bool:
    """Whether PYTHONPATH leads here, as it does where the process starts.

    A subinterpreter has the sys.path of the start, but the environment that take_settings() left
    there. It stays native: green threads exist in the main interpreter only.
    """
    return os.path.abspath(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]) == HERE


def run_real_sitecustomize() -> bool:
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    sys.modules.pop("sitecustomize", None)
    spec = PathFinder.find_spec("sitecustomize")
    if spec is None or spec.loader is None:
        return False
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module  # the import in progress returns what is here
    spec.loader.exec_module(module)
    return True


# ---- boot ------------------------------------------------------------------------------------


def from_boot() -> None:
    """Start, then run the program named by the arguments as plain Python does. See boot.py."""
    boot = sys.argv[0]
    program = sys.argv[1:]
    sys.orig_argv = sys.orig_argv[: len(sys.orig_argv) - len(program) - 1] + program
    activate(take_settings())
    sys.path_importer_cache.pop(boot, None)
    trim_tracebacks(boot)
    main = sys.modules["__main__"]
    keep = {"__name__", "__builtins__", "__annotations__"}
    for name in [name for name in main.__dict__ if name not in keep]:
        del main.__dict__[name]
    main.__dict__.update(__doc__=None, __package__=None, __loader__=None, __spec__=None)
    kind = program[0] if program else "-"
    if kind == "-m":
        run_module(program[1], ["-m", *program[2:]])
    elif kind == "-c":
        source = program[1]
        sys.argv[:] = ["-c", *program[2:]]
        insert_path("")
        execute(compile(source, "<string>", "exec", dont_inherit=True))
    elif kind == "-":
        sys.argv[:] = program or [""]
        insert_path("")
        run_standard_input()
    else:
        run_script(kind, program)


def insert_path(path: str) -> None:
    """sys.path[0] as CPython sets it; not with -I, nor with -P (3.11)."""
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path.insert(0, path)


def execute(code: CodeType) -> None:
    exec(code, sys.modules["__main__"].__dict__)


def run_module(name: str, argv: list[str]) -> None:
    import runpy

    sys.argv[:] = argv
    insert_path(os.getcwd())
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def run_script(script: str, argv: list[str]) -> None:
    import pkgutil
    import runpy

    sys.argv[:] = argv
    path = os.path.abspath(script)
    importer = pkgutil.get_importer(script)
    if importer is not None and type(importer).__name__ != "NullImporter" and not is_file(script):
        sys.path.insert(0, path)
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
        return
    try:
        with open(path, "rb") as stream:
            source = stream.read()
    except OSError as error:
        name = sys.orig_argv[0]
        sys.stderr.write(
            f"{name}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n"
        )
        raise SystemExit(2) from None
    from importlib.machinery import SourceFileLoader

    insert_path(os.path.dirname(os.path.realpath(script)))
    main = sys.modules["__main__"]
    main.__dict__.update(
        __file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path)
    )
    execute(compile(source, path, "exec", dont_inherit=True))


def is_file(script: str) -> bool:
    import zipfile

    return os.path.isfile(script) and not zipfile.is_zipfile(script)


def run_standard_input() -> None:
    if sys.stdin.isatty():
        import code

        code.interact(local=sys.modules["__main__"].__dict__, exitmsg="")
    else:
        execute(compile(sys.stdin.buffer.read(), "<stdin>", "exec", dont_inherit=True))


def trim_tracebacks(boot: str) -> None:
    """Hide boot.py's and this file's frames, which lie above the program's in its tracebacks."""
    shown = sys.excepthook
    own = {__file__, boot, os.path.abspath(boot)}

    def excepthook(
        kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        error: BaseException | None = value
        seen = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = without_own(error.__traceback__)
            error = error.__cause__ or error.__context__
        shown(kind, value, value.__traceback__)

    def without_own(traceback: TracebackType | None) -> TracebackType | None:
        while traceback is not None and traceback.tb_frame.f_code.co_filename in own:
            traceback = traceback.tb_next
        return traceback

    sys.excepthook = excepthook

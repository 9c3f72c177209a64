"""The command line: `python -m portalpatch [options] program...`.

It does not run the program. It re-executes the interpreter, with the flags it was started with, on
the program alone, with the library preloaded and the options as PORTALPATCH_* variables:
sys.argv, `__main__`, sys.path[0], tracebacks, the exit status, signals and stdin are CPython's own
then. In the new process interpose/autostart.c and _autostart/ take over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import _settings
from ._version import __version__

PACKAGE = os.path.realpath(os.path.dirname(__file__))
LIBRARY = os.path.join(PACKAGE, "libportalpatch.so")
AUTOSTART = os.path.join(PACKAGE, "_autostart")

USAGE = """\
usage: python -m portalpatch [options] (app.py | -m module | -c code | -) [arguments]

Runs an unmodified Python program with its blocking calls, those of C libraries too, made
cooperative on asyncio or Trio. Flags of the interpreter go before -m portalpatch.

options:
  --host HOST       asyncio (default) or trio: the loop where the program runs none
  --only NAMES      comma-separated: apply these patches and no others
  --without NAMES   comma-separated: patches to leave out
  --no-preload      hook the loaded objects' GOT slots instead of using LD_PRELOAD
  --stats           print statistics on stderr when the program ends
  --stall SECONDS   report code that runs longer than this without a wait
  --mutex-guard NAMES
                    comma-separated patterns of libraries' file names (libfoo*): in these no call
                    parks while a mutex is held
  --sigquit         on SIGQUIT print what every thread and task waits for, and go on
  --settings        print every setting with its default and meaning, and exit
  --library-path    print the library to put into LD_PRELOAD (with PORTALPATCH=1), and exit
  --version         print the version and exit
  -h, --help        print this and exit
"""

# Options that take a value, and the variable each becomes.
VALUE_OPTIONS = {
    setting.option: setting.variable
    for setting in _settings.SETTINGS
    if setting.option not in ("", "--stats", "--sigquit")
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Interpret the command line. Returns an exit status, or does not return: it executes."""
    rest = list(sys.argv[1:] if arguments is None else arguments)
    variables: dict[str, str] = {}
    preload = True
    while rest and rest[0].startswith("-") and rest[0] != "-":
        option, equals, value = rest[0].partition("=")
        if option[:2] in ("-m", "-c") and not option.startswith("--"):
            break
        del rest[0]
        if option in VALUE_OPTIONS:
            if not equals:
                if not rest:
                    return complain(f"option {option} needs a value")
                value = rest.pop(0)
            variables[VALUE_OPTIONS[option]] = value
            continue
        if option == "--":
            break
        if equals:
            return complain(f"unknown option {option} (see --help)")
        if option == "--no-preload":
            preload = False
        elif option == "--stats":
            variables["PORTALPATCH_STATS"] = "1"
        elif option == "--sigquit":
            variables["PORTALPATCH_SIGQUIT"] = "1"
        elif option in ("-h", "--help"):
            return show(USAGE)
        elif option == "--version":
            return show(f"portalpatch {__version__}\n")
        elif option == "--settings":
            return show(_settings.describe() + "\n")
        elif option == "--library-path":
            return show(LIBRARY + "\n")
        else:
            return complain(f"unknown option {option} (see --help)")
    if rest and rest[0] in ("-m", "-c") and len(rest) == 1:
        return complain(f"option {rest[0]} needs a value")
    try:
        _settings.check(_settings.parse(variables))
    except _settings.SettingError as error:
        return complain(str(error))
    execute(rest, variables, preload)


def show(text: str) -> int:
    sys.stdout.write(text)
    return 0


def complain(message: str) -> int:
    sys.stderr.write(f"portalpatch: {message}\n")
    return 2


def execute(program: list[str], variables: dict[str, str], preload: bool) -> NoReturn:
    """Replace this process by the interpreter running `program` under portalpatch."""
    import json

    flags = interpreter_flags(sys.orig_argv)
    additions = {"PORTALPATCH": "1", **variables}
    if preload and not any(character in LIBRARY for character in ": "):
        old = os.environ.get("LD_PRELOAD", "")
        if LIBRARY not in old.replace(" ", ":").split(":"):
            additions["LD_PRELOAD"] = f"{LIBRARY}:{old}" if old else LIBRARY
    else:
        # LD_PRELOAD cannot name a path with a space or a colon: patch_all() attaches instead.
        old = os.environ.get("PYTHONPATH", "")
        additions["PYTHONPATH"] = f"{AUTOSTART}{os.pathsep}{old}" if old else AUTOSTART
    before = {name: os.environ.get(name) for name in additions}
    # What the user set himself stays for his program's children: they are activated as well.
    additions["_PORTALPATCH_RESTORE"] = json.dumps(before)
    launcher: list[str] = []
    if sys.flags.ignore_environment or sys.flags.no_site or sys.flags.isolated:
        launcher = [os.path.join(AUTOSTART, "boot.py")]
        if program and program[0][:2] in ("-m", "-c") and len(program[0]) > 2:
            program = [program[0][:2], program[0][2:], *program[1:]]
        if sys.flags.no_site:
            additions["_PORTALPATCH_IMPORTS"] = import_folders()
    command = [sys.orig_argv[0], *flags, *launcher, *program]
    environment = {**os.environ, **additions}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None where the shell has closed it
            stream.flush()
    try:
        os.execve(sys.executable, command, environment)
    except OSError as error:
        sys.exit(complain(f"cannot execute {sys.executable}: {error.strerror}"))


def import_folders() -> str:
    """Where a Python without site-packages (-S) finds what portalpatch imports."""
    import greenlet  # type: ignore[import-untyped,unused-ignore]

    return os.path.dirname(os.path.dirname(os.path.abspath(str(greenlet.__file__))))


def interpreter_flags(command: Sequence[str]) -> list[str]:
    """The interpreter's own flags in `sys.orig_argv`: all before `-m portalpatch`, or before the
    script's path when started through one (as the `portalpatch` command is)."""
    flags: list[str] = []
    position = 1
    while position < len(command):
        word = command[position]
        if not word.startswith("-") or word in ("-", "--"):
            break
        position += 1
        if word.startswith("--"):
            flags.append(word)
            if word == "--check-hash-based-pycs" and position < len(command):
                flags.append(command[position])
                position += 1
            continue
        for index, letter in enumerate(word[1:], 1):
            if letter == "m":
                if index > 1:
                    flags.append(word[:index])
                return flags
            if letter in "WX":
                flags.append(word)
                if index == len(word) - 1 and position < len(command):
                    flags.append(command[position])
                    position += 1
                break
            if letter == "c":
                return flags
        else:
            flags.append(word)
    return flags

"""Programs under test, run in processes of their own: how they are started and how they end.

Called by conftest.py's fixtures and by tests. A program that does not end within its limit has hung:
its stacks are printed, it is ended by pid, and the test fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

MODES = ("cli", "patch_all", "preload", "no-preload")


@dataclass(frozen=True)
class Completed:
    """How a program ended. `status` is negative where a signal killed it."""

    status: int
    out: str
    err: str

    def check(self, status: int = 0) -> Completed:
        """Fail the test unless the program ended with `status`; returns self."""
        assert self.status == status, (
            f"status {self.status}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
        )
        return self


def library_path() -> str:
    import portalpatch

    return os.path.join(os.path.dirname(os.path.abspath(portalpatch.__file__)), "libportalpatch.so")


def sanitizer_environment() -> dict[str, str]:
    """What programs need where `make asan-portal` runs the tests; empty elsewhere."""
    names = ("PYTHONPATH", "PYTHONMALLOC")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    if "SANITIZER_PRELOAD" in os.environ:
        environment["LD_PRELOAD"] = f"{os.environ['SANITIZER_PRELOAD']}{library_path()}"
    return environment if "PYTHONMALLOC" in environment else {}


def command_for(
    mode: str, program: Sequence[str], flags: Sequence[str] = (), options: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The command line and the extra environment that run `program` in one of MODES or "plain"."""
    python = [sys.executable, *flags]
    if mode == "cli":
        return [*python, "-m", "portalpatch", *options, *program], {}
    if mode == "no-preload":
        return [*python, "-m", "portalpatch", "--no-preload", *options, *program], {}
    if mode == "preload":
        return [*python, *program], {"LD_PRELOAD": library_path(), "PORTALPATCH": "1"}
    assert mode in ("plain", "patch_all"), mode
    return [*python, *program], {}


def finish(process: subprocess.Popen, limit: float, stdin: str | None = None) -> Completed:
    """Wait for a program at most `limit` seconds. On a hang: its stacks, its end, a failed test."""
    try:
        out, err = process.communicate(stdin, timeout=limit)
        return Completed(process.returncode, out, err)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER=1 prints the stacks
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            end_session_of(process)
            out, err = process.communicate(timeout=5)
        pytest.fail(f"hang: no end after {limit} s\n--- stdout\n{out}\n--- stderr\n{err}")
    finally:
        end_session_of(process)


def end_session_of(process: subprocess.Popen) -> None:
    """Kill what is left of the process group that start_program() made for this program."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)

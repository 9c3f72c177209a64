"""Runs the stress program with many seeds: what `make stress` does.

usage: python run.py [--runs N] [--first SEED] [--jobs N] [--preload LIBRARIES] [flags of Python...]

Every seed runs with the interpreter's own flags given here (`-X dev`, say) under `python -m
portalpatch`; with --preload (a sanitizer's runtime, colon-separated) the library is preloaded after
those. A failure prints its output and the command that repeats it; the status is the number of
failures. Seeds are 1, 2, 3 ...: a run can be repeated anywhere.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().with_name("program.py")
LIMIT = 200  # seconds; the program itself reports a hang earlier


def command_for(flags: list[str], preload: str, seed: int) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of one run."""
    program = [str(PROGRAM), str(seed)]
    if not preload:
        return [sys.executable, *flags, "-m", "portalpatch", *program], dict(os.environ)
    package = importlib.util.find_spec("portalpatch")  # not imported: a sanitizer has to come first
    assert package is not None and package.origin is not None
    library = Path(package.origin).with_name("libportalpatch.so")
    # ThreadSanitizer looks away while it is inside a blocking call, so none of its own may park.
    libraries = f"{library}:{preload}" if "libtsan" in preload else f"{preload}:{library}"
    # Not the leaks of CPython; and the slow unwinder loses its way on a greenlet's stack.
    return [sys.executable, *flags, *program], {
        **os.environ,
        "LD_PRELOAD": libraries,
        "PORTALPATCH": "1",
        "ASAN_OPTIONS": "detect_leaks=0:fast_unwind_on_fatal=1:"
        + os.environ.get("ASAN_OPTIONS", ""),
        "TSAN_OPTIONS": "die_after_fork=0:" + os.environ.get("TSAN_OPTIONS", ""),
    }


def run(flags: list[str], preload: str, seed: int) -> str:
    """What went wrong with this seed; empty: nothing."""
    command, environment = command_for(flags, preload, seed)
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired as hang:
        output = hang.stdout or b""
        return f"seed {seed}: no end after {LIMIT} s\n{output.decode(errors='replace')}"
    if done.returncode == 0 and done.stdout == f"seed {seed}: ok\n":
        return ""
    return f"seed {seed}: status {done.returncode}\n{done.stdout}repeat: {' '.join(command)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--preload", default="")
    arguments, flags = parser.parse_known_args()
    seeds = range(arguments.first, arguments.first + arguments.runs)
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for problem in pool.map(lambda seed: run(flags, arguments.preload, seed), seeds):
            if problem:
                failures += 1
                print(problem, flush=True)
    print(f"{arguments.runs - failures} of {arguments.runs} runs passed")
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())

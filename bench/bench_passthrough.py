"""What an interposed call costs where no portal is: recv on a ready socket, in a C program.

Pairs of runs, plain and under the idle preload, in turns; the median of the differences. Where
valgrind is installed, the instructions per call as well, which no noise can move.
Target: at most 5 ns added.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET_NS = 5.0


def main() -> None:
    quick = "--quick" in sys.argv
    rounds, calls = (5, 300_000) if quick else (25, 1_000_000)
    library = subprocess.run(
        [sys.executable, "-m", "portalpatch", "--library-path"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "passthrough"))
        source = str(Path(__file__).with_name("passthrough.c"))
        subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
        plain_env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        loaded_env = {**plain_env, "LD_PRELOAD": library}

        def once(env: dict[str, str]) -> float:
            command = [program, str(calls)]
            return float(subprocess.run(command, check=True, capture_output=True, env=env).stdout)

        pairs = [(once(plain_env), once(loaded_env)) for _ in range(rounds)]
        added = statistics.median(loaded - plain for plain, loaded in pairs)
        plain = statistics.median(plain for plain, _ in pairs)
        print(f"recv on a ready socket, plain: {plain:.1f} ns")
        verdict = "met" if added <= TARGET_NS else "missed"
        print(f"added by the idle preload: {added:+.2f} ns (target {TARGET_NS:.0f}: {verdict})")
        if shutil.which("valgrind"):
            print(
                f"instructions added per call: {instructions(program, plain_env, loaded_env):.1f}"
            )


def instructions(program: str, plain: dict[str, str], loaded: dict[str, str]) -> float:
    """Instructions that one call under the preload takes more than a plain one."""

    def count(env: dict[str, str], calls: int) -> int:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program]
        run = subprocess.run([*command, str(calls)], check=True, capture_output=True, env=env)
        found = re.search(rb"Collected : (\d+)", run.stderr)
        assert found, run.stderr
        return int(found[1])

    # The difference of two lengths leaves start-up out.
    per_call = [(count(env, 20_000) - count(env, 10_000)) / 10_000 for env in (plain, loaded)]
    return per_call[1] - per_call[0]


if __name__ == "__main__":
    main()

"""`make bench`: runs every benchmark, then writes the table and the plots from their results.

usage: python run.py [--quick] [--rounds N] [names ...]

A quick run stops starting benchmarks when its three minutes are nearly over, and says which are left.
The exit status is 1 when a benchmark itself failed; a missed target is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import harness

ORDER = (
    "portal",
    "primitives",
    "startup",
    "passthrough",
    "idle",
    "scale",
    "echo",
    "db",
    "http",
    "crawl",
)
QUICK_SECONDS = 175


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="once each, short, in 3 minutes")
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each")
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(ORDER)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(ORDER):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    names = [name for name in ORDER if not args.names or name in args.names]
    passed_on = ["--quick"] if args.quick else []
    if args.rounds:
        passed_on += ["--rounds", str(args.rounds)]
    start, failed, left = time.monotonic(), [], []
    for name in names:
        remaining = QUICK_SECONDS - (time.monotonic() - start) if args.quick else None
        if remaining is not None and remaining < 5:
            left.append(name)
            continue
        program = str(harness.HERE / f"bench_{name}.py")
        try:
            status = subprocess.run(
                harness.pinned([sys.executable, program, *passed_on], None), timeout=remaining
            ).returncode
        except subprocess.TimeoutExpired:
            left.append(name)
            continue
        if status:
            failed.append(name)
    if not args.quick:
        subprocess.run([sys.executable, str(harness.HERE / "report.py")], check=True)
    if left:
        print(f"not finished within the {QUICK_SECONDS} s: {', '.join(left)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

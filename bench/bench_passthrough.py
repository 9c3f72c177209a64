"""What interposed calls cost where nothing parks: one recv, redis-benchmark and pgbench.

Many short runs, plain and preloaded in the order A B, B A, A B ...; the median of the pairs' ratios, and
the range that it lies in 19 times of 20, of the throughput and of the client's CPU time (start included).
Where valgrind is installed, the instructions (user mode) per call and per request as well, which no noise
can move.
"""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness
from servers import postgres, redis
from servers.process import Missing

# The standard error of the median is 1.8 of a run's own scatter over the root of this: a scatter of 2%
# leaves 0.3%. Each program has its minutes: a run takes about half a second.
PAIRS = 121


def instructions(command: Callable[[int], list[str]], env: dict[str, str], few: int) -> float:
    """Instructions of one request; the difference of two lengths leaves start-up out."""

    def count(requests: int) -> int:
        # A pgbench that is Debian's script executes the real one.
        valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        valgrind.append("--trace-children=yes")
        run = subprocess.run(
            [*valgrind, *command(requests)], check=True, capture_output=True, env=env, timeout=300
        )
        found = re.findall(rb"Collected : (\d+)", run.stderr)
        if not found:
            raise RuntimeError(run.stderr[-300:].decode(errors="replace"))
        return int(found[-1])

    return (count(2 * few) - count(few)) / few


def losses(group: harness.Group, metric: str, plain: str, loaded: str) -> list[float]:
    """Percent that the preload costs, for each pair, in order of size: less `rate`, or more `cpu`."""
    pairs = zip(group.samples[plain][metric], group.samples[loaded][metric], strict=True)
    sign = 1 if metric == "rate" else -1
    return sorted(sign * (1 - b / a) * 100 for a, b in pairs)


def median_range(ordered: list[float]) -> tuple[float, float]:
    """Where the true median lies with 95% confidence: the binomial order statistics."""
    half = 0.98 * math.sqrt(len(ordered))
    low = max(0, math.floor(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))
    return ordered[low], ordered[high]


def main() -> None:
    args = harness.options(__doc__)
    bench = harness.Benchmark("passthrough", "the idle preload", args)
    library = subprocess.run(
        [sys.executable, "-m", "portalpatch", "--library-path"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    plain_env = harness.plain_environment()
    loaded_env = harness.plain_environment(LD_PRELOAD=library)
    program = harness.compile_c("passthrough.c")
    calls = 300_000 if bench.quick else 1_000_000

    def recv(env: dict[str, str]):
        command = harness.pinned([program, str(calls)], harness.SERVER_CPU)

        def once():
            run = subprocess.run(command, check=True, capture_output=True, env=env)
            return {"ns": float(run.stdout)}

        return once

    group = bench.measure(
        "recv on a ready socket, a C program",
        {"ns": "ns each"},
        {"plain": recv(plain_env), "idle preload": recv(loaded_env)},
        5 if bench.quick else 25,
    )
    if not args.only:
        figures = group.samples
        pairs = zip(figures["plain"]["ns"], figures["idle preload"]["ns"], strict=True)
        added = statistics.median(loaded - plain for plain, loaded in pairs)
        bench.target("ns that the idle preload adds to a recv", added, 5)
        if shutil.which("valgrind"):

            def command(calls: int) -> list[str]:
                return [program, str(calls)]

            more = instructions(command, loaded_env, 10_000)
            more -= instructions(command, plain_env, 10_000)
            bench.note(f"instructions that the idle preload adds to a recv: {more:.1f}")

    os.sched_setaffinity(0, {harness.LOAD_CPU})  # the servers inherit it
    rounds = bench.rounds if bench.quick else PAIRS

    def client(command: list[str], env: dict[str, str], pattern: str, requests: int):
        def once():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run = subprocess.run(
                harness.pinned(command, harness.SERVER_CPU),
                check=True,
                capture_output=True,
                text=True,
                env=env,
                timeout=120,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found = re.search(pattern, run.stdout)
            if not found:
                raise RuntimeError(run.stdout[-300:] + run.stderr[-300:])
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return {"rate": float(found[1]), "cpu": used / requests * 1e6}

        return once

    def pair(
        title: str,
        command: list[str],
        pattern: str,
        requests: int,
        counted: Callable[[int], list[str]],
    ) -> None:
        cases = {
            "plain": client(command, plain_env, pattern, requests),
            "idle preload": client(command, loaded_env, pattern, requests),
        }
        metrics = {"rate": "requests/s", "cpu": "client CPU us each"}
        group = bench.measure(title, metrics, cases, rounds)
        if args.only or group.failed:
            return
        for metric, what in (("rate", "lost"), ("cpu", "more client CPU")):
            ordered = losses(group, metric, "plain", "idle preload")
            loss = statistics.median(ordered)
            bench.target(f"{title}: percent {what} under the idle preload", loss, 1)
            low, high = median_range(ordered)
            bench.note(
                f"{title}, {what}: {len(ordered)} pairs, the median is in {low:.2f}% to {high:.2f}%"
            )
        if shutil.which("valgrind"):
            plain = instructions(counted, plain_env, 1000)
            more = instructions(counted, loaded_env, 1000) - plain
            bench.note(
                f"{title}: {more:+.0f} client instructions a request on {plain:.0f} "
                f"({100 * more / plain:+.2f}%)"
            )

    try:
        benchmark = shutil.which("redis-benchmark")
        if benchmark is None:
            raise Missing("redis-benchmark not found: install the Debian package redis-tools")
        server = redis.start()
    except Missing as why:
        bench.missing("redis-benchmark", str(why))
    else:
        try:
            number = 20_000
            command = [benchmark, "-p", str(server.port), "-t", "get", "--csv", "-n"]
            pair(
                "redis-benchmark, GET",
                [*command, str(number)],
                r'"GET","([\d.]+)"',
                number,
                lambda requests: [*command, str(requests), "-c", "1"],  # else as its waits fall
            )
        finally:
            server.stop()
    try:
        # Debian's command of that name is a script, which would be measured as well.
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
        benchmark = str(found[-1]) if found else shutil.which("pgbench")
        if benchmark is None:
            raise Missing("pgbench not found: install the Debian package postgresql-contrib")
        server = postgres.start()
    except Missing as why:
        bench.missing("pgbench", str(why))
    else:
        try:
            connect = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
            initialise = [benchmark, "-i", "-q", *connect, "postgres"]
            subprocess.run(initialise, check=True, capture_output=True, env=plain_env, timeout=120)
            command = [benchmark, "-S", "-n", *connect]
            each = 500
            pair(
                "pgbench, select only",
                [*command, "-c", "8", "-t", str(each), "postgres"],
                r"tps = ([\d.]+)",
                8 * each,
                lambda requests: [*command, "-c", "1", "-t", str(requests), "postgres"],
            )
        finally:
            postgres.stop(server)
    bench.finish()


if __name__ == "__main__":
    main()

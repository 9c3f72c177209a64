"""What interposed calls cost where nothing parks: one recv, redis-benchmark and pgbench.

Pairs of runs, plain and under the idle preload, in turns; the median of the differences. Where
valgrind is installed, the instructions per call as well, which no noise can move.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys

import harness
from servers import postgres, redis
from servers.process import Missing


def instructions(program: str, env: dict[str, str]) -> float:
    """Instructions of one call; the difference of two lengths leaves start-up out."""

    def count(calls: int) -> int:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program]
        run = subprocess.run([*command, str(calls)], check=True, capture_output=True, env=env)
        found = re.search(rb"Collected : (\d+)", run.stderr)
        assert found, run.stderr
        return int(found[1])

    return (count(20_000) - count(10_000)) / 10_000


def median_loss(group: harness.Group, plain: str, loaded: str) -> float:
    """Percent of the plain rate that the preload costs, median of the pairs."""
    pairs = zip(group.samples[plain]["rate"], group.samples[loaded]["rate"], strict=True)
    return statistics.median((1 - b / a) * 100 for a, b in pairs)


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
            more = instructions(program, loaded_env) - instructions(program, plain_env)
            bench.note(f"instructions that the idle preload adds to a recv: {more:.1f}")

    os.sched_setaffinity(0, {harness.LOAD_CPU})  # the servers inherit it
    rounds = bench.rounds if bench.quick else 9

    def client(command: list[str], env: dict[str, str], pattern: str):
        def once():
            run = subprocess.run(
                harness.pinned(command, harness.SERVER_CPU),
                check=True,
                capture_output=True,
                text=True,
                env=env,
                timeout=120,
            )
            found = re.search(pattern, run.stdout)
            if not found:
                raise RuntimeError(run.stdout[-300:] + run.stderr[-300:])
            return {"rate": float(found[1])}

        return once

    def pair(title: str, command: list[str], pattern: str) -> None:
        cases = {
            "plain": client(command, plain_env, pattern),
            "idle preload": client(command, loaded_env, pattern),
        }
        group = bench.measure(title, {"rate": "requests/s"}, cases, rounds)
        if not args.only and not group.failed:
            loss = median_loss(group, "plain", "idle preload")
            bench.target(f"{title}: percent lost under the idle preload", loss, 1)

    try:
        benchmark = shutil.which("redis-benchmark")
        if benchmark is None:
            raise Missing("redis-benchmark not found: install the Debian package redis-tools")
        server = redis.start()
    except Missing as why:
        bench.missing("redis-benchmark", str(why))
    else:
        try:
            number = "20000" if bench.quick else "200000"
            command = [benchmark, "-p", str(server.port), "-t", "get", "-n", number, "--csv"]
            pair("redis-benchmark, GET", command, r'"GET","([\d.]+)"')
        finally:
            server.stop()
    try:
        benchmark = shutil.which("pgbench")
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
            seconds = "1" if bench.quick else "2"
            command = [benchmark, "-S", "-n", "-c", "8", "-T", seconds, *connect, "postgres"]
            pair("pgbench, select only", command, r"tps = ([\d.]+)")
        finally:
            postgres.stop(server)
    bench.finish()


if __name__ == "__main__":
    main()

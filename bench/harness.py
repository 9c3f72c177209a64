"""What every benchmark shares: pinning, interleaved rounds, medians, targets, results as JSON.

A benchmark makes a `Benchmark`, declares the peers it cannot run (`missing`), gives `measure` its
cases, names its targets and calls `finish`. Each round runs every case once, in turns, so that what
else the machine does meets all of them; a ratio is the median of the rounds' own ratios. Nothing
here asserts a time. A sample that another program disturbed is taken again, a few times at most.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROGRAMS = HERE / "programs"
BUILT = ROOT / "build" / "bench"
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU = CPUS[0]
LOAD_CPU = CPUS[-1]
DISTURBED = 0.15  # share of the CPUs that other programs may take before a sample is taken again
RETRIES = 1

Sample = Mapping[str, float]
sys.path.insert(1, str(ROOT / "tests"))  # `servers`: the tests' private PostgreSQL, nginx ...


def options(description: str | None) -> argparse.Namespace:
    """The arguments that all benchmarks take."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short, one round, not recorded")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 5; quick: 1)")
    parser.add_argument("--only", default="", help="comma-separated words: run matching cases only")
    parser.add_argument("--output", type=Path, help="folder for the JSON result")
    return parser.parse_args()


def installed(*modules: str) -> bool:
    """Whether all these modules can be imported here."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def pin(cpu: int) -> None:
    """Keep this process, its children to come and its threads on one CPU."""
    os.sched_setaffinity(0, {cpu})


def raise_open_files() -> None:
    """As many open files as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(pid: int) -> float:
    """CPU time of a running process, all its threads, in seconds; nanosecond clock."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_kib(pid: int | str = "self") -> float:
    """Proportional resident memory of a process."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return float(line.split()[1])
    raise OSError(f"no Pss of process {pid}")


def compile_c(source: str, *flags: str) -> str:
    """The path of the program made from `programs/<source>`; built when its source is newer."""
    path = PROGRAMS / source
    program = BUILT / path.stem
    if not program.exists() or program.stat().st_mtime < path.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(path), *flags]
        subprocess.run(command, check=True)
    return str(program)


def plain_environment(**extra: str) -> dict[str, str]:
    """This environment without what would change how a Python starts, or how it fetches pages."""
    dropped = ("PYTHON", "PORTALPATCH", "LD_PRELOAD", "MALLOC_", "REQUESTS_", "CURL_", "SSL_CERT")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(dropped) and not name.lower().endswith("_proxy")
    }
    return {**kept, **extra}


LAUNCHERS: dict[str, list[str]] = {
    "plain": [],
    "portalpatch": ["-m", "portalpatch"],
    "portalpatch trio": ["-m", "portalpatch", "--host", "trio"],
    "gevent": [str(PROGRAMS / "run_under.py"), "gevent"],
    "gevent psycogreen": [str(PROGRAMS / "run_under.py"), "gevent+psycogreen"],
    "eventlet": [str(PROGRAMS / "run_under.py"), "eventlet"],
    "greenletio": [str(PROGRAMS / "run_under.py"), "greenletio"],
}
"""How an unmodified program is started: words between `python` and the program's path."""


def python(launcher: str, program: str, *arguments: object) -> list[str]:
    """The command that runs `programs/<program>` under one of the LAUNCHERS."""
    words = [str(PROGRAMS / program), *map(str, arguments)]
    return [sys.executable, *LAUNCHERS[launcher], *words]


def pinned(command: Sequence[str], cpu: int | None) -> list[str]:
    """`command` on one CPU (None: on all of them); it ends when we do."""
    where = ["taskset", "-c", str(cpu)] if cpu is not None else []
    return ["setpriv", "--pdeathsig", "KILL", *where, *command]


@contextlib.contextmanager
def serving(
    command: Sequence[str], cpu: int | None = SERVER_CPU, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that prints one line (its port) once it is ready; ended by its pid."""
    process = subprocess.Popen(
        pinned(command, cpu),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env if env is not None else plain_environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    drain.start()
    guard = threading.Timer(60, process.kill)
    guard.start()
    try:
        line = process.stdout.readline()
        guard.cancel()
        if not line:
            process.wait(10)
            drain.join(5)
            raise RuntimeError("".join(errors)[-400:] or "the server ended at once")
        yield process, line.strip()
    finally:
        guard.cancel()
        process.kill()
        process.wait(30)


def finished(
    command: Sequence[str],
    cpu: int | None = SERVER_CPU,
    env: Mapping[str, str] | None = None,
    limit: float = 300,
) -> dict[str, Any]:
    """Run a program to its end; it prints one line of JSON, to which its CPU time is added."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        pinned(command, cpu),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env if env is not None else plain_environment(),
        timeout=limit,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise RuntimeError(run.stderr[-400:] or f"exit status {run.returncode}")
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result.setdefault("cpu_seconds", used)
    return result


def load(
    server: tuple[list[str], dict[str, str], bool],
    client: str,
    connections: int,
    size: int,
    warm: float,
    seconds: float,
    *path: str,
) -> Sample:
    """One run of a server (command, environment, pinned?) under load by the C client."""
    command, env, pin_server = server
    with serving(command, SERVER_CPU if pin_server else None, env) as (process, port):
        words = [port, *map(str, (connections, size, warm, seconds, process.pid)), *path]
        run = subprocess.run(
            pinned([client, *words], LOAD_CPU), capture_output=True, text=True, timeout=120
        )
        if run.returncode:
            raise RuntimeError(run.stderr or f"client exit status {run.returncode}")
        got = json.loads(run.stdout)
    requests = got["requests"]
    return {
        "cpu": got["cpu_seconds"] / requests * 1e6,
        "rate": requests / got["seconds"],
        "p50": got["p50"],
        "p99": got["p99"],
    }


class Others:
    """How much of the CPUs programs other than ours (and the `pids` given) used meanwhile."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.start = (time.monotonic(), self.busy(), self.own())

    @staticmethod
    def busy() -> float:
        """Seconds that the CPUs we may use were busy."""
        total = 0
        with open("/proc/stat") as stat:
            for line in stat:
                name, *fields = line.split()
                if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in CPUS:
                    total += sum(map(int, fields[:8])) - int(fields[3]) - int(fields[4])
        return total / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def own() -> float:
        """Seconds used by this process and its children, those that still run included."""
        times = os.times()
        total = times.user + times.system + times.children_user + times.children_system
        todo = [os.getpid()]
        while todo:
            pid = todo.pop()
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
                    todo.extend(map(int, children))
                if pid != os.getpid():
                    total += cpu_seconds(pid)
                    # what its own ended children used: a server that forks one for each session
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    total += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
            except OSError:
                continue
        return total

    def share(self) -> float:
        """Their part of the CPUs, 0 to 1."""
        now, busy, own = time.monotonic(), self.busy(), self.own()
        elapsed = max(now - self.start[0], 0.05) * len(CPUS)
        return max(0.0, (busy - self.start[1] - (own - self.start[2])) / elapsed)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": f"{model}, {platform.machine()}, {len(CPUS)} CPUs",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
    }


def versions(*distributions: str) -> dict[str, str]:
    """Versions of installed distributions."""
    found = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """The commit measured, "+" added where the tree differs from it."""
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    code = ["interpose", "pyglue", "patches"]
    dirty = subprocess.run([*git, "status", "--porcelain", "--", *code], capture_output=True)
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


class Group:
    """Samples of one set of cases: `samples[case][metric]` holds a figure for each round."""

    def __init__(self, title: str, metrics: Mapping[str, str], transposed: bool = False) -> None:
        self.title = title
        self.transposed = transposed  # in tables: a row for each metric
        self.metrics = dict(metrics)  # key -> heading with its unit
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.failed: dict[str, str] = {}
        self.disturbed = 0

    def median(self, case: str, metric: str) -> float:
        """The median of a case's figure; nan where it has none."""
        values = [v for v in self.samples.get(case, {}).get(metric, []) if not math.isnan(v)]
        return statistics.median(values) if values else math.nan

    def ratio(self, metric: str, case: str, other: str) -> float:
        """The median of the rounds' ratios `case / other`; nan where one of them has no figure."""
        ours = self.samples.get(case, {}).get(metric, [])
        theirs = self.samples.get(other, {}).get(metric, [])
        pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b and not math.isnan(a / b)]
        return statistics.median(pairs) if pairs else math.nan

    def added_ratio(self, metric: str, case: str, other: str, base: str) -> float:
        """The median over the rounds of (case - base) / (other - base)."""
        columns = [self.samples.get(name, {}).get(metric, []) for name in (case, other, base)]
        pairs = [(a - c) / (b - c) for a, b, c in zip(*columns, strict=False) if b != c]
        return statistics.median(pairs) if pairs else math.nan

    def record(self) -> dict[str, Any]:
        """The group as JSON holds it."""
        cases: dict[str, Any] = {}
        for case, figures in self.samples.items():
            cases[case] = {
                metric: {
                    "median": self.median(case, metric),
                    "low": min(values),
                    "high": max(values),
                    "rounds": values,
                }
                for metric, values in figures.items()
                if values
            }
        return {
            "title": self.title,
            "metrics": self.metrics,
            "transposed": self.transposed,
            "cases": cases,
            "failed": self.failed,
            "disturbed": self.disturbed,
        }


class Benchmark:
    """One benchmark's groups, targets and missing peers; prints as it goes."""

    def __init__(self, name: str, title: str, args: argparse.Namespace, *used: str) -> None:
        self.name, self.title, self.args = name, title, args
        self.quick: bool = args.quick
        self.rounds: int = args.rounds or (1 if args.quick else 5)
        self.groups: list[Group] = []
        self.targets: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.absent: dict[str, str] = {}
        self.used = versions("portalpatch", "greenlet", *used)
        print(f"== {name}: {title}", flush=True)

    def present(self, peer: str, *modules: str) -> bool:
        """Whether a peer can run; where not, it is reported missing."""
        if installed(*modules):
            return True
        self.missing(peer, "not installed: " + ", ".join(m for m in modules if not installed(m)))
        return False

    def missing(self, peer: str, why: str) -> None:
        """Report a peer that takes no part."""
        if peer not in self.absent:
            self.absent[peer] = why
            print(f"   missing: {peer} ({why})", flush=True)

    def note(self, text: str) -> None:
        """A line below the tables."""
        self.notes.append(text)
        print(f"   {text}", flush=True)

    def measure(
        self,
        title: str,
        metrics: Mapping[str, str],
        cases: Mapping[str, Callable[[], Sample]],
        rounds: int | None = None,
        transposed: bool = False,
    ) -> Group:
        """Run every case once a round, in an order that turns; print and keep what they give."""
        words = [word for word in self.args.only.split(",") if word]
        chosen = {
            name: case
            for name, case in cases.items()
            if not words or any(word in f"{title} {name}" for word in words)
        }
        group = Group(title, metrics, transposed)
        self.groups.append(group)
        names = list(chosen)
        for number in range(rounds or self.rounds):
            shift = number % len(names) if names else 0
            for name in names[shift:] + names[:shift]:
                if name in group.failed:
                    continue
                self._sample(group, name, chosen[name])
        # the order of declaration, whatever the order of measuring
        group.samples = {name: group.samples[name] for name in names if name in group.samples}
        if names:
            print_table(group)
        return group

    def _sample(self, group: Group, name: str, case: Callable[[], Sample]) -> None:
        sample: Sample = {}
        for attempt in range(1 if self.quick else 1 + RETRIES):
            others = Others()
            try:
                sample = case()
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                group.failed[name] = f"{type(error).__name__}: {lines[-1]}"[:160]
                group.samples.pop(name, None)
                print(f"   failed: {name}: {group.failed[name]}", flush=True)
                return
            if others.share() <= DISTURBED:
                break
            if attempt == RETRIES:
                group.disturbed += 1
        for metric in group.metrics:
            value = sample.get(metric, math.nan)
            group.samples.setdefault(name, {}).setdefault(metric, []).append(value)

    def target(self, what: str, figure: float, limit: float, kind: str = "at most") -> None:
        """Name a target with its figure, and say whether it is met."""
        if math.isnan(figure):
            verdict = "not measured"
        else:
            met = figure <= limit if kind == "at most" else figure >= limit
            verdict = "met" if met else "missed"
        self.targets.append(
            {"what": what, "figure": figure, "limit": limit, "kind": kind, "verdict": verdict}
        )
        print(f"   {verdict:>12}: {what}: {figure:.3g} ({kind} {limit:g})", flush=True)

    def finish(self) -> None:
        """Write the JSON result: into bench/results, a quick run's into build/bench."""
        record = {
            "name": self.name,
            "title": self.title,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
            "commit": commit(),
            "machine": machine(),
            "versions": self.used,
            "rounds": self.rounds,
            "quick": self.quick,
            "groups": [group.record() for group in self.groups if group.samples or group.failed],
            "targets": self.targets,
            "missing": self.absent,
            "notes": self.notes,
        }
        partial = self.quick or self.args.only
        folder: Path = self.args.output or (BUILT if partial else HERE / "results")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(without_nan(record), indent=1) + "\n")
        with contextlib.suppress(ValueError):
            path = path.relative_to(ROOT)
        print(f"   -> {path}\n", flush=True)


def without_nan(value: Any) -> Any:
    """`value` with None for each nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def figure(value: float) -> str:
    """A figure in three significant digits, or as a whole number."""
    if value != value:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}"


def print_table(group: Group) -> None:
    """The group on the terminal: medians, and the spread of the first metric where it is alone."""
    print(f"   {group.title}")
    rows = [[figure(group.median(case, m)) for m in group.metrics] for case in group.samples]
    names, headings = list(group.samples), list(group.metrics.values())
    if group.transposed:
        rows = [list(column) for column in zip(*rows, strict=True)]
        names, headings = headings, names
    width = max(map(len, [*names, ""]))
    widths = [max(12, len(heading)) for heading in headings]
    line = "  ".join(f"{h:>{w}}" for h, w in zip(headings, widths, strict=True))
    print(f"     {'':<{width}}  {line}")
    for name, row in zip(names, rows, strict=False):
        line = "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        spread = ""
        if not group.transposed:
            first = group.samples[name][next(iter(group.metrics))]
            spread = f"   [{figure(min(first))} .. {figure(max(first))}]"
        print(f"     {name:<{width}}  {line}{spread}")
    for name, why in group.failed.items():
        print(f"     {name}: failed: {why}")
    if group.disturbed:
        print(f"     ({group.disturbed} samples were taken while other programs used the CPUs)")
    sys.stdout.flush()

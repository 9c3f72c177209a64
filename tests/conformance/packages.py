"""`make packages`: test suites of client libraries, plain and under `python -m portalpatch`.

usage: python packages.py [--no-record] [suites ...]
       make packages [PYTHON=python3.12] [SUITES="redis psycopg2"]

Each suite in SUITES is an sdist of a fixed version from the package index, unpacked and not edited. The
package is built from it; it and what its tests need go into a folder of their own that is on the
suite's PYTHONPATH. The tests run on the private servers of tests/servers, first plain and then with
`-m portalpatch` put before `-m pytest`. outcomes.py, loaded into pytest, records each test.

What counts is a test whose outcome is not the plain run's: a test that fails both ways (it wants the
internet, a cluster, another server version) is the environment's. SILENCE seconds without a test's
beginning or end is a hang; that and a crash end the run of the suite and fail it. Tests that differ
run once more both ways, without the others; those that agree then are "unsteady".

Both runs leave out the carets of tracebacks: those are found by ast.parse(), and where garbage
collection within ast.parse() formats a traceback (urllib3's tests make warnings errors, also in
finalizers), CPython before 3.11.8 stops with "AST constructor recursion depth mismatch" (gh-106905).

The exit status is 0 when nothing differs. The table is recorded in PACKAGES.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from servers import mariadb, postgres, redis  # noqa: E402
from servers.process import Server, clean_environment  # noqa: E402

BUILD = ROOT / "build" / "packages"
TABLE = HERE / "PACKAGES.md"
VERSION = platform.python_version()
SILENCE = 180.0  # seconds; suites have tests that wait a minute for a host that does not answer
PYTEST = ("pytest==8.3.4", "pytest-timeout==2.3.1")


# ---- the suites ------------------------------------------------------------------------------


@dataclass
class Setting:
    """What a suite's tests are told about its server."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Suite:
    sdist: str
    needs: tuple[str, ...]
    tests: tuple[str, ...]  # pytest's arguments
    server: Callable[[Path], contextlib.AbstractContextManager[Setting]]


@contextlib.contextmanager
def no_server(folder: Path) -> Iterator[Setting]:
    """The tests bring their own servers, in threads."""
    yield Setting()


@contextlib.contextmanager
def patient(folder: Path) -> Iterator[Setting]:
    """urllib3's own switch for slow machines: its tests wait 500 ms for an answer instead of 10."""
    yield Setting({"CI": "1"})


@contextlib.contextmanager
def mariadb_with_databases(folder: Path) -> Iterator[Setting]:
    server = mariadb.start()
    try:
        at = {"host": server.host, "port": server.port, "user": "root", "passwd": ""}
        databases = [
            {**at, "db": "test1", "use_unicode": True, "local_infile": True},
            {**at, "db": "test2"},
        ]
        for database in ("test1", "test2"):
            mariadb.query(server, f"create database {database} character set utf8mb4")
        (folder / "pymysql" / "tests" / "databases.json").write_text(json.dumps(databases))
        yield Setting()
    finally:
        server.stop()


@contextlib.contextmanager
def empty_redis(folder: Path) -> Iterator[Setting]:
    server = redis.start()
    try:
        yield Setting(arguments=[f"--redis-url=redis://{server.host}:{server.port}/0"])
    finally:
        server.stop()


@contextlib.contextmanager
def postgres_database(*statements: str) -> Iterator[Server]:
    server = postgres.start()
    try:
        for statement in statements:
            postgres.query(server, statement)
        yield server
    finally:
        postgres.stop(server)


@contextlib.contextmanager
def postgres_for_psycopg2(folder: Path) -> Iterator[Setting]:
    with postgres_database(
        "create database psycopg2_test encoding 'UTF8' template template0"
    ) as server:
        yield Setting(
            {
                "PSYCOPG2_TESTDB_HOST": server.host,
                "PSYCOPG2_TESTDB_PORT": str(server.port),
                "PSYCOPG2_TESTDB_USER": "postgres",
            }
        )


@contextlib.contextmanager
def postgres_for_sqlalchemy(folder: Path) -> Iterator[Setting]:
    with postgres_database("create database test encoding 'UTF8' template template0") as server:
        url = f"postgresql+psycopg2://postgres@{server.host}:{server.port}/test"
        import psycopg2

        where = {"host": server.host, "port": server.port, "user": "postgres"}
        with contextlib.closing(psycopg2.connect(dbname="test", **where)) as connection:
            connection.autocommit = True
            for statement in (
                "create schema test_schema",
                "create schema test_schema_2",
                "create extension hstore",
                "create extension citext",
                "alter database test set default_text_search_config = 'pg_catalog.english'",
            ):
                with contextlib.suppress(psycopg2.Error):
                    connection.cursor().execute(statement)
        yield Setting(arguments=["--dburi", url])


SQLALCHEMY_NEEDS = ("psycopg2-binary==2.9.10", "typing-extensions==4.12.2")
SQLALCHEMY_ORM = [
    f"test/orm/test_{name}.py" for name in ("session", "transaction", "unitofwork", "versioning")
]

SUITES = {
    "requests": Suite(
        "requests==2.32.3",
        (
            "pytest-httpbin==2.0.0",
            "httpbin==0.10.2",
            "trustme==1.2.0",
            "pytest-mock==3.14.0",
            "PySocks==1.7.1",
            "urllib3==2.2.3",
            "certifi==2024.8.30",
            "idna==3.10",
            "charset-normalizer==3.4.0",
            "setuptools==75.6.0",
        ),
        ("tests",),
        no_server,
    ),
    "urllib3": Suite(
        "urllib3==2.0.7",  # later ones need a server that is on no package index
        (
            "tornado==6.4.1",
            "PySocks==1.7.1",
            "trustme==1.2.0",
            "pyOpenSSL==24.2.1",
            "cryptography==43.0.3",
            "idna==3.10",
        ),
        # 2 GiB through TLS, three times each for ssl and pyOpenSSL.
        ("test", "--deselect-substring=test_requesting_large_resources_via_ssl"),
        patient,
    ),
    "PyMySQL": Suite(
        "PyMySQL==0.10.1",  # the last whose sdist has the tests
        ("cryptography==43.0.3",),
        ("pymysql/tests",),
        mariadb_with_databases,
    ),
    "redis": Suite(
        "redis==5.2.1",
        (
            "pytest-asyncio==0.23.8",
            "mock==5.1.0",
            "cachetools==5.5.0",
            "packaging==24.2",
            "numpy==1.26.4",
            "pyOpenSSL==24.2.1",
            "cryptography==43.0.3",
        ),
        # Clusters, modules and TLS want servers and certificates that are not in the sdist.
        (
            "tests",
            "-o",
            "asyncio_mode=auto",
            "--ignore-glob=*cluster.py",
            "-W",
            "ignore",
            "-m",
            "not onlycluster and not redismod and not ssl and not graph",
        ),
        empty_redis,
    ),
    "psycopg2": Suite("psycopg2==2.9.10", (), ("tests",), postgres_for_psycopg2),
    "SQLAlchemy": Suite(
        "SQLAlchemy==2.0.36",
        SQLALCHEMY_NEEDS,
        ("test/engine", *SQLALCHEMY_ORM, "-q"),
        postgres_for_sqlalchemy,
    ),
    "SQLAlchemy-orm": Suite(  # the whole of it: hours on a small machine
        "SQLAlchemy==2.0.36", SQLALCHEMY_NEEDS, ("test/orm", "-q"), postgres_for_sqlalchemy
    ),
}


# ---- getting them ----------------------------------------------------------------------------


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)}:\n{done.stdout}")


def unpack(suite: Suite) -> Path:
    """The folder with the unpacked sdist, in this Python's part of build/."""
    target = BUILD / VERSION / suite.sdist.replace("==", "-") / "source"
    if not target.exists():
        sdists = BUILD / "sdists"
        name, _, version = suite.sdist.lower().partition("==")
        for _attempt in range(2):
            found = [
                path
                for path in sdists.glob("*.tar.gz")
                if path.name.lower().replace("_", "-") == f"{name}-{version}.tar.gz"
            ]
            if found:
                break
            pip("download", "--no-deps", "--no-binary", ":all:", "-d", str(sdists), suite.sdist)
        partial = target.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(found[0]) as archive:
            archive.extractall(partial, filter="data")
        next(partial.iterdir()).rename(target)
        partial.rmdir()
    return target


def install(suite: Suite, source: Path) -> Path:
    """The folder with the package, built from `source`, and what its tests need."""
    site = source.with_name("site")
    stamp = site / ".complete"
    if not stamp.exists():
        shutil.rmtree(site, ignore_errors=True)
        build = source.with_name("build")  # pip leaves files behind where it builds
        shutil.rmtree(build, ignore_errors=True)
        shutil.copytree(source, build)
        pip("install", "--target", str(site), str(build), *PYTEST, *suite.needs)
        shutil.rmtree(build)
        for path in site.glob("greenlet*"):
            shutil.rmtree(path)  # the one that portalpatch was built with is used
        stamp.touch()
    return site


# ---- running them ----------------------------------------------------------------------------


@dataclass
class Run:
    outcomes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    end: str = ""  # how the run ended, where that was a crash or a hang


def run(
    suite: Suite, source: Path, site: Path, setting: Setting, patched: bool, only: Sequence[str]
) -> Run:
    """Run the suite's tests, or those in `only`, and read what became of each."""
    kind = "patched" if patched else "plain"
    record, output = source.with_name(f"{kind}.json"), source.with_name(f"{kind}.log")
    record.unlink(missing_ok=True)
    source.with_name("pytest.ini").write_text("[pytest]\n")  # for suites that have none: not ours
    tests = list(suite.tests)
    deselect = [word.partition("=")[2] for word in tests if word.startswith("--deselect-substring")]
    tests = [word for word in tests if not word.startswith("--deselect-substring")]
    if deselect:
        tests += ["-k", " and ".join(f"not {word}" for word in deselect)]
    if only:
        chosen = source.with_name("only")
        chosen.write_text("".join(f"{test}\n" for test in only))
        first = next((index for index, word in enumerate(tests) if word[0] == "-"), len(tests))
        tests = [f"@{chosen}", *tests[first:]]
    command = [sys.executable, *(["-m", "portalpatch"] if patched else []), "-m", "pytest"]
    command += ["-p", "outcomes", "-p", "no:cacheprovider", f"--rootdir={source}", *tests]
    command += setting.arguments
    environment = {
        **clean_environment(),
        **setting.environment,
        "PYTHONPATH": f"{site}{os.pathsep}{HERE}",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONNODEBUGRANGES": "1",  # see the top
        "OUTCOMES": str(record),
    }
    result = Run()
    began = time.monotonic()
    with open(output, "ab" if only else "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        hung = wait(process, record)
    result.seconds = time.monotonic() - began
    running = ""
    for line in record.read_text().splitlines() if record.exists() else ():
        event = json.loads(line)
        if "start" in event:
            running = event["start"]
        else:
            result.outcomes[event["test"]] = event["outcome"]
            running = ""
    if hung:
        result.end = f"hang in {running or 'no test'}"
    elif process.returncode not in (0, 1):
        result.end = f"exit status {process.returncode} in {running or 'no test'}"
    return result


def wait(process: subprocess.Popen[bytes], record: Path) -> bool:
    """Wait for the end, or for silence: then the process group is killed, and True returned."""
    size, last, hung = -1, time.monotonic(), False
    while not hung:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            break
        now = record.stat().st_size if record.exists() else 0
        if now != size:
            size, last = now, time.monotonic()
        hung = time.monotonic() - last > SILENCE
    if hung:
        process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return hung


@dataclass
class Compared:
    plain: Run
    patched: Run
    differ: dict[str, tuple[str, str]] = field(default_factory=dict)
    unsteady: dict[str, tuple[str, str]] = field(default_factory=dict)


def differences(plain: Run, patched: Run) -> dict[str, tuple[str, str]]:
    found = {}
    for test in sorted({*plain.outcomes, *patched.outcomes}):
        both = plain.outcomes.get(test, "not run"), patched.outcomes.get(test, "not run")
        if both[0] != both[1]:
            found[test] = both
    return found


def check(suite: Suite) -> Compared:
    source = unpack(suite)
    site = install(suite, source)
    runs = []
    for patched in (False, True):  # each on a server of its own
        with suite.server(source) as setting:
            runs.append(run(suite, source, site, setting, patched, []))
    row = Compared(*runs)
    row.differ = differences(*runs)
    if row.differ and not row.patched.end:
        again = []
        for patched in (False, True):
            with suite.server(source) as setting:
                again.append(run(suite, source, site, setting, patched, list(row.differ)))
        still = differences(*again)
        row.unsteady = {test: both for test, both in row.differ.items() if test not in still}
        row.differ = {test: both for test, both in row.differ.items() if test in still}
    return row


# ---- the table -------------------------------------------------------------------------------


def cells(name: str, row: Compared) -> list[str]:
    counts = [
        sum(outcome == kind for outcome in row.plain.outcomes.values())
        for kind in ("passed", "skipped", "failed", "error")
    ]
    return [
        f"{name} {SUITES[name].sdist.partition('==')[2]}",
        VERSION,
        str(len(row.plain.outcomes)),
        str(counts[0]),
        str(counts[1]),
        str(counts[2] + counts[3]),
        row.patched.end or f"{len(row.differ)}",
        f"{len(row.unsteady)}",
        f"{row.plain.seconds:.0f}",
        f"{row.patched.seconds:.0f}",
    ]


def record_rows(rows: dict[str, Compared]) -> None:
    """Put the rows into the table; rows of other suites and Pythons stay."""
    title = [
        "# Test suites of client libraries under portalpatch",
        "",
        "Written by `make packages` (packages.py says how). Passed, skipped and failed are the plain run's;",
        "a test differs when its outcome under portalpatch is another.",
        "",
        "| suite | Python | tests | passed | skipped | failed | differ | unsteady | plain s | ours s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    kept: dict[tuple[str, str], str] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if match := re.match(r"\| (\S+) \S+ \| (\S+) \|", line):
            kept[match[1], match[2]] = line
        elif match := re.match(r"- (\S+), (\S+): ", line):
            notes.setdefault((match[1], match[2]), []).append(line)
    for name, row in rows.items():
        key = name, VERSION
        kept[key] = f"| {' | '.join(cells(name, row))} |"
        notes[key] = [
            f"- {key[0]}, {key[1]}: `{test}`: {ours}, {theirs} in plain Python{remark}"
            for found, remark in ((row.differ, ""), (row.unsteady, " (unsteady)"))
            for test, (theirs, ours) in found.items()
        ]
    text = title + [kept[key] for key in sorted(kept)]
    listed = [line for key in sorted(notes) for line in notes[key]]
    if listed:
        text += ["", "## Tests that differed", "", *listed]
    TABLE.write_text("\n".join(text) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-record", action="store_true", help="leave the table alone")
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)} (all)")
    args = parser.parse_args()
    rows = {}
    for name in args.suites or [name for name in SUITES if name != "SQLAlchemy-orm"]:
        print(f"{name} ...", flush=True)
        row = rows[name] = check(SUITES[name])
        print("  " + " | ".join(cells(name, row)), flush=True)
        for test, (theirs, ours) in {**row.differ, **row.unsteady}.items():
            unsteady = "unsteady: " if test in row.unsteady else ""
            print(f"  {unsteady}{test}: {ours}, {theirs} in plain Python", flush=True)
        if not args.no_record:
            record_rows({name: row})
    return int(any(row.differ or row.patched.end for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())

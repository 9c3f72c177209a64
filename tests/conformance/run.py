"""`make conformance`: CPython's own tests, plain and under `python -m portalpatch`, test by test.

usage: python run.py [--fast | --extra] [--keep FOLDER] [--jobs N] [--no-record] [--tests FOLDER] [modules ...]
       python run.py --table        writes RESULTS.md anew from results/*.json
       make conformance [PYTHON=python3.12] [ALL=1] [MODULES="test_queue test_sched", or --extra]

Each module of MODULES that this Python's `test` package has runs in a process of its own, plain and
under portalpatch (recorder.py: the main greenlet, and a heartbeat green thread beside it, so that
every wait goes through the hub). Modules it was installed without may be in --tests FOLDER. A package (test_asyncio) runs module by module. Nothing in the tests
is edited.

What counts:

- A test differs when its outcome (ok, fail, error, skip, ...) is not the plain run's. A failure that
  the plain run has too is the environment's. So is a hang or crash of the plain run (test_socket's
  of VSOCK, on a machine that cannot connect to itself so): that test is not run under portalpatch,
  and both go on behind it. A plain run that ends outside a test fails the run.
- SILENCE seconds without a test beginning or ending is a hang; a test that took long in the plain run
  gets three times that more. The processes' stacks are kept, the process group is killed, and
  the module goes on behind the test that hung or crashed.
- Where a test differs its module is run once more both ways, and a test that differed in only one of
  the two rounds runs alone both ways. It is different if it differs in both rounds or alone;
  otherwise it is "unsteady": not counted, but listed in the table, with what it did. A hang or
  crash in any round counts.
- differences.txt lists the tests allowed to differ, each with its cause. A listed test that does not
  differ fails the run, so that the list cannot rot. A hang or a crash fails whatever is listed.

The exit status is 0 only when nothing unlisted differs. The table is recorded in results/ (one file
a Python) and RESULTS.md; those of --extra are not.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORDER = HERE / "recorder.py"
DIFFERENCES = HERE / "differences.txt"
RESULTS = HERE / "results"
TABLE = HERE / "RESULTS.md"

# test_eintr runs _test_eintr in a child, which is not under portalpatch: that one comes here too.
MODULES = """
test_thread test_threading test_threading_local test_threadsignals test_threadedtempfile
test_thread_local_bytecode test_queue test_sched test_concurrent_futures test_socket test_ssl
test_select test_selectors test_poll test_epoll test_eintr _test_eintr test_time test_timeout
test_signal test_subprocess test_popen test_os test_posix test_pty test_fcntl test_ioctl test_io test_file
test_fileio test_logging test_httplib test_httpservers test_urllib test_urllib2
test_urllib2_localnet test_urllib_response test_ftplib test_smtplib test_smtpd test_poplib
test_imaplib test_nntplib test_telnetlib test_asyncore test_asynchat test_socketserver
test_wsgiref test_xmlrpc test_docxmlrpc test_asyncio test_contextlib test_context
test_multiprocessing_fork test_multiprocessing_spawn test_multiprocessing_forkserver
test_faulthandler test_cmd_line test_cmd_line_script test_runpy test_gc test_weakref test_import
"""
# What else has to do with threads, waits, frames, tracing, imports, finalization or files: `--extra`.
# Left out are test_tracemalloc (of its test_snapshot the order of a hash table decides), and what waits
# for another interpreter's or a native thread in C: test__interpchannels, test_interpreters, test_capi.
EXTRA = """
test__xxsubinterpreters test__interpreters test_sys_settrace test_sys_setprofile test_monitoring
test_cprofile test_profile test_pdb test_bdb test_trace test_coroutines test_asyncgen test_generators
test_contextlib_async test_frame test_sys test_atexit test_finalization test_traceback test_exceptions
test_inspect test_exception_group test_except_star test_raise test_with test_yield_from test_functools
test_fork1 test_wait3 test_wait4 test_file_eintr test_unittest test_perf_profiler test_free_threading
test_multiprocessing_main_handling test_doctest test_audit test_tty test_openpty test_resource
test_syslog test_termios test_readline test_mmap test_code test_code_module test_repl test_pyrepl
test_cmd test_fileinput test_external_inspection test_support test_script_helper test_eof
test_sqlite3 test_importlib test_pipes test_getpass test_warnings test_weakset test_site test_venv
test_uuid test_random test_mailbox test_tempfile test_shutil test_tarfile test_zipfile test_gzip
test_bz2 test_lzma test_zlib test_hashlib test_dbm test_dbm_dumb test_dbm_sqlite3 test_shelve test_decimal
test_zoneinfo test_robotparser test_dict test_memoryio test_bufio test_univnewlines test_largefile
test_stat test_posixpath test_genericpath test_pathlib test_glob test_netrc test_ctypes test_pickle
test_urllibnet test_http_cookiejar test_builtin test_baseexception test_descr test_types test_compileall
test_zipimport test_pkgutil test_frozen test_imp test_module test_codecs test_timeit test_pydoc
"""
# Quick and telling; together under 90 seconds.
FAST = """
test_thread test_threading_local test_threadedtempfile test_queue test_sched test_select
test_poll test_epoll test_context test_urllib2_localnet
"""

SILENCE = 30.0  # seconds
PLAIN_SILENCE = 200.0  # a slow machine is no hang of ours
MORE_TESTS: list[str] = []  # folders: --tests, and what write_missing() wrote
VERSION = ".".join(platform.python_version_tuple()[:2])


# ---- one run of one module -------------------------------------------------------------------


@dataclass
class Run:
    """What one module did, plain or under portalpatch."""

    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    beats: int = 0

    def read(self, record: Path) -> tuple[str, bool]:
        """Take the records in. Returns the test that was running at the end, and whether the end
        was reached."""
        running, began, ended = "", 0.0, False
        for line in record.read_text().splitlines() if record.exists() else ():
            event = json.loads(line)
            if "start" in event:
                running, began = event["start"], event["time"]
            elif "test" in event:
                name = event["test"]
                self.outcomes[name] = event["outcome"]
                self.details[name] = event["detail"]
                if name == running:
                    self.seconds[name] = event["time"] - began
                    running = ""
            else:
                self.beats += event["end"]
                ended = True
        return running, ended


def run_module(name: str, patched: bool, folder: Path, plain: Run | None, only: list[str]) -> Run:
    """Run one module to its end, over hangs and crashes, with its traces in `folder`. `plain` is
    the plain run before this one: what hung or crashed there is not run again."""
    run = Run()
    if plain is not None:
        run.outcomes = {test: what for test, what in plain.outcomes.items() if fatal(what)}
    folder.mkdir(parents=True)
    for attempt in range(100):
        record = folder / f"record{attempt}"
        skip = folder / "skip"
        skip.write_text("".join(f"{test}\n" for test in run.outcomes))
        command = [sys.executable, *(["-m", "portalpatch"] if patched else []), str(RECORDER)]
        command += [str(record), name, "--skip", str(skip)]
        if only:
            command += ["--only", *only]
        # Short: below it are the addresses of Unix sockets, and they must fit in 108 characters.
        scratch = Path(tempfile.mkdtemp(prefix="cpython-"))
        (scratch / "tmp").mkdir()
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTHON", "PORTALPATCH", "LD_PRELOAD", "MAKE", "MFLAGS"))
        }
        environment["TMPDIR"] = str(scratch / "tmp")
        if MORE_TESTS:
            environment["CONFORMANCE_TESTS"] = os.pathsep.join(MORE_TESTS)
        if patched:
            environment["PORTALPATCH_CONFORMANCE"] = "1"
        with open(folder / "output", "ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
            hung = wait(process, record, plain if patched else None, folder)
        running, ended = run.read(record)
        shutil.rmtree(scratch, ignore_errors=True)
        if ended and not hung and process.returncode in (0, 1):
            break
        what = "hang" if hung else f"crash ({describe(process.returncode)})"
        where = running or f"test.{name} ({'exit' if ended else 'outside a test'})"
        run.outcomes[where] = what
        run.details[where] = f"see {folder}"
        if not running:
            break
    return run


def describe(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def wait(process: subprocess.Popen[bytes], record: Path, plain: Run | None, folder: Path) -> bool:
    """Wait for the end or for silence. Returns whether it was silence; kills the group then."""
    size, last = 0, time.monotonic()
    while True:
        try:
            process.wait(0.2)
            hung = False
            break
        except subprocess.TimeoutExpired:
            pass
        now = record.stat().st_size if record.exists() else 0
        if now != size:
            size, last = now, time.monotonic()
        limit = PLAIN_SILENCE
        if plain is not None:
            running = last_started(record)
            limit = SILENCE + 3 * plain.seconds.get(running, 0.0)
        if time.monotonic() - last > limit:
            hung = True
            dump(process.pid, folder / "stacks")
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return hung


def last_started(record: Path) -> str:
    if not record.exists():
        return ""
    with open(record, "rb") as file:
        file.seek(max(0, record.stat().st_size - 100_000))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "start" in event:
                return str(event["start"])
    return ""


def dump(leader: int, path: Path) -> None:
    """Write what every process of the session of `leader` waits for, with stacks if gdb is here."""
    with open(path, "a") as file:
        for entry in sorted(Path("/proc").glob("[0-9]*")):
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) != leader:
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                file.write(f"\n==== process {entry.name}, parent {stat[1]}: {command}\n")
                for task in sorted((entry / "task").iterdir()):
                    waits = (task / "wchan").read_text()
                    call = (task / "syscall").read_text()
                    file.write(f"thread {task.name}: {waits} {call}")
            except OSError:
                continue
            file.flush()
            if shutil.which("gdb"):
                commands = ["-ex", "thread apply all bt 30", "-ex", "thread apply all py-bt"]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(
                        ["gdb", "-p", entry.name, "-batch", *commands],
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                        timeout=60,
                    )


# ---- both ways, compared ---------------------------------------------------------------------


@dataclass
class Compared:
    """One module's row: counts, and the tests that differ as test -> [plain, patched, detail]."""

    tests: int = 0
    ok: int = 0
    skipped: int = 0
    failing_plain: int = 0
    differ: dict[str, list[str]] = field(default_factory=dict)
    unsteady: dict[str, list[str]] = field(default_factory=dict)


def compare(plain: Run, patched: Run) -> dict[str, list[str]]:
    """The tests whose outcomes differ. One that a run lost to a failing class fixture counts."""
    found = {}
    for test in sorted({*plain.outcomes, *patched.outcomes}):
        ours = patched.outcomes.get(test, "not run")
        theirs = plain.outcomes.get(test, "not run")
        if ours != theirs:
            found[test] = [theirs, ours, patched.details.get(test) or plain.details.get(test, "")]
    return found


class PlainFailed(Exception):
    """The plain run ended outside a test: there is nothing to compare with."""


def fatal(outcome: str) -> bool:
    return outcome.startswith(("hang", "crash"))


def check_module(name: str, folder: Path) -> Compared:
    plain = run_module(name, False, folder / "plain", None, [])
    for test, what in plain.outcomes.items():
        if fatal(what) and test.startswith(f"test.{name} ("):
            raise PlainFailed(f"{test}: {what} in plain Python ({plain.details[test]})")
    patched = run_module(name, True, folder / "patched", plain, [])
    row = Compared(tests=len(plain.outcomes))
    for outcome in plain.outcomes.values():
        row.ok += outcome == "ok"
        row.skipped += outcome == "skip"
        row.failing_plain += outcome in ("fail", "error", "unexpected success") or fatal(outcome)
    found = compare(plain, patched)
    if found and set(found) != {test for test, (_, ours, _) in found.items() if fatal(ours)}:
        settle(name, folder, plain, found, row)
    else:
        row.differ = found
    if not patched.beats and any(outcome == "ok" for outcome in patched.outcomes.values()):
        # Too short for one beat, or the hub was not in use.
        print(f"note: no heartbeat during {name}")
    return row


def settle(name: str, folder: Path, plain: Run, found: dict[str, list[str]], row: Compared) -> None:
    """Tell what differs again, or alone, from what differed only once."""
    again_plain = run_module(name, False, folder / "again" / "plain", plain, [])
    again = compare(again_plain, run_module(name, True, folder / "again" / "patched", plain, []))
    for number, test in enumerate(sorted({*found, *again})):
        what = found.get(test) or again[test]
        differs = (test in found and test in again) or fatal(what[1])
        if not differs and test in {**plain.outcomes, **again_plain.outcomes} and "(" not in test:
            here = folder / f"alone{number}"
            first = run_module(name, False, here / "plain", plain, [test])
            second = run_module(name, True, here / "patched", plain, [test])
            differs = bool(compare(first, second))
        (row.differ if differs else row.unsteady)[test] = what
        if plain.outcomes.get(test) != again_plain.outcomes.get(test):
            what[0] += " (flaky)"


# ---- what may differ -------------------------------------------------------------------------


def expected_differences() -> dict[str, str]:
    """test -> cause, of those lines of differences.txt that speak of this Python."""
    expected = {}
    for line in DIFFERENCES.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        test, versions, cause = (part.strip() for part in line.split("|", 2))
        if not cause:
            sys.exit(f"{DIFFERENCES.name}: {test} has no cause")
        if VERSION in versions.split():
            expected[test] = cause
    return expected


def judge(rows: dict[str, Compared], expected: dict[str, str]) -> list[str]:
    """What fails the run, one line each."""
    wrong = []
    for name, row in rows.items():
        for test, (theirs, ours, detail) in row.differ.items():
            if fatal(ours):
                wrong.append(f"{test}: {ours}, {theirs} in plain Python ({detail})")
            elif test not in expected:
                wrong.append(f"{test}: {ours}, {theirs} in plain Python\n{indent(detail)}")
        for test, (theirs, ours, _) in row.unsteady.items():
            print(f"unsteady: {test}: was once {ours}, {theirs} in plain Python")
        for test in expected:
            if f".{name}." in test and test not in row.differ and test not in row.unsteady:
                wrong.append(f"{test}: listed in {DIFFERENCES.name}, but does not differ")
    return wrong


def indent(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines()[-12:])


# ---- the table -------------------------------------------------------------------------------


def store(rows: dict[str, Compared]) -> None:
    """Put the rows into results/<version>.json, one line a module so that changes can be read."""
    path = RESULTS / f"{VERSION}.json"
    RESULTS.mkdir(exist_ok=True)
    stored = json.loads(path.read_text()) if path.exists() else {}
    for name, row in rows.items():
        entry = dict(vars(row))
        for kind in ("differ", "unsteady"):
            entry[kind] = {test: what[:2] for test, what in entry[kind].items()}
        entry["python"] = platform.python_version()
        stored[name] = entry
    lines = [f"{json.dumps(name)}: {json.dumps(stored[name])}" for name in sorted(stored)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_table() -> None:
    text = [
        "# CPython's own tests under portalpatch",
        "",
        "Written by `make conformance` (run.py says how, differences.txt gives each difference's cause).",
        "A cell is the tests that ran, and how many of them have another outcome than in plain Python.",
        "An empty one is a module that was not run. The 3.11 here had been installed without",
        "test_concurrent_futures: that is the file of Debian's libpython3.11-testsuite (3.11.2), by --tests.",
        "So had the 3.12: that is 3.13.0's package, without the names that 3.12's test.support lacks;",
        "12 of its tests fail on 3.12, plain as under portalpatch.",
        "",
        "Beside the table almost all of the rest of the package ran once (November 2026; run.py --extra is most of",
        "it): 28,059 tests on 3.11.7 and 30,896 on 3.13.0. Different are those in differences.txt, test_tracemalloc's",
        "test_snapshot now and then, plain as under portalpatch, and on 3.13 (one on 3.12) eleven tests that wait in C for a second",
        "thread to run a subinterpreter or read its channel (test__interpchannels, test_interpreters.test_channels,",
        "test_capi.test_misc), and hang.",
        "",
    ]
    tables = {
        path.stem: json.loads(path.read_text())
        for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem)
    }
    names = sorted({name for table in tables.values() for name in table})
    text.append("| module | " + " | ".join(tables) + " |")
    text.append("|---|" + "---|" * len(tables))
    for name in names:
        cells = []
        for table in tables.values():
            row = table.get(name)
            if row is None:
                cells.append("")
                continue
            cell = str(row["tests"])
            fatals = sum(fatal(what[1]) for what in row["differ"].values())
            if row["differ"]:
                cell += f", **{len(row['differ'])} differ**"
            if fatals:
                cell += f" ({fatals} hang or crash)"
            if row["unsteady"]:
                cell += f", {len(row['unsteady'])} unsteady"
            cells.append(cell)
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    totals = []
    for table in tables.values():
        differ = sum(len(row["differ"]) for row in table.values())
        totals.append(f"{sum(row['tests'] for row in table.values())}, {differ} differ")
    text.append("| **all** | " + " | ".join(totals) + " |")
    for kind, title in (
        ("differ", "Different"),
        ("unsteady", "Unsteady: differed once, not alone and not again"),
    ):
        text += ["", f"## {title}", ""]
        for version, table in tables.items():
            for name in sorted(table):
                for test, (theirs, ours) in sorted(table[name][kind].items()):
                    text.append(f"- {version} `{test}`: {ours}, {theirs} in plain Python")
    TABLE.write_text("\n".join(text) + "\n")


# ---- the whole -------------------------------------------------------------------------------


def write_missing(folder: Path) -> str:
    """Some Pythons were installed without three modules of four lines that only say what to take
    from `_test_multiprocessing`: write those."""
    folder.mkdir()
    for method in ("fork", "spawn", "forkserver"):
        name = f"test_multiprocessing_{method}"
        if importlib.util.find_spec(f"test.{name}") is None:
            (folder / f"{name}.py").write_text(
                "from test._test_multiprocessing import install_tests_in_module_dict\n"
                f"install_tests_in_module_dict(globals(), {method!r})\n"
            )
    return str(folder)


def modules_here(wanted: list[str]) -> list[str]:
    """The modules of `wanted` that this Python has, packages as their modules."""
    found = []
    for name in dict.fromkeys(wanted):
        spec = importlib.util.find_spec(f"test.{name}")
        if spec is None:
            continue
        folders = spec.submodule_search_locations
        names = {path.stem for folder in folders or () for path in Path(folder).glob("test_*.py")}
        found += [f"{name}.{part}" for part in sorted(names)] if names else [name]
    return found


def run_all(names: list[str], keep: Path, jobs: int) -> tuple[dict[str, Compared], list[str]]:
    """Returns the rows, and what is wrong with the modules that have none."""
    rows, failed = {}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(check_module, name, keep / name): name for name in names}
        for future in concurrent.futures.as_completed(futures):
            name = futures[future]
            try:
                row = rows[name] = future.result()
            except PlainFailed as error:
                failed.append(str(error))
                continue
            print(
                f"{name}: {row.tests} tests, {len(row.differ)} differ, "
                f"{len(row.unsteady)} unsteady",
                flush=True,
            )
    return {name: rows[name] for name in names if name in rows}, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a quick part of the modules")
    parser.add_argument("--extra", action="store_true", help="modules beside those of the table")
    parser.add_argument("--keep", type=Path, help="leave records, output and stacks here")
    parser.add_argument("--jobs", type=int, default=2, help="modules at a time (2)")
    parser.add_argument("--no-record", action="store_true", help="leave the table alone")
    parser.add_argument("--table", action="store_true", help="only write RESULTS.md anew")
    parser.add_argument("--tests", help="a folder with modules this Python's test package lacks")
    parser.add_argument("modules", nargs="*", help="which modules of the test package (all listed)")
    args = parser.parse_args()
    if args.table:
        write_table()
        return 0
    if importlib.util.find_spec("test.support") is None:
        print("portalpatch: this Python has no test package (Debian: libpython3-testsuite)")
        return 2
    with contextlib.ExitStack() as stack:
        keep = args.keep
        if keep is None:
            keep = Path(tempfile.mkdtemp(prefix="conformance-"))
        else:
            shutil.rmtree(keep, ignore_errors=True)
            keep.mkdir(parents=True)
        if args.tests:
            MORE_TESTS.append(os.path.abspath(args.tests))
        MORE_TESTS.append(write_missing(keep.resolve() / "modules"))
        importlib.import_module("test").__path__ += MORE_TESTS
        listed = FAST if args.fast else EXTRA if args.extra else MODULES
        names = modules_here(args.modules or listed.split())
        rows, wrong = run_all(names, keep.resolve(), args.jobs)
        wrong += judge(rows, expected_differences())
        if args.keep is None and not wrong:
            stack.callback(shutil.rmtree, keep, ignore_errors=True)
    if not (args.no_record or args.fast or args.extra):
        store(rows)
        write_table()
    for line in wrong:
        print(line)
    total = sum(row.tests for row in rows.values())
    print(f"Python {VERSION}: {total} tests of {len(rows)} modules, {len(wrong)} unexpected")
    if wrong:
        print(f"records, output and stacks: {keep}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

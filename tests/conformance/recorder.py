"""Runs one module of CPython's `test` package and records every test's outcome, as JSON lines.

usage: python [-m portalpatch] recorder.py RECORD MODULE [--skip FILE] [--only ID ...]

Started by run.py, plain and under portalpatch, in a process of its own. The tests are CPython's,
unedited; what regrtest sets up for them is set up here (a temporary working folder, verbosity,
resources). Modules are loaded as unittest loads them: `test_main`, which a few modules of 3.10
still have, is not used.

Under portalpatch a heartbeat green thread runs all the time, so that every wait of the main
greenlet goes through the hub and lets another green thread run. It is started by
`_thread.start_new_thread`: `threading` does not list it. `_thread._count()` counts it, which the
tests compare with itself only. The last record says how often it beat.

Records: {"start": id}, {"test": id, "outcome": ..., "detail": ...}, {"end": beats}. Only this
process writes them: a forked child that runs on into the tests has no say.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import unittest

HEARTBEAT = 0.02  # seconds
# No resource that needs the internet, a screen, a sound card or gigabytes.
RESOURCES = ("subprocess", "cpu", "walltime", "decimal", "curses")
# These modules ask for "network" as a whole but talk to loopback; but for this class, whose setUp
# looks for www.python.org.
LOOPBACK = ("test_socketserver", "test_timeout")
INTERNET = "test.test_timeout.TCPTimeoutTestCase."
# Skipped as a whole without a controlling terminal, which run.py's new session does not have.
TERMINAL = ("test_ioctl",)
# Worst last: a test with several outcomes (subtests, tearDownClass) keeps the worst.
OUTCOMES = ("ok", "skip", "expected failure", "unexpected success", "fail", "error")

process = os.getpid()
beats = 0


class Record:
    """The file of records. It is opened for each one: tests close fds, count them and mock."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls = os.open, os.write, os.close, os.getpid, time.monotonic

    def write(self, **record: object) -> None:
        open_, write, close, getpid, monotonic = self.calls
        if getpid() != process:
            return
        record["time"] = round(monotonic(), 3)
        fd = open_(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        try:
            write(fd, (json.dumps(record) + "\n").encode())
        finally:
            close(fd)


class Result(unittest.TextTestResult):
    record: Record

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.outcomes: dict[str, tuple[str, str]] = {}
        self.running = ""

    def note(self, test: unittest.TestCase, outcome: str, detail: str = "") -> None:
        name = test.id()
        if name == self.running:
            old = self.outcomes.get(name)
            if old is None or OUTCOMES.index(outcome) > OUTCOMES.index(old[0]):
                self.outcomes[name] = outcome, detail
        else:  # setUpClass, setUpModule and their like, or a skipped class
            self.record.write(test=name, outcome=outcome, detail=detail)

    def startTest(self, test):
        super().startTest(test)
        self.running = test.id()
        self.record.write(start=self.running)

    def stopTest(self, test):
        super().stopTest(test)
        outcome, detail = self.outcomes.pop(test.id(), ("ok", ""))
        self.running = ""
        self.record.write(test=test.id(), outcome=outcome, detail=detail)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "ok")

    def addError(self, test, err):
        super().addError(test, err)
        self.note(test, "error", self.errors[-1][1])

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.note(test, "fail", self.failures[-1][1])

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        # A subtest's skip does not make the test skipped.
        if test.id() == self.running or "subTest" not in type(test).__name__:
            self.note(test, "skip", reason)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self.note(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.note(test, "unexpected success")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            text = (self.failures if failed else self.errors)[-1][1]
            self.note(test, "fail" if failed else "error", f"{subtest.id()}\n{text}")


def start_heartbeat() -> None:
    import _thread

    sleep = time.sleep

    def beat() -> None:
        global beats
        while True:
            sleep(HEARTBEAT)
            beats += 1

    _thread.start_new_thread(beat, ())


def take_terminal() -> None:
    """Make a new pseudo-terminal that of this session, which this process must lead."""
    import fcntl
    import termios

    fcntl.ioctl(os.openpty()[1], termios.TIOCSCTTY, 0)


def find_more_tests() -> None:
    """Let the package `test` find modules in the folders of CONFORMANCE_TESTS, too."""
    folders = os.environ.get("CONFORMANCE_TESTS")
    if folders:
        import test

        test.__path__ += folders.split(os.pathsep)


def select(suite: unittest.TestSuite, skip: set[str], only: set[str]) -> None:
    """Take out of `suite` the tests in `skip`, those for the internet, and all not in `only` when
    there are any there."""
    kept: list[unittest.TestCase | unittest.TestSuite] = []
    for test in suite._tests:
        if isinstance(test, unittest.TestSuite):
            select(test, skip, only)
            kept.append(test)
        elif test.id().startswith(INTERNET) or test.id() in skip:
            continue
        elif not only or test.id() in only:
            kept.append(test)
    suite._tests = kept


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("record")
    parser.add_argument("module")
    parser.add_argument("--skip", help="a file with the tests to leave out, one a line")
    parser.add_argument("--only", nargs="+", default=[])
    args = parser.parse_args()
    record = Record(os.path.abspath(args.record))
    Result.record = record
    skip: set[str] = set()
    if args.skip:
        with open(args.skip) as file:
            skip = set(file.read().splitlines())
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    sys.argv[1:] = []
    if "PORTALPATCH_CONFORMANCE" in os.environ:
        del os.environ["PORTALPATCH_CONFORMANCE"]
        if "portalpatch" not in sys.modules:
            sys.exit("recorder.py: portalpatch is not active")
        start_heartbeat()

    if args.module in TERMINAL:
        take_terminal()
    find_more_tests()
    from test import support

    support.verbose = 0
    support.use_resources = [*RESOURCES, *["network"] * (args.module in LOOPBACK)]
    # As regrtest does with --timeout. Longer than run.py's limit on silence helps nobody, and some
    # tests sleep this long by a race of their own (thread pools' test_terminate up to 3.11).
    support.LONG_TIMEOUT = min(support.LONG_TIMEOUT, 25.0)
    try:
        module = importlib.import_module(f"test.{args.module}")
    except unittest.SkipTest as reason:
        record.write(test=f"test.{args.module}", outcome="skip", detail=str(reason))
        record.write(end=beats)
        return
    loader = unittest.TestLoader()
    suite = loader.loadTestsFromModule(module)
    select(suite, skip, set(args.only))
    runner = unittest.TextTestRunner(sys.stdout, resultclass=Result, verbosity=2)
    result = runner.run(suite)
    record.write(end=beats)
    sys.exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a child that multiprocessing has started afresh
    find_more_tests()

"""A pytest plugin that records every test's outcome, as JSON lines in the file $OUTCOMES names.

Loaded with `-p outcomes` by packages.py, plain and under portalpatch. A record is written as a test
begins, {"start": id}, and when it is over, {"test": id, "outcome": ...}: the worst of its setup,
call and teardown. Only this process writes them, never a child that was forked in a test.
"""

from __future__ import annotations

import json
import os

import pytest

# Worst last.
ORDER = ("passed", "skipped", "xfailed", "xpassed", "failed", "error")

process = os.getpid()
path = os.environ.get("OUTCOMES", os.devnull)
outcomes: dict[str, str] = {}


def write(**record: str) -> None:
    if os.getpid() == process:
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    write(start=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if outcome == "skipped" else "xpassed"
    elif outcome == "failed" and report.when != "call":
        outcome = "error"
    before = outcomes.get(report.nodeid, "passed")
    outcomes[report.nodeid] = max(before, outcome, key=ORDER.index)


def pytest_runtest_logfinish(nodeid: str) -> None:
    write(test=nodeid, outcome=outcomes.pop(nodeid, "not run"))

"""The quick part of `make conformance`, on every `make test` of the default Python."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


@pytest.mark.skipif(
    importlib.util.find_spec("test") is None or importlib.util.find_spec("test.support") is None,
    reason="this Python has no test package (Debian: libpython3-testsuite)",
)
def test_quick_modules_of_the_standard_librarys_tests_equal_plain_python():
    done = subprocess.run(
        [sys.executable, str(RUN), "--fast", "--jobs", "3"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

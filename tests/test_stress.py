"""A few seeds of the stress program (tests/stress/): `make stress` runs many, under ASan as well."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parent / "stress" / "program.py"


@pytest.mark.parametrize("seed", range(1001, 1006))
def test_everything_mixed_keeps_its_promises(run_app, seed):
    done = run_app(PROGRAM, str(seed), mode="cli", flags=["-X", "dev"], limit=150).check()
    assert (done.out, done.err) == (f"seed {seed}: ok\n", "")


def test_the_program_itself_passes_under_plain_python(run_app):
    done = run_app(PROGRAM, "1001", mode="plain", flags=["-X", "dev"], limit=150).check()
    assert (done.out, done.err) == ("seed 1001: ok\n", "")

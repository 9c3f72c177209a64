"""Every scenario of scenarios_*.c says the same plain, passing through, and parking (differential)."""

import os
import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).parent


def test_scenarios_are_as_plain_in_every_mode(built: pathlib.Path) -> None:
    run = subprocess.run([HERE / "differential", built], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    modes = dict(re.findall(r"^(\w+) +(\d+ scenarios, passed \d+ parked \d+)$", run.stdout, re.M))
    assert modes.keys() == {"plain", "passing", "parking", "old", "attached"}
    assert "passed 0 parked 0" in modes["passing"]
    for mode in ("parking", "old", "attached"):
        scenarios, passed, parked = map(int, re.findall(r"\d+", modes[mode]))
        assert scenarios >= 150
        assert passed > scenarios and parked > scenarios, "the parking path was hardly used"


def test_random_programs_are_as_plain_in_every_mode(built: pathlib.Path) -> None:
    """A failing seed: `make -C tests/interpose fuzz SEEDS=that,1`. FUZZ=first,count for others."""
    seeds = os.environ.get("FUZZ", "1,3000")
    env = {**os.environ, "PROGRAM": "fuzz", "FUZZ": seeds, "SCENARIOS_AT_ONCE": "16"}
    run = subprocess.run([HERE / "differential", built], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(f" {seeds.split(',')[1]} scenarios") == 5


def test_no_scenario_fails_by_itself(built: pathlib.Path) -> None:
    transcript = subprocess.run([built / "scenarios"], capture_output=True, text=True).stdout
    for failure in ("HANGS", "SETUP FAILED", "exit status"):
        assert failure not in transcript
